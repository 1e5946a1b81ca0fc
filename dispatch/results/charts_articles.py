"""Articles of feeds, the newest first, and those that have some words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dispatch.results import reading
from dispatch.results import reading_pages as pages
from dispatch.results.formats import plain
from dispatch.results.reading_filters import quoted
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import duckdb

ARTICLES = 50
MOST_ARTICLES = 200
WORDS = 10
SUMMARY = 500
_TOLD = ("feed", "id", "title", "author", "url", "published", "image")
_MOMENT = "coalesce(published, _saved_at)"


def articles(
    connection: duckdb.DuckDBPyConnection,
    *,
    feed: str | None = None,
    search: str = "",
    limit: int = ARTICLES,
    after: str | None = None,
) -> dict[str, Any]:
    """Articles with all words of ``search`` in title, summary, author or text, in small or capital letters; by when
    they were published, or else saved. Raises FieldError, NotFound.
    """
    shape = pages.found(connection, "articles")
    words = search.split()
    if len(words) > WORDS:
        raise FieldError("search", f"has {len(words)} words; at most {WORDS} are allowed")
    inside, values = ("WHERE feed = ?", [feed]) if feed is not None else ("", [])
    tests: list[str] = []
    for word in words:
        told = " || ' ' || ".join(f"coalesce({quoted(name)}, '')" for name in ("title", "summary", "author", "text"))
        tests.append(f"contains(lower({told}), lower(?))")
        values.append(word)
    order = [
        pages.Sorted("at", "timestamp", True, _MOMENT),
        pages.Sorted("feed", "string"),
        pages.Sorted("id", "string"),
    ]
    if after is not None:
        at, _ = pages.opened(after, order)
        test, more = pages.beyond(order, at)
        tests.append(f"{test} AND NOT (feed = ? AND id = ?)")
        values += [*more, at[1], at[2]]
    where = f"WHERE {' AND '.join(tests)}" if tests else ""
    by = ", ".join(f"{each.value} {'DESC' if each.down else 'ASC'} NULLS LAST" for each in order)
    columns = ", ".join(map(quoted, _TOLD))
    sql = (
        f"SELECT {columns}, left(coalesce(nullif(summary, ''), text), {SUMMARY}) AS summary, _saved_at, {_MOMENT} "
        f"FROM ({reading.newest(shape.name, shape.key, inside)}) {where} ORDER BY {by} LIMIT {limit + 1:d}"
    )
    rows = connection.execute(sql, values).fetchall()
    following = None
    if len(rows) > limit:
        last = rows[limit - 1]
        following = pages.closed(order, [last[-1], last[0], last[1]], 1)
    names = [*_TOLD, "summary", "saved_at"]
    return {
        "results": [{name: plain(value) for name, value in zip(names, row[:-1], strict=True)} for row in rows[:limit]],
        "next": following,
    }


def article(connection: duckdb.DuckDBPyConnection, feed: str, id: str) -> dict[str, Any] | None:
    """One article as it is now, with its whole text."""
    shape = pages.found(connection, "articles")
    newest = reading.newest(shape.name, shape.key, "WHERE feed = ? AND id = ?")
    found = connection.execute(f"SELECT {', '.join(map(quoted, shape.types))}, _saved_at FROM ({newest})", [feed, id])
    row = found.fetchone()
    return None if row is None else {n: plain(v) for n, v in zip([*shape.types, "saved_at"], row, strict=True)}

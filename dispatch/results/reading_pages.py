"""Tables for people who look at them: what a table is, a page of its rows with where the next one begins, how many rows
a filter leaves, and how often which value is there. Each answer is bounded in rows, and in time by ``within``.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatch.results import catalogue, reading
from dispatch.results import reading_filters as filters
from dispatch.results.datasets import LINEAGE
from dispatch.results.reading_filters import quoted
from nodes.executors.base import shown
from nodes.protocol import FieldError, NotFound, Unprocessable

if TYPE_CHECKING:
    import duckdb

    from dispatch.results.base import Store

CURSOR_LENGTH = 20_000
_INTERRUPTED_EVERY = 0.005


class OutOfTime(Unprocessable):
    """It took longer than a setting allows, and was ended."""


@contextmanager
def within(store: Store, seconds: float, setting: str = "read_seconds") -> Iterator[duckdb.DuckDBPyConnection]:
    """A reader of ``store`` that is interrupted after ``seconds``. Raises OutOfTime, which names ``setting``."""
    import duckdb

    late, done = threading.Event(), threading.Event()
    with store.reader() as connection:

        def end() -> None:
            if not done.wait(seconds):
                late.set()
                # Again and again: between two statements it would be lost.
                while not done.wait(_INTERRUPTED_EVERY):
                    connection.interrupt()

        watch = threading.Thread(target=end, name="within", daemon=True)
        watch.start()
        try:
            with store._errors():
                yield connection
        except duckdb.Error as error:
            if not late.is_set():
                # Such as a view that fails over rows that are there.
                if isinstance(error, duckdb.DataError | duckdb.ProgrammingError):
                    raise Unprocessable(str(error).splitlines()[0]) from error
                raise
            raise OutOfTime(
                f"this took longer than {seconds:g} s and was ended: ask for less, or raise the setting {setting}"
            ) from None
        finally:
            done.set()
            watch.join()  # before the connection is closed


@dataclass(frozen=True)
class Shape:
    """A table as the database has it. ``of``: the table that a view is of."""

    name: str
    types: Mapping[str, str]
    key: tuple[str, ...] = ()
    of: str = ""

    def with_lineage(self) -> Shape:
        return Shape(self.name, {**self.types, **LINEAGE}, self.key, self.of)


def table(connection: duckdb.DuckDBPyConnection, name: str) -> Shape | None:
    """The table or view ``name``, or None where there is none."""
    for known, columns, key in catalogue.known(connection):
        if known == name:
            return Shape(name, {column.name: column.type for column in columns}, key)
    if (of := catalogue.views(connection).get(name)) is not None:
        return Shape(name, {each.name: each.type for each in catalogue.described(connection, name)}, (), of)
    return None


def names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Tables, then views."""
    return [*(name for name, *_ in catalogue.known(connection)), *catalogue.views(connection)]


def found(connection: duckdb.DuckDBPyConnection, name: str) -> Shape:
    """Raises NotFound, which names the tables there are."""
    if (there := table(connection, name)) is None:
        raise NotFound(f"there is no table {shown(name)}; there are: {', '.join(names(connection)) or 'none yet'}")
    return there


@dataclass(frozen=True)
class Asked:
    """Which rows of a table, and in which order. As in ``Store.select``."""

    run: int | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    order: Sequence[str] = ()
    raw: bool = False


@dataclass(frozen=True)
class Source:
    """``Asked`` as SQL: FROM and WHERE, and the values for both."""

    shape: Shape
    sql: str
    tests: Sequence[str]
    values: Sequence[Any]

    @property
    def where(self) -> str:
        return f"WHERE {' AND '.join(self.tests)}" if self.tests else ""


def source(shape: Shape, asked: Asked) -> Source:
    """Raises FieldError for columns, operators and values that cannot be."""
    if shape.of and (asked.run is not None or asked.raw):
        raise FieldError("raw" if asked.raw else "run", f"{shape.name} is a view, whose rows come from no run")
    whole = shape.with_lineage() if asked.raw else shape
    # Without a natural key every row that was saved counts; they are read where they have numbers.
    every = asked.raw or not (shape.key or shape.of)
    return Source(whole, *reading.matching(shape.name, whole.types, shape.key, asked.run, asked.where, every))


# Pages


ROWID = "rowid"
"""Of the tables that rows are saved in: a number that no other row has, and that stays."""
HASH = "~"


@dataclass(frozen=True)
class Sorted:
    """One column of an order, or ``sql`` for it. Rows without a value come last, whichever way."""

    name: str
    kind: str
    down: bool = False
    sql: str = ""

    @property
    def value(self) -> str:
        return self.sql or quoted(self.name)

    def __str__(self) -> str:
        return f"-{self.name}" if self.down else self.name


def total_order(shape: Shape, asked: Asked, key: Sequence[str] = ()) -> list[Sorted]:
    """The order that was asked for, made one in which no two rows change places: by the natural key; raw rows as they
    were saved. Rows of a view by the ``key`` of its table, their numbers and times, and by all they have.

    Raises FieldError.
    """
    order: dict[str, Sorted] = {}
    for name in asked.order:
        column = name.removeprefix("-")
        if column not in shape.types:
            raise FieldError(
                "ordering", f"{shown(column)} is no column of {shape.name}; there are: {', '.join(shape.types)}"
            )
        order.setdefault(column, Sorted(column, shape.types[column], name.startswith("-")))
    if shape.of:
        numbers = [name for name, kind in shape.types.items() if kind in ("int64", "timestamp")]
        for name in [*(each for each in key if each in shape.types), *numbers]:
            order.setdefault(name, Sorted(name, shape.types[name]))
        every = ", ".join(map(quoted, shape.types))
        order[HASH] = Sorted(HASH, "int64", sql=f"CAST(hash({every}) >> 1 AS BIGINT)")
    elif asked.raw or not shape.key:
        order[ROWID] = Sorted(ROWID, "int64", sql=ROWID)
    else:
        for name in shape.key:
            order.setdefault(name, Sorted(name, shape.types[name]))
    return list(order.values())


@dataclass(frozen=True)
class Page:
    columns: list[str]
    rows: list[tuple[Any, ...]]
    next: str | None
    """The cursor of the page after this one; None where this is the last."""


def page(connection: duckdb.DuckDBPyConnection, shape: Shape, asked: Asked, limit: int, after: str | None) -> Page:
    """``limit`` rows in a total order, those after the cursor ``after``. Raises FieldError.

    Rows that are saved meanwhile do not move others to another page.
    """
    made = source(shape, asked)
    of = table(connection, shape.of) if shape.of else None
    order = total_order(made.shape, asked, of.key if of else ())
    chosen = _chosen(made.shape, asked.columns)
    tests, values = list(made.tests), list(made.values)
    at: list[Any] | None = None
    skip = 0
    if after is not None:
        at, skip = opened(after, order)
        test, more = beyond(order, at)
        tests.append(test)
        values += more
    # Beside what is shown, what the cursor is made of.
    told = [*map(quoted, chosen), *(each.value for each in order)]
    sql = f"SELECT {', '.join(told)} FROM {made.sql}"
    if tests:
        sql += f" WHERE {' AND '.join(tests)}"
    by = ", ".join(f"{each.value} {'DESC' if each.down else 'ASC'} NULLS LAST" for each in order)
    rows = connection.execute(f"{sql} ORDER BY {by} LIMIT {limit + 1:d} OFFSET {skip:d}", values).fetchall()
    shown_rows = [row[: len(chosen)] for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(chosen, shown_rows, None)
    places = [repr(row[len(chosen) :]) for row in rows[:limit]]
    same = places.count(places[-1])
    if at is not None and places[-1] == repr(tuple(at)):
        same += skip  # rows that differ in nothing, more of them than there is room for on a page
    return Page(chosen, shown_rows, closed(order, rows[limit - 1][len(chosen) :], same))


def beyond(order: Sequence[Sorted], at: Sequence[Any]) -> tuple[str, list[Any]]:
    """SQL for: not before the row whose values of ``order`` are ``at``; and the values for its placeholders."""
    ways: list[str] = []
    values: list[Any] = []
    equal: list[str] = []
    given: list[Any] = []
    for each, value in zip(order, at, strict=True):
        if value is not None:
            further = f"({each.value} {'<' if each.down else '>'} ? OR {each.value} IS NULL)"
            ways.append(" AND ".join([*equal, further]))
            values += [*given, value]
        equal.append(f"{each.value} IS NOT DISTINCT FROM ?")
        given.append(value)
    ways.append(" AND ".join(equal))
    return f"({' OR '.join(f'({way})' for way in ways)})", [*values, *given]


def _chosen(shape: Shape, columns: Sequence[str] | None) -> list[str]:
    for name in columns or ():
        if name not in shape.types:
            raise FieldError(
                "columns", f"{shown(name)} is no column of {shape.name}; there are: {', '.join(shape.types)}"
            )
    if columns is not None and not columns:
        raise FieldError("columns", "at least one is needed")
    return list(dict.fromkeys(shape.types if columns is None else columns))


def closed(order: Sequence[Sorted], at: Sequence[Any], skip: int) -> str:
    told = [value.isoformat() if isinstance(value, dt.datetime) else value for value in at]
    text = json.dumps([[str(each) for each in order], told, skip], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def opened(cursor: str, order: Sequence[Sorted]) -> tuple[list[Any], int]:
    """The values of ``order`` where it stands, and how many rows with exactly these were shown. Raises FieldError."""
    try:
        if len(cursor) > CURSOR_LENGTH:
            raise ValueError
        padded = cursor + "=" * (-len(cursor) % 4)
        by, at, skip = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not (isinstance(by, list) and isinstance(at, list) and len(by) == len(at) and type(skip) is int):
            raise ValueError
        if not 0 <= skip < 2**53:
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise FieldError("after", f"{shown(cursor)} is no cursor of this table; take `next` of a page before") from None
    if by != [str(each) for each in order]:
        raise FieldError("after", "is of another ordering; begin without it")
    values: list[Any] = []
    for each, value in zip(order, at, strict=True):
        if isinstance(value, float) and each.kind == "float64":
            values.append(value)  # NaN and the infinities, too, which are values like others here
        else:
            values.append(None if value is None else filters.valued("after", each.kind, value))
    return values, skip


# Counts


@dataclass(frozen=True)
class Count:
    """``rows``: how many there are; at most so many where it is not ``exact``; None where nothing is known."""

    rows: int | None
    exact: bool
    seconds: float


def count(store: Store, shape: Shape, asked: Asked, seconds: float) -> Count:
    """How many rows ``asked`` leaves. Where that takes longer, how many were saved, of which these are some."""
    began = time.monotonic()
    made = source(shape, asked)
    try:
        with within(store, seconds, "count_seconds") as connection:
            sql = f"SELECT count(*) FROM {made.sql} {made.where}"
            (rows,) = _one(connection, sql, made.values)
            return Count(rows, True, time.monotonic() - began)
    except OutOfTime:
        return Count(most(store, shape), False, time.monotonic() - began)


def most(store: Store, shape: Shape) -> int | None:
    """How many rows were saved, replaced ones too: known without counting. A view has none of its own."""
    if shape.of:
        return None
    with store.reader() as connection, store._errors():
        (rows,) = _one(connection, f"SELECT count(*) FROM {quoted(catalogue.rows_of(shape.name))}", [])
        return int(rows)


def about(store: Store, name: str, seconds: float) -> dict[str, Any]:
    """Columns, key, lineage and views of table ``name``; its rows, counted for ``seconds`` at most; which runs."""
    with store.reader() as connection, store._errors():
        shape = found(connection, name)
        views = [view for view, of in catalogue.views(connection).items() if of == name]
    counted = count(store, shape, Asked(), seconds)
    told: dict[str, Any] = {
        "name": name,
        "of": shape.of or None,
        "columns": [{"name": each, "type": kind, "key": each in shape.key} for each, kind in shape.types.items()],
        "key": list(shape.key),
        "lineage": [] if shape.of else [{"name": each, "type": kind} for each, kind in LINEAGE.items()],
        "views": views,
        "rows": {"rows": counted.rows, "exact": counted.exact},
        "saved_rows": most(store, shape),
        "runs": None,
        "last_saved": None,
    }
    if not shape.of:
        try:
            with within(store, seconds, "count_seconds") as connection:
                rows = quoted(catalogue.rows_of(name))
                told["runs"], last = _one(connection, f"SELECT count(DISTINCT _run), max(_saved_at) FROM {rows}", [])
            told["last_saved"] = last and last.replace(tzinfo=dt.UTC)
        except OutOfTime:
            pass
    return told


# Facets


def facet(store: Store, shape: Shape, asked: Asked, column: str, most: int, seconds: float) -> dict[str, Any]:
    """The ``most`` most frequent values of ``column`` among the rows that ``asked`` leaves, with how many have each.

    ``finished`` False: the time was up, and there are no values. ``more``: there are further values.
    """
    made = source(shape, asked)
    if column not in made.shape.types:
        raise FieldError(
            "column", f"{shown(column)} is no column of {shape.name}; there are: {', '.join(made.shape.types)}"
        )
    began = time.monotonic()
    sql = (
        f"SELECT {quoted(column)} AS value, count(*) AS rows FROM {made.sql} {made.where} "
        f"GROUP BY 1 ORDER BY 2 DESC, 1 NULLS LAST LIMIT {most + 1:d}"
    )
    rows: list[tuple[Any, int]] | None = None
    try:
        with within(store, seconds, "facet_seconds") as connection:
            rows = connection.execute(sql, list(made.values)).fetchall()
    except OutOfTime:
        pass
    return {
        "column": column,
        "values": [{"value": value, "rows": number} for value, number in (rows or [])[:most]],
        "more": rows is not None and len(rows) > most,
        "finished": rows is not None,
        "seconds": round(time.monotonic() - began, 4),
    }


def _one(connection: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any]) -> tuple[Any, ...]:
    row = connection.execute(sql, list(values)).fetchone()
    assert row is not None
    return row


# What somebody would write


def as_sql(shape: Shape, asked: Asked, limit: int) -> str:
    """A SELECT that says the same as ``asked``, for the SQL box, with at most ``limit`` rows. It is shown, not run."""
    whole = shape.with_lineage() if asked.raw else shape
    told, values = filters.tests(asked.where, whole.types, shape.name)
    where = filters.filled(told, values)
    every = quoted(catalogue.rows_of(shape.name))
    columns = ", ".join(map(quoted, _chosen(whole, asked.columns)))
    from_ = every if asked.raw else quoted(shape.name)
    if asked.run is not None and not asked.raw:
        keys = ", ".join(map(quoted, shape.key))
        first = f"PARTITION BY {keys} ORDER BY _saved_at DESC, _allocation DESC"
        newest = f"\n    QUALIFY row_number() OVER ({first}) = 1\n" if shape.key else ""
        from_ = f"(\n    SELECT * FROM {every} WHERE _run = {asked.run:d}{newest})"
    elif asked.run is not None:
        where = [f"_run = {asked.run:d}", *where]
    sql = f"SELECT {'*' if asked.columns is None and not asked.run else columns}\nFROM {from_}"
    sql += f"\nWHERE {' AND '.join(where)}" if where else ""
    by = [each for each in total_order(whole, asked) if each.name not in (ROWID, HASH)] if asked.order else []
    sql += f"\nORDER BY {', '.join(quoted(each.name) + (' DESC' if each.down else '') for each in by)}" if by else ""
    return f"{sql}\nLIMIT {limit}"

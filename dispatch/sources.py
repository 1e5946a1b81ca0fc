"""The write door of sources: added, changed, removed, and imported by the thousand, all of them or none.

What may be said of a source is checked here; files are read in ``dispatch.source_files``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.db import IntegrityError, connection
from django.utils import timezone

from dispatch.models import ItemMemory, Source
from nodes import executors
from nodes.executors.base import shown
from nodes.fields import read_text
from nodes.protocol import Conflict, FieldError, NotFound
from nodes.transactions import insert_rows, moment, write

LIMIT = 100_000
"""Sources of one parent: all of them travel to every node with the configuration."""
EXTRA_LIMIT = 10_000
TRIES = 5
NAMED = 50
"""Wrong lines that an import names; the others are counted."""
KINDS: tuple[str, ...] = tuple(Source.Kind.values)
COLUMNS = ("kind", "key", "name", "address", "active", "extra", "created_at", "updated_at")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one line of an import."""

    line: str
    field: str
    detail: str


class Refused(FieldError):
    """Nothing was imported. ``problems`` are the wrong lines, the first NAMED of them."""

    def __init__(self, problems: Sequence[Problem], count: int) -> None:
        first = problems[0]
        more = f"; {count - 1} more like it, nothing was imported" if count > 1 else "; nothing was imported"
        super().__init__(f"{first.line}.{first.field}" if first.field else first.line, f"{first.detail}{more}")
        self.problems = problems
        self.count = count

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "wrong": self.count, "problems": [asdict(each) for each in self.problems]}


@dataclass
class Counts:
    """What an import did. ``kept`` were there and were not to be changed."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    kept: int = 0
    total: int = field(default=0, init=False)


def add(kind: str, key: str, **fields: Any) -> Source:
    """A new source; ``fields`` are name, address, active, extra. Raises FieldError, Conflict for one that is there."""
    checked = check({"kind": kind, "key": key, **fields})
    try:
        with write():
            _check_room(1)
            return Source.objects.create(**checked)
    except IntegrityError:
        raise Conflict(f"key: there is a source {checked['kind']} {checked['key']!r} already") from None


def update(pk: int, **fields: Any) -> Source:
    """Changes what is given. Raises FieldError, NotFound, Conflict for a kind and key that another one has."""
    try:
        with write():
            source = Source.objects.select_for_update().filter(pk=pk).first()
            if source is None:
                raise NotFound(f"there is no source {pk}")
            before = {name: getattr(source, name) for name in _READERS}
            for name, value in check({**before, **fields}).items():
                setattr(source, name, value)
            source.save()
            return source
    except IntegrityError:
        raise Conflict("key: another source has this kind and key") from None


def remove(pk: int) -> None:
    """Runs that were made from it keep their items. Raises NotFound."""
    with write():
        deleted, _ = Source.objects.filter(pk=pk).delete()
    if not deleted:
        raise NotFound(f"there is no source {pk}")


def switch(ids: Iterable[int], active: bool) -> int:
    """Enables or disables these; how many changed."""
    with write():
        some = Source.objects.filter(pk__in=list(ids)).exclude(active=active)
        return some.update(active=active, updated_at=timezone.now())


def last_times(found: Iterable[Source]) -> dict[tuple[str, str], ItemMemory]:
    """By kind and key, how it went the last time with those of ``found`` that were run by a type that remembers."""
    keys: dict[str, list[str]] = {}
    for source in found:
        keys.setdefault(source.kind, []).append(source.key)
    times: dict[tuple[str, str], ItemMemory] = {}
    for name in executors.names():
        executor = executors.get(name)
        if executor.remembers and executor.source_kind in keys:
            memories = ItemMemory.objects.filter(type=name, key__in=keys[executor.source_kind]).defer("memory")
            times.update(((executor.source_kind, each.key), each) for each in memories)
    return times


def find(kind: str, key: str) -> Source:
    """Raises NotFound."""
    source = Source.objects.filter(kind=kind, key=key.replace("\x00", "\ufffd")).first()
    if source is None:
        raise NotFound(f"there is no source {kind} {key!r}")
    return source


def import_rows(
    rows: Iterable[Mapping[str, Any]],
    kind: str = "",
    update: bool = True,
    *,
    named: Callable[[int], str] = "sources[{}]".format,
) -> Counts:
    """All of ``rows``, or none; each has key, name, address, active, extra and, unless ``kind`` says it, kind.

    One that is there already is changed in what its row says or, without ``update``, left as it is. ``named`` tells
    what messages call row number n, from 0. Raises Refused, which names each wrong row, and Conflict where somebody
    else keeps adding the same.
    """
    if kind:
        _kind("kind", kind)
    wanted = _checked(rows, kind, named)
    for _ in range(TRIES):
        try:
            with write():
                return _store(wanted, update)
        except IntegrityError:
            continue  # somebody added the same meanwhile (PostgreSQL): now they are there
    raise Conflict("the same sources are being imported by somebody else; try again")


def _store(wanted: Sequence[dict[str, Any]], update: bool) -> Counts:
    counts = Counts()
    # In order, here and below, so that two imports that wait for each other's rows cannot do so crosswise.
    found = Source.objects.filter(kind__in={each["kind"] for each in wanted}).order_by("pk").select_for_update()
    there = {(source.kind, source.key): source for source in found.iterator(2000)}
    new = sorted(
        (row for row in wanted if (row["kind"], row["key"]) not in there), key=lambda row: (row["kind"], row["key"])
    )
    _check_room(len(new))
    if update:
        changed = [source for row in wanted if (source := _laid_over(there.get((row["kind"], row["key"])), row))]
        _rewrite(changed)
        counts.changed = len(changed)
        counts.unchanged = len(wanted) - len(new) - len(changed)
    else:
        counts.kept = len(wanted) - len(new)
    at = moment(timezone.now())
    insert_rows(Source, COLUMNS, [_row(each, at) for each in new])
    counts.added = len(new)
    counts.total = len(wanted)
    return counts


def check(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` of one source as they are kept. Raises FieldError on the field's name."""
    checked = {}
    for name, value in fields.items():
        if name not in _READERS:
            raise FieldError(str(name)[:100], f"is not known here; known are: {', '.join(_READERS)}")
        checked[name] = _READERS[name](name, value)
    for name in ("kind", "key"):
        if name not in checked:
            raise FieldError(name, "is required")
    if checked["kind"] == Source.Kind.URL and not checked.get("address"):
        # The key of an address may be the address itself.
        checked["address"] = _address("key", checked["key"])
    return checked


def _checked(rows: Iterable[Mapping[str, Any]], kind: str, named: Callable[[int], str]) -> list[dict[str, Any]]:
    wanted: list[dict[str, Any]] = []
    problems: list[Problem] = []
    wrong = 0
    seen: dict[tuple[str, str], int] = {}
    for at, row in enumerate(rows):
        try:
            if not isinstance(row, Mapping):
                raise FieldError("", f"{shown(row)} is not an object with a key")
            fields = {**row, "kind": row.get("kind") or kind}
            if not fields["kind"]:
                raise FieldError("kind", f"is required; one of: {', '.join(KINDS)}")
            checked = check(fields)
            first = seen.setdefault((checked["kind"], checked["key"]), at)
            if first != at:
                raise FieldError("key", f"{shown(checked['key'])} stands in {named(first)} already")
        except FieldError as error:
            wrong += 1
            if len(problems) < NAMED:
                problems.append(Problem(named(at), error.field, error.message))
            continue
        wanted.append(checked)
        if len(wanted) > LIMIT:
            raise FieldError("sources", f"are more than {LIMIT}, the most that one parent has")
    if problems:
        raise Refused(problems, wrong)
    return wanted


def _laid_over(source: Source | None, row: Mapping[str, Any]) -> Source | None:
    """``source`` with what ``row`` says, if that is something else."""
    if source is None:
        return None
    different = {name: value for name, value in row.items() if getattr(source, name) != value}
    for name, value in different.items():
        setattr(source, name, value)
    return source if different else None


def _row(checked: Mapping[str, Any], at: Any) -> tuple[Any, ...]:
    extra = json.dumps(checked.get("extra", {}))
    name, address = checked.get("name", ""), checked.get("address", "")
    return (checked["kind"], checked["key"], name, address, checked.get("active", True), extra, at, at)


def _rewrite(changed: Sequence[Source]) -> None:
    """In one prepared statement: ``bulk_update`` holds the database for 11 s at 20,000 sources, this for half a one."""
    quote = connection.ops.quote_name
    names = ("name", "address", "active", "extra", "updated_at")
    at = moment(timezone.now())
    rows = [(each.name, each.address, each.active, json.dumps(each.extra), at, each.pk) for each in changed]
    with connection.cursor() as cursor:
        sets = ", ".join(f"{quote(name)} = %s" for name in names)
        cursor.executemany(f"UPDATE {quote(Source._meta.db_table)} SET {sets} WHERE id = %s", rows)


def _check_room(more: int) -> None:
    if more and (count := Source.objects.count()) + more > LIMIT:
        raise FieldError("sources", f"{count} are there and {more} more would come; at most {LIMIT} are allowed")


def _kind(name: str, value: Any) -> str:
    if value not in KINDS:
        raise FieldError(name, f"{shown(value)} is not one of: {', '.join(KINDS)}")
    return str(value)


def _key(name: str, value: Any) -> str:
    text = read_text(name, value, 200)
    if not text or text != text.strip():
        raise FieldError(name, f"{shown(text)} is empty, or begins or ends with a space")
    return text


def _address(name: str, value: Any) -> str:
    text = read_text(name, value, 2000)
    if not text:
        return text
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in text
    except ValueError:
        usable = False
    if not usable:
        raise FieldError(name, f"{shown(text)} is not an address like https://example.org/feed.xml")
    return text


def _active(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise FieldError(name, f"{shown(value)} is not true or false")


_WORDS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def _extra(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError(name, f"{shown(value)} is not an object")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        raise FieldError(name, "is not plain JSON") from None
    if len(text) > EXTRA_LIMIT or "\\u0000" in text:
        raise FieldError(name, f"has more than {EXTRA_LIMIT} characters, or a NUL")
    return value


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "kind": _kind,
    "key": _key,
    "name": lambda name, value: read_text(name, value, 200),
    "address": _address,
    "active": _active,
    "extra": _extra,
}

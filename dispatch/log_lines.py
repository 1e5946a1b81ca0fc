"""Lines of a run's logs, read: what is new after a number, what is older, what is wanted of them.

``since`` is for whoever follows a run: a page asks it when ``events.log_version`` of the run has grown, and now
and then, for other processes' wake-ups may be lost.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db.models import Case, F, Q, QuerySet, When

from dispatch.models import LogPiece, RunLog
from nodes.protocol import LOG_CUT, LOG_LIMIT

LONGEST = LOG_LIMIT
"""Lines of one piece, at most."""
PIECES = 250
"""Read at once."""
CHARACTERS = 2_000_000
"""Of a page's lines; it may have fewer lines for that."""
WINDOW = 50_000
"""Lines that one statement looks through for something rare."""


class Line(NamedTuple):
    """``number`` in its run; ``at``: when it came here. ``start``, ``stop``: the shard's items, ``node``: its id.

    ``continues``: it goes on with the last line of this allocation before it, which had no end yet. ``missing``: so
    many characters of the allocation's log right before it are not kept.
    """

    number: int
    at: dt.datetime
    allocation: int
    shard: int
    start: int
    stop: int
    attempt: int
    node: int | None
    node_name: str
    text: str
    continues: bool
    missing: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines of a run; ``item`` is an item's number. ``search``: they have this text, in whatever case."""

    shard: int | None = None
    allocation: int | None = None
    node: int | None = None
    item: int | None = None
    search: str = ""

    @property
    def rare(self) -> bool:
        """Most pieces may be of no interest, and the database has no index to tell."""
        return bool(self.search) or self.node is not None or self.item is not None


EVERYTHING = Wanted()


@dataclass(slots=True)
class Page:
    """``lines`` ascending; everything wanted with numbers from ``first`` to ``last`` is among them. ``newest``: the
    highest number of the run."""

    newest: int
    first: int
    last: int
    lines: list[Line] = field(default_factory=list)


def newest(run_id: int) -> int:
    """The number of the run's last line; 0: there is none."""
    return RunLog.objects.filter(pk=run_id).values_list("lines", flat=True).first() or 0


def since(
    run_id: int,
    after: int,
    limit: int,
    wanted: Wanted = EVERYTHING,
    *,
    before: int | None = None,
    seconds: float | None = None,
) -> Page:
    """The first ``limit`` lines after number ``after``: what is new to who has read so far, who goes on after
    ``last``. Looks no longer than ``seconds``, and then has less.
    """
    last = newest(run_id)
    highest = last if before is None else min(last, before - 1)
    page = Page(last, after + 1, max(highest, after))
    until = None if seconds is None else time.monotonic() + seconds
    size = 0
    for line in _ahead(run_id, wanted, after, highest):
        if isinstance(line, int):
            if until is not None and time.monotonic() > until:
                page.last = line
                break
            continue
        page.lines.append(line)
        size += len(line.text)
        if len(page.lines) == limit or size > CHARACTERS:
            page.last = line.number
            break
    return page


def latest(
    run_id: int, before: int | None, limit: int, wanted: Wanted = EVERYTHING, *, seconds: float | None = None
) -> Page:
    """The last ``limit`` lines before number ``before``, or of all: who wants older ones goes on before ``first``."""
    last = newest(run_id)
    highest = last if before is None else min(last, before - 1)
    page = Page(last, 1, highest)
    until = None if seconds is None else time.monotonic() + seconds
    size = 0
    for line in _back(run_id, wanted, highest):
        if isinstance(line, int):
            if until is not None and time.monotonic() > until:
                page.first = line
                break
            continue
        page.lines.append(line)
        size += len(line.text)
        if len(page.lines) == limit or size > CHARACTERS:
            page.first = line.number
            break
    page.lines.reverse()
    return page


def every(run_id: int, wanted: Wanted, after: int = 0, before: int | None = None) -> Iterator[Line]:
    """All lines wanted, ascending, however many."""
    last = newest(run_id)
    for line in _ahead(run_id, wanted, after, last if before is None else min(last, before - 1)):
        if not isinstance(line, int):
            yield line


def _ahead(run_id: int, wanted: Wanted, after: int, highest: int) -> Iterator[Line | int]:
    """Lines with numbers above ``after`` up to ``highest``; in between, numbers up to which all were looked at."""
    pieces = _pieces(run_id, wanted)
    while after < highest:
        stop = min(highest, after + WINDOW) if wanted.rare else highest
        some = _read(pieces.filter(first__gt=after - LONGEST, first__lte=stop, last__gt=after).order_by("first"))
        for piece in some:
            yield from (line for line in _lines(piece, wanted.search) if after < line.number <= stop)
        after = stop if len(some) < PIECES else min(some[-1]["last"], stop)
        yield after


def _back(run_id: int, wanted: Wanted, highest: int) -> Iterator[Line | int]:
    """The same from ``highest`` down; in between, numbers down to which all were looked at."""
    pieces = _pieces(run_id, wanted)
    while highest > 0:
        start = max(highest - WINDOW, 0) if wanted.rare else 0
        some = _read(pieces.filter(first__gt=start - LONGEST, first__lte=highest, last__gt=start).order_by("-first"))
        for piece in some:
            yield from reversed([line for line in _lines(piece, wanted.search) if start < line.number <= highest])
        highest = start if len(some) < PIECES else max(some[-1]["first"] - 1, start)
        yield highest + 1


def _pieces(run_id: int, wanted: Wanted) -> QuerySet[LogPiece]:
    found = LogPiece.objects.filter(run=run_id)
    if wanted.allocation is not None:
        found = found.filter(allocation=wanted.allocation)
    if wanted.shard is not None:
        found = found.filter(allocation__shard=wanted.shard)
    if wanted.node is not None:
        found = found.filter(allocation__node=wanted.node)
    if wanted.item is not None:
        found = found.filter(allocation__start__lte=wanted.item, allocation__stop__gt=wanted.item)
    # SQLite knows upper and lower case of ASCII alone: the longest part of that is asked for, and the lines are looked
    # at here.
    if part := max("".join(each if each.isascii() else "\n" for each in wanted.search).split("\n"), key=len):
        found = found.filter(Q(text__icontains=part) | Q(text=None, allocation__log__icontains=part))
    return found


def _read(pieces: QuerySet[LogPiece]) -> list[dict[str, Any]]:
    whole = Case(When(text=None, then=F("allocation__log")), default=F("text"))
    columns = ("first", "last", "at", "missing", "continues", "allocation_id")
    of = ("shard_id", "start", "stop", "attempt", "node_id", "node__name")
    rows = pieces.annotate(whole=whole).values("whole", "offset", *columns, *(f"allocation__{name}" for name in of))
    return list(rows[:PIECES])


def _lines(piece: Mapping[str, Any], search: str) -> Iterator[Line]:
    text = piece["whole"]
    # Only the report of a whole log, whose beginning is left out, has the mark for that.
    if piece["offset"] and text.startswith(LOG_CUT):
        text = text.removeprefix(LOG_CUT)
    sought = search.lower()
    for at, line in enumerate(text.removesuffix("\n").split("\n")):
        if sought and sought not in line.lower():
            continue
        yield Line(
            number=piece["first"] + at,
            at=piece["at"],
            allocation=piece["allocation_id"],
            shard=piece["allocation__shard_id"],
            start=piece["allocation__start"],
            stop=piece["allocation__stop"],
            attempt=piece["allocation__attempt"],
            node=piece["allocation__node_id"],
            node_name=piece["allocation__node__name"] or "",
            text=line.removesuffix("\r"),
            continues=piece["continues"] and not at,
            missing=0 if at else piece["missing"],
        )

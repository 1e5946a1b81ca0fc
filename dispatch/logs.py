"""What shards print: taken in while they run and from their reports, and numbered through each run.

Lines of a run are numbered from 1 in the order in which they came here. Of an allocation only the newest characters are
kept (setting ``shard_log_limit``), so that numbers may be left out, and never mean another line. How they are read
again is in ``log_lines``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import F, Min
from django.utils import timezone

from dispatch import events
from dispatch.deciding.records import Held
from dispatch.models import Allocation, LogMark, LogPiece, RunLog
from dispatch.results import room
from dispatch.states import LIVE
from nodes import keys
from nodes.keys import Caller
from nodes.messages import Entry, Printed
from nodes.protocol import LOG_CUT, LOG_LIMIT, CascadeError, Unauthenticated
from nodes.transactions import insert_rows, moment, retried, upsert_rows, write

SLICE = 5000
"""So many ids a statement names at most."""
TRIMMED_AT = 1.25
"""An allocation may have so many times its limit before the oldest pieces go, so that they do not go one by one."""
MARKS = ("allocation_id", "start", "end", "open")
COLUMNS = (*("run_id", "allocation_id", "first", "last", "offset", "size", "missing", "continues", "at", "text"),)

Outcome = dict[str, Any] | CascadeError


@dataclass(slots=True)
class _Fresh:
    """Text of an allocation's log, ``start`` characters after its beginning. ``told``: it is in the allocation, too."""

    run: int
    allocation: int
    start: int
    text: str
    told: bool = False


@dataclass(slots=True)
class _Piece:
    """What is new of it. ``whole``: it is the allocation's own log."""

    allocation: int
    start: int
    text: str
    missing: int
    continues: bool
    whole: bool

    @property
    def lines(self) -> int:
        return self.text.count("\n") + (not self.text.endswith("\n"))


@dataclass(slots=True)
class _Mark:
    """As ``LogMark``."""

    start: int
    end: int = 0
    open: bool = False


def take(caller: Caller, printed: Sequence[Printed]) -> dict[str, Any]:
    """Keeps what running shards have printed; the reply names allocations that are not live, or not of this node.

    Raises Unauthenticated for a key revoked since, StorageFull and TooMany while there is no room for results either.
    """
    (outcome,) = take_all([(caller, printed)])
    if isinstance(outcome, CascadeError):
        raise outcome
    return outcome


@retried
def take_all(batch: Sequence[tuple[Caller, Sequence[Printed]]]) -> list[Outcome]:
    """As ``take`` for each, any of which may be refused alone: in one transaction, and a few statements for all."""
    room.check()
    outcomes: list[Outcome] = []
    fresh: list[_Fresh] = []
    with write():
        nodes = keys.check_all_live([caller for caller, _ in batch])
        live = _live({piece.allocation for _, printed in batch for piece in printed})
        for node, (_, printed) in zip(nodes, batch, strict=True):
            if isinstance(node, Unauthenticated):
                outcomes.append(node)
                continue
            gone = []
            for piece in printed:
                node_id, run = live.get(piece.allocation, (None, 0))
                if node_id == node.pk:
                    fresh.append(_Fresh(run, piece.allocation, piece.start, piece.text))
                else:
                    gone.append(piece.allocation)
            outcomes.append({"gone": gone})
        runs: set[int] = set()
        if settings.CASCADE.shard_log_limit:
            runs = _add(fresh, _marks([each.allocation for each in fresh]), timezone.now())
    if runs:
        events.logged(runs)
    return outcomes


def _live(ids: Iterable[int]) -> dict[int, tuple[int | None, int]]:
    """Allocation -> (node, run) of those that are live. Locked: a report of one comes before or after what we do."""
    wanted = sorted(ids)
    found: dict[int, tuple[int | None, int]] = {}
    for at in range(0, len(wanted), SLICE):
        some = Allocation.objects.filter(pk__in=wanted[at : at + SLICE], state__in=LIVE).order_by("pk")
        rows = some.select_for_update().values_list("pk", "node_id", "run_id")
        found.update({pk: (node, run) for pk, node, run in rows})
    return found


def reported(pairs: Iterable[tuple[Entry, Held]], now: dt.datetime) -> set[int]:
    """In the transaction that accepts these reports: the rest of their logs. The runs that have new lines by that."""
    fresh = []
    for entry, held in pairs:
        if not entry.log or entry.part:
            continue
        text = entry.log.removeprefix(LOG_CUT) if entry.log_start else entry.log
        fresh.append(_Fresh(held.run, held.id, entry.log_start, text, told=True))
    if not fresh:
        return set()
    marks = _marks([each.allocation for each in fresh])
    told = list(marks)
    runs = _add(fresh, marks, now)
    if told:
        LogMark.objects.filter(pk__in=told).delete()
    return runs


def _add(fresh: Sequence[_Fresh], marks: dict[int, _Mark], now: dt.datetime) -> set[int]:
    """Numbers what is new of ``fresh``, and writes it; the runs that it belongs to. The allocations are locked."""
    changed: dict[int, _Mark] = {}
    by_run: dict[int, list[_Piece]] = {}
    for each in fresh:
        mark = marks.get(each.allocation) or _Mark(each.start)
        if not (text := each.text[max(mark.end - each.start, 0) :]):
            continue
        start = max(each.start, mark.end)
        missing = start - mark.end
        whole = each.told and not mark.end
        piece = _Piece(each.allocation, start, text, missing, mark.open and not missing, whole)
        by_run.setdefault(each.run, []).append(piece)
        mark.end, mark.open = start + len(text), not text.endswith("\n")
        if not whole:
            marks[each.allocation] = changed[each.allocation] = mark
    at = moment(now)
    rows: list[tuple[Any, ...]] = []
    for run in sorted(by_run):
        last = _numbered(run, sum(piece.lines for piece in by_run[run]))
        for piece in by_run[run]:
            first, last = last + 1, last + piece.lines
            about = (piece.start, len(piece.text), piece.missing, piece.continues, at)
            rows.append((run, piece.allocation, first, last, *about, None if piece.whole else piece.text))
    if rows:
        insert_rows(LogPiece, COLUMNS, rows)
    if changed:
        _trim(changed)
        told = [(pk, mark.start, mark.end, mark.open) for pk, mark in changed.items()]
        upsert_rows(LogMark, MARKS, told, key=MARKS[:1], change=MARKS[1:])
    return set(by_run)


def _marks(ids: Sequence[int]) -> dict[int, _Mark]:
    found: dict[int, _Mark] = {}
    for at in range(0, len(ids), SLICE):
        rows = LogMark.objects.filter(pk__in=ids[at : at + SLICE]).values_list(*MARKS)
        found.update({pk: _Mark(*row) for pk, *row in rows})
    return found


def _numbered(run: int, count: int) -> int:
    """Gives the run so many lines more, and locks their number; how many it had."""
    for _ in range(2):
        # By hand: asked with every report that brings a log.
        with connection.cursor() as cursor:
            cursor.execute("UPDATE dispatch_runlog SET lines = lines + %s WHERE run_id = %s", [count, run])
            if cursor.rowcount:
                cursor.execute("SELECT lines FROM dispatch_runlog WHERE run_id = %s", [run])
                return int(cursor.fetchone()[0]) - count
        RunLog.objects.bulk_create([RunLog(run_id=run)], ignore_conflicts=True)
    raise AssertionError("unreachable")


def _trim(marks: Mapping[int, _Mark]) -> None:
    """Of those that have grown beyond the limit, the oldest pieces go."""
    limit = max(settings.CASCADE.shard_log_limit, LOG_LIMIT)
    for pk, mark in marks.items():
        if mark.end - mark.start <= limit * TRIMMED_AT:
            continue
        pieces = LogPiece.objects.filter(allocation=pk)
        pieces.filter(offset__lte=mark.end - limit - F("size")).delete()
        mark.start = pieces.aggregate(start=Min("offset"))["start"]
        pieces.filter(offset=mark.start).update(missing=mark.start, continues=False)

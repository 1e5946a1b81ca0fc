"""What shards print: taken in while they run and from their reports, and numbered through each run.

Lines of a run are numbered from 1 in the order in which they came here. Of an allocation only the newest characters are
kept (setting ``shard_log_limit``), so that numbers may be left out, and never mean another line. How they are read
again is in ``log_lines``.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
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
        runs = _add(fresh, timezone.now()) if settings.CASCADE.shard_log_limit else set()
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
    runs = _add(fresh, now)
    LogMark.objects.filter(pk__in=[each.allocation for each in fresh]).delete()
    return runs


def _add(fresh: Sequence[_Fresh], now: dt.datetime) -> set[int]:
    """Numbers what is new of ``fresh``, and writes it; the runs that it belongs to. The allocations are locked."""
    marks = {mark.allocation_id: mark for mark in _marks([each.allocation for each in fresh])}
    by_run: dict[int, list[_Fresh]] = {}
    for each in fresh:
        end = marks[each.allocation].end if each.allocation in marks else 0
        if each.text[max(end - each.start, 0) :]:
            by_run.setdefault(each.run, []).append(each)
    rows: list[tuple[Any, ...]] = []
    changed: dict[int, LogMark] = {}
    at = moment(now)
    for run in sorted(by_run):
        lines = _counted(run)
        number = lines.lines
        for each in by_run[run]:
            mark = marks.get(each.allocation) or LogMark(allocation_id=each.allocation, start=each.start)
            text = each.text[max(mark.end - each.start, 0) :]
            start = max(each.start, mark.end)
            first, number = number + 1, number + _lines_in(text)
            missing = start - mark.end
            whole = each.told and not mark.end
            rows.append(
                (
                    *(run, each.allocation, first, number, start, len(text), missing, mark.open and not missing, at),
                    None if whole else text,
                )
            )
            mark.end, mark.open = start + len(text), not text.endswith("\n")
            if not whole:
                marks[each.allocation] = changed[each.allocation] = mark
        lines.lines = number
        lines.save(update_fields=["lines"])
    insert_rows(LogPiece, COLUMNS, rows)
    _trim(changed.values())
    upsert_rows(
        LogMark,
        MARKS,
        [(mark.allocation_id, mark.start, mark.end, mark.open) for mark in changed.values()],
        key=("allocation_id",),
        change=MARKS[1:],
    )
    return set(by_run)


def _marks(ids: Sequence[int]) -> Iterator[LogMark]:
    for at in range(0, len(ids), SLICE):
        yield from LogMark.objects.filter(pk__in=ids[at : at + SLICE])


def _counted(run: int) -> RunLog:
    """The run's, locked."""
    found = RunLog.objects.select_for_update().filter(pk=run).first()
    if found is None:
        RunLog.objects.bulk_create([RunLog(run_id=run)], ignore_conflicts=True)
        found = RunLog.objects.select_for_update().get(pk=run)
    return found


def _trim(marks: Iterable[LogMark]) -> None:
    """Of those that have grown beyond the limit, the oldest pieces go."""
    limit = max(settings.CASCADE.shard_log_limit, LOG_LIMIT)
    for mark in marks:
        if mark.end - mark.start <= limit * TRIMMED_AT:
            continue
        pieces = LogPiece.objects.filter(allocation=mark.allocation_id)
        pieces.filter(offset__lte=mark.end - limit - F("size")).delete()
        mark.start = pieces.aggregate(start=Min("offset"))["start"]
        pieces.filter(offset=mark.start).update(missing=mark.start, continues=False)


def _lines_in(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n"))

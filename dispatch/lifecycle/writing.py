"""Effects of decisions, written to the database: each a statement or a few, in order, in the caller's transaction."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, IntegerField, Value
from django.db.models.functions import Concat

from dispatch import events, metrics
from dispatch.deciding import effects as e
from dispatch.deciding.records import DIGEST
from dispatch.lifecycle import found, memories
from dispatch.models import Allocation, Delivery, LeafWork, Origin, Receipt, Run, Shard
from dispatch.states import ALLOCATION, LIVE, RUN, SHARD, AllocationState, RunState, ShardState, before, run_end
from nodes import executors, failpoints, journal
from nodes.messages import ItemOutcome
from nodes.models import Node
from nodes.prepared import Change, Given, Prepared
from nodes.transactions import insert_rows, moment, update_rows

SHARD_COLUMNS = (
    *("run_id", "start", "stop", "state", "attempts", "deaths", "losses", "error", "not_before", "updated_at"),
)


def write_down(effects: Iterable[e.Effect], now: datetime, node: Node | None = None) -> None:
    """``node`` is whose report it is about, where it is about one."""
    for effect in effects:
        failpoints.reach("effect")
        if isinstance(effect, e.Accept):
            assert node is not None
            _accept(effect, node, now)
        else:
            _WRITERS[type(effect)](effect, now)


def _end_allocations(effect: e.EndAllocations, now: datetime) -> None:
    among = Allocation.objects.filter(pk__in=effect.ids, state__in=effect.among)
    metrics.ended.committed(among.update(state=effect.state, finished_at=now, error=effect.detail), str(effect.state))


def _move_shards(effect: e.MoveShards, now: datetime) -> None:
    if effect.columns.keys() <= {"error"}:
        move = _MOVE_AND_SAY if effect.columns else _MOVE
        moved = move.run(
            ids=effect.ids, among=list(map(str, effect.among)), state=str(effect.state), now=now, **effect.columns
        )
    else:
        of_these = Shard.objects.filter(pk__in=effect.ids, state__in=effect.among)
        moved = of_these.update(state=effect.state, updated_at=now, **effect.columns)
    if moved:
        write_down(effect.then, now)


_MOVED = Shard.objects.filter(pk__among=Given("ids"), state__among=Given("among"))
_MOVE = Change(lambda: _MOVED, state=Given("state"), updated_at=Given("now"))
_MOVE_AND_SAY = Change(lambda: _MOVED, state=Given("state"), updated_at=Given("now"), error=Given("error"))


def _add_shards(effect: e.AddShards, now: datetime) -> None:
    insert_rows(Shard, SHARD_COLUMNS, [_row(effect.run, piece, now) for piece in effect.pieces])


def _row(run: int, piece: e.Piece, now: datetime) -> tuple[Any, ...]:
    wait = None if piece.not_before is None else moment(piece.not_before)
    record = (piece.attempts, piece.deaths, piece.losses, piece.error)
    return (run, piece.start, piece.stop, str(piece.state), *record, wait, moment(now))


def _take_apart(effect: e.TakeApart, now: datetime) -> dict[int, int]:
    """Each piece's shard, by where it starts."""
    # The row that was the whole shard becomes its first piece, so that [0, count) stays covered throughout.
    head, *rest = effect.pieces
    Shard.objects.filter(pk=effect.shard).update(**head._asdict(), updated_at=now)
    _add_shards(e.AddShards(effect.run, tuple(rest)), now)
    starts = [piece.start for piece in rest]
    made: dict[int, int] = {head.start: effect.shard}
    if rest:
        within = Shard.objects.filter(run=effect.run, start__gte=starts[0], start__lte=starts[-1])
        made.update(within.values_list("start", "pk"))
    return made


def _accept(effect: e.Accept, node: Node, now: datetime) -> None:
    pieces = {each.shard: _take_apart(each, now) for each in effect.apart}
    manifest = [
        {
            "allocation": line.allocation,
            "run": line.run,
            "start": line.start,
            "node": node.name,
            "offset": line.offset,
            "digest": line.digest,
            "ranges": [
                [first, last, rows, pieces.get(shard := line.shard_of(first), {}).get(first, shard)]
                for first, last, rows in line.ranges
            ],
            **({"nodes": [_path(node, name) for name in line.nodes], "by": line.by} if line.nodes else {}),
            **({"outcomes": [_as_sent(each) for each in line.outcomes]} if line.outcomes else {}),
            **({"hopeless": line.hopeless} if line.hopeless else {}),
        }
        for line in effect.lines
    ]
    settled = None if any(line.ranges for line in effect.lines) else now
    inline = json.dumps(effect.inline, separators=(",", ":")).encode() if effect.inline else b""
    receipt = Receipt.objects.create(
        node=node,
        type=effect.type,
        created_at=now,
        manifest=manifest,
        payload=zlib.compress(inline, 1) if inline else None,
        segment=effect.segment,
        rows=sum(each.rows for each in effect.closed) + sum(each.rows for each in effect.advanced),
        saved_at=settled,
        purged_at=settled,
        origin_id=effect.origin,
        keep=settled is None and effect.origin is not None and _keeps(effect.type),
    )
    works = [
        (line.run, line.allocation, first, last, _path(node, line.nodes[number]))
        for line in effect.lines
        if line.nodes
        for (first, last, _), number in zip(line.ranges, line.by, strict=True)
    ]
    if works:
        insert_rows(LeafWork, ("run_id", "allocation_id", "start", "stop", "path"), works)
    at = moment(now)
    update_rows(
        Allocation,
        ("state", "receipt_id", "rows", "seconds", "finished_at", "error", "log", "progress"),
        [
            (str(state), receipt.pk, rows, seconds, at, error, log, progress, pk)
            for pk, state, rows, seconds, error, log, progress in effect.closed
        ],
        [str(state) for state in before(ALLOCATION, AllocationState.COMPLETED)],
        added=("rows",),  # to those of the parts before
    )
    metrics.closed(effect)
    if failed := {closed.id: closed.error for closed in effect.closed if closed.error}:
        for line in effect.lines:
            if line.allocation in failed:
                text = failed[line.allocation]
                journal.committed(journal.About.WORK, "failed", node=node.pk, run=line.run, text=text)
    for pk, part, some, items, digest in effect.advanced:
        # With what is left it begins anew: its time-out is each part's.
        Allocation.objects.filter(pk=pk, state__in=LIVE).update(
            parts=part,
            digests=Concat(F("digests"), Value(digest[:DIGEST])),
            rows=F("rows") + some,
            progress=F("progress") + items,
            started_at=now,
        )


def _keeps(task_type: str) -> bool:
    """Whether rows that pass through this relay are saved here, too."""
    return settings.CASCADE.relay_keeps_rows and task_type in executors.EXECUTORS


def _path(node: Node, name: str) -> str:
    """The way from here to the node that ``node``, a relay, calls so."""
    return f"{node.name}/{name}"


def _as_sent(outcome: ItemOutcome) -> list[Any]:
    told = {"found": list(outcome.found), "memory": outcome.memory, "status": outcome.status, "counts": outcome.counts}
    return [outcome.index, {name: value for name, value in told.items() if value or (name == "memory" and value == {})}]


def _remember(effect: e.Remember, now: datetime) -> None:
    executor = executors.get(effect.type)
    if executor.remembers:
        memories.keep(effect.type, (memories.Reported(*each) for each in effect.reports), now)
    if executor.grows:
        for run in {run for _, run, _, _ in effect.reports}:
            found.take(effect.type, run, [entry for entry, of, _, _ in effect.reports if of == run])


def _count_items(effect: e.CountItems, now: datetime) -> None:
    counts = {"saved": effect.saved, "failed": effect.failed, "quarantined": effect.quarantined}
    counts |= {"cancelled": effect.cancelled, "rows": effect.rows}
    if any(counts.values()):
        _COUNT.run(run=effect.run, **counts)
    metrics.counted(effect)
    if effect.quarantined:
        journal.committed(journal.About.WORK, "quarantined", run=effect.run, count=effect.quarantined)


_COUNT = Change(
    lambda: Run.objects.filter(pk=Given("run")),
    **{name: F(name) + Given(name, IntegerField()) for name in ("saved", "failed", "quarantined", "cancelled", "rows")},
)


def _cut_whole(effect: e.CutWhole, now: datetime) -> None:
    Run.objects.filter(pk=effect.run).update(cut=F("count"), growing=False)


def _end_runs(effect: e.EndRuns, now: datetime) -> None:
    for pk, url, *counts in _OPEN.rows(runs=effect.runs):
        if (end := run_end(*counts)) is None:
            continue
        ended = Run.objects.filter(pk=pk, state__in=before(RUN, end)).update(state=end, ended_at=now)
        if ended:
            transaction.on_commit(events.reducer.set)
        if ended and not (settings.CASCADE.role == "relay" and Origin.objects.filter(pk=pk).exists()):
            # Below a relay every allocation from above is a run.
            journal.record(journal.About.RUN, str(end), run=pk, count=counts[2] + counts[3])
        if ended and url:
            _announce(pk, url, now)


_OPEN = Prepared(
    lambda: Run.objects.filter(pk__among=Given("runs"), state=RunState.RUNNING, growing=False).values_list(
        "pk", "task__webhook_url", "count", "saved", "failed", "quarantined", "cancelled"
    )
)


def _announce(run_id: int, url: str, now: datetime) -> None:
    """Has ``dispatch.webhooks`` tell ``url`` of the run's end, once the caller's transaction has committed."""
    # A run that ended before, and was opened again: a new row, as receivers drop an id that they have seen.
    Delivery.objects.filter(run_id=run_id, url=url).delete()
    Delivery.objects.create(run_id=run_id, url=url, next_at=now)
    transaction.on_commit(events.webhooks.set)


def _reopen(effect: e.Reopen, now: datetime) -> None:
    Run.objects.filter(pk=effect.run, state__in=before(RUN, RunState.RUNNING)).update(
        state=RunState.RUNNING, ended_at=None, reduction=None
    )


def _settle(effect: e.Settle, now: datetime) -> None:
    if effect.lost:
        lost = Receipt.objects.filter(pk__in=effect.receipts, saved_at=None)
        lost.update(saved_at=now, purged_at=now, rows=0)
    else:
        _SETTLE.run(receipts=effect.receipts, now=now)


_SETTLE = Change(lambda: Receipt.objects.filter(pk__among=Given("receipts"), saved_at=None), saved_at=Given("now"))


def _lend(effect: e.Lend, now: datetime) -> None:
    if effect.since is None:
        _LEND.run(ids=effect.ids, until=effect.until)
    else:
        _LEND_FIRST.run(ids=effect.ids, until=effect.until, since=effect.since)


_LENT = Allocation.objects.filter(pk__among=Given("ids"), state__in=LIVE)
_LEND = Change(lambda: _LENT, deadline=Given("until"), delivered=True)
_LEND_FIRST = Change(lambda: _LENT, deadline=Given("until"), delivered=True, delivered_at=Given("since"))


def _begin(effect: e.Begin, now: datetime) -> None:
    shards = [shard for (shard,) in _BEGINNING.rows(ids=effect.ids, node=effect.node)]
    _BEGIN.run(ids=effect.ids, node=effect.node, now=now)
    _BEGIN_SHARDS.run(shards=shards, now=now)


_BEGUN = Allocation.objects.filter(
    pk__among=Given("ids"),
    node=Given("node"),
    delivered=True,
    state__in=before(ALLOCATION, AllocationState.EXECUTING),
)
_BEGINNING = Prepared(lambda: _BEGUN.values_list("shard_id"))
_BEGIN = Change(lambda: _BEGUN, state=AllocationState.EXECUTING, started_at=Given("now"))
_BEGIN_SHARDS = Change(
    lambda: Shard.objects.filter(pk__among=Given("shards"), state__in=before(SHARD, ShardState.EXECUTING)),
    state=ShardState.EXECUTING,
    updated_at=Given("now"),
)


_WRITERS: Mapping[type[Any], Callable[[Any, datetime], Any]] = {
    e.EndAllocations: _end_allocations,
    e.MoveShards: _move_shards,
    e.AddShards: _add_shards,
    e.Remember: _remember,
    e.CountItems: _count_items,
    e.CutWhole: _cut_whole,
    e.EndRuns: _end_runs,
    e.Reopen: _reopen,
    e.Settle: _settle,
    e.Lend: _lend,
    e.Begin: _begin,
}

"""How attempts, shards and runs end: without a result, cancelled, saved, or with rows that were lost on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from dispatch.attempts import Failure, Limits, Outcome, Verdict, after
from dispatch.deciding.effects import (
    FROM_NODE,
    AddShards,
    CountItems,
    CutWhole,
    Effect,
    EndAllocations,
    EndRuns,
    MoveShards,
    Piece,
    Reopen,
    Settle,
    cancellable,
)
from dispatch.deciding.records import Held, Shard
from dispatch.ranges import halves
from dispatch.states import SHARD, AllocationState, ShardState, before

CANCELLED = "the run was cancelled"
SLICE = 5000
"""So many ids one effect names at most."""
_END = {Verdict.FAILED: ShardState.FAILED, Verdict.QUARANTINED: ShardState.QUARANTINED}


def unsuccessful(
    attempts: Sequence[tuple[Held, Shard]],
    state: AllocationState,
    failure: Failure,
    detail: str,
    *,
    twins: Container[int],
    limits: Mapping[int, Limits],
    now: datetime,
) -> Iterator[Effect]:
    """Live allocations end in ``state``. Of shards with another copy under way (``twins``) nothing is lost yet."""
    if not attempts:
        return
    yield EndAllocations(tuple(dict.fromkeys(held.id for held, _ in attempts)), state, detail)
    for shard in {shard.id: shard for _, shard in attempts}.values():
        if shard.id not in twins:
            yield given_up(shard, failure, detail, limits[shard.run], now)
    yield EndRuns(frozenset(held.run for held, _ in attempts))


def given_up(shard: Shard, failure: Failure, detail: str, limits: Limits, now: datetime) -> Effect:
    """One attempt at ``shard`` came to nothing: again, in halves, or never."""
    outcome = after(failure, shard.record, limits)
    record = outcome.record
    columns: dict[str, Any] = {
        "attempts": record.attempts,
        "deaths": record.deaths,
        "losses": record.losses,
        "error": detail,
    }
    state = _END.get(outcome.verdict, ShardState.PENDING)
    if state is ShardState.PENDING:
        columns["not_before"] = now + timedelta(seconds=outcome.delay) if outcome.delay else None
    then = _following(shard, outcome, state, columns)
    if outcome.verdict is Verdict.SPLIT:
        columns["stop"] = halves(shard.start, shard.stop)[0][1]
    # Not where a cancel was first, which has counted these items.
    return MoveShards((shard.id,), state, FROM_NODE, columns, then)


def _following(shard: Shard, outcome: Outcome, state: ShardState, columns: Mapping[str, Any]) -> tuple[Effect, ...]:
    items = shard.stop - shard.start
    if outcome.verdict is Verdict.SPLIT:
        _, (middle, stop) = halves(shard.start, shard.stop)
        return (AddShards(shard.run, (Piece(middle, stop, state, **columns),)),)
    if state is ShardState.FAILED:
        return (CountItems(shard.run, failed=items),)
    if state is ShardState.QUARANTINED:
        return (CountItems(shard.run, quarantined=items),)
    return ()


def cancelled(
    run: int, cut: int, count: int, live: Iterable[int], shards: Iterable[tuple[int, int, int]]
) -> Iterator[Effect]:
    """A run of ``count`` items, cut up to ``cut``, ends early. ``live`` are its live allocations; ``shards`` (id, start
    and stop) are those that are with nobody or with a node: what was reported is saved all the same.
    """
    for ids in sliced(list(live)):
        yield EndAllocations(ids, AllocationState.CANCELLED, CANCELLED)
    open_shards = list(shards)
    for ids in sliced([pk for pk, _, _ in open_shards]):
        yield MoveShards(ids, ShardState.CANCELLED, cancellable())
    if cut < count:
        yield AddShards(run, (Piece(cut, count, ShardState.CANCELLED),))
    yield CutWhole(run)
    items = sum(stop - start for _, start, stop in open_shards) + count - cut
    yield CountItems(run, cancelled=items)
    yield EndRuns(frozenset([run]))


Manifest = Sequence[Mapping[str, Any]]
"""A receipt's entries: each with its ``run`` and its ``ranges`` of [first, stop, rows, shard]."""


def saved(receipts: Mapping[int, Manifest]) -> Iterator[Effect]:
    """The rows of these receipts are in the result store."""
    shards: list[int] = []
    items: Counter[int] = Counter()
    rows: Counter[int] = Counter()
    for manifest in receipts.values():
        for entry in manifest:
            for first, last, count, shard in entry["ranges"]:
                shards.append(shard)
                items[entry["run"]] += last - first
                rows[entry["run"]] += count
    for ids in sliced(shards):
        yield MoveShards(ids, ShardState.SAVED, before(SHARD, ShardState.SAVED))
    yield Settle(tuple(receipts))
    for run, count in items.items():
        yield CountItems(run, saved=count, rows=rows[run])
    yield EndRuns(frozenset(items))


def damaged(receipt: int, manifest: Manifest, detail: str) -> Iterator[Effect]:
    """The spooled rows of a receipt cannot be read: its items are done again, with no attempt counted."""
    yield Settle((receipt,), lost=True)
    shards = [shard for entry in manifest for _, _, _, shard in entry["ranges"]]
    for ids in sliced(shards):
        yield MoveShards(ids, ShardState.PENDING, (ShardState.SPOOLED,), {"error": detail})


def lost(
    saved: Iterable[tuple[int, int, int]], rows: Mapping[int, int], cancelled: Container[int], detail: str
) -> Iterator[Effect]:
    """Rows that had been saved are gone, and so is their segment. ``saved`` are the shards (id, run, items) that they
    were of, ``rows`` how many by run: they are made again, but for runs that were ``cancelled`` meanwhile.
    """
    shards: dict[int, list[int]] = {}
    items: Counter[int] = Counter()
    for pk, run, count in saved:
        shards.setdefault(run, []).append(pk)
        items[run] += count
    for run, ids in shards.items():
        over = run in cancelled
        for some in sliced(ids):
            yield MoveShards(some, ShardState.PENDING, (ShardState.SAVED,), {"error": detail})
            if over:
                yield MoveShards(some, ShardState.CANCELLED, (ShardState.PENDING,))
        yield CountItems(run, saved=-items[run], rows=-rows.get(run, 0), cancelled=items[run] if over else 0)
        if not over:
            yield Reopen(run)


def sliced(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """A statement can name some tens of thousands of ids; a shard that failed in many places has as many pieces."""
    for at in range(0, len(ids), SLICE):
        yield tuple(ids[at : at + SLICE])

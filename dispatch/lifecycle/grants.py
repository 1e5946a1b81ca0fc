"""Grant, deliver, take back: an allocation's life until its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.utils import timezone

from dispatch import events, metrics, synclog
from dispatch.allocator import Plan
from dispatch.attempts import Failure
from dispatch.items import item_key
from dispatch.lifecycle import leases, loading, memories
from dispatch.lifecycle.cuts import postpone, shorten
from dispatch.lifecycle.kept import about, beyond, frozen, remembered
from dispatch.lifecycle.writing import SHARD_COLUMNS
from dispatch.models import Allocation, RateLease, Run, Shard
from dispatch.relay import asking
from dispatch.states import LIVE, AllocationState, RunState, ShardState
from nodes import executors, keys, registry
from nodes.keys import Caller
from nodes.messages import Claim
from nodes.models import Node
from nodes.prepared import Change, Given, Prepared
from nodes.transactions import insert_rows, moment, retried, write

ALLOCATION_COLUMNS = (
    *("run_id", "shard_id", "node_id", "type", "item", "start", "stop", "attempt", "state", "delivered"),
    *("deadline", "reason", "granted_at", "progress", "rows", "error", "log", "slots", "parts", "digests"),
)
OFFER_LIMIT = 1000
"""Allocations in one offer or claim at most; the next one brings the rest."""


class Parcel(NamedTuple):
    """An allocation as it is delivered."""

    pk: int
    run_id: int
    start: int
    stop: int
    attempt: int
    slots: int
    relay: bool
    """Whether it goes to a relay, which is told more."""


_CUT = Change(
    lambda: Run.objects.filter(pk=Given("run"), cut=Given("first"), state=RunState.RUNNING), cut=Given("last")
)
_SHARDS = Prepared(
    lambda: Shard.objects.filter(run=Given("run"), start__gte=Given("first"), start__lt=Given("last")).values_list(
        "start", "pk"
    )
)
_PATIENT = Prepared(
    lambda: Node.objects.filter(pk__among=Given("nodes"), dialect__in=Node.PATIENT).order_by().values_list("pk")
)
_RATES = Prepared(lambda: RateLease.objects.filter(allocation__among=Given("ids")).order_by().values_list("pk", "key"))
_UNDELIVERED = Prepared(
    lambda: (
        Allocation.objects.filter(
            node=Given("node"), state=AllocationState.PENDING, delivered=False, pk__gt=Given("after")
        )
        .order_by("pk")
        .values_list("pk", "run_id", "start", "stop", "attempt", "slots", "node__role")[:OFFER_LIMIT]
    )
)


def grant(plan: Plan, now: datetime) -> None:
    """Writes ``plan`` down. Call it in the transaction that read what the plan was made from.

    On PostgreSQL a cancel may have come in between: what it has ended is left out.
    """
    at = moment(now)
    cuts = _cut(plan)
    kept = _kept(plan)
    grants = [
        made for made in plan.grants if (made.run in cuts if made.piece.shard is None else made.piece.shard in kept)
    ]
    fresh = [(made.run, made.piece, ShardState.ALLOCATED) for made in grants if made.piece.shard is None]
    fresh += [(run, piece, ShardState.PENDING) for run, piece in plan.aside if run in cuts]
    insert_rows(
        Shard,
        SHARD_COLUMNS,
        [
            (
                *(run, piece.start, piece.stop, str(state), 0, 0, 0, ""),
                *(moment(now + timedelta(seconds=piece.wait)) if piece.wait else None, at),
            )
            for run, piece, state in fresh
        ],
    )
    if kept:
        Shard.objects.filter(pk__in=kept).update(state=ShardState.ALLOCATED, not_before=None, updated_at=now)
    shorten(grants, now)
    postpone(plan, now)
    ids: dict[tuple[int, int], int] = {}
    for run, (first, last) in cuts.items():
        ids.update({(run, start): pk for start, pk in _SHARDS.rows(run=run, first=first, last=last)})
    patient = {node for (node,) in _PATIENT.rows(nodes={made.node for made in grants})}
    until = {
        False: moment(now + timedelta(seconds=settings.CASCADE.offer_seconds)),
        True: moment(now + timedelta(seconds=settings.CASCADE.patient_seconds)),
    }
    pending = str(AllocationState.PENDING)
    insert_rows(
        Allocation,
        ALLOCATION_COLUMNS,
        [
            (
                *(made.run, made.piece.shard or ids[made.run, made.piece.start], made.node, made.type),
                *(made.piece.item, made.piece.start, made.piece.stop, made.piece.attempt, pending, False),
                *(until[made.node in patient], made.reason[:300], at, 0, 0, "", "", made.slots, 0, ""),
            )
            for made in grants
        ],
    )
    metrics.granted.committed(len(grants))
    registry.granted([made.node for made in grants], now)
    for node_id, count in Counter(made.node for made in grants).items():
        synclog.note(node_id, "dispatch", synclog.PUSH, count=count)


def _cut(plan: Plan) -> dict[int, tuple[int, int]]:
    """Moves the runs' cuts; run -> [first, last) of what was cut, without the runs that ended in between."""
    cuts: dict[int, tuple[int, int]] = {}
    for run, piece in [*((made.run, made.piece) for made in plan.grants), *plan.aside]:
        if piece.shard is None:
            first, last = cuts.get(run, (piece.start, piece.stop))
            cuts[run] = min(first, piece.start), max(last, piece.stop)
    return {run: (first, last) for run, (first, last) in cuts.items() if _CUT.run(run=run, first=first, last=last)}


def _kept(plan: Plan) -> set[int]:
    """The shards cut before that are still there to be allocated."""
    returned = [made.piece.shard for made in plan.grants if made.piece.shard is not None]
    if not returned:
        return set()
    pending = Shard.objects.select_for_update().filter(
        pk__in=returned, state=ShardState.PENDING, run__state=RunState.RUNNING
    )
    return set(pending.values_list("pk", flat=True))


@retried
def claim(caller: Caller, asked: Claim, *, most: int | None = None) -> dict[str, Any]:
    """What was granted to this node and not fetched yet, with a lease from now on; and what it shall drop.

    ``most`` allocations at most; by default so many as the node asks for, and the look-ahead beyond.
    """
    if most is None:
        most = min(asked.slots + settings.CASCADE.lookahead_limit, OFFER_LIMIT)
    with write():
        node = keys.check_live(caller)
        found = _undelivered(node.pk)[:most]
        ids = [each.pk for each in found]
        leases.deliver(node, ids, timezone.now(), known=True)
        gone = not_live(node.pk, asked.held)
    if ids:
        synclog.note(node.pk, "claim", synclog.PULL, count=len(ids))
        events.changed(allocate=False)
    ask = asking.take(node.pk) if node.role == Node.Role.RELAY else []
    return {**package(found), "cancel": gone, "drain": node.draining, **({"ask": ask} if ask else {})}


def offered(node_id: int, after: int = 0) -> list[Parcel]:
    """What a socket shall offer this node: granted, not delivered, newer than allocation ``after``."""
    return _undelivered(node_id, after)


@retried
def accept(caller: Caller, ids: Sequence[int]) -> dict[str, Any]:
    """The child took an offer: its lease begins. ``gone`` lists what it must not run. Repeating it changes nothing."""
    with write():
        node = keys.check_live(caller)
        delivered = leases.deliver(node, ids, timezone.now())
        # Mostly all of them were waiting for this; only else it needs a look which were not.
        gone = [] if delivered == len(ids) else not_live(node.pk, ids)
    synclog.note(node.pk, "accept", synclog.PUSH, count=len(ids) - len(gone))
    events.changed(allocate=False)
    return {"gone": gone}


@retried
def release(caller: Caller, ids: Sequence[int], detail: str = "") -> dict[str, Any]:
    """The child hands back what it has not finished; the items go to somebody else, with no attempt counted."""
    with write():
        node = keys.check_live(caller)
        mine = Allocation.objects.filter(pk__in=list(ids), node_id=node.pk, state__in=LIVE)
        live = loading.attempts(mine.select_for_update())
        why = f"released by the node{': ' if detail else ''}{detail}"
        leases.end(live, AllocationState.CANCELLED, Failure.RETURNED, why, timezone.now())
    synclog.note(node.pk, "release", synclog.PUSH, count=len(live), extra={"detail": detail} if detail else None)
    events.changed()
    return {"released": [held.id for held, _ in live]}


def release_unheld(node_id: int, held: Sequence[int]) -> None:
    """A child begins a new session and names what it still holds: the rest of what was delivered to it is lost."""
    delivered = Allocation.objects.select_for_update().filter(node_id=node_id, state__in=LIVE, delivered=True)
    kept = set(held)
    lost = [(each, shard) for each, shard in loading.attempts(delivered) if each.id not in kept]
    if lost:
        now = timezone.now()
        leases.end(lost, AllocationState.EXPIRED, Failure.LOST, "the node came back without it", now)
        registry.lost([node_id], now)


def package(found: Sequence[Parcel]) -> dict[str, Any]:
    """Allocations of one node as they travel; see ``nodes.protocol``."""
    relay = any(each.relay for each in found)
    runs = {run: about(run) for run in {each.run_id for each in found}}
    if relay:
        runs = {run: {**told, **beyond(run)} for run, told in runs.items()}
    work = [
        [each.pk, each.run_id, each.start, each.stop, each.attempt, frozen(each.run_id).slice(each.start, each.stop)]
        for each in found
    ]
    wide: dict[str, Any] = {}
    if relay and found:
        wide["slots"] = {str(each.pk): each.slots for each in found}
        wide["rates"] = {str(pk): key for pk, key in _RATES.rows(ids=[each.pk for each in found])}
    return {"runs": runs, "work": work, **wide, **_beside(work)}


def _beside(work: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What else a node must have or fetch for ``work``: what items remember, and which of it works over our tables."""
    memory: dict[str, Any] = {}
    inputs: list[int] = []
    for run_id, items_of_one in {each[1]: each[5][:1] for each in work}.items():
        run = about(run_id)
        executor = executors.get(run["type"])
        reads = executor.reads(items_of_one, run["params"]) is not None
        mine = [(each[0], each[5]) for each in work if each[1] == run_id] if reads or executor.remembers else []
        if reads:
            inputs += [allocation for allocation, _ in mine]
        if executor.remembers:
            known = remembered(run_id)
            if known is None:
                known = memories.of(run["type"], [item_key(item) for _, items in mine for item in items])
            for allocation, items in mine:
                keys_ = {item_key(item) for item in items}
                memory[str(allocation)] = {key: known[key] for key in keys_ & known.keys()}
    return {name: value for name, value in (("memory", memory), ("inputs", inputs)) if value}


def _undelivered(node_id: int, after: int = 0) -> list[Parcel]:
    return [
        Parcel(pk, run, start, stop, attempt, slots, role == Node.Role.RELAY)
        for pk, run, start, stop, attempt, slots, role in _UNDELIVERED.rows(node=node_id, after=after)
    ]


def not_live(node_id: int, ids: Sequence[int]) -> list[int]:
    """Those of ``ids`` that are not this node's live allocations."""
    if not ids:
        return []
    live = set(
        Allocation.objects.filter(pk__in=list(ids), node_id=node_id, state__in=LIVE).values_list("pk", flat=True)
    )
    return [pk for pk in ids if pk not in live]

"""Grant, deliver, take back: an allocation's life until its report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from dispatch import events, synclog
from dispatch.allocator import Plan
from dispatch.attempts import Failure
from dispatch.items import item_key
from dispatch.lifecycle import memories
from dispatch.lifecycle.cuts import SHARD_COLUMNS, postpone, shorten
from dispatch.lifecycle.ends import unsuccessful
from dispatch.lifecycle.kept import about, frozen
from dispatch.models import Allocation, Run, Shard
from dispatch.states import ALLOCATION, LIVE, SHARD, AllocationState, RunState, ShardState, before
from nodes import executors, keys, registry
from nodes.keys import Caller
from nodes.messages import Claim
from nodes.models import Node
from nodes.transactions import insert_rows, moment, retried, write

ALLOCATION_COLUMNS = (
    *("run_id", "shard_id", "node_id", "type", "item", "start", "stop", "attempt", "state", "delivered"),
    *("deadline", "reason", "granted_at", "progress", "rows", "error", "log"),
)
TIMEOUTS_HELD = 4
OFFER_LIMIT = 1000
"""Allocations in one offer or claim at most; the next one brings the rest."""


class Parcel(NamedTuple):
    """An allocation as it is delivered."""

    pk: int
    run_id: int
    start: int
    stop: int
    attempt: int


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
    Shard.objects.filter(pk__in=kept).update(state=ShardState.ALLOCATED, not_before=None, updated_at=now)
    shorten(grants, now)
    postpone(plan, now)
    ids: dict[tuple[int, int], int] = {}
    for run, (first, last) in cuts.items():
        made_here = Shard.objects.filter(run=run, start__gte=first, start__lt=last).values_list("start", "pk")
        ids.update({(run, start): pk for start, pk in made_here})
    patient = set(
        Node.objects.filter(pk__in={made.node for made in grants}, dialect__in=Node.PATIENT).values_list(
            "pk", flat=True
        )
    )
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
                *(until[made.node in patient], made.reason[:300], at, 0, 0, "", ""),
            )
            for made in grants
        ],
    )
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
    return {
        run: (first, last)
        for run, (first, last) in cuts.items()
        if Run.objects.filter(pk=run, cut=first, state=RunState.RUNNING).update(cut=last)
    }


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
        _deliver(node, ids)
        gone = not_live(node.pk, asked.held)
    if ids:
        synclog.note(node.pk, "claim", synclog.PULL, count=len(ids))
        events.changed(allocate=False)
    return {**package(found), "cancel": gone, "drain": node.draining}


def offered(node_id: int, after: int = 0) -> list[Parcel]:
    """What a socket shall offer this node: granted, not delivered, newer than allocation ``after``."""
    return _undelivered(node_id, after)


@retried
def accept(caller: Caller, ids: Sequence[int]) -> dict[str, Any]:
    """The child took an offer: its lease begins. ``gone`` lists what it must not run. Repeating it changes nothing."""
    with write():
        node = keys.check_live(caller)
        delivered = _deliver(node, ids)
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
        live = list(
            Allocation.objects.select_for_update()
            .filter(pk__in=list(ids), node_id=node.pk, state__in=LIVE)
            .select_related("shard")
        )
        unsuccessful(
            live, AllocationState.CANCELLED, Failure.RETURNED, f"released by the node{': ' if detail else ''}{detail}"
        )
    synclog.note(node.pk, "release", synclog.PUSH, count=len(live), extra={"detail": detail} if detail else None)
    events.changed()
    return {"released": [each.pk for each in live]}


def release_unheld(node_id: int, held: Sequence[int]) -> None:
    """A child begins a new session and names what it still holds: the rest of what was delivered to it is lost."""
    live = Allocation.objects.select_for_update().filter(node_id=node_id, state__in=LIVE, delivered=True)
    kept = set(held)
    lost = [each for each in live.select_related("shard") if each.pk not in kept]
    unsuccessful(lost, AllocationState.EXPIRED, Failure.LOST, "the node came back without it")


@retried
def expire(now: datetime) -> int:
    """Takes back allocations whose lease or offer has ended. Returns how many."""
    if not Allocation.objects.filter(state__in=LIVE, deadline__lt=now).exists():
        return 0
    with write():
        # Read again inside: a beat may have renewed the lease since.
        overdue = list(
            Allocation.objects.select_for_update(skip_locked=True)
            .filter(state__in=LIVE, deadline__lt=now)
            .select_related("shard")[:5000]
        )
        leases = [each for each in overdue if each.delivered]
        offers = [each for each in overdue if not each.delivered]
        stuck = _stuck(leases)
        lost = [each for each in leases if each.pk not in stuck]
        late = [each for each in leases if each.pk in stuck]
        unsuccessful(lost, AllocationState.EXPIRED, Failure.LOST, "the lease expired: no beat from the node")
        unsuccessful(late, AllocationState.EXPIRED, Failure.TIMEOUT, "not reported within its time-out")
        unsuccessful(offers, AllocationState.EXPIRED, Failure.RETURNED, "not fetched in time")
    for ended, why in ((leases, "the lease expired: no beat"), (offers, "not fetched in time")):
        for node_id, count in Counter(each.node_id for each in ended).items():
            synclog.note(node_id, "expire", synclog.PUSH, count=count, error=why)
    events.changed()
    events.tell(
        {each.node_id for each in leases if each.node_id}, {"type": "node.cancel", "ids": [each.pk for each in leases]}
    )
    return len(overdue)


def _stuck(leases: Sequence[Allocation]) -> set[int]:
    """Those of devices that went on beating all the time that the work may take, and longer (``_lease``)."""
    devices = Allocation.objects.filter(
        pk__in=[each.pk for each in leases], node__dialect=Node.Dialect.DISTRIBUTION, delivered_at__isnull=False
    )
    longest = {
        pk: since + timedelta(seconds=timeout + settings.CASCADE.patient_seconds)
        for pk, since, timeout in devices.values_list("pk", "delivered_at", "run__timeout")
        if since is not None
    }
    return {each.pk for each in leases if each.pk in longest and each.deadline >= longest[each.pk]}


@retried
def disconnected(node_id: int, now: datetime) -> None:
    """A node's socket closed: unless it is heard from again within two beats, its offers go to others."""
    soon = now + timedelta(seconds=2 * settings.CASCADE.beat_seconds)
    with write():
        registry.doubt(node_id, now)
        Allocation.objects.filter(node_id=node_id, state__in=LIVE, delivered=False, deadline__gt=soon).update(
            deadline=soon
        )


@retried
def forgive(now: datetime) -> int:
    """Every lease and offer runs anew: the parent was away, so silence says nothing about the children.

    Returns how many leases there were.
    """
    settled = settings.CASCADE
    with write():
        live = Allocation.objects.filter(state__in=LIVE)
        patient = live.filter(node__dialect__in=Node.PATIENT)
        for node_id in patient.values_list("node_id", flat=True).distinct():
            renew(Node.objects.get(pk=node_id), None, now, forgiving=True)
        patient.filter(delivered=False).update(deadline=now + timedelta(seconds=settled.patient_seconds))
        others = live.exclude(node__dialect__in=Node.PATIENT)
        leases = others.filter(delivered=True).update(deadline=now + timedelta(seconds=settled.lease_seconds))
        others.filter(delivered=False).update(deadline=now + timedelta(seconds=settled.offer_seconds))
    return leases


def start(node_id: int, capacity: int, ids: Sequence[int], now: datetime) -> None:
    """Marks delivered allocations as executing, never more than the node has slots."""
    if not ids:
        return
    executing = set(
        Allocation.objects.filter(node_id=node_id, state=AllocationState.EXECUTING).values_list("pk", flat=True)
    )
    fresh = [pk for pk in ids if pk not in executing][: max(capacity - len(executing), 0)]
    if not fresh:
        return
    begun = Allocation.objects.filter(
        pk__in=fresh, node_id=node_id, delivered=True, state__in=before(ALLOCATION, AllocationState.EXECUTING)
    )
    shards = list(begun.values_list("shard_id", flat=True))
    begun.update(state=AllocationState.EXECUTING, started_at=now)
    Shard.objects.filter(pk__in=shards, state__in=before(SHARD, ShardState.EXECUTING)).update(
        state=ShardState.EXECUTING, updated_at=now
    )


def renew(node: Node, held: Sequence[int] | None, now: datetime, *, forgiving: bool = False) -> None:
    """Every lease the node names, or with None every one that it has, runs anew from now.

    A client that names nothing may have forgotten what it fetched before it was restarted: unless ``forgiving``, its
    requests keep a lease alive for TIMEOUTS_HELD time-outs since the delivery at most.
    """
    if held is not None and not held:
        return
    live = Allocation.objects.filter(node_id=node.pk, state__in=LIVE)
    mine = live.filter(delivered=True) if held is None else live.filter(pk__in=list(held))
    _lease(node, mine, now, timeouts=math.inf if forgiving else TIMEOUTS_HELD)


def _lease(
    node: Node, allocations: QuerySet[Allocation], now: datetime, *, timeouts: float = math.inf, **more: datetime
) -> int:
    """The lease of ``allocations``, all of one node, begins or runs anew; how many there were.

    A beating node's lasts ``lease_seconds``. One that is silent while it works has as long as the work may take.
    """
    if not node.patient:
        until = now + timedelta(seconds=settings.CASCADE.lease_seconds)
        return allocations.update(deadline=until, delivered=True, **more)
    count = 0
    by_end: dict[datetime, list[int]] = {}
    for pk, timeout, since, before_now in allocations.values_list("pk", "run__timeout", "delivered_at", "deadline"):
        longest = timeouts * timeout
        end = now + timedelta(seconds=timeout)
        if node.dialect == Node.Dialect.DISTRIBUTION:
            # Devices beat while they work: silent ones have lost it, and who beats may still be stuck.
            longest = min(longest, timeout + settings.CASCADE.patient_seconds)
            end = now + timedelta(seconds=min(timeout, settings.CASCADE.patient_seconds))
        if since is not None and timeouts != math.inf:
            end = max(min(end, since + timedelta(seconds=longest)), before_now)
        by_end.setdefault(end, []).append(pk)
    for end, ids in by_end.items():
        count += Allocation.objects.filter(pk__in=ids, state__in=LIVE).update(deadline=end, delivered=True, **more)
    return count


def package(found: Sequence[Parcel]) -> dict[str, Any]:
    """Allocations as they travel; see ``nodes.protocol``."""
    runs = {run: about(run) for run in {each.run_id for each in found}}
    work = [
        [each.pk, each.run_id, each.start, each.stop, each.attempt, frozen(each.run_id).slice(each.start, each.stop)]
        for each in found
    ]
    return {"runs": runs, "work": work, **_beside(work)}


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
            known = memories.of(run["type"], [item_key(item) for _, items in mine for item in items])
            for allocation, items in mine:
                keys_ = {item_key(item) for item in items}
                memory[str(allocation)] = {key: known[key] for key in keys_ & known.keys()}
    return {name: value for name, value in (("memory", memory), ("inputs", inputs)) if value}


def _undelivered(node_id: int, after: int = 0) -> list[Parcel]:
    waiting = Allocation.objects.filter(
        node_id=node_id, state=AllocationState.PENDING, delivered=False, pk__gt=after
    ).order_by("pk")
    columns = waiting.values_list("pk", "run_id", "start", "stop", "attempt")[:OFFER_LIMIT]
    return [Parcel(*row) for row in columns]


def _deliver(node: Node, ids: Sequence[int]) -> int:
    """The leases of ``ids`` begin; returns how many had not begun before."""
    if not ids:
        return 0
    now = timezone.now()
    fresh = Allocation.objects.filter(pk__in=list(ids), node_id=node.pk, state__in=LIVE, delivered=False)
    delivered = _lease(node, fresh, now, delivered_at=now)
    # Clients of those dialects say themselves when they begin (``begin``).
    if not node.patient:
        start(node.pk, node.capacity, ids, now)
    return delivered


def not_live(node_id: int, ids: Sequence[int]) -> list[int]:
    """Those of ``ids`` that are not this node's live allocations."""
    if not ids:
        return []
    live = set(
        Allocation.objects.filter(pk__in=list(ids), node_id=node_id, state__in=LIVE).values_list("pk", flat=True)
    )
    return [pk for pk in ids if pk not in live]

"""Leases: they begin with the delivery, run anew with every beat, and end by themselves where a node falls silent."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from django.conf import settings

from dispatch import events, synclog
from dispatch.attempts import Failure
from dispatch.deciding import endings, leases
from dispatch.deciding.effects import Begin, Effect
from dispatch.deciding.records import Held, Lease, Patience, Shard
from dispatch.lifecycle import loading
from dispatch.lifecycle.writing import write_down
from dispatch.models import Allocation
from dispatch.states import LIVE, AllocationState
from nodes import journal, registry
from nodes.models import Node
from nodes.prepared import Given, Prepared
from nodes.transactions import retried, write

EXPIRED = "the lease expired: no beat from the node"
STUCK = "not reported within its time-out"
HUNG = "its node beats, but has not ended it at its time-out"
UNFETCHED = "not fetched in time"
BATCH = 5000
LENT_TOGETHER = 5000
"""In one statement; databases allow so many values and no more."""


def deliver(node: Node, ids: Sequence[int], now: datetime, *, known: bool = False) -> int:
    """The leases of those of ``ids`` that are granted to ``node`` begin; how many had not begun before.

    ``known``: the caller has just read that this is so of all of them.
    """
    if not ids:
        return 0
    patience = loading.patience_of(node)
    # Locked, so that what is told of them still holds when it is written (PostgreSQL).
    if patience.polls_rarely:
        locked = Allocation.objects.select_for_update(of=("self",))
        granted = locked.filter(pk__in=list(ids), node_id=node.pk, state__in=LIVE, delivered=False)
        fresh = loading.leases(granted, patience)
    else:
        fresh = [Lease(pk) for pk in ids] if known else [Lease(pk) for (pk,) in _GRANTED.rows(ids=ids, node=node.pk)]
    write_down(leases.lent(patience, fresh, now, begin=True), now)
    # Clients of the patient dialects say themselves when they begin (``begin``).
    if not node.patient:
        start(node, ids, now)
    return len(fresh)


def start(node: Node, ids: Sequence[int], now: datetime) -> None:
    """Marks delivered allocations as executing, never more than the node has slots."""
    start_all([(node, ids)], now)


_EXECUTING = Prepared(
    lambda: Allocation.objects.filter(node__among=Given("nodes"), state=AllocationState.EXECUTING).values_list(
        "node_id", "pk", "slots"
    )
)
_GRANTED = Prepared(
    lambda: (
        Allocation.objects.select_for_update(of=("self",))
        .filter(pk__among=Given("ids"), node=Given("node"), state__in=LIVE, delivered=False)
        .values_list("pk")
    )
)


def start_all(running: Iterable[tuple[Node, Sequence[int]]], now: datetime) -> None:
    """As ``start`` for each node."""
    named = [(node, ids) for node, ids in running if ids]
    if not named:
        return
    executing: dict[int, dict[int, int]] = defaultdict(dict)
    for node_id, pk, slots in _EXECUTING.rows(nodes={node.pk for node, _ in named}):
        executing[node_id][pk] = slots
    for node, ids in named:
        known = executing[node.pk]
        wide = _slots_of(node, ids) if node.role == Node.Role.RELAY else {}
        if begins := leases.to_begin(ids, known, node.capacity - sum(known.values()), wide):
            write_down([Begin(node.pk, begins)], now)
            known.update((pk, wide.get(pk, 1)) for pk in begins)


def _slots_of(node: Node, ids: Sequence[int]) -> dict[int, int]:
    named = set(ids)
    live = Allocation.objects.filter(node_id=node.pk, state__in=LIVE, slots__gt=1)
    return {pk: slots for pk, slots in live.values_list("pk", "slots") if pk in named}


def renew(node: Node, held: Sequence[int] | None, now: datetime, *, forgiving: bool = False) -> set[int]:
    """Every lease the node names, or with None every one that it has, runs anew from now. Returns which are live.

    A client that names nothing may have forgotten what it fetched before it was restarted: unless ``forgiving``, its
    requests keep a lease alive for ``leases.TIMEOUTS_HELD`` time-outs since the delivery at most.
    """
    if held is not None and not held:
        return set()
    patience = loading.patience_of(node)
    live = Allocation.objects.select_for_update(of=("self",)).filter(node_id=node.pk, state__in=LIVE)
    mine = live.filter(delivered=True) if held is None else live.filter(pk__in=list(held))
    timeouts = math.inf if forgiving else leases.TIMEOUTS_HELD
    found = loading.leases(mine, patience)
    write_down(leases.lent(patience, found, now, timeouts=timeouts), now)
    return {lease.id for lease in found}


def renew_all(held: Iterable[tuple[Node, Sequence[int]]], now: datetime) -> set[tuple[int, int]]:
    """As ``renew`` for what each node names. Returns (node, allocation) of those that are live."""
    beating: dict[int, set[int]] = defaultdict(set)
    live: set[tuple[int, int]] = set()
    patience: Patience | None = None
    for node, ids in held:
        if node.patient:
            live.update((node.pk, pk) for pk in renew(node, ids, now))
        elif ids:
            patience = loading.patience_of(node)
            beating[node.pk].update(ids)
    if patience is None:
        return live
    # By node: what a message names may be long, what a node has is not.
    theirs = Allocation.objects.select_for_update(of=("self",)).filter(node_id__in=beating, state__in=LIVE)
    mine = [(node, pk) for node, pk in theirs.values_list("node_id", "pk") if pk in beating[node]]
    for at in range(0, len(mine), LENT_TOGETHER):
        lent = [Lease(pk) for _, pk in mine[at : at + LENT_TOGETHER]]
        write_down(leases.lent(patience, lent, now), now)
    return live.union(mine)


@retried
def expire(now: datetime) -> int:
    """Takes back allocations whose lease or offer has ended; for a while none, where all nodes fell silent at once.
    Returns how many.
    """
    if not Allocation.objects.filter(state__in=LIVE, deadline__lt=now).exists() or _suspect(now):
        return 0
    with write():
        # Read again inside: a beat may have renewed the lease since.
        ended = Allocation.objects.select_for_update(skip_locked=True).filter(state__in=LIVE, deadline__lt=now)
        attempts = loading.attempts(ended[:BATCH])
        overdue = leases.overdue(_leases(held.id for held, _ in attempts))
        of = {held.id: held for held, _ in attempts}
        fates = (
            (overdue.lost, Failure.LOST, EXPIRED),
            (overdue.stuck, Failure.TIMEOUT, STUCK),
            (overdue.offers, Failure.RETURNED, UNFETCHED),
        )
        for ids, failure, detail in fates:
            chosen = set(ids)
            end([each for each in attempts if each[0].id in chosen], AllocationState.EXPIRED, failure, detail, now)
        registry.lost({node for pk in overdue.lost if (node := of[pk].node) is not None}, now)
    gone = [of[pk] for pk in (*overdue.lost, *overdue.stuck)]
    _note(gone, "the lease expired: no beat")
    _note([of[pk] for pk in overdue.offers], UNFETCHED)
    events.changed()
    events.tell({each.node for each in gone if each.node}, {"type": "node.cancel", "ids": [each.id for each in gone]})
    return len(of)


@retried
def unstick(now: datetime) -> int:
    """Takes back what a node that beats has run for longer than its own time-outs allow: it will not end it any more.
    Returns how many.
    """
    lease = settings.CASCADE.lease_seconds
    # Clients of other dialects have leases that end by themselves (``deciding.leases.end``).
    running = Allocation.objects.filter(
        state=AllocationState.EXECUTING,
        node__dialect=Node.Dialect.NATIVE,
        started_at__lt=now - timedelta(seconds=lease),
    )
    hung = [
        pk
        for pk, since, timeout in running.values_list("pk", "started_at", "run__timeout")
        if since is not None and since < leases.hung_since(now, timeout, lease)
    ]
    if not hung:
        return 0
    with write():
        still = Allocation.objects.select_for_update(skip_locked=True).filter(pk__in=hung, state__in=LIVE)
        attempts = loading.attempts(still)
        end(attempts, AllocationState.EXPIRED, Failure.TIMEOUT, HUNG, now)
    gone = [held for held, _ in attempts]
    _note(gone, HUNG)
    events.changed()
    events.tell({each.node for each in gone if each.node}, {"type": "node.cancel", "ids": [each.id for each in gone]})
    return len(attempts)


def _suspect(now: datetime) -> bool:
    """Whether this parent has rather lost its network than every node its power."""
    lease = settings.CASCADE.lease_seconds
    # Those that beat by themselves; who fell silent longer ago is gone for a reason of its own.
    beating = Node.objects.filter(
        active=True, dialect=Node.Dialect.NATIVE, last_beat_at__gt=now - timedelta(seconds=3 * lease)
    )
    heard = beating.exclude(role__in=(Node.Role.PARENT, Node.Role.STANDALONE)).values_list("last_beat_at", flat=True)
    return leases.silent_together([at for at in heard if at], now, lease)


def end(
    attempts: Sequence[tuple[Held, Shard]], state: AllocationState, failure: Failure, detail: str, now: datetime
) -> None:
    """Live allocations end in ``state``, and their shards go on. Inside the caller's transaction."""
    if not attempts:
        return
    ids = sorted({held.id for held, _ in attempts})
    effects: Iterable[Effect] = endings.unsuccessful(
        attempts,
        state,
        failure,
        detail,
        twins=loading.twins_of([shard.id for _, shard in attempts], but=ids),
        limits=loading.limits_of({held.run for held, _ in attempts}),
        now=now,
    )
    write_down(effects, now)


def _leases(ids: Iterable[int]) -> list[tuple[Lease, Patience]]:
    columns = ("pk", "delivered", "deadline", "run__timeout", "delivered_at", "node__dialect")
    found = Allocation.objects.filter(pk__in=list(ids)).order_by("pk").values_list(*columns)
    patience = {dialect: loading.patience_of(Node(dialect=dialect)) for dialect in Node.Dialect.values}
    native = Node.Dialect.NATIVE
    return [(Lease(*row[:-1]), patience[row[-1] or native]) for row in found]


def _note(ended: Sequence[Held], why: str) -> None:
    for node_id, count in Counter(each.node for each in ended).items():
        synclog.note(node_id, "expire", synclog.PUSH, count=count, error=why)
    for (node, run), count in Counter((each.node, each.run) for each in ended).items():
        journal.note(journal.About.WORK, "expired", node=node, run=run, count=count, text=why)


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
        held = others.filter(delivered=True).update(deadline=now + timedelta(seconds=settled.lease_seconds))
        others.filter(delivered=False).update(deadline=now + timedelta(seconds=settled.offer_seconds))
        # What ended meanwhile could not be reported, and by a clock that was moved nothing hangs.
        others.filter(state=AllocationState.EXECUTING).update(started_at=now)
    return held

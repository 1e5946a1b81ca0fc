"""Second copies of late shards, and queued ones that are taken back. See ``dispatch.tail`` for when.

A shard with two live allocations belongs to whichever is reported first; the other one is superseded, and its report
comes too late. While one copy lives, the failure of the other costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

from dispatch import events, metrics
from dispatch.attempts import Failure
from dispatch.lifecycle import leases, loading
from dispatch.models import Allocation
from dispatch.states import LIVE, AllocationState, RunState
from dispatch.tail import Copy, Late
from nodes import registry


def copy(copies: Sequence[Copy], now: datetime) -> set[int]:
    """Allocates each shard to one node more; the nodes that got one. In the transaction that decided it.

    One that has ended meanwhile, or has a copy by now, is left out.
    """
    ids = [each.late.allocation for each in copies]
    first = Allocation.objects.select_for_update(of=("self",)).filter(
        pk__in=ids, state__in=LIVE, run__state=RunState.RUNNING
    )
    still = {each.pk: each for each in first}
    taken = set(loading.twins_of([each.shard_id for each in still.values()], but=list(still)))
    until = now + timedelta(seconds=settings.CASCADE.offer_seconds)
    made = [
        Allocation(
            run_id=one.run_id,
            shard_id=one.shard_id,
            node_id=each.node,
            type=one.type,
            item=one.item,
            start=one.start,
            stop=one.stop,
            attempt=one.attempt,
            deadline=until,
            reason=each.reason[:300],
            granted_at=now,
        )
        for each in copies
        if (one := still.get(each.late.allocation)) is not None and one.shard_id not in taken
    ]
    Allocation.objects.bulk_create(made)
    metrics.granted.committed(len(made))
    nodes = [each.node_id for each in made if each.node_id is not None]
    registry.granted(nodes, now)
    return set(nodes)


def take_back(lates: Iterable[Late], detail: str) -> dict[int, list[int]]:
    """Ends these allocations, which their nodes have not begun; no attempt counts. Returns them by node.

    In the transaction that decided it; the nodes are to be told after it.
    """
    queued = Allocation.objects.select_for_update(of=("self",)).filter(
        pk__in=[late.allocation for late in lates], state=AllocationState.PENDING
    )
    found = loading.attempts(queued)
    leases.end(found, AllocationState.CANCELLED, Failure.RETURNED, detail, timezone.now())
    by_node: dict[int, list[int]] = {}
    for held, _ in found:
        if held.node is not None:
            by_node.setdefault(held.node, []).append(held.id)
    return by_node


def tell_superseded(by_node: dict[int, list[int]]) -> None:
    """After the commit: their workers need not go on."""
    for node_id, ids in by_node.items():
        events.tell([node_id], {"type": "node.cancel", "ids": ids})

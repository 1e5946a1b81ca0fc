"""Recall: what was granted goes back, to be granted anew; what was not fetched yet, or all of a run."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils import timezone

from dispatch import events
from dispatch.attempts import Failure
from dispatch.deciding.records import Held
from dispatch.lifecycle import leases, loading
from dispatch.models import Allocation
from dispatch.states import LIVE, AllocationState
from nodes.transactions import retried, write


@retried
def recall(node_ids: Sequence[int], detail: str, run_id: int | None = None) -> list[Held]:
    """Takes back all that these nodes have not fetched, or of it what is ``run_id``'s; no attempt counts. What they
    have fetched stays theirs."""
    with write():
        found = Allocation.objects.filter(node_id__in=list(node_ids), state__in=LIVE, delivered=False)
        if run_id is not None:
            found = found.filter(run=run_id)
        waiting = loading.attempts(found.select_for_update())
        leases.end(waiting, AllocationState.CANCELLED, Failure.RETURNED, detail, timezone.now())
    events.changed()
    return [held for held, _ in waiting]


@retried
def withdraw(run_id: int, detail: str) -> int:
    """Takes back all of a run that is with nodes, which drop it; no attempt counts. Returns how many allocations."""
    with write():
        live = Allocation.objects.filter(run=run_id, state__in=LIVE)
        found = loading.attempts(live.select_for_update())
        leases.end(found, AllocationState.CANCELLED, Failure.RETURNED, detail, timezone.now())
    events.changed()
    by_node: dict[int, list[int]] = {}
    for held in {held for held, _ in found}:
        if held.node is not None:
            by_node.setdefault(held.node, []).append(held.id)
    for node_id, ids in by_node.items():
        events.tell([node_id], {"type": "node.cancel", "ids": ids})
    return sum(map(len, by_node.values()))

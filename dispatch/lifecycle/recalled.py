"""Recall: what was granted and not fetched yet goes back, to be granted anew."""

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

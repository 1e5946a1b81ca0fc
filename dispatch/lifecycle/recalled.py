"""Recall: what was granted and not fetched yet goes back, to be granted anew."""

from __future__ import annotations

from collections.abc import Sequence

from dispatch import events
from dispatch.attempts import Failure
from dispatch.lifecycle.ends import unsuccessful
from dispatch.models import Allocation
from dispatch.states import LIVE, AllocationState
from nodes.transactions import retried, write


@retried
def recall(node_ids: Sequence[int], detail: str) -> list[Allocation]:
    """Takes back all that these nodes have not fetched; no attempt counts. What they have fetched stays theirs."""
    with write():
        waiting = list(
            Allocation.objects.select_for_update()
            .filter(node_id__in=list(node_ids), state__in=LIVE, delivered=False)
            .select_related("shard")
        )
        unsuccessful(waiting, AllocationState.CANCELLED, Failure.RETURNED, detail)
    events.changed()
    return waiting

"""What became of a shard: its attempts in order, each with why its node got it, when, how it ended and what it brought.

Why the other nodes did not get it is not kept: at 1,000 nodes it would be a thousand rows for each allocation. Each
allocation has what decided for its node (``reason``): a quota, free capacity by a balancer, look-ahead, a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dispatch import leaves
from dispatch.models import Allocation, Shard
from dispatch.states import AllocationState

MOST = 100
"""Attempts told of one range; the newest ones."""

ENDED = {
    AllocationState.PENDING: "granted, not begun",
    AllocationState.EXECUTING: "running",
    AllocationState.COMPLETED: "completed: its report was accepted",
    AllocationState.FAILED: "failed",
    AllocationState.EXPIRED: "expired: the lease, or the offer, ended before a report came",
    AllocationState.CANCELLED: "cancelled",
    AllocationState.SUPERSEDED: "superseded: another attempt was first, or it was taken back",
}


def by(reason: str) -> str:
    """quota, free, look-ahead, operator, or other for a copy and the like: how a reason begins."""
    for start, short in (
        ("quota", "quota"),
        ("free capacity", "free"),
        ("look-ahead", "look-ahead"),
        ("assigned by an operator", "operator"),
    ):
        if reason.startswith(start):
            return short
    return "other"


def attempts(shard: Shard) -> tuple[list[dict[str, Any]], int]:
    """The attempts at the items of ``shard``, oldest first, and how many older ones are left out.

    A shard may be a piece of what was allocated, or was cut after it was, so ranges are compared.
    """
    found = Allocation.objects.filter(run=shard.run_id, start__lt=shard.stop, stop__gt=shard.start)
    newest = list(
        found.select_related("node").defer("log", "digests", "node__speeds", "node__facts").order_by("-pk")[: MOST + 1]
    )
    more = found.count() - MOST if len(newest) > MOST else 0
    return told(newest[:MOST][::-1]), more


def told(allocations: Sequence[Allocation]) -> list[dict[str, Any]]:
    """``node`` of each must be at hand."""
    ran_by = leaves.of_allocations(allocations)
    return [
        {
            "allocation": each.pk,
            "shard": each.shard_id,
            "start": each.start,
            "stop": each.stop,
            "attempt": each.attempt,
            "node": each.node.name if each.node else None,
            "state": each.state,
            "ended": ENDED[AllocationState(each.state)],
            "by": by(each.reason),
            "reason": each.reason,
            "slots": each.slots,
            "granted_at": each.granted_at,
            "delivered_at": each.delivered_at,
            "started_at": each.started_at,
            "finished_at": each.finished_at,
            "deadline": each.deadline if each.finished_at is None else None,
            "seconds": each.seconds,
            "rows": each.rows,
            "parts": each.parts,
            "receipt": each.receipt_id,
            "ran_by": ran_by[each.pk],
            "error": each.error,
        }
        for each in allocations
    ]

"""A node that goes on and off loses its work each time: it gets nothing for a while, longer with each loss. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

FORGET_LEASES = 10
"""A node that has kept its work for so many leases' time has a clean record."""
LONGEST_LEASES = 10


def losses_after(losses: int, lost_at: datetime | None, now: datetime, lease: float) -> int:
    """How often in a row a node has lost its work, with this time. ``lease`` in seconds."""
    return losses + 1 if lost_at is not None and now - lost_at < timedelta(seconds=FORGET_LEASES * lease) else 1


def cool_until(losses: int, lost_at: datetime | None, lease: float) -> datetime | None:
    """Until when it gets nothing new. The first loss is forgiven; from a sixth of a lease, the time doubles."""
    if losses < 2 or lost_at is None:
        return None
    return lost_at + timedelta(seconds=min(lease / 6 * 2.0 ** min(losses - 2, 30), LONGEST_LEASES * lease))

"""Leases: until when, whose have ended, and which of the delivered shards are executing."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

from dispatch.deciding.effects import Lend
from dispatch.deciding.records import Lease, Patience

TIMEOUTS_HELD = 4
"""A client that names nothing of what it holds may have forgotten it before it was restarted: its requests keep a lease
for so many time-outs since the delivery at most."""


TIMEOUTS_RUNNING = 3


def lent(
    patience: Patience, leases: Iterable[Lease], now: datetime, *, timeouts: float = math.inf, begin: bool = False
) -> Iterator[Lend]:
    """These leases of one node run anew from ``now``, or ``begin``; as one effect for all that end at one time."""
    by_end: dict[datetime, list[int]] = {}
    for lease in leases:
        by_end.setdefault(end(patience, lease, now, timeouts=timeouts), []).append(lease.id)
    for until, ids in by_end.items():
        yield Lend(tuple(ids), until, now if begin else None)


def end(patience: Patience, lease: Lease, now: datetime, *, timeouts: float = math.inf) -> datetime:
    """When a lease that begins or runs anew ``now`` will end.

    A beating node's lasts ``patience.lease``. One that is silent while it works has as long as the work may take, for
    ``timeouts`` time-outs since the delivery at most.
    """
    if not patience.polls_rarely:
        return now + timedelta(seconds=patience.lease)
    longest = timeouts * lease.timeout
    until = now + timedelta(seconds=lease.timeout)
    if patience.beats_while_working:
        # Silent ones have lost it, and one that beats may still be stuck.
        longest = min(longest, lease.timeout + patience.patient)
        until = now + timedelta(seconds=min(lease.timeout, patience.patient))
    if lease.since is not None and lease.deadline is not None and not math.isinf(timeouts):
        until = max(min(until, lease.since + timedelta(seconds=longest)), lease.deadline)
    return until


def silent_together(heard: Sequence[datetime], now: datetime, lease: float) -> bool:
    """Whether it is rather the parent that nobody can reach: ``heard`` is when each of its nodes beat last.

    Two or more, none of them within a lease's time (``lease``, seconds) and all lost within one: it is given another
    lease's time to be heard of. What is silent then is gone.
    """
    if len(heard) < 2:
        return False
    latest, span = max(heard), timedelta(seconds=lease)
    return latest - min(heard) <= span and span <= now - latest < 2 * span


def hung_since(now: datetime, timeout: float, lease: float) -> datetime:
    """What began before this has run for longer than its node's own time-outs let it: alone again after a bundle that
    hung, and a spare."""
    return now - timedelta(seconds=TIMEOUTS_RUNNING * timeout + lease)


class Overdue(NamedTuple):
    """Leases and offers whose time is up: ids, by what that means."""

    lost: list[int]
    """No beat: the node is gone, or has forgotten it."""
    stuck: list[int]
    """Its node beat all the time, longer than the work may take."""
    offers: list[int]
    """Not fetched in time."""


def overdue(leases: Iterable[tuple[Lease, Patience]]) -> Overdue:
    """What becomes of ``leases``, all of which have ended."""
    found = Overdue([], [], [])
    for lease, patience in leases:
        if not lease.delivered:
            found.offers.append(lease.id)
        elif _stuck(lease, patience):
            found.stuck.append(lease.id)
        else:
            found.lost.append(lease.id)
    return found


def _stuck(lease: Lease, patience: Patience) -> bool:
    if not (patience.polls_rarely and patience.beats_while_working) or lease.since is None or lease.deadline is None:
        return False
    return lease.deadline >= lease.since + timedelta(seconds=lease.timeout + patience.patient)


def to_begin(
    running: Sequence[int], executing: Container[int], slots: int, wide: Mapping[int, int] = MappingProxyType({})
) -> tuple[int, ...]:
    """Those of ``running`` that begin now, in order: never more than the node has free ``slots``.

    ``wide``: how many each takes, where that is not one.
    """
    begins = []
    for pk in running:
        if pk in executing:
            continue
        slots -= wide.get(pk, 1)
        if slots < 0:
            break
        begins.append(pk)
    return tuple(begins)

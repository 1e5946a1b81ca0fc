"""The tail of a run: nothing left to cut, and slots idle. Which late shards are worth a second copy, which queued ones
are taken back from a slow node. Pure: what runs and who is idle in, decisions out.

A second copy costs a slot that has nothing else to do, and the first valid report of either wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dispatch.plans import Demand, Offer
from dispatch.seats import Seat

EXCHANGE_SECONDS = 0.05
"""What handing a shard to another node costs beside running it; less than that cannot be won."""
GAIN = 1.3
"""A copy is made when the first is thought to take longer by this factor than the copy would."""
OVERDUE = 1.5
"""A shard that has run for so many times what it should take may go on for as long as it has."""
QUEUED_SECONDS = 0.5
"""Taking back what is queued costs a worker, if it has begun unseen; so it must win more than a copy."""


@dataclass(frozen=True, slots=True)
class Late:
    """A live allocation of a run that has nothing left to cut, with no copy yet. Times in seconds.

    ``begun``: it runs; else it is queued with its node, or not fetched. ``age``: since it began, or was granted.
    ``ahead``: how many of the node's slots' worth of work of this type is queued before it.
    """

    allocation: int
    run: int
    shard: int
    node: int
    items: int
    begun: bool
    age: float
    ahead: float = 0.0


@dataclass(frozen=True, slots=True)
class Copy:
    """Allocate the shard of ``late`` to ``node`` as well, because of ``reason``."""

    late: Late
    node: int
    reason: str


@dataclass(frozen=True, slots=True)
class Evened:
    """``copies`` to be granted; ``back``, allocations to be taken back so that they are granted anew."""

    copies: list[Copy]
    back: list[Late]


def even_out(demands: Mapping[int, Demand], offers: Sequence[Offer], lates: Sequence[Late]) -> Evened:
    """What is worth doing for ``lates`` (their runs in ``demands``), the longest expected wait first."""
    seats = {offer.node: Seat(offer) for offer in sorted(offers, key=lambda offer: (offer.name, offer.node))}
    copies: list[Copy] = []
    back: list[Late] = []
    waits = [(left, late) for late in lates if (left := _left(late, demands[late.run], seats, lates)) is not None]
    for left, late in sorted(waits, key=lambda each: (-each[0], each[1].allocation)):
        demand = demands[late.run]
        found = _quickest(late, demand, seats)
        if found is None:
            continue
        seat, needs = found
        if left <= needs * GAIN + (EXCHANGE_SECONDS if late.begun else QUEUED_SECONDS):
            continue
        seat.take(demand.type, "", 0)
        if late.begun:
            first = seats[late.node].offer.name if late.node in seats else "its node"
            copies.append(
                Copy(
                    late,
                    seat.offer.node,
                    f"second copy: {first} is thought to need {left:.2g} s more, this node {needs:.2g} s",
                )
            )
        else:
            back.append(late)
    return Evened(copies, back)


def _left(late: Late, demand: Demand, seats: Mapping[int, Seat], lates: Sequence[Late]) -> float | None:
    """Seconds until it is done where it is, as far as that can be told."""
    seat = seats.get(late.node)
    pace = seat.pace(demand) if seat else None
    if pace is None:
        # A node that has reported nothing yet is taken for one like the others.
        known = sorted(found for each in seats.values() if (found := each.pace(demand)) is not None)
        if not known:
            return None
        pace = known[len(known) // 2]
    takes = late.items * pace
    if not late.begun:
        return max(late.ahead * pace + takes - late.age, takes)
    return takes - late.age if late.age <= OVERDUE * takes else late.age


def _quickest(late: Late, demand: Demand, seats: Mapping[int, Seat]) -> tuple[Seat, float] | None:
    """The idle node that would be done with it first, and in how many seconds."""
    able = [
        (late.items * pace, seat)
        for seat in seats.values()
        if seat.offer.node != late.node
        and seat.free
        and (pace := seat.pace(demand)) is not None
        and seat.refusal(demand) is None
        # The parent's own worker is there for what no node can do.
        and (not seat.offer.embedded or demand.fallback == "required")
    ]
    if not able:
        return None
    needs, seat = min(able, key=lambda each: each[0])
    return seat, needs

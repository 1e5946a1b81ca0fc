"""The tail of a run: nothing left to cut, and slots idle. Which late shards are shortened, so that an idle node does
what a slow one has not reached, which are worth a second copy, which queued ones are taken back. Pure: what runs and
who is idle in, decisions out.

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
WARM_SECONDS = 5.0
"""So much longer a node has that has reported nothing of a run: it may be starting workers and loading libraries."""
QUEUED_SECONDS = 0.5
"""Taking back what is queued costs a worker, if it has begun unseen; so it must win more than a copy."""


@dataclass(frozen=True, slots=True)
class Late:
    """A live allocation of a run that has nothing left to cut, with no copy yet. Times in seconds.

    ``begun``: it runs; else it is queued with its node, or not fetched. ``age``: since it began, or was granted.
    ``done``: items, by its last beat. ``ahead``: how many of the node's slots' worth of work of this type is queued
    before it. ``divisible``: its node can end it early, and has not been asked to.
    """

    allocation: int
    run: int
    shard: int
    node: int
    start: int
    items: int
    begun: bool
    age: float
    done: int = 0
    ahead: float = 0.0
    divisible: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """Allocate the shard of ``late`` to ``node`` as well, because of ``reason``."""

    late: Late
    node: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Ask the node of ``late`` to keep the first ``items`` of it; the rest comes back with its report."""

    late: Late
    items: int


@dataclass(frozen=True, slots=True)
class Evened:
    """``copies`` to be granted; ``back``, allocations to be taken back so that they are granted anew; ``cuts``."""

    copies: list[Copy]
    back: list[Late]
    cuts: list[Cut]

    def __bool__(self) -> bool:
        return bool(self.copies or self.back or self.cuts)


def even_out(
    demands: Mapping[int, Demand],
    offers: Sequence[Offer],
    lates: Sequence[Late],
    ceilings: Mapping[str, int] | None = None,
) -> Evened:
    """What is worth doing for ``lates`` (their runs in ``demands``), the longest expected wait first. ``ceilings``: the
    slots that are left under those of the demands.
    """
    left_under = dict(ceilings or {})
    seats = {offer.node: Seat(offer) for offer in sorted(offers, key=lambda offer: (offer.name, offer.node))}
    copies: list[Copy] = []
    back: list[Late] = []
    cuts: list[Cut] = []
    waits = [(left, late) for late in lates if (left := _left(late, demands[late.run], seats)) is not None]
    for left, late in sorted(waits, key=lambda each: (-each[0], each[1].allocation)):
        demand = demands[late.run]
        found = _quickest(late, demand, seats)
        if found is None:
            continue
        seat, needs = found
        if late.divisible and (cut := _cut(late, demand, seats, seat, left)) is not None:
            seat.take(demand.type, "", 0)
            cuts.append(cut)
            continue
        if left <= needs * GAIN + (EXCHANGE_SECONDS if late.begun else QUEUED_SECONDS):
            continue
        if late.begun and any(left_under[name] < 1 for name in demand.ceilings):
            continue  # the copy would run beside all that was granted for it
        seat.take(demand.type, "", 0)
        if late.begun:
            for name in demand.ceilings:
                left_under[name] -= 1
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
    return Evened(copies, back, cuts)


def _cut(late: Late, demand: Demand, seats: Mapping[int, Seat], quick: Seat, left: float) -> Cut | None:
    """Where both would end at the same time; None where there is nothing to divide, or nothing worth it to win."""
    pace, quicker = _pace(late, demand, seats), quick.pace(demand)
    if not late.begun or pace is None or quicker is None:
        return None
    # The item that it is at is its own.
    overdue = late.age > _patience(late, demand, seats, pace)
    reached = late.done + 1 if overdue else max(late.done, int(late.age / pace)) + 1
    rest = late.items - reached
    # Of one that is overdue nothing is known but what its last beat told: all that it has not reached.
    kept = 0 if overdue else int(rest * quicker / (pace + quicker))
    moved = rest - kept
    if moved < 1 or left <= max(moved * quicker, (kept + 1) * pace) * GAIN + EXCHANGE_SECONDS:
        return None
    return Cut(late, reached + kept)


def _patience(late: Late, demand: Demand, seats: Mapping[int, Seat], pace: float) -> float:
    """Seconds after which a shard that has begun is overdue."""
    seat = seats.get(late.node)
    warm = seat is None or seat.pace(demand) is not None
    return OVERDUE * late.items * pace + (0.0 if warm else WARM_SECONDS)


def _pace(late: Late, demand: Demand, seats: Mapping[int, Seat]) -> float | None:
    """Seconds per item where it is; a node that has reported nothing of the run is taken for one like the others."""
    seat = seats.get(late.node)
    if seat is not None and (pace := seat.pace(demand)) is not None:
        return pace
    known = sorted(found for each in seats.values() if (found := each.pace(demand)) is not None)
    return known[len(known) // 2] if known else None


def _left(late: Late, demand: Demand, seats: Mapping[int, Seat]) -> float | None:
    """Seconds until it is done where it is, as far as that can be told."""
    pace = _pace(late, demand, seats)
    if pace is None:
        return None
    takes = late.items * pace
    if not late.begun:
        return max(late.ahead * pace + takes - late.age, takes)
    return takes - late.age if late.age <= _patience(late, demand, seats, pace) else late.age


def _quickest(late: Late, demand: Demand, seats: Mapping[int, Seat]) -> tuple[Seat, float] | None:
    """The idle node that would be done with it first, and in how many seconds."""
    able = [
        (late.items * pace, seat)
        for seat in seats.values()
        if seat.offer.node != late.node
        and seat.free
        and not seat.offer.relay
        and (pace := seat.pace(demand)) is not None
        and seat.refusal(demand) is None
        # The parent's own worker is there for what no node can do.
        and (not seat.offer.embedded or demand.fallback == "required")
    ]
    if not able:
        return None
    needs, seat = min(able, key=lambda each: each[0])
    return seat, needs

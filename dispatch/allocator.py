"""The allocator: demands and offers in, grants out, each with its reason. Pure, deterministic for given inputs.

Order of service: runs by priority, then least served first, then oldest. Phases: every quota is filled before any
free capacity is given away, and all free slots before any look-ahead (work queued on a node whose shards are so short
that fetching them one by one would take longer than running them). Among the nodes that may have a shard, those with
more of the labels that the run prefers go first; between equals its balancer chooses.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dispatch import balancers
from dispatch.plans import (
    Demand,
    Grant,
    Local,
    Lookahead,
    Offer,
    Phase,
    Piece,
    Plan,
    QuotaRule,
    Refusal,
    Terms,
    pace_key,
)
from dispatch.ranges import MOST_ITEMS, size_for
from dispatch.rates import LATEST
from dispatch.seats import Found, Paced, Queue, Seat, Tap

__all__ = [
    "ASIDE_LIMIT",
    "Demand",
    "Grant",
    "Local",
    "Lookahead",
    "Offer",
    "Phase",
    "Piece",
    "Plan",
    "QuotaRule",
    "Refusal",
    "Seat",
    "Terms",
    "allocate",
]

ASIDE_LIMIT = 500
"""Pieces that one pass sets aside; each becomes a row, and a run of a million may consist of nothing else."""
DEFAULT_TERMS = Terms()
RELAY_SECONDS = 2.0
"""How long a relay's shard should run at least: it brings together below what would else be as many messages here."""

RELAY_EXCHANGE_SECONDS = 0.4
"""What runs shorter is hardly worth a relay's round: a run of its own, a pass, a report up."""

PIECE: dict[str, Any] = {"fair_parts": 1, "exchange_seconds": 0.25}
"""How a relay cuts what it got: coarser than a run, since the next piece fills what becomes free at this one's end."""

Explain = bool | Callable[[Plan], Collection[int]]
Key = Any
"""A float, or behind the number of preferred labels that it lacks."""
Candidates = dict[Any, list[tuple[Key, int]]]
"""(run, item), or what runs have in common -> heap of (key, seat number). Keys go stale as seats fill; ``_pick`` renews
them."""
GROWING = frozenset({"most_free", "least_tasks", "round_robin", "weighted", "health", "earliest_finish"})
"""Balancers whose key of a seat only grows as it fills: whoever looked before, the smallest is the smallest."""


def _kind(demand: Demand) -> Any:
    """What nodes ask of a run before they look at their slots: alike for all runs that may go to the same nodes."""
    return demand.type, demand.fallback, demand.hands, demand.stopped, tuple(sorted(demand.labels.items()))


class _Pass:
    """One decision. The phases share the seats; each has its own heaps of candidates."""

    def __init__(self, demands: Sequence[Demand], offers: Sequence[Offer], terms: Terms) -> None:
        self.terms = terms
        self.queues = [Queue(demand) for demand in demands]
        self.seats = [Seat(offer) for offer in sorted(offers, key=lambda offer: (offer.name, offer.node))]
        self.taps = {key: Tap(bucket) for key, bucket in terms.buckets.items()}
        self.paced = {key: Paced(lanes, self.taps.get(key[1])) for key, lanes in terms.lanes.items()}
        self.sequence = max((seat.last_grant for seat in self.seats), default=0)
        self.measured: dict[str, list[int]] = {}
        """Pace key of a run -> numbers of the seats where its speed is known."""
        for number, seat in enumerate(self.seats):
            for key in seat.offer.speeds:
                self.measured.setdefault(key, []).append(number)
        # Thousands of runs may want the same of nodes, which are asked once for all of them.
        self.able: dict[Any, list[str]] = {}
        """Names of the nodes that could have a run."""
        self.capacity: dict[Any, int] = {}
        """Slots of those that may have it now."""
        self.kinds = {demand.run: _kind(demand) for demand in demands}
        self.full: set[Any] = set()
        """What no seat has room for any more in this pass; see ``_alike``."""
        self.gates = {demand.run: self._gate(demand) for demand in demands} if self._embedded() else {}
        self.eligible: dict[int, int] = {}
        """Run -> slots of the nodes that may have it."""
        self.slots = {demand.run: self._slots(demand) for demand in demands}
        self.ceilings = dict(terms.ceilings)
        self.alike = Counter(demand.priority for demand in demands)
        """How many runs want work at each priority."""
        self.by_quota: Candidates = {}
        self.grants: list[Grant] = []
        self.aside: dict[tuple[int, int], Piece] = {}
        """By run and start."""
        self.later: dict[int, Piece] = {}
        self.wake: float | None = None

    # Who may have what

    def _embedded(self) -> bool:
        return any(seat.offer.embedded for seat in self.seats)

    def _gate(self, demand: Demand) -> Found:
        """Why the parent's own worker leaves this run to the nodes."""
        local = self.terms.local
        if demand.fallback == "required" or local.always:
            return None
        alike = self.kinds[demand.run], demand.elsewhere > 0
        if (able := self.able.get(alike)) is None:
            able = [seat.offer.name for seat in self.seats if not seat.offer.embedded and seat.could(demand)]
            self.able[alike] = able
        if able:
            more = f" and {len(able) - 3} more" if len(able) > 3 else ""
            return "fallback", f"left to the nodes that can run it: {', '.join(able[:3])}{more}"
        left = local.seconds - demand.waited
        # One that has begun has lost the last node it had: there is nothing to wait for.
        if demand.begun or left <= 0:
            return None
        return "fallback", f"local fallback in {math.ceil(left)} s"

    def _refusal(self, demand: Demand, seat: Seat, item: str = "") -> Found:
        found = seat.refusal(demand, item)
        return self.gates[demand.run] if seat.offer.embedded and found is None else found

    def _slots(self, demand: Demand) -> tuple[int, float]:
        """Slots of nodes whose speed for this is unknown, and the items a second of all the others."""
        alike = self.kinds[demand.run], self.gates.get(demand.run)
        if (capacity := self.capacity.get(alike)) is None:
            capacity = sum(seat.offer.capacity for seat in self.seats if self._refusal(demand, seat) is None)
            self.capacity[alike] = capacity
        self.eligible[demand.run] = capacity
        unknown, rate = capacity, 0.0
        for seat in (self.seats[number] for number in self._measured(demand)):
            if (seconds := seat.pace(demand)) and self._refusal(demand, seat) is None:
                unknown -= seat.offer.capacity
                rate += seat.offer.capacity / seconds
        return unknown, rate

    def _measured(self, demand: Demand) -> Sequence[int]:
        """Numbers of the seats where the speed of this run is known."""
        return self.measured.get(pace_key(demand.type, demand.measured or demand.run), ())

    def _alike(self, queue: Queue, item: str, phase: Phase) -> Any:
        """All that ``_room`` asks of a run, at seats where its speed is not known; None: of this one it asks more."""
        demand = queue.demand
        if demand.ceilings:
            return None
        alike = self.kinds[demand.run], self.gates.get(demand.run), item, phase
        if phase is not Phase.LOOKAHEAD:
            return alike
        unknown, rate = self.slots[demand.run]
        if rate and not unknown:
            return None
        size = queue.returned or min(demand.shard_size or 1, queue.left)
        return *alike, max(size, 1), demand.rated

    def _room(self, queue: Queue, item: str, seat: Seat, phase: Phase) -> bool:
        if queue.demand.ceilings and self._under_ceiling(queue.demand, seat, phase) < 1:
            return False
        if phase is Phase.LOOKAHEAD:
            unknown, rate = self.slots[queue.demand.run]
            left = queue.left / rate if rate and not unknown else 0.0
            more = seat.lookahead(queue.demand, self.terms.lookahead, self._size(queue, seat), left)
            return seat.used < seat.offer.capacity + more and self._refusal(queue.demand, seat, item) is None
        if seat.used >= seat.offer.capacity:
            return False
        if phase is Phase.QUOTA and seat.below_quota(queue.demand.type, item) is None:
            return False
        if seat.offer.embedded:
            return self._refusal(queue.demand, seat, item) is None
        return seat.refusal(queue.demand, item) is None

    def _under_ceiling(self, demand: Demand, seat: Seat, phase: Phase) -> float:
        """Slots that are left for a run whose slots were granted by a node above.

        Queued ahead it must not come to run beside what it has: only behind itself, on a node that it fills.
        """
        if phase is Phase.LOOKAHEAD:
            return math.inf if demand.held.get(seat.offer.node, 0) >= seat.offer.capacity else 0
        return min(self.ceilings[name] for name in demand.ceilings)

    # The decision

    def run(self) -> None:
        for phase in Phase:
            candidates: Candidates = self.by_quota if phase is Phase.QUOTA else {}
            for queue in self.queues:
                queue.restart()
            heap = [(queue.key, number) for number, queue in enumerate(self.queues)]
            heapq.heapify(heap)
            while heap and (self.terms.most is None or len(self.grants) < self.terms.most):
                _, number = heapq.heappop(heap)
                if self._serve(self.queues[number], phase, candidates):
                    heapq.heappush(heap, (self.queues[number].key, number))

    def _serve(self, queue: Queue, phase: Phase, candidates: Candidates) -> bool:
        """One grant for this run in this phase; False when there is none to be had."""
        while (head := queue.head()) is not None:
            seat, under = None, phase
            if head.item:
                # Its turn may come only now, behind items that no quota names; its own quota still comes first.
                seat, under = self._pick(queue, head.item, Phase.QUOTA, self.by_quota), Phase.QUOTA
            if seat is None:
                seat, under = self._pick(queue, head.item, phase, candidates), phase
            short = self._short(queue, head) if head.rate and seat is not None else 0
            if seat is not None and not short:
                self._grant(queue, head, under, seat)
                return True
            # Nobody takes the head, or its rate does not let it through. It is passed by only where that is because of
            # rules of its own, and only for work that fits.
            if seat is not None:
                head = self._waiting(queue, head, short)
                if queue.demand.rate:
                    return False
            elif not head.item or self._pick(queue, "", phase, candidates) is None:
                return False
            if head.shard is not None:
                if seat is not None:
                    self.later.setdefault(head.shard, head)
                queue.pass_by()
            elif (queue.demand.run, head.start) in self.aside:
                queue.pass_by()
            elif len(self.aside) < ASIDE_LIMIT:
                # What only this phase has no node for is looked at again in the next one.
                queue.set_aside(head, again=seat is None)
                self.aside[queue.demand.run, head.start] = head
            else:
                return False
        if queue.left:
            # All that was looked at is given out or set aside: the next pass goes on behind it.
            self.wake = 0.0
        return False

    def _tap(self, queue: Queue, rate: str) -> Tap | Paced:
        return self.paced.get((queue.demand.run, rate)) or self.taps[rate]

    def _short(self, queue: Queue, head: Piece) -> int:
        """Tokens that its rate must have for ``head``, or 0 where it has them."""
        tap = self._tap(queue, head.rate)
        least = tap.least(head, queue.demand.shard_size)
        return least if tap.tokens < least else 0

    def _waiting(self, queue: Queue, head: Piece, least: int) -> Piece:
        """``head`` with the time it waits for its rate, in line with what waits for that already."""
        tap = self._tap(queue, head.rate)
        soonest = tap.soonest(least)
        if soonest is not None:
            self.wake = soonest if self.wake is None else min(self.wake, soonest)
        if head.shard is not None and head.shard in self.later:
            return head
        wait = min(tap.wait(least), LATEST)
        tap.queued += head.stop - head.start
        return replace(head, wait=wait)

    def _pick(self, queue: Queue, item: str, phase: Phase, candidates: Candidates) -> Seat | None:
        demand = queue.demand
        name: Any = (demand.run, item)
        heap = candidates.get(name)
        if heap is None:
            alike = self._alike(queue, item, phase)
            if alike is not None and phase is not Phase.LOOKAHEAD and demand.balancer in GROWING:
                name = alike, demand.balancer, tuple(sorted(demand.affinity.items()))
                heap = candidates.get(name)
        if heap is None:
            numbers: Sequence[int] = range(len(self.seats))
            if alike is not None and alike in self.full:
                # Room is asked for by its own speed, too, where that is known.
                numbers = self._measured(demand) if phase is Phase.LOOKAHEAD else ()
            heap = [
                (self._key(queue, self.seats[number], phase), number)
                for number in numbers
                if self._room(queue, item, self.seats[number], phase)
            ]
            heapq.heapify(heap)
            if not heap and alike is not None and (phase is not Phase.LOOKAHEAD or not self._measured(demand)):
                # Seats only fill, so nothing alike finds room later in this pass.
                self.full.add(alike)
            candidates[name] = heap
        while heap:
            key, number = heap[0]
            seat = self.seats[number]
            # Seats only fill during a phase, so one without room now has none later.
            if not self._room(queue, item, seat, phase):
                heapq.heappop(heap)
            elif (now := self._key(queue, seat, phase)) != key:
                heapq.heapreplace(heap, (now, number))
            else:
                return seat
        return None

    def _size(self, queue: Queue, seat: Seat) -> int:
        """Items of the next shard of this run for this seat."""
        if queue.returned or queue.left <= 0:
            return max(queue.returned, 1)
        demand = queue.demand
        seconds = seat.pace(demand)
        slots, rate = self.slots[demand.run]
        return size_for(
            queue.left,
            # So many slots as fast as this one's would do what all do together: a slow node gets a smaller part.
            slots + (rate * seconds if seconds else 0),
            fixed=demand.shard_size,
            seconds_per_item=seconds,
            target_seconds=self.terms.target_seconds,
            **(PIECE if demand.measured else {}),
        )

    def _width(self, queue: Queue, head: Piece, phase: Phase, seat: Seat) -> int:
        """Slots that the next shard takes: several of a relay, which cuts it again for its own nodes."""
        demand, offer = queue.demand, seat.offer
        if not offer.relay or head.item:
            return 1
        room: float = seat.free
        if phase is Phase.LOOKAHEAD:
            room = offer.capacity
        room = min(room, seat.room(demand.type, head.item, quota=phase is Phase.QUOTA))
        if demand.ceilings and phase is not Phase.LOOKAHEAD:
            room = min(room, self._under_ceiling(demand, seat, phase))
        # Not more than its part: of what is left, and of the slots beside runs that are served alike.
        room = min(room, math.ceil(offer.capacity / self.alike[demand.priority]))
        items = head.stop - head.start
        if head.rate:
            if (demand.run, head.rate) in self.paced:
                return 1  # a lane, which it goes through item by item
            items = min(items, self._tap(queue, head.rate).tokens)
        shards = math.ceil(items / max(self._size(queue, seat), 1)) if head.shard is None else items
        if head.shard is None:
            shards = math.ceil(shards * offer.capacity / max(self.eligible[demand.run], offer.capacity))
        return max(int(min(room, shards)), 1)

    def _length(self, queue: Queue, seat: Seat, slots: int) -> int:
        """Items of the next shard for ``slots`` of a seat. A relay's lasts as long as an automatically sized one, also
        where the run's own size, which holds below, is smaller."""
        size = self._size(queue, seat)
        demand = queue.demand
        if not seat.offer.relay or queue.returned:
            return size
        if seconds := seat.pace(demand):
            unknown, rate = self.slots[demand.run]
            shares = unknown + rate * seconds
            # It evens out its own part of the end of a run: all of that goes to it at once.
            least = min(math.ceil(queue.left / max(shares, 1)), int(RELAY_EXCHANGE_SECONDS / seconds))
            long = max(
                size_for(queue.left, shares, fixed=0, seconds_per_item=seconds, target_seconds=RELAY_SECONDS), least
            )
            size = max(size, long // max(demand.shard_size, 1) * max(demand.shard_size, 1))
        return min(size * slots, max(MOST_ITEMS, size))

    def _key(self, queue: Queue, seat: Seat, phase: Phase) -> Key:
        """The smallest one is chosen."""
        demand = queue.demand
        if phase is Phase.LOOKAHEAD:
            key = seat.backlog(demand, self._size(queue, seat))
        else:
            try:
                key = float(balancers.get(demand.balancer)(seat, demand.type, self.terms.seed))
            except Exception:
                # Somebody's own balancer: a fault in it must not keep the other runs from their nodes, nor its own run.
                key = math.nan
            if not math.isfinite(key):
                key = balancers.most_free(seat, demand.type, self.terms.seed)
        # One heap has keys of one kind, and this is the hottest part of a pass.
        return (-len(seat.preferred(demand.affinity)), key) if demand.affinity else key

    def _grant(self, queue: Queue, head: Piece, phase: Phase, seat: Seat) -> None:
        demand = queue.demand
        slots = self._width(queue, head, phase, seat)
        piece = self._cut(queue, head, seat, slots)
        reason = self._reason(queue, head, phase, seat, slots)
        self.sequence += 1
        seat.take(demand.type, head.item, self.sequence, slots)
        if phase is not Phase.LOOKAHEAD:
            for name in demand.ceilings:
                self.ceilings[name] -= slots
        self.aside.pop((demand.run, head.start), None)
        queue.take(piece)
        queue.served += slots
        if piece.rate:
            self._tap(queue, piece.rate).spend(piece.stop - piece.start)
        self.grants.append(Grant(demand.run, demand.type, seat.offer.node, piece, phase, reason, slots))

    def _cut(self, queue: Queue, head: Piece, seat: Seat, slots: int) -> Piece:
        """So much of ``head`` as this node gets now, and its rate lets through."""
        stop = head.stop
        if head.shard is None and not head.item:
            stop = min(head.start + self._length(queue, seat, slots), head.stop)
        if head.rate:
            stop = min(stop, head.start + self._tap(queue, head.rate).tokens)
        if stop == head.stop:
            return head
        if head.shard is None:
            return Piece(head.start, stop, item=head.item, rate=head.rate)
        # A shard cut before is cut again: waiting for tokens for all of it, it might wait for ever.
        return replace(head, stop=stop, rest=head.rest or head.stop)

    def _reason(self, queue: Queue, head: Piece, phase: Phase, seat: Seat, slots: int) -> str:
        demand, offer = queue.demand, seat.offer
        if phase is Phase.QUOTA:
            reason = str(seat.below_quota(demand.type, head.item))
        elif phase is Phase.FREE:
            reason = f"free capacity: {seat.free} of {offer.capacity} slots free, by {demand.balancer}"
        else:
            ahead = seat.used - offer.capacity + 1
            reason = f"look-ahead: {ahead} queued beyond capacity {offer.capacity}, shards are short"
        if slots > 1:
            reason += f"; {slots} slots for the nodes below it"
        if demand.affinity and (labels := seat.preferred(demand.affinity)):
            reason += f"; preferred: {', '.join(f'{label}={demand.affinity[label]}' for label in labels)}"
        if head.rate:
            reason += f"; rate {head.rate}: {self._tap(queue, head.rate).tokens} tokens"
        if offer.embedded and not self.terms.local.always:
            why = "the run asks for it" if demand.fallback == "required" else "no other node can run it"
            reason += f"; local fallback: {why}"
        return reason

    # What is left, and why

    def refusals(self, runs: Collection[int] | None = None) -> Iterator[Refusal]:
        """For each run, or each of ``runs``, that still has work: why each node takes no more of it."""
        aside = {run: piece for (run, _), piece in reversed(self.aside.items())}
        for queue in self.queues:
            if runs is not None and queue.demand.run not in runs:
                continue
            queue.restart()
            head = queue.head() or aside.get(queue.demand.run)
            if head is None and not queue.left:
                continue
            for seat in self.seats:
                found = self._refusal(queue.demand, seat, head.item if head else "")
                yield Refusal(queue.demand.run, seat.offer.node, *(found or self._left(queue, head, seat)))

    def _left(self, queue: Queue, head: Piece | None, seat: Seat) -> tuple[str, str]:
        """Why a node that may have ``head`` did not get it."""
        if queue.demand.ceilings and self._under_ceiling(queue.demand, seat, Phase.FREE) < 1:
            return "granted", "all slots that the node above granted for it are in use"
        if not seat.free:
            return "slots", f"no free slot: {seat.used} in use, capacity {seat.offer.capacity}"
        if head is not None and head.rate and (short := self._short(queue, head)):
            return "rate", f"rate {head.rate}: {self._tap(queue, head.rate).words(short)}"
        return "later", "the next pass looks at more of it"

    def plan(self, explain: Explain) -> Plan:
        spent = {key: tap.spent for key, tap in self.taps.items() if tap.spent}
        aside = [(run, piece) for (run, _), piece in self.aside.items()]
        plan = Plan(self.grants, aside, [], list(self.later.values()), spent=spent, wake=self.wake)
        if explain is False:
            return plan
        return replace(plan, refusals=list(self.refusals(None if explain is True else explain(plan))))


def allocate(
    demands: Sequence[Demand],
    offers: Sequence[Offer],
    terms: Terms = DEFAULT_TERMS,
    *,
    explain: Explain = False,
) -> Plan:
    """Who gets what now, under ``terms``.

    ``explain`` also lists, for every run that is left with work, or for those that it names when it sees the plan, why
    each node was not given more of it.
    """
    decision = _Pass(demands, offers, terms)
    decision.run()
    return decision.plan(explain)

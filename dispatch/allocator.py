"""The allocator: demands and offers in, grants out, each with its reason. Pure, deterministic for given inputs.

Order of service: runs by priority, then least served first, then oldest. Phases: every quota is filled before any
free capacity is given away, and all free slots before any look-ahead (work queued on a node whose shards are so short
that fetching them one by one would take longer than running them).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dispatch import balancers
from dispatch.ranges import size_for


@dataclass(frozen=True, slots=True)
class Piece:
    """Items [start, stop) of a run. ``shard`` is set when they were cut before; ``item`` when a quota names it."""

    start: int
    stop: int
    shard: int | None = None
    attempt: int = 1
    item: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """A run with work to give. Items [cut, count) are uncut; ``returned`` are pieces that came back.

    ``marked`` names the uncut items, ascending, that some node has a quota for: each is cut as a shard of its own.
    ``served`` is the number of slots the run has now; ``age`` orders equals, smaller first.
    """

    run: int
    type: str
    cut: int
    count: int
    priority: int = 5
    served: int = 0
    age: float = 0.0
    shard_size: int = 0
    balancer: str = "most_free"
    labels: Mapping[str, str] = field(default_factory=dict)
    returned: Sequence[Piece] = ()
    marked: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True, slots=True)
class QuotaRule:
    """Slots given first, and at most (None: no limit)."""

    slots: int
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A node and what it holds now. ``quotas`` and ``in_use`` are keyed by (task type, item or "")."""

    node: int
    name: str
    capacity: int
    types: frozenset[str]
    in_use: Mapping[tuple[str, str], int] = field(default_factory=dict)
    quotas: Mapping[tuple[str, str], QuotaRule] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    online: bool = True
    draining: bool = False
    weight: float = 1.0
    cpu: float | None = None
    memory: float | None = None
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Task type -> seconds per item, measured."""
    last_grant: int = 0


@dataclass(frozen=True, slots=True)
class Lookahead:
    """How much a node may hold beyond its capacity: ``seconds`` of work, at most ``limit`` shards."""

    seconds: float = 0.0
    limit: int = 0


ASIDE_LIMIT = 500
"""Items that one pass sets aside; each becomes a row, and a run of a million may consist of nothing else."""
SHORT = 1.0
"""Seconds: a shard longer than this is not worth queueing ahead, and doing so would unbalance the end of a run."""


class Phase(StrEnum):
    QUOTA = "quota"
    FREE = "free"
    LOOKAHEAD = "look-ahead"


@dataclass(frozen=True, slots=True)
class Grant:
    """Piece ``piece`` of ``run``, which is of ``type``, goes to ``node``, because of ``reason``."""

    run: int
    type: str
    node: int
    piece: Piece
    phase: Phase
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why ``node`` cannot take more of ``run`` now. ``code`` is countable, ``reason`` is for people."""

    run: int
    node: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``aside`` are pieces that were cut but fit no node: items with a quota of their own that hold up the rest."""

    grants: list[Grant]
    aside: list[tuple[int, Piece]]
    refusals: list[Refusal]


class Seat:
    """A node while the allocator decides: the offer plus what has been granted so far."""

    __slots__ = ("by_type", "in_use", "last_grant", "offer", "used")

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.in_use = dict(offer.in_use)
        self.by_type: dict[str, int] = {}
        for (task_type, _), count in offer.in_use.items():
            self.by_type[task_type] = self.by_type.get(task_type, 0) + count
        self.used = sum(offer.in_use.values())
        self.last_grant = offer.last_grant

    def take(self, task_type: str, item: str, sequence: int) -> None:
        self.in_use[task_type, item] = self.in_use.get((task_type, item), 0) + 1
        self.by_type[task_type] = self.by_type.get(task_type, 0) + 1
        self.used += 1
        self.last_grant = sequence

    def below_quota(self, task_type: str, item: str) -> str | None:
        """The quota that still has room for this, in words; an item's own comes before its type's."""
        if item and (rule := self.offer.quotas.get((task_type, item))):
            used = self.in_use.get((task_type, item), 0)
            if used < rule.slots:
                return f"quota {used + 1} of {rule.slots} for {task_type}[{item}]"
        if rule := self.offer.quotas.get((task_type, "")):
            used = self.by_type.get(task_type, 0)
            if used < rule.slots:
                return f"quota {used + 1} of {rule.slots} for {task_type}"
        return None

    def refusal(self, demand: Demand, item: str = "") -> tuple[str, str] | None:
        """(code, reason) why this node may not take this work at all now, whatever its free slots."""
        offer = self.offer
        if not offer.online:
            return "offline", "offline"
        if offer.draining:
            return "draining", "draining"
        if demand.type not in offer.types:
            return "type", f"does not offer {demand.type}"
        for label, value in demand.labels.items():
            if offer.labels.get(label) != value:
                return "label", f"label {label} is {offer.labels.get(label)!r}, not {value!r}"
        rule = offer.quotas.get((demand.type, ""))
        if rule and rule.limit is not None and self.by_type.get(demand.type, 0) >= rule.limit:
            return "limit", f"limit {rule.limit} for {demand.type} reached"
        rule = offer.quotas.get((demand.type, item)) if item else None
        if rule and rule.limit is not None and self.in_use.get((demand.type, item), 0) >= rule.limit:
            return "limit", f"limit {rule.limit} for {demand.type}[{item}] reached"
        return None

    def backlog(self, demand: Demand) -> float:
        """Seconds until one more shard of this run would begin here."""
        size = max(demand.shard_size, 1)
        return (self.used + 1) * size * self.offer.speeds.get(demand.type, 1.0) / self.offer.capacity

    def lookahead(self, demand: Demand, rule: Lookahead) -> int:
        """Shards this node may hold beyond its capacity: so much work in time, which also bounds how unevenly a run
        can end. A type with a limit gets none: a queued shard counts.
        """
        seconds = self.offer.speeds.get(demand.type)
        quota = self.offer.quotas.get((demand.type, ""))
        if seconds is None or not rule.limit or (quota and quota.limit is not None):
            return 0
        size = max(demand.shard_size, 1)
        seconds = max(seconds * size, 1e-6)
        if seconds >= SHORT:
            return 0
        return min(rule.limit, int(rule.seconds * self.offer.capacity / seconds))


class Queue:
    """The work of one run while the allocator decides: what came back first, then the uncut rest."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.served = demand.served
        self._returned = list(reversed(demand.returned))
        self._passed_by: list[Piece] = []
        self._cut = demand.cut
        self._marked = list(reversed(demand.marked))

    @property
    def left(self) -> int:
        """Uncut items."""
        return self.demand.count - self._cut

    @property
    def key(self) -> tuple[int, int, float, int]:
        return -self.demand.priority, self.served, self.demand.age, self.demand.run

    def head(self) -> Piece | None:
        """The next piece, at its longest; None when there is nothing."""
        if self._returned:
            return self._returned[-1]
        if self.left <= 0:
            return None
        if not self._marked:
            return Piece(self._cut, self.demand.count)
        index, item = self._marked[-1]
        return Piece(index, index + 1, item=item) if index == self._cut else Piece(self._cut, index)

    def take(self, piece: Piece) -> None:
        """``piece``, which starts where head() does, is gone."""
        if self._returned:
            self._returned.pop()
            return
        self._cut = piece.stop
        if piece.item:
            self._marked.pop()

    def pass_by(self) -> None:
        """The head, cut before, fits nowhere in this phase."""
        self._passed_by.append(self._returned.pop())

    def restart(self) -> None:
        """A new phase looks again at what the last one passed by."""
        self._returned += reversed(self._passed_by)
        self._passed_by = []


Candidates = dict[tuple[int, str], list[tuple[float, int]]]
"""(run, item) -> heap of (balancer's key, seat number). Keys go stale as seats fill; ``_pick`` renews them."""


class _Pass:
    """One decision. The phases share the seats; each has its own heaps of candidates."""

    def __init__(
        self, demands: Sequence[Demand], offers: Sequence[Offer], target_seconds: float, rule: Lookahead, seed: int
    ) -> None:
        self.queues = [Queue(demand) for demand in demands]
        self.seats = [Seat(offer) for offer in sorted(offers, key=lambda offer: (offer.name, offer.node))]
        self.target_seconds = target_seconds
        self.rule = rule
        self.seed = seed
        self.sequence = max((seat.last_grant for seat in self.seats), default=0)
        self.slots = {
            demand.run: sum(seat.offer.capacity for seat in self.seats if seat.refusal(demand) is None) or 1
            for demand in demands
        }
        self.by_quota: Candidates = {}
        self.grants: list[Grant] = []
        self.aside: list[tuple[int, Piece]] = []

    def run(self) -> None:
        for phase in Phase:
            candidates: Candidates = self.by_quota if phase is Phase.QUOTA else {}
            for queue in self.queues:
                queue.restart()
            heap = [(queue.key, number) for number, queue in enumerate(self.queues)]
            heapq.heapify(heap)
            while heap:
                _, number = heapq.heappop(heap)
                if self._serve(self.queues[number], phase, candidates):
                    heapq.heappush(heap, (self.queues[number].key, number))

    def _serve(self, queue: Queue, phase: Phase, candidates: Candidates) -> bool:
        """One grant for this run in this phase; False when there is none to be had."""
        while (head := queue.head()) is not None:
            if head.item and (seat := self._pick(queue, head.item, Phase.QUOTA, self.by_quota)) is not None:
                # Its turn may come only now, behind items that no quota names; its own quota still comes first.
                self._grant(queue, head, Phase.QUOTA, seat)
                return True
            if (seat := self._pick(queue, head.item, phase, candidates)) is not None:
                self._grant(queue, head, phase, seat)
                return True
            # Nobody takes the head. Only an item with rules of its own is passed by, and only for work that fits.
            if not head.item or self._pick(queue, "", phase, candidates) is None or len(self.aside) >= ASIDE_LIMIT:
                return False
            if head.shard is not None:
                queue.pass_by()
            else:
                queue.take(head)
                self.aside.append((queue.demand.run, head))
        return False

    def _pick(self, queue: Queue, item: str, phase: Phase, candidates: Candidates) -> Seat | None:
        demand = queue.demand
        heap = candidates.get((demand.run, item))
        if heap is None:
            heap = [
                (self._key(demand, seat, phase), number)
                for number, seat in enumerate(self.seats)
                if self._room(queue, item, seat, phase)
            ]
            heapq.heapify(heap)
            candidates[demand.run, item] = heap
        while heap:
            key, number = heap[0]
            seat = self.seats[number]
            # Seats only fill during a phase, so one without room now has none later.
            if not self._room(queue, item, seat, phase):
                heapq.heappop(heap)
            elif (now := self._key(demand, seat, phase)) != key:
                heapq.heapreplace(heap, (now, number))
            else:
                return seat
        return None

    def _room(self, queue: Queue, item: str, seat: Seat, phase: Phase) -> bool:
        if phase is Phase.LOOKAHEAD:
            more = seat.lookahead(queue.demand, self.rule)
            return seat.used < seat.offer.capacity + more and seat.refusal(queue.demand, item) is None
        if seat.used >= seat.offer.capacity:
            return False
        if phase is Phase.QUOTA and seat.below_quota(queue.demand.type, item) is None:
            return False
        return seat.refusal(queue.demand, item) is None

    def _key(self, demand: Demand, seat: Seat, phase: Phase) -> float:
        if phase is Phase.LOOKAHEAD:
            return seat.backlog(demand)
        try:
            key = float(balancers.get(demand.balancer)(seat, demand.type, self.seed))
        except Exception:
            # Somebody's own balancer: a fault in it must not keep the other runs from their nodes, nor its own run.
            return balancers.most_free(seat, demand.type, self.seed)
        return key if math.isfinite(key) else balancers.most_free(seat, demand.type, self.seed)

    def _grant(self, queue: Queue, head: Piece, phase: Phase, seat: Seat) -> None:
        demand, offer = queue.demand, seat.offer
        piece = head
        if head.shard is None and not head.item:
            size = size_for(
                queue.left,
                self.slots[demand.run],
                fixed=demand.shard_size,
                seconds_per_item=offer.speeds.get(demand.type),
                target_seconds=self.target_seconds,
            )
            piece = Piece(head.start, min(head.start + size, head.stop))
        if phase is Phase.QUOTA:
            reason = str(seat.below_quota(demand.type, head.item))
        elif phase is Phase.FREE:
            reason = f"free capacity: {offer.capacity - seat.used} of {offer.capacity} slots free, by {demand.balancer}"
        else:
            ahead = seat.used - offer.capacity + 1
            reason = f"look-ahead: {ahead} queued beyond capacity {offer.capacity}, shards are short"
        self.sequence += 1
        seat.take(demand.type, head.item, self.sequence)
        queue.take(piece)
        queue.served += 1
        self.grants.append(Grant(demand.run, demand.type, offer.node, piece, phase, reason))

    def refusals(self) -> Iterator[Refusal]:
        """For each run that still has work: why each node takes no more of it."""
        aside = dict(reversed(self.aside))
        for queue in self.queues:
            queue.restart()
            head = queue.head() or aside.get(queue.demand.run)
            if head is None:
                continue
            for seat in self.seats:
                found = seat.refusal(queue.demand, head.item)
                if found is None and seat.used >= seat.offer.capacity:
                    found = "slots", f"no free slot: {seat.used} in use, capacity {seat.offer.capacity}"
                if found is not None:
                    yield Refusal(queue.demand.run, seat.offer.node, *found)


def allocate(
    demands: Sequence[Demand],
    offers: Sequence[Offer],
    *,
    target_seconds: float = 1.0,
    lookahead: Lookahead = Lookahead(),
    seed: int = 0,
    explain: bool = False,
) -> Plan:
    """Who gets what now.

    ``target_seconds``: how long an automatically sized shard should run. ``seed`` feeds the balancer ``random``.
    ``explain`` also lists, for every run that is left with work, why each node was not given more of it.
    """
    decision = _Pass(demands, offers, target_seconds, lookahead, seed)
    decision.run()
    return Plan(decision.grants, decision.aside, list(decision.refusals()) if explain else [])

"""Both sides while the allocator decides: a node with what it was given so far, a run with what is left of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dispatch.plans import Demand, Lookahead, Offer, Piece, pace_key
from dispatch.rates import Bucket, Lanes, whole

SHORT = 1.0
"""Seconds: a shard longer than this is not worth queueing ahead, and doing so would unbalance the end of a run."""

LONG = 5.0
"""Seconds: of a shard as long as this, an exchange is a hundredth."""

Found = tuple[str, str] | None
"""(code, reason) of a refusal."""


class Seat:
    """A node while the allocator decides: the offer plus what has been granted so far."""

    __slots__ = ("by_type", "in_use", "last_grant", "loaded", "offer", "used")

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.in_use = dict(offer.in_use)
        self.by_type: dict[str, int] = {}
        for (task_type, _), count in offer.in_use.items():
            self.by_type[task_type] = self.by_type.get(task_type, 0) + count
        self.used = sum(offer.in_use.values())
        self.last_grant = offer.last_grant
        self.loaded = _load(offer)

    @property
    def free(self) -> int:
        """Slots that nothing runs in."""
        return max(self.offer.capacity - self.used, 0)

    def take(self, task_type: str, item: str, sequence: int, slots: int = 1) -> None:
        self.in_use[task_type, item] = self.in_use.get((task_type, item), 0) + slots
        self.by_type[task_type] = self.by_type.get(task_type, 0) + slots
        self.used += slots
        self.last_grant = sequence

    def room(self, task_type: str, item: str, *, quota: bool) -> float:
        """Slots that its rules leave for this, beside its capacity; with ``quota``, those of the quota only."""
        most = math.inf
        for key, used in (
            ((task_type, ""), self.by_type.get(task_type, 0)),
            ((task_type, item), self.in_use.get((task_type, item), 0)),
        ):
            if rule := self.offer.quotas.get(key):
                most = min(most, math.inf if rule.limit is None else rule.limit - used)
                if quota and used < rule.slots:
                    most = min(most, rule.slots - used)
        return most

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

    def refusal(self, demand: Demand, item: str = "") -> Found:
        """(code, reason) why this node may not take this work at all now, whatever its free slots."""
        offer = self.offer
        if demand.stopped:
            return "island", demand.stopped
        if demand.fallback != "allowed":
            if demand.fallback == "required" and not offer.embedded:
                return "fallback", "this run must run on the parent itself"
            if demand.fallback == "never" and offer.embedded:
                return "fallback", "this run must not run here"
        if not offer.online:
            return "offline", "offline"
        if offer.draining:
            return "draining", "draining"
        if offer.cooling:
            return "cooling", offer.cooling
        if demand.type not in offer.types:
            return "type", f"does not offer {demand.type}"
        if demand.hands == "outside" and not offer.outside:
            return "hands", "only a client with code of its own can run these items: they have no address"
        if demand.hands == "line" and not offer.line:
            return "hands", "is only called by the parent, and this run's items need a line to it"
        if found := self._unlabelled(demand.labels):
            return found
        return self.loaded or (self._limited(demand.type, item) if offer.quotas else None)

    def _unlabelled(self, wanted: Mapping[str, str]) -> Found:
        branches = self.offer.branches
        if branches and not any({**self.offer.labels, **branch}.items() >= wanted.items() for branch in branches):
            return "label", f"none of its nodes has {', '.join(f'{name}={value}' for name, value in wanted.items())}"
        for label, value in ({} if branches else wanted).items():
            if self.offer.labels.get(label) != value:
                return "label", f"label {label} is {self.offer.labels.get(label)!r}, not {value!r}"
        return None

    def _limited(self, task_type: str, item: str) -> Found:
        rule = self.offer.quotas.get((task_type, ""))
        used = self.by_type.get(task_type, 0)
        if rule and rule.limit is not None and used >= rule.limit:
            return "limit", f"quota limit {used} of {rule.limit} for {task_type}"
        rule = self.offer.quotas.get((task_type, item)) if item else None
        used = self.in_use.get((task_type, item), 0)
        if rule and rule.limit is not None and used >= rule.limit:
            return "limit", f"quota limit {used} of {rule.limit} for {task_type}[{item}]"
        return None

    def could(self, demand: Demand) -> bool:
        """Whether it would take this run, if not now then when it is done with something.

        A node over its load limit counts while the run still works somewhere: its own work may be the load.
        """
        found = self.refusal(demand)
        if found is None:
            return True
        rule = self.offer.quotas.get((demand.type, ""))
        return (found[0] == "limit" and bool(rule and rule.limit)) or (found[0] == "load" and demand.elsewhere > 0)

    def preferred(self, affinity: Mapping[str, str]) -> list[str]:
        """The labels that a run prefers and this node has."""
        return [label for label, value in affinity.items() if self.offer.labels.get(label) == value]

    def pace(self, demand: Demand) -> float | None:
        """Seconds per item of this very run here, or None before the first report of it."""
        return self.offer.speeds.get(pace_key(demand.type, demand.measured or demand.run))

    def backlog(self, demand: Demand, size: int) -> float:
        """Seconds until one more shard of this run, of ``size`` items, would begin here."""
        seconds = self.pace(demand) or self.offer.speeds.get(demand.type, 1.0)
        return (self.used + 1) * size * seconds / max(self.offer.capacity, 1)

    def lookahead(self, demand: Demand, rule: Lookahead, size: int, left: float = 0.0) -> int:
        """Shards of ``size`` items this node may hold beyond its capacity: so much work in time, which also bounds how
        unevenly a run can end. A type with a limit gets none: a queued shard counts. Nor does rated work: a token taken
        for a shard that waits is one too early. Nor a node that takes what it holds at once, or rarely looks.

        ``left``: seconds that all nodes still need for what is not cut. While that is long, one longer shard may wait,
        too: the exchange between two shards costs some hundredths of a second, and the rest evens it out.
        """
        known = self.pace(demand)
        seconds = known or self.offer.speeds.get(demand.type)
        quota = self.offer.quotas.get((demand.type, ""))
        if seconds is None or not rule.limit or (quota and quota.limit is not None):
            return 0
        if demand.rated or self.offer.patient:
            return 0
        seconds = max(seconds * size, 1e-6)
        if seconds >= SHORT:
            return 1 if known and seconds < LONG and left > 2 * seconds else 0
        # One at least where it is nearly as short: else a node with few slots idles for every exchange.
        least = 1 if seconds <= 2 * rule.seconds or (known and left > 2 * seconds) else 0
        most = min(rule.limit, max(int(rule.seconds * self.offer.capacity / seconds), least))
        # Other runs of the type say little of this one: two shards a slot, until it has been measured.
        return most if known else min(most, 2 * self.offer.capacity)


def _load(offer: Offer) -> Found:
    for name, value, most in (("CPU", offer.cpu, offer.max_cpu), ("memory", offer.memory, offer.max_memory)):
        if value is not None and value > most:
            return "load", f"{name} {value:.3g} % is above its limit, {most:.3g} %"
    return None


class Queue:
    """The work of one run while the allocator decides: what came back first, then the uncut rest."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.served = demand.served
        self._returned = list(reversed(demand.returned))
        self._passed_by: list[Piece] = []
        self._cut = demand.cut
        self._marked = list(reversed(demand.marked))
        self._stretches = list(reversed(demand.stretches or ()))

    @property
    def left(self) -> int:
        """Uncut items."""
        return self.demand.count - self._cut

    @property
    def returned(self) -> int:
        """Items of the head, where it came back as it is; 0 where it is still to be cut."""
        return self._returned[-1].stop - self._returned[-1].start if self._returned else 0

    @property
    def key(self) -> tuple[int, int, float, int]:
        return -self.demand.priority, self.served, self.demand.age, self.demand.run

    def head(self) -> Piece | None:
        """The next piece, at its longest; None when there is nothing, or nothing that is looked at yet."""
        if self._returned:
            return self._returned[-1]
        if self.left <= 0:
            return None
        stop, rate = self.demand.count, self.demand.rate
        if self.demand.stretches is not None:
            while self._stretches and self._stretches[-1][1] <= self._cut:
                self._stretches.pop()
            if not self._stretches:
                return None
            _, stop, rate = self._stretches[-1]
        if self._marked:
            index, item = self._marked[-1]
            if index == self._cut:
                return Piece(index, index + 1, item=item, rate=rate)
            stop = min(stop, index)
        return Piece(self._cut, stop, rate=rate)

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

    def set_aside(self, head: Piece, *, again: bool) -> None:
        """``head``, which is cut off now, fits nowhere in this phase; with ``again`` it may in the next."""
        self.take(head)
        if again:
            self._passed_by.append(head)

    def restart(self) -> None:
        """A new phase looks again at what the last one passed by."""
        self._returned += reversed(self._passed_by)
        self._passed_by = []


class Tap:
    """One bucket while the allocator decides."""

    __slots__ = ("bucket", "queued", "spent")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.spent = 0
        self.queued = 0
        """Items that wait already for what will come."""

    @property
    def tokens(self) -> int:
        return whole(self.bucket.tokens - self.spent)

    def least(self, piece: Piece, shard_size: int) -> int:
        """Tokens with which ``piece`` may go, in part at least."""
        length = piece.stop - piece.start
        return self.bucket.rate.least(min(length, shard_size) if shard_size else length)

    def spend(self, count: int) -> None:
        """A shard of ``count`` items is given out."""
        self.spent += count

    def soonest(self, count: int) -> float | None:
        """Seconds until there are ``count`` tokens for whoever is first; None: somebody's word must come before."""
        return None if count > self.bucket.most else self.bucket.wait(count + self.spent)

    def wait(self, count: int) -> float:
        """Seconds until there are ``count`` tokens, behind what waits already."""
        return self.bucket.wait(count + self.spent + self.queued)

    def words(self, count: int) -> str:
        seconds = self.bucket.wait(count + self.spent)
        tokens = "token" if count == 1 else f"{count} tokens"
        if count > self.bucket.most:
            return f"next {tokens} when relays have used the {self.bucket.leased} they have ({self.bucket.rate})"
        return f"next {tokens} in {seconds:.2g} s ({self.bucket.rate})"


class Paced:
    """The lanes of one key of a run while the allocator decides, and the tap of that key, where it has a limit, too.
    To be asked as a Tap is."""

    __slots__ = ("given", "lanes", "queued", "tap")

    def __init__(self, lanes: Lanes, tap: Tap | None) -> None:
        self.lanes = lanes
        self.tap = tap
        self.given = 0
        self.queued = 0

    @property
    def tokens(self) -> int:
        if self.given >= self.lanes.free:
            return 0
        return self.lanes.most if self.tap is None else min(self.lanes.most, self.tap.tokens)

    def least(self, piece: Piece, shard_size: int) -> int:
        return 1 if self.tap is None else min(self.tap.least(piece, shard_size), self.lanes.most)

    def spend(self, count: int) -> None:
        self.given += 1
        if self.tap is not None:
            self.tap.spend(count)

    def soonest(self, count: int) -> float | None:
        lane = self.lanes.opens(self.given)
        tap = 0.0 if self.tap is None else self.tap.soonest(count)
        return None if lane is None or tap is None else max(lane, tap)

    def wait(self, count: int) -> float:
        opens, pace = self.lanes.opens(self.given), self.lanes.pace
        # A lane whose shard ends this very moment rests for so long.
        lane = (pace.spacing if opens is None else opens) + self.queued / pace.per_second
        return lane if self.tap is None else max(lane, self.tap.wait(count))

    def words(self, count: int) -> str:
        pace = self.lanes.pace
        if self.given < self.lanes.free and self.tap is not None:
            return self.tap.words(count)
        used = self.lanes.busy + self.given
        rests = f", {len(self.lanes.resting)} rest" if self.lanes.resting else ""
        return f"{used} of {pace.lanes} at a time under way{rests} ({pace.per_second:g} a second)"

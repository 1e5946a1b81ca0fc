"""The pure core: whatever happens in whatever order, each item ends once, and its rows are there once."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise
from random import Random

import pytest

from dispatch.attempts import Failure
from dispatch.deciding import leases, reports
from dispatch.deciding.records import Held, Lease, Patience
from dispatch.states import LIVE, AllocationState, RunState, ShardState
from nodes.messages import Entry, ItemError
from tests.unit.decided import START, Parent

WORLDS = 300
EVENTS = 120
_COUNTED = {
    ShardState.SAVED: "saved",
    ShardState.FAILED: "failed",
    ShardState.QUARANTINED: "quarantined",
    ShardState.CANCELLED: "cancelled",
}


class World:
    """A parent, and children that do whatever ``random`` says."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.parent = Parent(self.random.choice((1, 2, 4, 8, 25)))
        self.failing = self.random.choice((0.05, 0.2, 0.8))
        self.sent: list[tuple[int, Entry]] = []

    def step(self) -> None:
        parent, random = self.parent, self.random
        parent.now += dt.timedelta(seconds=random.choice((0, 1, 5, 20)))
        does = random.choice(
            (self.grant, self.grant, self.copy, self.deliver, self.report, self.report, self.repeat, parent.expire,
             self.beat, self.release, parent.save, self.crash, self.damage, self.cancel)
        )  # fmt: skip
        does()
        self.check()

    def grant(self) -> None:
        pending = [pk for pk, each in self.parent.shards.items() if each["state"] == ShardState.PENDING]
        if pending or (self.parent.run["cut"] < self.parent.items and self.parent.run["state"] == RunState.RUNNING):
            shard = self.random.choice(pending) if pending else None
            self.parent.grant(shard, self.random.randint(1, 6), self.random.randint(1, 3))

    def copy(self) -> None:
        live = [self.parent.allocations[pk] for pk in self.parent.live()]
        once = [each["shard"] for each in live if sum(other["shard"] == each["shard"] for other in live) == 1]
        if once and self.random.random() < 0.3:
            self.parent.grant(self.random.choice(once), 0, 9)

    def deliver(self) -> None:
        if live := self.parent.live():
            self.parent.deliver([self.random.choice(live)])

    def beat(self) -> None:
        self.parent.beat([pk for pk in self.parent.live() if self.random.random() < 0.5])

    def release(self) -> None:
        if live := self.parent.live():
            state, failure = self.random.choice(
                [(AllocationState.CANCELLED, Failure.RETURNED), (AllocationState.EXPIRED, Failure.LOST)]
            )
            self.parent.end([self.random.choice(live)], state, failure)

    def report(self) -> None:
        """Of any allocation there ever was: its own node's or another's, in time or late."""
        if not self.parent.allocations:
            return
        pk = self.random.choice([*self.parent.allocations, *self.parent.live()])
        node = self.parent.allocations[pk]["node"] if self.random.random() < 0.95 else 7
        self.send(node, self.entry(pk))

    def repeat(self) -> None:
        if self.sent:
            self.send(*self.random.choice(self.sent))

    def send(self, node: int, entry: Entry) -> None:
        mine = self.parent.allocations[entry.allocation]
        was_live, own = mine["state"] in LIVE, mine["node"] == node
        answer = self.parent.report(node, entry)
        if answer.status == 200 and not answer.repeated:
            assert was_live, "taken after the lease was lost"
            assert own, "taken from another node"
            self.sent.append((node, entry))
        elif answer.repeated:
            assert any(entry.digest == earlier.digest for _, earlier in self.sent), "a receipt for something else"

    def entry(self, pk: int) -> Entry:
        mine, random = self.parent.allocations[pk], self.random
        digest = str(random.getrandbits(64))
        kind = random.random()
        if random.random() < self.failing:
            return Entry(pk, failure=random.choice(("error", "crash", "crash", "timeout")), digest=digest)
        start, stop = mine["start"], mine["stop"]
        stopped = random.randint(start + 1, stop - 1) if kind < 0.25 and stop - start > 1 else None
        stop = stop if stopped is None else stopped
        bad = sorted(random.sample(range(start, stop), random.randint(0, stop - start))) if kind < 0.5 else []
        edges = [start - 1, *bad, stop]
        spans = [(a + 1, b, b - a - 1) for a, b in pairwise(edges) if a + 1 < b]
        errors = tuple(ItemError(at, "bad", random.random() < 0.7) for at in bad)
        return Entry(pk, tuple(spans), errors, digest=digest, stopped=stopped)

    def crash(self) -> None:
        self.parent.save(crash=True)

    def damage(self) -> None:
        """Rows in the spool are found torn, before they are in the store."""
        stored = {item for item, _ in self.parent.store}
        waiting = [
            pk
            for pk, each in self.parent.receipts.items()
            if not each["settled"]
            and not any(span[0] in stored for line in each["manifest"] for span in line["ranges"])
        ]
        if waiting and self.random.random() < 0.2:
            self.parent.damage(self.random.choice(waiting))

    def cancel(self) -> None:
        if self.random.random() < 0.03 and self.parent.run["state"] == RunState.RUNNING:
            self.parent.cancel()

    def check(self) -> None:
        parent = self.parent
        spans = sorted((each["start"], each["stop"]) for each in parent.shards.values())
        at = 0
        for start, stop in spans:
            assert start == at < stop, f"shards {spans} do not partition [0, {parent.run['cut']})"
            at = stop
        assert at == parent.run["cut"]
        items = [item for item, _ in parent.store]
        assert len(items) == len(set(items)), "an item's rows are there twice"
        for state, name in _COUNTED.items():
            those = [each for each in parent.shards.values() if each["state"] == state]
            assert parent.run[name] == sum(each["stop"] - each["start"] for each in those), name
        ended = sum(parent.run[name] for name in _COUNTED.values())
        assert (ended == parent.items) == (parent.run["state"] != RunState.RUNNING), "a run ends with its last item"
        by_shard = [parent.allocations[pk]["shard"] for pk in parent.live()]
        assert all(by_shard.count(shard) <= 2 for shard in by_shard)
        out = {pk for pk, each in parent.shards.items() if each["state"] in ("allocated", "executing")}
        assert out == set(by_shard), "a shard is with a node exactly while an allocation of it is live"

    def settle(self) -> None:
        """From now on everything goes well."""
        for _ in range(400):
            if self.parent.run["state"] != RunState.RUNNING:
                return
            self.grant()
            for pk in self.parent.live():
                mine = self.parent.allocations[pk]
                if mine["state"] in LIVE:
                    span = (mine["start"], mine["stop"], mine["stop"] - mine["start"])
                    self.send(mine["node"], Entry(pk, (span,), digest=f"good-{pk}"))
            self.parent.save()
            self.check()
        raise AssertionError(f"the run does not end: {self.parent.run}")


@pytest.mark.parametrize("some", range(3))
def test_every_item_ends_once_whatever_happens(some):
    for seed in range(some * WORLDS // 3, (some + 1) * WORLDS // 3):
        world = World(seed)
        try:
            for _ in range(EVENTS):
                world.step()
            world.settle()
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error
        parent = world.parent
        ended = sum(parent.run[name] for name in ("saved", "failed", "quarantined", "cancelled"))
        assert ended == parent.items, f"world {seed}"
        assert len(parent.store) == parent.run["saved"], f"world {seed}: what is saved is what counts as saved"


# Leases of clients that poll rarely

DEVICE = Patience(lease=30, patient=180, polls_rarely=True, beats_while_working=True)
CLIENT = Patience(lease=30, patient=180, polls_rarely=True)


def _after(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("patience", "timeout", "until"),
    [
        (Patience(30, 180), 500, 30),  # beats, so that silence is told soon
        (CLIENT, 500, 500),  # silent for as long as the work may take
        (DEVICE, 500, 180),  # beats while it works
        (DEVICE, 60, 60),
    ],
)
def test_a_lease_lasts_as_long_as_its_node_may_be_silent(patience, timeout, until):
    assert leases.end(patience, Lease(1, timeout=timeout), START) == _after(until)


def test_requests_of_a_forgetful_client_keep_a_lease_for_four_time_outs():
    lease = Lease(1, True, _after(100), 100, START)
    assert leases.end(CLIENT, lease, _after(350), timeouts=leases.TIMEOUTS_HELD) == _after(400)
    assert leases.end(CLIENT, lease, _after(350)) == _after(450)  # forgiven: the parent was away
    # A lease is never made shorter.
    longer = lease._replace(deadline=_after(900))
    assert leases.end(CLIENT, longer, _after(350), timeouts=leases.TIMEOUTS_HELD) == _after(900)


def test_a_device_that_beats_longer_than_its_work_may_take_is_stuck():
    lost = Lease(1, True, _after(200), 100, START)
    stuck = Lease(2, True, _after(280), 100, START)
    offer = Lease(3, False, _after(15))
    found = leases.overdue([(lost, DEVICE), (stuck, DEVICE), (offer, DEVICE), (stuck._replace(id=4), CLIENT)])
    assert found == leases.Overdue(lost=[1, 4], stuck=[2], offers=[3])


def test_never_more_begin_than_there_are_slots():
    assert leases.to_begin([1, 2, 3], {2}, 1) == (1,)
    assert leases.to_begin([1, 2], set(), -1) == ()
    assert leases.to_begin([1, 2, 3], {2}, 3, {1: 3}) == (1,)
    assert leases.to_begin([1, 2, 3], set(), 3, {1: 2, 2: 2}) == (1,)  # in order: none overtakes


def test_speeds_follow_the_newest_measurement_and_old_runs_are_forgotten():
    held = Held(1, 40, 1, 1, "echo", 0, 10, "executing")
    entry = Entry(1, ((0, 10, 10),), seconds=1.0)
    before = {f"echo@{run}": 1.0 for run in range(40)} | {"echo": 0.2}
    after = reports.measured(before, [(entry, held)], lambda kind, run: f"{kind}@{run}")
    assert after["echo"] == pytest.approx(0.2 + reports.PACE * (0.1 - 0.2))
    assert after["echo@40"] == pytest.approx(0.1)
    assert len(after) == 1 + reports.RUNS_MEASURED
    assert "echo@8" not in after

"""The allocator's promises, for any demands and offers that hypothesis can think of; and each rule by an example."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.allocator import (
    Demand,
    Grant,
    Local,
    Lookahead,
    Offer,
    Phase,
    Piece,
    Plan,
    QuotaRule,
    Terms,
    allocate,
)
from dispatch.balancers import BALANCERS
from dispatch.rates import Bucket, Rate, stretches

TYPES = ("echo", "data_import")
NAMES = ("x", "y", "z")
EMBEDDED = 3
"""The number of the node that is the parent's own worker."""
PLAIN = "m"
"""An item that no quota names."""
RATES = ("", "r", "s")
"""Keys of items; "" is one without a limit."""
NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


class Case(NamedTuple):
    demands: list[Demand]
    offers: list[Offer]
    terms: Terms

    @property
    def lookahead(self) -> Lookahead:
        return self.terms.lookahead

    def plan(self, *, explain: bool = False) -> Plan:
        return allocate(self.demands, self.offers, self.terms, explain=explain)


@st.composite
def quota_rules(draw: st.DrawFn, capacity: int) -> QuotaRule:
    slots = draw(st.integers(0, capacity))
    return QuotaRule(slots, draw(st.none() | st.integers(slots, slots + 2)))


@st.composite
def offers(draw: st.DrawFn, node: int) -> Offer:
    capacity = draw(st.integers(1, 4))
    keys = st.tuples(st.sampled_from(TYPES), st.sampled_from(("", *NAMES)))
    in_use = draw(st.dictionaries(keys, st.integers(1, 2), max_size=2))
    quotas = {key: draw(quota_rules(capacity)) for key in draw(st.lists(keys, max_size=3, unique=True))}
    return Offer(
        node=node,
        name=f"n{node % 7}-{node}",
        capacity=capacity,
        types=frozenset(draw(st.sampled_from((TYPES, TYPES, TYPES[:1], TYPES[1:], ())))),
        in_use=in_use,
        quotas=quotas,
        labels=draw(st.sampled_from(({}, {"zone": "eu"}, {"zone": "us"}))),
        online=draw(st.integers(0, 9)) > 0,
        draining=draw(st.integers(0, 9)) == 0,
        weight=draw(st.sampled_from((0.5, 1.0, 3.0))),
        cpu=draw(st.none() | st.floats(0, 100)),
        memory=draw(st.none() | st.floats(0, 100)),
        max_cpu=draw(st.sampled_from((100.0, 100.0, 60.0))),
        max_memory=draw(st.sampled_from((100.0, 100.0, 60.0))),
        patient=draw(st.booleans()),
        embedded=node == EMBEDDED,
        speeds=draw(st.dictionaries(st.sampled_from(TYPES), st.sampled_from((0.001, 0.3, 2.0)), max_size=2)),
        last_grant=draw(st.integers(0, 50)),
    )


@st.composite
def demands(draw: st.DrawFn, run: int, named: dict[str, set[str]]) -> Demand:
    task_type = draw(st.sampled_from(TYPES))
    items = draw(st.lists(st.sampled_from((PLAIN, PLAIN, PLAIN, *NAMES)), min_size=1, max_size=24))
    cut = draw(st.integers(0, len(items)))
    edges = sorted(draw(st.sets(st.integers(0, cut), max_size=4)) | {0, cut})
    pieces = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        if draw(st.booleans()):
            item = items[start] if stop - start == 1 and items[start] in named[task_type] else ""
            pieces.append(Piece(start, stop, shard=run * 100 + number, attempt=draw(st.integers(1, 3)), item=item))
    served = draw(st.integers(0, 3))
    demand = Demand(
        run=run,
        type=task_type,
        cut=cut,
        count=len(items),
        priority=draw(st.integers(1, 3)),
        served=served,
        age=float(draw(st.integers(0, 3))),
        shard_size=draw(st.integers(0, 3)),
        balancer=draw(st.sampled_from(sorted(BALANCERS))),
        labels=draw(st.sampled_from(({}, {}, {"zone": "eu"}))),
        affinity=draw(st.sampled_from(({}, {"zone": "eu"}, {"zone": "us", "rack": "1"}))),
        returned=pieces,
        marked=[(at, item) for at, item in enumerate(items) if at >= cut and item in named[task_type]],
        fallback=draw(st.sampled_from(("allowed", "allowed", "required", "never"))),
        elsewhere=draw(st.integers(0, served)),
        waited=float(draw(st.integers(0, 20))),
        begun=draw(st.booleans()),
    )
    return draw(rated(demand))


@st.composite
def rated(draw: st.DrawFn, demand: Demand) -> Demand:
    """``demand`` as it is, or with one rate for all items, or with rates by item, the first of which are looked at."""
    kind = draw(st.sampled_from(("none", "one", "items")))
    if kind == "none":
        return demand
    if kind == "one":
        key = draw(st.sampled_from(RATES))
        return replace(demand, rate=key, returned=[replace(piece, rate=key) for piece in demand.returned])
    keys = draw(st.lists(st.sampled_from(RATES), min_size=demand.count, max_size=demand.count))
    returned = []
    for piece in demand.returned:
        _, stop, key = stretches(keys[piece.start : piece.stop], piece.start)[0]
        returned.append(replace(piece, stop=stop, rate=key, rest=piece.stop if stop < piece.stop else 0))
    reach = draw(st.integers(demand.cut, demand.count))
    return replace(demand, returned=returned, stretches=stretches(keys[demand.cut : reach], demand.cut))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    given_offers = [draw(offers(node)) for node in range(1, draw(st.integers(0, 5)) + 1)]
    named: dict[str, set[str]] = defaultdict(set)
    for offer in given_offers:
        for task_type, item in offer.quotas:
            if item:
                named[task_type].add(item)
    given_demands = [draw(demands(run, named)) for run in range(1, draw(st.integers(0, 4)) + 1)]
    rule = draw(st.sampled_from((Lookahead(), Lookahead(0.1, 3), Lookahead(10.0, 50))))
    buckets = {}
    for key in RATES[1:]:
        burst = draw(st.integers(1, 12))
        rate = Rate(draw(st.sampled_from((0.5, 8.0, 40.0))), burst)
        buckets[key] = Bucket(rate, draw(st.floats(0, burst)), NOW)
    local = draw(st.sampled_from((Local(10.0), Local(10.0), Local(10.0, always=True))))
    return Case(
        given_demands, given_offers, Terms(lookahead=rule, local=local, buckets=buckets, seed=draw(st.integers(0, 5)))
    )


class Load:
    """What one node holds while the grants of a plan are counted again, independently of the allocator."""

    def __init__(self, offer: Offer, case: Case) -> None:
        self.offer = offer
        self.case = case
        self.keys = Counter(offer.in_use)

    @property
    def used(self) -> int:
        return self.keys.total()

    def of_type(self, task_type: str) -> int:
        return sum(count for (each, _), count in self.keys.items() if each == task_type)

    def able(self, demand: Demand) -> bool:
        """It may have such work at all, and is not overloaded."""
        offer = self.offer
        if not offer.online or offer.draining or demand.type not in offer.types or self.overloaded:
            return False
        if demand.fallback == ("never" if offer.embedded else "required"):
            return False
        return all(offer.labels.get(label) == value for label, value in demand.labels.items())

    @property
    def overloaded(self) -> bool:
        return (self.offer.cpu or 0) > self.offer.max_cpu or (self.offer.memory or 0) > self.offer.max_memory

    def eligible(self, demand: Demand, item: str) -> bool:
        offer = self.offer
        if not self.able(demand) or (offer.embedded and not self.stands_in(demand)):
            return False
        kept = [(offer.quotas.get((demand.type, "")), self.of_type(demand.type))]
        if item:
            kept.append((offer.quotas.get((demand.type, item)), self.keys[demand.type, item]))
        return all(rule is None or rule.limit is None or used < rule.limit for rule, used in kept)

    def stands_in(self, demand: Demand) -> bool:
        """Whether the parent's own worker may have this: always, or since no other node can."""
        local = self.case.terms.local
        if local.always or demand.fallback == "required":
            return True
        for offer in self.case.offers:
            rule = offer.quotas.get((demand.type, ""))
            never = rule is not None and rule.limit == 0
            other = Load(replace(offer, cpu=None, memory=None) if demand.elsewhere else offer, self.case)
            if not offer.embedded and not never and other.able(demand):
                return False
        return demand.begun or demand.waited >= local.seconds

    def below_quota(self, demand: Demand, item: str) -> bool:
        own = self.offer.quotas.get((demand.type, item)) if item else None
        general = self.offer.quotas.get((demand.type, ""))
        return (own is not None and self.keys[demand.type, item] < own.slots) or (
            general is not None and self.of_type(demand.type) < general.slots
        )

    @property
    def free(self) -> bool:
        return self.used < self.offer.capacity


class Step(NamedTuple):
    """One grant, with every node as it was just before it."""

    demand: Demand
    grant: Grant
    load: Load
    loads: dict[int, Load]


def steps(case: Case, plan: Plan) -> Iterator[Step]:
    """The grants one by one. The loads are those of the moment, so look at them before the next step."""
    loads = {offer.node: Load(offer, case) for offer in case.offers}
    by_run = {demand.run: demand for demand in case.demands}
    for made in plan.grants:
        demand = by_run[made.run]
        yield Step(demand, made, loads[made.node], loads)
        loads[made.node].keys[demand.type, made.piece.item] += 1


@given(cases())
def test_each_item_is_given_at_most_once_and_in_order(case: Case) -> None:
    plan = case.plan()
    for demand in case.demands:
        pieces = [made.piece for made in plan.grants if made.run == demand.run]
        aside = [piece for run, piece in plan.aside if run == demand.run]
        again = {piece.shard: piece for piece in pieces if piece.shard is not None}
        assert len(again) == sum(piece.shard is not None for piece in pieces)
        for before in demand.returned:
            if before.shard is not None and (now := again.pop(before.shard, None)) is not None:
                # The whole of it, or its first part with the place where all of it ends.
                assert (now.start, now.attempt, now.item) == (before.start, before.attempt, before.item)
                assert before.start < now.stop <= before.stop
                assert max(now.rest, now.stop) == max(before.rest, before.stop)
        assert not again
        granted = [piece for piece in pieces if piece.shard is None]
        assert granted == sorted(granted, key=lambda piece: piece.start)
        at = demand.cut
        for piece in sorted(granted + aside, key=lambda piece: piece.start):
            assert piece.start == at < piece.stop <= demand.count
            at = piece.stop
        assert all(piece.shard is None for piece in aside)


@given(cases())
def test_no_node_is_given_more_than_its_capacity_and_the_look_ahead(case: Case) -> None:
    for step in steps(case, case.plan()):
        if step.grant.phase is Phase.LOOKAHEAD:
            assert step.load.used < step.load.offer.capacity + case.lookahead.limit
        else:
            assert step.load.free


@given(cases())
def test_limits_hold_and_nothing_goes_to_a_node_that_may_not_have_it(case: Case) -> None:
    for step in steps(case, case.plan()):
        assert step.load.eligible(step.demand, step.grant.piece.item)


@given(cases())
def test_no_free_capacity_is_given_while_an_eligible_node_is_below_its_quota_for_it(case: Case) -> None:
    for step in steps(case, case.plan()):
        item = step.grant.piece.item
        owed = [
            load.offer.name
            for load in step.loads.values()
            if load.free and load.eligible(step.demand, item) and load.below_quota(step.demand, item)
        ]
        if step.grant.phase is Phase.QUOTA:
            assert step.load.offer.name in owed
        else:
            assert owed == []


@given(cases())
def test_nothing_is_queued_ahead_while_a_node_that_may_have_it_has_a_free_slot(case: Case) -> None:
    for step in steps(case, case.plan()):
        if step.grant.phase is Phase.LOOKAHEAD:
            item = step.grant.piece.item
            assert not any(load.free and load.eligible(step.demand, item) for load in step.loads.values())


@given(cases(), st.randoms(use_true_random=False))
def test_the_same_inputs_in_any_order_give_the_same_plan(case: Case, shuffler: random.Random) -> None:
    plan = case.plan(explain=True)
    offers, demands = list(case.offers), list(case.demands)
    shuffler.shuffle(offers)
    shuffler.shuffle(demands)
    other = case._replace(offers=offers, demands=demands).plan(explain=True)
    assert other.grants == plan.grants
    assert sorted(other.aside, key=repr) == sorted(plan.aside, key=repr)
    assert sorted(other.refusals, key=repr) == sorted(plan.refusals, key=repr)
    assert case.plan(explain=True) == plan


@given(cases())
def test_an_item_with_a_quota_of_its_own_is_a_shard_of_its_own(case: Case) -> None:
    plan = case.plan()
    marks = {demand.run: dict(demand.marked) for demand in case.demands}
    for run, piece in [*((made.run, made.piece) for made in plan.grants), *plan.aside]:
        if piece.shard is not None:
            continue
        inside = [item for at, item in marks[run].items() if piece.start <= at < piece.stop]
        if inside:
            assert (piece.stop - piece.start, inside) == (1, [piece.item])
        else:
            assert piece.item == ""


@given(cases())
def test_only_what_no_node_may_have_now_or_its_rate_holds_back_is_put_aside(case: Case) -> None:
    plan = case.plan()
    by_run = {demand.run: demand for demand in case.demands}
    loads = {offer.node: Load(offer, case) for offer in case.offers}
    for made in plan.grants:
        loads[made.node].keys[by_run[made.run].type, made.piece.item] += 1
    for run, piece in plan.aside:
        if piece.wait:
            assert held_back(case, plan, by_run[run], piece)
            continue
        assert piece.item
        # Loads only grow, so who may not have it at the end is all that can be said from outside.
        assert not any(load.free and load.eligible(by_run[run], piece.item) for load in loads.values())


@given(cases())
def test_every_grant_says_why(case: Case) -> None:
    words = {Phase.QUOTA: "quota", Phase.FREE: "free capacity", Phase.LOOKAHEAD: "look-ahead"}
    for step in steps(case, case.plan()):
        assert words[step.grant.phase] in step.grant.reason
        if step.grant.phase is Phase.FREE:
            assert step.demand.balancer in step.grant.reason
        if step.grant.phase is Phase.QUOTA:
            assert step.demand.type in step.grant.reason


@given(cases())
def test_every_run_left_with_work_is_told_by_each_node_why_not(case: Case) -> None:
    plan = case.plan(explain=True)
    told: dict[int, set[int]] = defaultdict(set)
    for refusal in plan.refusals:
        assert refusal.code
        assert refusal.reason
        told[refusal.run].add(refusal.node)
    for demand in case.demands:
        pieces = [made.piece for made in plan.grants if made.run == demand.run]
        waiting = {piece.shard for piece in demand.returned} - {piece.shard for piece in pieces}
        aside = [piece for run, piece in plan.aside if run == demand.run]
        given_out = sum(piece.stop - piece.start for piece in [*pieces, *aside] if piece.shard is None)
        left = demand.count - demand.cut - given_out
        if left or waiting or aside:
            assert told[demand.run] == {offer.node for offer in case.offers}
        else:
            assert demand.run not in told


def left_of(case: Case, plan: Plan, key: str) -> int:
    """Items that a rate lets through after ``plan``."""
    given_out = sum(made.piece.stop - made.piece.start for made in plan.grants if made.piece.rate == key)
    return int(case.terms.buckets[key].tokens + 1e-9) - given_out


def held_back(case: Case, plan: Plan, demand: Demand, piece: Piece) -> bool:
    """Its rate has less left than the least of: a quarter of a second's worth, the burst, a shard, all of it."""
    if not piece.rate:
        return False
    rate = case.terms.buckets[piece.rate].rate
    length = min(piece.stop - piece.start, demand.shard_size or piece.stop)
    return left_of(case, plan, piece.rate) < min(length, rate.burst, max(1, int(rate.per_second / 4)))


@given(cases())
def test_no_rate_gives_out_more_than_its_bucket_holds(case: Case) -> None:
    plan = case.plan()
    for key, bucket in case.terms.buckets.items():
        spent = sum(made.piece.stop - made.piece.start for made in plan.grants if made.piece.rate == key)
        assert spent <= bucket.tokens + 1e-6
        assert plan.spent.get(key, 0) == spent


@given(cases())
def test_every_granted_item_counts_against_its_own_rate(case: Case) -> None:
    plan = case.plan()
    for step in steps(case, plan):
        piece = step.grant.piece
        if step.demand.stretches is None:
            assert piece.rate == step.demand.rate
        elif piece.shard is None:
            holds = [key for start, stop, key in step.demand.stretches if start <= piece.start and piece.stop <= stop]
            assert holds == [piece.rate]


@given(cases())
def test_nothing_rated_is_queued_ahead_nor_anything_with_a_patient_node(case: Case) -> None:
    for step in steps(case, case.plan()):
        if step.grant.phase is Phase.LOOKAHEAD:
            assert not step.load.offer.patient
            assert not step.grant.piece.rate


@given(cases())
def test_the_parents_own_worker_gets_nothing_while_a_node_could_take_it(case: Case) -> None:
    for step in steps(case, case.plan()):
        if not step.load.offer.embedded or case.terms.local.always or step.demand.fallback == "required":
            continue
        assert not any(
            load.able(step.demand) and load.eligible(step.demand, "")
            for load in step.loads.values()
            if not load.offer.embedded
        )
        assert step.demand.fallback == "allowed"
        assert step.demand.begun or step.demand.waited >= case.terms.local.seconds


@given(cases())
def test_everything_that_can_be_granted_is_granted(case: Case) -> None:
    plan = case.plan()
    loads = {offer.node: Load(offer, case) for offer in case.offers}
    by_run = {demand.run: demand for demand in case.demands}
    for made in plan.grants:
        loads[made.node].keys[by_run[made.run].type, made.piece.item] += 1
    for demand in case.demands:
        given_out = {made.piece.shard for made in plan.grants if made.run == demand.run}
        over = [piece for piece in demand.returned if piece.shard not in given_out]
        if (uncut := first_uncut(demand, plan)) is not None:
            over.append(uncut)
        for piece in over:
            if not held_back(case, plan, demand, piece):
                assert not any(load.free and load.eligible(demand, piece.item) for load in loads.values())
            elif demand.rate:
                break  # all that has this rate is in line: what is smaller does not take the tokens it waits for


def first_uncut(demand: Demand, plan: Plan) -> Piece | None:
    """What the plan left, as far as the demand lets look."""
    cuts = [made.piece.stop for made in plan.grants if made.run == demand.run and made.piece.shard is None]
    at = max([demand.cut, *cuts, *(piece.stop for run, piece in plan.aside if run == demand.run)])
    item = dict(demand.marked).get(at, "")
    stop = at + 1 if item else min([demand.count, *(index for index, _ in demand.marked if index > at)])
    if demand.stretches is None:
        return Piece(at, stop, item=item, rate=demand.rate) if at < demand.count else None
    found = [(end, key) for start, end, key in demand.stretches if start <= at < end]
    return Piece(at, min(stop, found[0][0]), item=item, rate=found[0][1]) if found else None


@given(cases())
def test_a_node_with_more_of_the_preferred_labels_is_never_passed_over_for_one_with_fewer(case: Case) -> None:
    for step in steps(case, case.plan()):
        wanted = step.demand.affinity.items()
        item = step.grant.piece.item

        def matching(load: Load, wanted: object = wanted) -> int:
            return len(wanted & load.offer.labels.items())  # type: ignore[operator]

        for load in step.loads.values():
            if step.grant.phase is Phase.LOOKAHEAD or not (load.free and load.eligible(step.demand, item)):
                continue
            if step.grant.phase is Phase.FREE or load.below_quota(step.demand, item):
                assert matching(load) <= matching(step.load)
        if matching(step.load):
            assert "preferred: zone=" in step.grant.reason


@given(cases())
def test_what_waits_for_its_rate_is_told_when_to_look_again(case: Case) -> None:
    plan = case.plan()
    by_run = {demand.run: demand for demand in case.demands}
    for run, piece in plan.aside:
        assert 0 <= piece.wait <= 30
        assert not piece.wait or held_back(case, plan, by_run[run], piece)
    for piece in plan.later:
        assert 0 < piece.wait <= 30
        assert piece.shard is not None
    if plan.later or any(piece.wait for _, piece in plan.aside):
        assert plan.wake is not None
    if plan.wake is not None:
        assert plan.wake >= 0


@given(cases())
def test_refusals_are_counted_only_when_asked_for(case: Case) -> None:
    plan = case.plan()
    assert plan.refusals == []
    assert plan.grants == case.plan(explain=True).grants


Crowd = tuple[list[Demand], list[Offer]]


@st.composite
def crowds(draw: st.DrawFn) -> Crowd:
    """Runs that all nodes can take, of items one by one."""
    runs = [
        Demand(
            run=run,
            type="echo",
            cut=0,
            count=draw(st.integers(0, 12)),
            priority=draw(st.sampled_from((2, 2, 5))),
            served=draw(st.integers(0, 4)),
            age=float(draw(st.integers(0, 2))),
            shard_size=1,
        )
        for run in range(1, draw(st.integers(1, 5)) + 1)
    ]
    nodes = [
        Offer(node, f"n{node}", draw(st.integers(1, 4)), frozenset({"echo"}))
        for node in range(1, draw(st.integers(1, 4)) + 1)
    ]
    return runs, nodes


@given(crowds())
def test_slots_go_by_priority_then_to_the_least_served_then_to_the_oldest(
    crowd: tuple[list[Demand], list[Offer]],
) -> None:
    runs, nodes = crowd
    left = {run.run: run.count for run in runs}
    served = {run.run: run.served for run in runs}
    expected = []
    for _ in range(sum(node.capacity for node in nodes)):
        wanting = [run for run in runs if left[run.run]]
        if not wanting:
            break
        first = min(wanting, key=lambda run: (-run.priority, served[run.run], run.age, run.run)).run
        expected.append(first)
        left[first] -= 1
        served[first] += 1
    assert [made.run for made in allocate(runs, nodes).grants] == expected


@given(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans())
def test_equal_runs_share_what_is_too_little_to_within_one_slot(runs: int, capacities: list[int], quota: bool) -> None:
    rules = {("echo", ""): QuotaRule(1)} if quota else {}
    nodes = [Offer(node, f"n{node}", size, frozenset({"echo"}), quotas=rules) for node, size in enumerate(capacities)]
    waiting = [Demand(run, "echo", 0, 1000, shard_size=1) for run in range(runs)]
    shares = Counter(made.run for made in allocate(waiting, nodes).grants)
    assert shares.total() == sum(capacities)
    assert max(shares.values()) - min(shares[run] for run in range(runs)) <= 1


@given(st.integers(1, 60), st.integers(1, 9), st.sampled_from([None, 0.001, 0.05, 0.4, 3.0]), st.integers(1, 5))
def test_shards_are_no_longer_than_asked_for(count: int, size: int, seconds: float | None, capacity: int) -> None:
    speeds = {} if seconds is None else {"echo@1": seconds}
    node = Offer(1, "n", capacity, frozenset({"echo"}), speeds=speeds)
    fixed = allocate([Demand(1, "echo", 0, count, shard_size=size)], [node]).grants
    assert all(made.piece.stop - made.piece.start == size for made in fixed[:-1])
    assert 1 <= fixed[-1].piece.stop - fixed[-1].piece.start <= size
    for made in allocate([Demand(1, "echo", 0, count)], [node], Terms(target_seconds=1.0)).grants:
        length = made.piece.stop - made.piece.start
        assert length == 1 if seconds is None else length == 1 or length * seconds <= 1.0


def node(name: str, capacity: int = 2, *types: str, **fields: object) -> Offer:
    number = 1 + sum(ord(letter) for letter in name)
    return Offer(number, name, capacity, frozenset(types or ("echo",)), **fields)  # type: ignore[arg-type]


def singles(count: int, **fields: object) -> Demand:
    return Demand(**{"run": 1, "type": "echo", "cut": 0, "count": count, "shard_size": 1, **fields})  # type: ignore[arg-type]


def where(plan: Plan, nodes: Sequence[Offer]) -> list[str]:
    names = {offer.node: offer.name for offer in nodes}
    return [f"{names[made.node]}:{made.piece.item or made.piece.start}" for made in plan.grants]


def codes(plan: Plan, offer: Offer) -> list[str]:
    return [refusal.code for refusal in plan.refusals if refusal.node == offer.node]


@pytest.mark.parametrize(
    ("offer", "code", "words"),
    [
        (node("a", online=False), "offline", "offline"),
        (node("a", draining=True), "draining", "draining"),
        (node("a", 2, "data_import"), "type", "does not offer echo"),
        (node("a", labels={"zone": "us"}), "label", "label zone is 'us', not 'eu'"),
        (node("a"), "label", "label zone is None, not 'eu'"),
        (
            node("a", labels={"zone": "eu"}, quotas={("echo", ""): QuotaRule(0, 0)}),
            "limit",
            "quota limit 0 of 0 for echo",
        ),
        (node("a", labels={"zone": "eu"}, cpu=90.5, max_cpu=80.0), "load", "CPU 90.5 % is above its limit, 80 %"),
        (node("a", labels={"zone": "eu"}, memory=97, max_memory=95), "load", "memory 97 % is above its limit, 95 %"),
        (node("a", labels={"zone": "eu"}, embedded=True), "fallback", "local fallback in 7 s"),
        (
            node("a", labels={"zone": "eu"}, in_use={("data_import", ""): 2}),
            "slots",
            "no free slot: 2 in use, capacity 2",
        ),
    ],
)
def test_a_node_that_gets_nothing_says_why(offer: Offer, code: str, words: str) -> None:
    plan = allocate([singles(1, labels={"zone": "eu"}, waited=3.2)], [offer], explain=True)
    assert plan.grants == []
    assert [(refusal.code, refusal.reason) for refusal in plan.refusals] == [(code, words)]


def test_an_item_whose_limit_is_reached_everywhere_says_so() -> None:
    nodes = [node("a", quotas={("echo", "x"): QuotaRule(0, 0)})]
    fresh = allocate([singles(1, marked=[(0, "x")])], nodes, explain=True)
    back = Piece(0, 1, shard=7, item="x")
    again = allocate([singles(1, cut=1, returned=[back])], nodes, explain=True)
    for plan in (fresh, again):
        assert plan.grants == []
        assert [refusal.reason for refusal in plan.refusals] == ["quota limit 0 of 0 for echo[x]"]


def test_a_low_priority_run_gets_its_quota_before_a_high_one_gets_free_capacity() -> None:
    nodes = [node("a", 2, "echo", "data_import", quotas={("data_import", ""): QuotaRule(1)})]
    high = singles(5, priority=9)
    low = singles(5, run=2, type="data_import", priority=1)
    plan = allocate([high, low], nodes)
    assert [(made.run, made.phase) for made in plan.grants] == [(2, Phase.QUOTA), (1, Phase.FREE)]


def test_quotas_are_served_before_free_capacity_whoever_has_more_slots_free() -> None:
    nodes = [node("a", 9), node("b", 3, quotas={("echo", ""): QuotaRule(2)})]
    plan = allocate([singles(3)], nodes)
    assert where(plan, nodes) == ["b:0", "b:1", "a:2"]
    assert [made.reason for made in plan.grants] == [
        "quota 1 of 2 for echo",
        "quota 2 of 2 for echo",
        "free capacity: 9 of 9 slots free, by most_free",
    ]


def test_slots_in_use_count_against_the_quota() -> None:
    nodes = [node("a", 9), node("b", 3, quotas={("echo", ""): QuotaRule(2)}, in_use={("echo", ""): 2})]
    assert where(allocate([singles(1)], nodes), nodes) == ["a:0"]


def test_an_items_own_quota_is_served_first_wherever_it_stands_in_the_run() -> None:
    nodes = [node("a", 2, quotas={("echo", "x"): QuotaRule(1)}), node("b", 4)]
    plan = allocate([singles(2, marked=[(1, "x")])], nodes)
    assert where(plan, nodes) == ["b:0", "a:x"]
    assert plan.grants[1].reason == "quota 1 of 1 for echo[x]"


def test_an_items_own_quota_comes_before_its_types() -> None:
    rules = {("echo", "x"): QuotaRule(1), ("echo", ""): QuotaRule(1)}
    plan = allocate([singles(2, marked=[(0, "x"), (1, "x")])], [node("a", 4, quotas=rules)])
    assert plan.grants[0].reason == "quota 1 of 1 for echo[x]"


def test_an_item_at_its_own_limit_does_not_hold_up_the_others() -> None:
    nodes = [node("a", 3, quotas={("echo", "x"): QuotaRule(1, 1)})]
    plan = allocate([singles(5, marked=[(0, "x"), (1, "x"), (2, "x")])], nodes)
    assert where(plan, nodes) == ["a:x", "a:3", "a:4"]
    assert [(piece.start, piece.stop, piece.item) for _, piece in plan.aside] == [(1, 2, "x"), (2, 3, "x")]


def test_an_item_that_came_back_and_may_run_nowhere_yet_does_not_hold_up_the_others() -> None:
    nodes = [node("a", 3, quotas={("echo", "x"): QuotaRule(1, 1)}, in_use={("echo", "x"): 1})]
    plan = allocate([singles(3, cut=2, returned=[Piece(0, 1, shard=4, item="x"), Piece(1, 2, shard=5)])], nodes)
    assert [(made.piece.shard, made.piece.start) for made in plan.grants] == [(5, 1), (None, 2)]
    assert plan.aside == []


def test_an_item_that_no_quota_has_room_for_takes_a_free_slot_in_the_same_pass() -> None:
    rules = {("echo", ""): QuotaRule(1), ("echo", "x"): QuotaRule(0, 0)}
    nodes = [node("a", 1, quotas=rules), node("b", 1)]
    plan = allocate([singles(2, marked=[(0, "x")])], nodes)
    assert sorted(where(plan, nodes)) == ["a:1", "b:x"]
    assert plan.aside == []


def test_an_item_without_room_anywhere_stays_uncut_when_nothing_else_fits_either() -> None:
    nodes = [node("a", 1, quotas={("echo", "x"): QuotaRule(1, 1)}, in_use={("echo", "x"): 1})]
    plan = allocate([singles(2, marked=[(0, "x")])], nodes)
    assert (plan.grants, plan.aside) == ([], [])


def test_what_came_back_goes_first_whole_and_with_its_attempt() -> None:
    back = Piece(3, 7, shard=9, attempt=2)
    plan = allocate([Demand(1, "echo", 10, 20, shard_size=2, returned=[back])], [node("a", 2)])
    assert [made.piece for made in plan.grants] == [back, Piece(10, 12)]


def test_short_shards_are_queued_beyond_the_capacity_and_long_ones_are_not() -> None:
    rule = Lookahead(0.1, 400)
    short = allocate([singles(1000)], [node("a", 2, speeds={"echo@1": 0.01})], Terms(lookahead=rule))
    assert [made.phase for made in short.grants] == [Phase.FREE] * 2 + [Phase.LOOKAHEAD] * 20
    for speeds in ({"echo@1": 5.0}, {}):
        long = allocate([singles(1000)], [node("a", 2, speeds=speeds)], Terms(lookahead=rule))
        assert [made.phase for made in long.grants] == [Phase.FREE] * 2


def test_one_longer_shard_waits_while_there_is_enough_left_to_even_it_out() -> None:
    nodes = [node("a", 2, speeds={"echo@1": 1.0})]
    terms = Terms(lookahead=Lookahead(0.1, 400))
    many, few = (allocate([singles(count)], nodes, terms).grants for count in (1000, 5))
    assert [made.phase for made in many] == [Phase.FREE] * 2 + [Phase.LOOKAHEAD]
    assert [made.phase for made in few] == [Phase.FREE] * 2


def test_what_other_runs_of_the_type_took_lets_two_shards_a_slot_wait_until_this_run_is_measured() -> None:
    plan = allocate([singles(1000)], [node("a", 2, speeds={"echo": 0.001})], Terms(lookahead=Lookahead(0.1, 400)))
    assert [made.phase for made in plan.grants] == [Phase.FREE] * 2 + [Phase.LOOKAHEAD] * 4
    whole = allocate([Demand(1, "echo", 0, 1000)], [node("a", 2, speeds={"echo": 0.001})])
    assert {made.piece.stop - made.piece.start for made in whole.grants} == {1}


def test_the_end_of_a_run_is_shared_out_by_speed() -> None:
    nodes = [node("a", 1, speeds={"echo@1": 1e-3}), node("b", 1, speeds={"echo@1": 4e-3})]
    shares = Counter(made.node for made in allocate([singles(100)], nodes, Terms(lookahead=Lookahead(1.0, 400))).grants)
    fast, slow = sorted(shares.values(), reverse=True)
    assert (fast, slow) == (80, 20)


def test_a_slow_node_holds_no_more_than_the_seconds_say() -> None:
    nodes = [node("a", 2, speeds={"echo@1": 0.05})]
    grants = allocate([singles(100)], nodes, Terms(lookahead=Lookahead(0.1, 400))).grants
    assert len(grants) == 2 + 4


def test_a_type_with_a_limit_is_not_queued_ahead() -> None:
    offer = node("a", 2, speeds={"echo@1": 0.001}, quotas={("echo", ""): QuotaRule(1, 2)})
    assert len(allocate([singles(1000)], [offer], Terms(lookahead=Lookahead(1.0, 400))).grants) == 2


def test_the_balancer_of_the_run_chooses_among_the_nodes_with_room() -> None:
    nodes = [node("a", 2, in_use={("echo", ""): 1}), node("b", 9, in_use={("echo", ""): 5})]
    assert where(allocate([singles(1, balancer="most_free")], nodes), nodes) == ["b:0"]
    assert where(allocate([singles(1, balancer="least_tasks")], nodes), nodes) == ["a:0"]


def test_ties_go_by_name() -> None:
    nodes = [node("b"), node("c"), node("a")]
    assert where(allocate([singles(3)], nodes), nodes) == ["a:0", "b:1", "c:2"]


def test_a_thousand_nodes_and_ten_thousand_grants_are_decided() -> None:
    nodes = [
        Offer(
            number,
            f"node-{number:04}",
            10,
            frozenset({"echo"}),
            quotas={("echo", ""): QuotaRule(number % 4)} if number % 2 else {},
        )
        for number in range(1000)
    ]
    runs = [Demand(run, "echo", 0, 5000, shard_size=1, priority=5 + run % 2) for run in range(8)]
    plan = allocate(runs, nodes)
    assert len(plan.grants) == 10_000
    assert set(Counter(made.node for made in plan.grants).values()) == {10}
    # Four runs of the higher priority ask for more than there is.
    assert Counter(made.run for made in plan.grants) == {1: 2500, 3: 2500, 5: 2500, 7: 2500}


def test_a_node_at_its_load_limit_still_gets_work() -> None:
    assert len(allocate([singles(1)], [node("a", cpu=80.0, max_cpu=80.0)]).grants) == 1


def test_preferred_labels_come_before_the_balancer_and_a_full_node_that_has_them_holds_up_nobody() -> None:
    nodes = [node("big", 9), node("eu", 1, labels={"region": "eu"}), node("ssd", 1, labels={"region": "eu", "d": "1"})]
    plan = allocate([singles(4, affinity={"region": "eu", "d": "1"})], nodes)
    assert where(plan, nodes) == ["ssd:0", "eu:1", "big:2", "big:3"]
    assert plan.grants[1].reason == "free capacity: 1 of 1 slots free, by most_free; preferred: region=eu"
    assert "preferred" not in plan.grants[2].reason


def test_the_parents_own_worker_waits_for_the_nodes_that_could_take_it() -> None:
    local, busy = node("local", embedded=True), node("busy", 1, in_use={("echo", ""): 1})
    plan = allocate([singles(2, waited=99.0, begun=True)], [local, busy], explain=True)
    assert plan.grants == []
    assert [refusal.reason for refusal in plan.refusals] == [
        "no free slot: 1 in use, capacity 1",
        "left to the nodes that can run it: busy",
    ]


@pytest.mark.parametrize(
    ("fields", "gets"),
    [
        ({"waited": 9.9}, []),
        ({"waited": 10.0}, ["local"]),
        ({"waited": 1.0, "begun": True}, ["local"]),
        ({"waited": 99.0, "fallback": "never"}, []),
        ({"fallback": "required"}, ["local"]),
    ],
)
def test_without_any_node_the_parent_runs_it_after_a_grace_time_or_when_the_last_one_was_lost(
    fields: dict[str, Any], gets: list[str]
) -> None:
    nodes = [node("local", embedded=True), node("gone", online=False), node("other", 1, "data_import")]
    plan = allocate([singles(1, **fields)], nodes)
    assert [where(plan, nodes)[at].partition(":")[0] for at in range(len(plan.grants))] == gets
    if gets:
        assert "local fallback" in plan.grants[0].reason


def test_a_run_that_must_run_on_the_parent_runs_nowhere_else() -> None:
    nodes = [node("a"), node("local", embedded=True)]
    plan = allocate([singles(5, fallback="required")], nodes, explain=True)
    assert where(plan, nodes) == ["local:0", "local:1"]
    assert codes(plan, nodes[0]) == ["fallback"]
    never = allocate([singles(5, fallback="never")], nodes, Terms(local=Local(always=True)), explain=True)
    assert where(never, nodes) == ["a:0", "a:1"]
    assert [refusal.reason for refusal in never.refusals if refusal.node == nodes[1].node] == [
        "this run must not run here"
    ]


def test_overloaded_nodes_keep_a_run_that_works_there_and_lose_one_that_waited_for_nothing() -> None:
    nodes = [node("local", embedded=True), node("hot", cpu=99.0, max_cpu=90.0, in_use={("echo", ""): 1})]
    assert allocate([singles(1, waited=99.0, elsewhere=1)], nodes).grants == []
    assert where(allocate([singles(1, waited=99.0)], nodes), nodes) == ["local:0"]


def test_a_standalone_parent_works_beside_its_nodes() -> None:
    nodes = [node("a", 1), node("local", 1, embedded=True)]
    plan = allocate([singles(3)], nodes, Terms(local=Local(always=True)))
    assert where(plan, nodes) == ["a:0", "local:1"]
    assert not any("fallback" in made.reason for made in plan.grants)


def bucket(tokens: float, per_second: float = 1.0, burst: int = 10) -> Bucket:
    return Bucket(Rate(per_second, burst), tokens, NOW)


def test_a_rate_holds_for_all_runs_and_nodes_together() -> None:
    nodes = [node("a", 9), node("b", 9)]
    terms = Terms(buckets={"r": bucket(3.5)})
    plan = allocate([singles(9, rate="r"), singles(9, run=2, rate="r"), singles(1, run=3)], nodes, terms, explain=True)
    assert Counter(made.run for made in plan.grants) == {1: 2, 2: 1, 3: 1}
    assert {refusal.code for refusal in plan.refusals} == {"rate"}
    assert plan.refusals[0].reason == "rate r: next token in 0.5 s (1 a second, 10 at once)"
    assert plan.wake == pytest.approx(0.5)


def test_a_rated_shard_holds_no_more_items_than_there_are_tokens() -> None:
    terms = Terms(buckets={"r": bucket(7.2)})
    plan = allocate([Demand(1, "echo", 0, 100, shard_size=5, rate="r")], [node("a", 9)], terms)
    assert [(made.piece.start, made.piece.stop) for made in plan.grants] == [(0, 5), (5, 7)]


def test_a_shard_that_came_back_is_cut_to_its_tokens() -> None:
    back = Piece(0, 8, shard=4, attempt=2, rate="r")
    plan = allocate([singles(8, cut=8, returned=[back], rate="r")], [node("a", 9)], Terms(buckets={"r": bucket(3)}))
    assert [made.piece for made in plan.grants] == [replace(back, stop=3, rest=8)]


def test_a_quick_rate_is_not_given_out_item_by_item() -> None:
    few, enough = bucket(9.0, 100.0, 50), bucket(25.0, 100.0, 50)
    assert (
        allocate([Demand(1, "echo", 0, 99, shard_size=50, rate="r")], [node("a")], Terms(buckets={"r": few})).grants
        == []
    )
    (made,) = allocate(
        [Demand(1, "echo", 0, 99, shard_size=50, rate="r")], [node("a")], Terms(buckets={"r": enough})
    ).grants
    assert made.piece.stop == 25


def test_one_slow_key_does_not_hold_up_the_others() -> None:
    keys = ["slow", "slow", "", "quick", "slow", "quick", "slow"]
    terms = Terms(buckets={"slow": bucket(0.0, 0.5), "quick": bucket(1.0, 2.0)})
    plan = allocate([singles(7, stretches=stretches(keys, 0))], [node("a", 9)], terms)
    assert [(made.piece.start, made.piece.rate) for made in plan.grants] == [(2, ""), (3, "quick")]
    assert [(piece.start, piece.stop, piece.wait) for _, piece in plan.aside] == [
        (0, 2, 2.0),
        (4, 5, 6.0),
        (5, 6, 0.5),
        (6, 7, 8.0),
    ]
    assert plan.wake == pytest.approx(0.5)


def test_what_was_cut_before_and_waits_for_its_rate_is_put_off() -> None:
    back = [Piece(at, at + 1, shard=at, rate="slow") for at in range(3)]
    terms = Terms(buckets={"slow": bucket(0.0, 0.1)})
    plan = allocate([singles(4, cut=3, returned=back, stretches=[(3, 4, "")])], [node("a", 9)], terms)
    assert [made.piece.start for made in plan.grants] == [3]
    assert [(piece.shard, piece.wait) for piece in plan.later] == [(0, 10.0), (1, 20.0), (2, 30.0)]


def test_nothing_is_put_aside_for_its_rate_while_no_node_has_room() -> None:
    terms = Terms(buckets={"slow": bucket(0.0)})
    full = node("a", 1, in_use={("echo", ""): 1})
    plan = allocate([singles(2, stretches=[(0, 1, "slow"), (1, 2, "")])], [full], terms)
    assert (plan.grants, plan.aside, plan.wake) == ([], [], None)


def test_a_pass_may_be_asked_for_one_grant() -> None:
    assert len(allocate([singles(9)], [node("a", 9)], Terms(most=1)).grants) == 1


def test_what_is_queued_ahead_counts_by_the_size_its_shards_will_have() -> None:
    """Automatic shards of a second must not be queued as if each were a single item of a hundredth."""
    rule = Lookahead(0.1, 400)
    demand = replace(singles(1000), shard_size=0)
    offers = [node(name, 1, speeds={"echo@1": 0.01}) for name in "ab"]
    plan = allocate([demand], offers, Terms(lookahead=rule, target_seconds=1.0))
    held = Counter(made.node for made in plan.grants)
    seconds = sum(made.piece.stop - made.piece.start for made in plan.grants) * 0.01
    assert max(held.values()) <= 2
    assert seconds <= 2 * 2 * 1.0

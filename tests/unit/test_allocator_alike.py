"""Runs that want the same of nodes are looked up together; what each gets is what it would get looked at by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from dispatch import allocator
from dispatch.balancers import BALANCERS
from dispatch.plans import Demand, Local, Lookahead, Offer, Phase, Piece, QuotaRule, Terms, pace_key
from dispatch.seats import Found, Queue

TYPES = "ab"
CASES = 1500


class OneByOne(allocator._Pass):
    """The same decision, with every node asked for every run."""

    def _alike(self, queue: Queue, item: str, phase: Phase) -> Any:
        return None

    def _slots(self, demand: Demand) -> tuple[int, float]:
        self.capacity.clear()
        return super()._slots(demand)

    def _gate(self, demand: Demand) -> Found:
        self.able.clear()
        return super()._gate(demand)


def offer(rng: random.Random, number: int) -> Offer:
    capacity = rng.randint(1, 5)
    rules = {}
    for _ in range(rng.choice((0, 0, 1, 3))):
        slots = rng.randint(0, 2)
        key = (rng.choice(TYPES), rng.choice(("", "", "x", "y")))
        rules[key] = QuotaRule(slots, rng.choice((None, slots, slots + 1)))
    speeds = {kind: rng.choice((0.01, 0.1, 0.5, 2.0)) for kind in TYPES if rng.random() < 0.6}
    for run in range(1, 20):
        if rng.random() < 0.4:
            speeds[pace_key(rng.choice(TYPES), run)] = rng.choice((0.05, 0.3, 3.0, 6.0))
    return Offer(
        node=number,
        name=f"n{number}",
        capacity=capacity,
        types=frozenset(rng.choice(("a", "ab", "ab"))),
        quotas=rules,
        in_use={("a", ""): rng.randint(0, capacity + 1)} if rng.random() < 0.6 else {},
        labels=rng.choice(({}, {"zone": "eu"}, {"zone": "us"})),
        online=rng.random() < 0.95,
        cpu=rng.choice((None, 50, 95)),
        max_cpu=90,
        memory=rng.choice((None, 20, 60)),
        weight=rng.choice((0.5, 1.0, 3.0)),
        speeds=speeds,
        patient=rng.random() < 0.1,
        embedded=number == 8,
        relay=rng.random() < 0.15,
        line=rng.random() < 0.9,
    )


def demand(rng: random.Random, run: int) -> Demand:
    cut = rng.choice((0, 0, 5))
    count = cut + rng.randint(0, 40)
    returned: Sequence[Piece] = ()
    if cut:
        returned = [Piece(2 * at, 2 * at + rng.randint(1, 2), shard=100 * run + at) for at in range(rng.randint(0, 2))]
    return Demand(
        run=run,
        type=rng.choice(TYPES),
        cut=cut,
        count=count,
        priority=rng.choice((3, 5, 5, 5, 8)),
        served=rng.randint(0, 3),
        age=float(rng.randint(0, 5)),
        shard_size=rng.choice((0, 0, 1, 3)),
        balancer=rng.choice(sorted(BALANCERS)),
        labels=rng.choice(({}, {}, {"zone": "eu"})),
        affinity=rng.choice(({}, {"zone": "us"})),
        returned=returned,
        marked=[(at, rng.choice("xy")) for at in range(cut, count) if rng.random() < 0.05],
        fallback=rng.choice(("allowed", "allowed", "allowed", "never", "required")),
        elsewhere=rng.randint(0, 1),
        waited=rng.choice((0.0, 99.0)),
        begun=cut > 0,
        hands=rng.choice(("", "", "", "line")),
        ceilings=("above",) if rng.random() < 0.1 else (),
        measured=rng.choice((0, 0, 0, 3)),
    )


@pytest.mark.parametrize("seed", range(0, CASES, 250))
def test_what_runs_have_in_common_changes_no_decision(seed: int) -> None:
    given = 0
    for each in range(seed, seed + 250):
        rng = random.Random(each)
        offers = [offer(rng, number) for number in range(1, rng.randint(2, 9))]
        demands = [demand(rng, run) for run in range(1, rng.randint(3, 20))]
        terms = Terms(
            lookahead=Lookahead(rng.choice((0, 1.0, 1.0)), rng.choice((2, 4, 16))),
            local=Local(10, always=rng.random() < 0.2),
            seed=rng.randint(0, 3),
            ceilings={"above": 2},
        )
        plain = OneByOne(demands, offers, terms)
        plain.run()
        plan = allocator.allocate(demands, offers, terms, explain=True)
        assert plan == plain.plan(explain=True)
        given += len(plan.grants)
    assert given > 100


def test_only_balancers_that_are_known_share_what_was_looked_up() -> None:
    """Of somebody's own balancer nobody knows whether a seat's key grows as it fills."""
    assert BALANCERS.keys() - {"random"} == allocator.GROWING

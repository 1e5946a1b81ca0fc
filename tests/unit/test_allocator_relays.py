"""Shards for relays: several slots each, sized by them, never more than what was granted above."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dispatch.allocator import allocate
from dispatch.plans import Demand, Lookahead, Offer, Phase, QuotaRule, Terms, pace_key


def offer(node: int, capacity: int, *, relay: bool = False, **fields: Any) -> Offer:
    return Offer(node, f"n{node}", capacity, frozenset({"echo"}), relay=relay, **fields)


def demand(run: int = 1, count: int = 1000, **fields: Any) -> Demand:
    return Demand(run, "echo", 0, count, shard_size=1, **fields)


def test_one_shard_takes_all_free_slots_of_a_relay() -> None:
    plan = allocate([demand()], [offer(1, 20, relay=True)])
    (made,) = plan.grants
    assert (made.slots, made.piece.start, made.piece.stop) == (20, 0, 20)
    assert "20 slots for the nodes below it" in made.reason


def test_relays_share_what_is_left() -> None:
    plan = allocate([demand(count=24)], [offer(1, 20, relay=True), offer(2, 20, relay=True)])
    slots: Counter[int] = Counter()
    for made in plan.grants:
        slots[made.node] += made.slots
        assert made.piece.stop - made.piece.start == made.slots
    assert sum(slots.values()) == 24
    assert abs(slots[1] - slots[2]) <= 2


def test_runs_served_alike_share_a_relay() -> None:
    plan = allocate([demand(1), demand(2)], [offer(1, 20, relay=True)])
    assert {made.run: made.slots for made in plan.grants} == {1: 10, 2: 10}


def test_limits_of_the_type_bound_what_a_relay_gets() -> None:
    quotas = {("echo", ""): QuotaRule(0, 6)}
    plan = allocate([demand()], [offer(1, 20, relay=True, quotas=quotas)])
    assert sum(made.slots for made in plan.grants) == 6


def test_its_quota_is_given_first_and_no_more_than_that() -> None:
    quotas = {("echo", ""): QuotaRule(4)}
    plan = allocate([demand(count=5)], [offer(1, 10, relay=True, quotas=quotas), offer(2, 4)])
    first = plan.grants[0]
    assert (first.node, first.phase, first.slots) == (1, Phase.QUOTA, 4)


def test_short_shards_are_put_together_for_a_relay_and_not_for_a_node() -> None:
    speeds = {"echo": 0.01, pace_key("echo", 1): 0.01}
    relay, node = offer(1, 10, relay=True, speeds=speeds), offer(2, 1, speeds=speeds)
    plan = allocate([demand(count=100_000)], [relay, node])
    lengths = {made.node: made.piece.stop - made.piece.start for made in plan.grants}
    assert lengths[1] >= 50 * 10
    assert lengths[2] == 1


def test_a_relay_without_a_node_with_the_labels_gets_none() -> None:
    branches = ({"zone": "a"}, {"zone": "b", "gpu": "1"})
    wanted = demand(labels={"zone": "a", "gpu": "1"})
    plan = allocate([wanted], [offer(1, 4, relay=True, branches=branches)], explain=True)
    assert not plan.grants
    assert plan.refusals[0].code == "label"
    assert allocate([demand(labels={"gpu": "1"})], [offer(1, 4, relay=True, branches=branches)]).grants


@pytest.mark.parametrize(("left", "given"), [(0, 0), (1, 1), (3, 3), (9, 4)])
def test_a_run_from_above_gets_no_more_slots_than_its_ceilings_leave(left: int, given: int) -> None:
    asked = demand(ceilings=("run 1", "all"))
    plan = allocate([asked], [offer(1, 2), offer(2, 2)], Terms(ceilings={"run 1": 9, "all": left}), explain=True)
    assert len(plan.grants) == given
    if not given:
        assert {refusal.code for refusal in plan.refusals} == {"granted"}


def test_ceilings_bound_relays_below_as_well_and_hold_for_runs_together() -> None:
    both = [demand(1, ceilings=("run 1", "all")), demand(2, ceilings=("run 2", "all"))]
    terms = Terms(ceilings={"run 1": 8, "run 2": 3, "all": 9})
    plan = allocate(both, [offer(1, 20, relay=True), offer(2, 2)], terms)
    slots: Counter[int] = Counter()
    for made in plan.grants:
        slots[made.run] += made.slots
    assert slots[2] <= 3
    assert slots[1] <= 8
    assert sum(slots.values()) == 9


def test_queued_ahead_it_waits_only_behind_itself() -> None:
    speeds = {"echo": 0.001, pace_key("echo", 1): 0.001}
    terms = Terms(lookahead=Lookahead(1.0, 50), ceilings={"run 1": 0})
    full = [offer(node, 2, speeds=speeds, in_use={("echo", ""): 2}) for node in (1, 2)]
    plan = allocate([demand(ceilings=("run 1",), held={1: 2, 2: 1})], full, terms)
    assert {made.node for made in plan.grants} == {1}
    assert {made.phase for made in plan.grants} == {Phase.LOOKAHEAD}


@pytest.mark.parametrize("shard_size", [0, 1])
def test_the_end_of_a_run_goes_to_relays_at_once_as_they_even_it_out_themselves(shard_size: int) -> None:
    speeds = {pace_key("echo", 1): 0.05}
    relays = [offer(number, 6, relay=True, speeds=speeds) for number in (1, 2)]
    last = Demand(1, "echo", 964, 1000, shard_size=shard_size)
    plan = allocate([last], relays)
    first, second = plan.grants
    assert (first.piece.stop - first.piece.start, first.slots) == (18, 6)
    assert second.piece.stop - second.piece.start == 12


def test_a_piece_from_above_is_cut_by_the_pace_of_its_run_and_coarser_than_a_run_of_its_own() -> None:
    speeds = {pace_key("echo", 9): 0.05}
    node = offer(1, 4, speeds=speeds)

    def first(run: Demand) -> int:
        made = allocate([run], [node]).grants[0]
        return made.piece.stop - made.piece.start

    own = Demand(9, "echo", 0, 40)
    assert first(own) == 5
    assert first(Demand(2, "echo", 0, 40, measured=9)) == 10
    assert first(Demand(2, "echo", 0, 40)) == 1  # nothing is known of it

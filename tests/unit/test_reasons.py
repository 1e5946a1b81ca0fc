"""Refusals counted by what they mean."""

from __future__ import annotations

from dispatch.explaining import reasons
from dispatch.plans import Refusal
from tests.unit.test_allocator_relays import demand, offer


def test_what_is_queued_ahead_is_not_in_a_slot() -> None:
    offers = {1: offer(1, 4, in_use={("echo", ""): 5}), 2: offer(2, 4, in_use={("echo", ""): 3})}
    refused = [Refusal(1, node, "slots", "no free slot") for node in offers]
    (group,) = reasons.counted(refused, offers, demand(1), {1: "a", 2: "b"}, {2: 3})
    assert str(group) == "no free slot: 8 of 8 in use on 2 nodes"

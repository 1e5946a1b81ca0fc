"""What a relay says of all below it: sums that hold however deep it is, of a size that does not grow with it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatch.relay import subtree
from nodes import messages
from nodes.protocol import CHILDREN_SUMMED, SUMMARY_NUMBERS


def leaf(name: str = "n", state: str = "online", **more: Any) -> dict[str, Any]:
    told = {"name": name, "role": "child", "state": state, "capacity": 4, "used": 3, "queued": 1, "below": None}
    return {**told, **more}


def relay(name: str, *children: dict[str, Any], state: str = "online", **more: Any) -> dict[str, Any]:
    below = subtree.numbers_of(subtree.summary(children))
    return leaf(name, state, role="relay", below=below, **more)


def sums(*children: dict[str, Any]) -> tuple[int, ...]:
    """nodes, leaves, online, capacity, used, queued, depth."""
    told = subtree.summary(children)
    return tuple(told[name] for name in SUMMARY_NUMBERS)


def test_nothing_below_is_nothing() -> None:
    assert sums() == (0, 0, 0, 0, 0, 0, 0)


def test_leaves_are_added_up_and_one_that_is_not_there_has_no_slots() -> None:
    assert sums(leaf(), leaf(state="draining"), leaf(state="offline")) == (3, 3, 2, 8, 6, 2, 1)


def test_a_relay_brings_what_hangs_below_it_and_its_own_slots_count_no_second_time() -> None:
    paris = relay("paris", leaf(), leaf(), capacity=100, used=50)
    assert sums(leaf(), relay("eu", paris, leaf())) == (6, 4, 6, 16, 12, 4, 3)


def test_below_a_relay_that_is_not_there_nothing_is() -> None:
    assert sums(leaf(), relay("eu", leaf(), leaf(), state="offline")) == (4, 3, 1, 4, 3, 1, 2)


def test_a_relay_of_which_nothing_is_known_counts_as_what_it_was_given() -> None:
    assert sums(leaf("old", role="relay")) == (1, 0, 1, 4, 3, 1, 1)


def test_the_own_worker_of_a_relay_counts_nowhere() -> None:
    told = subtree.summary([leaf("local", role="standalone"), leaf("a")])
    assert (told["nodes"], told["capacity"], [child["name"] for child in told["children"]]) == (1, 4, ["a"])


def test_of_many_children_relays_and_the_missing_are_named_and_the_rest_is_counted() -> None:
    many = [leaf(f"n{number:03}") for number in range(200)]
    told = subtree.summary([*many, leaf("z", "offline"), relay("zz", leaf())])
    names = [child["name"] for child in told["children"]]
    assert names[:3] == ["zz", "z", "n000"]
    assert (len(names), told["more"], told["nodes"]) == (CHILDREN_SUMMED, 202 - CHILDREN_SUMMED, 203)


def test_it_is_as_large_for_ten_thousand_nodes_as_for_a_hundred() -> None:
    def size(count: int) -> int:
        return len(json.dumps(subtree.summary([leaf(f"{'n' * 90}{number:06}") for number in range(count)])))

    assert size(10_000) < 1.01 * size(100) < 6_000


NAMES = st.text("abcé:@ -", max_size=8)
LEAVES = st.builds(leaf, NAMES, st.sampled_from(messages.STATES), capacity=st.integers(0, 9), used=st.integers(0, 9))
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4).map(lambda some: relay("r", *some)), max_leaves=9
)


@given(st.lists(TREES, max_size=5))
def test_what_is_said_is_what_the_parent_reads(children: list[dict[str, Any]]) -> None:
    told = subtree.summary(children)
    read = messages.read_beat({"role": "relay", "id": "a" * 32, "subtree": json.loads(json.dumps(told))}).subtree
    assert read == told
    assert told["online"] <= told["nodes"]
    assert told["leaves"] <= told["nodes"]

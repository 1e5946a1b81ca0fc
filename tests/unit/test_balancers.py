"""Balancers: each one's choice, and how they are found by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from dispatch import balancers
from dispatch.allocator import Demand, Offer, Seat, Terms, allocate
from nodes.protocol import FieldError


def node(name: str, capacity: int, used: int = 0, **fields: Any) -> Offer:
    in_use = {("other", ""): used} if used else {}
    return Offer(ord(name), name, capacity, frozenset({"echo"}), in_use=in_use, **fields)


def order(balancer: str, *nodes: Offer, count: int = 1, seed: int = 0) -> str:
    """The names of the nodes that get ``count`` shards, in order."""
    run = Demand(1, "echo", 0, count, shard_size=1, balancer=balancer)
    return "".join(chr(made.node) for made in allocate([run], nodes, Terms(seed=seed)).grants)


def test_most_free_prefers_free_slots() -> None:
    assert order("most_free", node("a", 2), node("b", 9, 5), count=3) == "bba"


def test_least_tasks_prefers_whoever_has_least_in_hand() -> None:
    assert order("least_tasks", node("a", 2), node("b", 9, 1), count=3) == "aab"


def test_round_robin_goes_round_beginning_with_whoever_waited_longest() -> None:
    nodes = [node("a", 9, last_grant=30), node("b", 9, last_grant=10), node("c", 9, last_grant=20)]
    assert order("round_robin", *nodes, count=7) == "bcabcab"


def test_weighted_shares_in_proportion_to_the_weights() -> None:
    shares = Counter(order("weighted", node("a", 90, weight=1.0), node("b", 90, weight=3.0), count=40))
    assert shares == {"a": 10, "b": 30}


def test_weighted_counts_a_loaded_node_for_less() -> None:
    nodes = [node("a", 90, cpu=80.0, memory=40.0), node("b", 90, cpu=10.0, memory=10.0)]
    # 0.4 and 0.9 of what they could do.
    assert Counter(order("weighted", *nodes, count=26)) == {"a": 8, "b": 18}
    strong = node("c", 90, cpu=80.0, memory=40.0, weight=9.0)
    assert order("weighted", strong, node("d", 90)) == "c"


def test_a_node_at_its_end_keeps_some_weight() -> None:
    nodes = [node("a", 90, cpu=100.0, memory=100.0), node("b", 90)]
    assert Counter(order("weighted", *nodes, count=42)) == {"a": 2, "b": 40}


def test_random_is_repeatable_by_its_seed_and_uses_all_nodes() -> None:
    nodes = [node(name, 20) for name in "abcd"]
    first = order("random", *nodes, count=40, seed=1)
    assert order("random", *nodes, count=40, seed=1) == first
    assert {order("random", *nodes, count=40, seed=seed) for seed in range(5)} != {first}
    assert set(first) == set("abcd")


@pytest.mark.parametrize(
    ("worse", "better"),
    [({"cpu": 50.0}, {"cpu": 20.0}), ({"memory": 90.0}, {"memory": 10.0}), ({"cpu": 10.0}, {})],
)
def test_health_prefers_the_less_loaded(worse: dict[str, Any], better: dict[str, Any]) -> None:
    assert order("health", node("a", 4, **worse), node("b", 4, **better)) == "b"


def test_health_weighs_cpu_memory_and_shards_as_it_says() -> None:
    seat = Seat(node("a", 9, 2, cpu=40.0, memory=50.0))
    assert balancers.health(seat, "echo", 0) == -(100 - 40 * 0.5 - 50 * 0.3 - 2 * 10)


def test_earliest_finish_prefers_the_faster_until_it_is_busy() -> None:
    fast, slow = node("a", 4, speeds={"echo": 1.0}), node("b", 4, speeds={"echo": 3.0})
    assert order("earliest_finish", slow, fast, count=4) == "aaaa"
    assert order("earliest_finish", slow, fast, node("c", 1), count=2) == "ca"


@pytest.mark.parametrize("name", sorted(balancers.BALANCERS))
def test_no_balancer_leaves_a_slot_idle(name: str) -> None:
    given = order(name, node("a", 3), node("b", 1), node("c", 2), count=50)
    assert Counter(given) == {"a": 3, "b": 1, "c": 2}


def backwards(seat: Seat, task_type: str, seed: int) -> float:
    """The last name first."""
    return -seat.offer.node


def test_a_balancer_of_ones_own_is_named_by_its_path() -> None:
    assert order("tests.unit.test_balancers.backwards", node("a", 2), node("b", 2), count=3) == "bba"


class Installed(NamedTuple):
    """An entry point as importlib.metadata makes them."""

    name: str
    loaded: Any

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Installed]]:
    """Entry points of installed packages, of the group that is asked for."""
    points: list[Installed] = []
    monkeypatch.setattr(balancers, "entry_points", lambda group: points if group == "cascade.balancers" else [])
    balancers.installed.cache_clear()
    balancers.get.cache_clear()
    yield points
    monkeypatch.undo()
    balancers.installed.cache_clear()
    balancers.get.cache_clear()


def test_an_installed_package_offers_balancers_by_name(packages: list[Installed]) -> None:
    packages += [Installed("last_first", backwards), Installed("most_free", backwards)]
    assert "last_first" in balancers.names()
    assert order("last_first", node("a", 2), node("b", 2), count=3) == "bba"
    assert balancers.meaning("last_first") == "The last name first."
    # None of them hides one of ours.
    assert balancers.get("most_free") is balancers.most_free


@pytest.mark.parametrize("error", [ImportError("gone"), RuntimeError("no licence"), SyntaxError("odd")])
def test_an_installed_balancer_that_cannot_be_loaded_is_said(packages: list[Installed], error: Exception) -> None:
    packages.append(Installed("broken", error))
    with pytest.raises(FieldError) as raised:
        balancers.get("broken")
    assert raised.value.field == "balancer"
    assert balancers.meaning("broken") == ""


@pytest.mark.parametrize("name", ["", "fastest", "no.such.module", "dispatch.balancers.nothing", ".", "a..b", "\x00.x"])
def test_an_unknown_balancer_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(FieldError, match="balancer") as raised:
        balancers.get(name)
    assert raised.value.field == "balancer"
    assert "most_free" in raised.value.message


def test_what_cannot_be_called_is_no_balancer() -> None:
    with pytest.raises(FieldError, match="not callable"):
        balancers.get("dispatch.balancers.BALANCERS")

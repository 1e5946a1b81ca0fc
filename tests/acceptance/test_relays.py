"""Relays as real processes: a run of the root spreads over nodes below them, and each row counts once at the root."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from nodes import failpoints
from tests.acceptance.trees import allocations, until

pytestmark = pytest.mark.trees

ENV = {"CASCADE_FALLBACK_WORKERS": "0", "CASCADE_LEASE_SECONDS": "4", "CASCADE_BEAT_SECONDS": "0.5"}
LEAVES = 2


class Branches:
    """A root and two relays with two leaves each, one that pushes and one that pulls."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.root = stack.enter_context(LocalTree(folder / "root", env={**ENV, "CASCADE_NODE_NAME": "root"}))
        self.relays: dict[str, LocalTree] = {}
        for name in ("eu", "us"):
            key = json.loads(self.root.manage("node", "add", name, "--capacity", "8", "--json").stdout)
            leaves = [Child(f"{name}{number}", capacity=2, carrier=how) for number, how in enumerate(("push", "pull"))]
            env = {**ENV, "CASCADE_NODE_NAME": name}
            relay = LocalTree(folder / name, children=leaves, env=env, above=(self.root.url, key))
            self.relays[name] = stack.enter_context(relay)
        until(lambda: all(self.online(name) for name in self.relays))

    def online(self, name: str) -> bool:
        """The root has heard of the relay and of its leaves."""
        branch = self.root.nodes()[name]["subtree"]
        return branch is not None and bool(branch["online"] == LEAVES)

    def rows(self, run: int) -> list[dict[str, Any]]:
        return list(self.root.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"}))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Branches]:
    with ExitStack() as stack:
        yield Branches(tmp_path_factory.mktemp("relays"), stack)


def test_a_run_spreads_over_the_leaves_and_rows_say_the_way_they_came(tree: Branches) -> None:
    items = [f"a{number}" for number in range(400)]
    run = tree.root.submit("echo", items, shard_size=1)
    assert tree.root.wait(run)["state"] == "completed"
    rows = tree.rows(run)
    assert Counter(row["item"] for row in rows) == Counter(items)
    came = {row["_node"] for row in rows}
    assert {name.split("/")[0] for name in came} == {"eu", "us"}
    assert all(name.count("/") == 1 for name in came)


def pausing(tree: Branches, count: int = 160, seconds: float = 0.1) -> tuple[int, list[str]]:
    """A run whose items take a while, some of it done."""
    items = [f"p{number}" for number in range(count)]
    run = tree.root.submit("echo", items, params={"seconds": seconds}, shard_size=2)
    until(lambda: tree.root.progress(run)["saved"] > count // 8, 30)
    return run, items


def counted_once(tree: Branches, run: int, items: list[str]) -> None:
    assert tree.root.wait(run, timeout=90)["state"] == "completed"
    assert Counter(row["item"] for row in tree.rows(run)) == Counter(items)


def test_progress_moves_while_a_relay_still_has_the_rest(tree: Branches) -> None:
    items = [f"s{number}" for number in range(12)]  # more than there are slots
    run = tree.root.submit("echo", items, params={"seconds": 1.5}, shard_size=1)
    seen = until(lambda: 0 < tree.root.progress(run)["saved"] < len(items), 30)
    assert seen
    counted_once(tree, run, items)


@pytest.mark.long
def test_a_leaf_that_is_killed_costs_nothing(tree: Branches) -> None:
    run, items = pausing(tree)
    tree.relays["eu"].kill("eu0", machine=True)
    counted_once(tree, run, items)
    tree.relays["eu"].restart("eu0")


@pytest.mark.long
def test_a_relay_that_is_killed_and_comes_back(tree: Branches) -> None:
    run, items = pausing(tree)
    tree.relays["us"].kill("parent")
    tree.relays["us"].start_parent()
    counted_once(tree, run, items)
    assert {each["error"] for each in allocations(tree.root, run)} == {""}  # it still had what it had


@pytest.mark.long
@pytest.mark.parametrize("point", [point for point in failpoints.POINTS if point.startswith("relay.")])
def test_a_relay_that_is_killed_where_it_hurts(tree: Branches, point: str) -> None:
    relay = tree.relays["us"]
    relay.kill("parent")
    relay.env["CASCADE_FAILPOINTS"] = f"{point}=kill@2"
    relay.start_parent()
    del relay.env["CASCADE_FAILPOINTS"]
    run, items = pausing(tree)
    until(lambda: not relay.alive("parent"))
    relay.start_parent()
    counted_once(tree, run, items)


def test_a_relay_that_is_killed_and_stays_away_costs_what_it_had_not_passed_on(tree: Branches) -> None:
    run, items = pausing(tree)
    tree.relays["us"].kill("parent")
    counted_once(tree, run, items)
    tree.relays["us"].start_parent()


@pytest.mark.long
def test_the_root_killed(tree: Branches) -> None:
    run, items = pausing(tree)
    tree.root.kill("parent")
    tree.root.start_parent()
    counted_once(tree, run, items)


def test_a_relay_frozen_past_its_lease_and_woken(tree: Branches) -> None:
    run, items = pausing(tree)
    tree.relays["eu"].pause("parent")
    until(lambda: allocations(tree.root, run, state="expired"))
    tree.relays["eu"].resume("parent")
    counted_once(tree, run, items)


def test_a_cancel_at_the_root_reaches_the_leaves(tree: Branches) -> None:
    run, _ = pausing(tree, count=60, seconds=1.0)
    tree.root.request("POST", f"/api/v1/runs/{run}/cancel")
    relay = tree.relays["eu"]
    until(lambda: not _busy(relay), 3)


def _busy(relay: LocalTree) -> bool:
    return any(each["in_use"] for each in relay.json("GET", "/api/v1/nodes")["results"])

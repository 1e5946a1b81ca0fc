"""A tree of four levels as real processes, each line between two of them by another carrier: what travels down it."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from nodes.agent.configuration import Damaged, Store
from tests.acceptance.trees import EVEN, account, alive, label, numbered, rows, until, workers

pytestmark = pytest.mark.trees

# Beats alone would take a cancel longer than the test allows: three of them, one after the other.
ENV = {"CASCADE_FALLBACK_WORKERS": "0", "CASCADE_BEAT_SECONDS": "5", "CASCADE_LEASE_SECONDS": "30"}
CARRIERS = ["push", "pull"]


class Deep:
    """root > mid (by pull) > low (by push) > a leaf that pushes and one that pulls; ``near`` is a leaf of the root."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        near = Child("near", capacity=2)
        self.root = self._server(stack, folder / "root", "root", children=[near])
        self.mid = self._server(stack, folder / "mid", "mid", above=self.root, carrier="pull")
        leaves = [Child(carrier, capacity=2, carrier=carrier) for carrier in CARRIERS]
        self.low = self._server(stack, folder / "low", "low", above=self.mid, carrier="push", children=leaves)
        label(self.low, *CARRIERS)
        label(self.root, "near")
        until(lambda: "echo" in self.root.nodes()["mid"]["executors"], what="what the leaves can do, at the root")

    def _server(
        self,
        stack: ExitStack,
        folder: Path,
        name: str,
        *,
        above: LocalTree | None = None,
        carrier: str = "auto",
        children: list[Child] | None = None,
    ) -> LocalTree:
        env = {**ENV, "CASCADE_NODE_NAME": name, "CASCADE_CARRIER": carrier}
        line = None
        if above is not None:
            line = above.url, json.loads(above.manage("node", "add", name, "--capacity", "8", "--json").stdout)
        return stack.enter_context(LocalTree(folder, children=children or [], env=env, above=line))


def moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deep]:
    with ExitStack() as stack:
        yield Deep(tmp_path_factory.mktemp("deep"), stack)


def newest(tree: LocalTree) -> dict[str, Any]:
    found: dict[str, Any] = tree.json("GET", "/api/v1/runs")["results"][0]
    return found


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_cancel_at_the_root_frees_the_slots_of_a_leaf_three_levels_below(tree: Deep, carrier: str) -> None:
    run = tree.root.submit("echo", numbered(8), params={"seconds": 60}, shard_size=1, labels={"by": carrier})
    busy = until(lambda: len(found := workers(tree.low, carrier)) == 2 and found, what="a busy leaf")
    until(lambda: tree.low.nodes()[carrier]["in_use"] == 2)
    began = time.monotonic()
    assert tree.root.json("POST", f"/api/v1/runs/{run}/cancel")["state"] == "cancelled"
    until(lambda: tree.low.nodes()[carrier]["in_use"] == 0, 3, "a free slot as the leaf's parent sees it")
    until(lambda: not alive(busy), began + 3 - time.monotonic(), "the end of the workers")
    print(f"\ncancel at depth 3, leaf by {carrier}: {time.monotonic() - began:.2f} s")
    ended = [newest(server) for server in (tree.root, tree.mid, tree.low)]
    assert {each["state"] for each in ended} == {"cancelled"}
    assert all(moment(above["ended_at"]) <= moment(below["ended_at"]) for above, below in pairwise(ended))
    assert rows(tree.root, run) == []


def test_the_configuration_of_all_levels_is_at_the_leaf_and_the_root_knows_who_has_it(tree: Deep) -> None:
    defined = {"root": tree.root, "mid": tree.mid, "low": tree.low}
    for name, server in defined.items():
        server.json("POST", "/api/v1/tasks", json={"name": "nightly", "type": "echo", "items": [name]})

    def content(leaf: str = "push") -> dict[str, Any]:
        try:
            return Store(tree.low.folder(leaf)).read()[1]
        except Damaged:
            return {"tasks": []}

    names = ["nightly", "mid/nightly", "low/nightly"]
    until(lambda: [task["name"] for task in content()["tasks"]] == names, what="three levels of tasks")
    assert [task["items"] for task in content()["tasks"]] == [[name] for name in defined]
    assert len(content()["levels"]) == 2

    def told() -> Any:
        state = tree.root.json("GET", "/api/v1/configuration")
        return state["nodes"] == 5 and state["versions"][0]["nodes"] == 5

    until(told, what="the newest version at all five nodes below the root")


def test_a_rate_of_the_root_holds_over_all_levels_and_no_branch_starves(tree: Deep) -> None:
    rate, burst, items = 5.0, 2, numbered(30)
    tree.root.json("POST", "/api/v1/rates", json={"key": "feeds", "per_second": rate, "burst": burst})
    how = {"rate_key": "feeds", "shard_size": 1, "balancer": "round_robin"}
    run = tree.root.submit("echo", items, params={"seconds": 0.3}, **how)
    since = moment(tree.root.json("GET", f"/api/v1/runs/{run}")["created_at"])
    assert tree.root.wait(run)["state"] == "completed"
    saved = rows(tree.root, run)
    assert sorted(row["item"] for row in saved) == sorted(items)
    assert {row["_node"].split("/")[0] for row in saved} == {"near", "mid"}
    began = sorted(
        moment(each["started_at"]).timestamp()
        for server, leaves in ((tree.root, ["near"]), (tree.low, CARRIERS))
        for each in server.json("GET", "/api/v1/allocations", params={"limit": 1000})["results"]
        if each["node_name"] in leaves and each["state"] == "completed" and moment(each["granted_at"]) >= since
    )
    assert len(began) == len(items)
    print(f"\n{len(items)} items at {rate:g} a second, {burst} at once: {began[-1] - began[0]:.1f} s")
    for at, first in enumerate(began):
        for more, last in enumerate(began[at:], 1):
            # What a node of the root is granted begins when it has fetched it.
            assert more <= burst + rate * (last - first + 0.25)


@pytest.mark.long
def test_cut_off_it_stops_what_may_not_go_on_and_goes_on_when_the_root_is_back(tree: Deep) -> None:
    items = numbered(60)
    more = {"params": {"seconds": 0.5}, "shard_size": 1, "labels": {"by": "push"}}
    run = tree.root.submit("echo", items, island_seconds=0, **more)
    until(lambda: tree.root.progress(run)["saved"] > 4)
    tree.root.pause("parent")
    until(lambda: newest(tree.low)["state"] == "cancelled", what="the end of what may not go on")
    until(lambda: not tree.low.nodes()["push"]["in_use"])
    assert newest(tree.mid)["state"] == "running"
    tree.root.resume("parent")
    assert tree.root.wait(run, timeout=120)["state"] == "completed"
    assert account(tree.root, run, items) == EVEN

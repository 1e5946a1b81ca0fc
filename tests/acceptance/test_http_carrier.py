"""The parent calls its nodes: ours and a foreign one; what is lost on the way is done again, and counts once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from cascade.local import PARENT, LocalTree
from tests.acceptance.drivable import active, all_bars, answers, as_rows, drive, foreign, ours, yearly
from tests.acceptance.trees import EVEN, QUICK, account, allocations, executing, held, label, numbered, until

SETTINGS = {**QUICK, "CASCADE_FALLBACK_WORKERS": "0"}


class Driving:
    """A parent, two nodes of ours and a foreign one, with the ports they listen on."""

    def __init__(self, tree: LocalTree) -> None:
        self.tree = tree
        self.ports = {name: ours(tree, name, CASCADE_NODE_API_KEY=f"key of {name}") for name in ("one", "two")}
        self.ports["foreign"] = foreign(tree, "foreign", "--workers", "2", "--seconds", "0.05")
        for name, port in self.ports.items():
            drive(tree, name, port, api_key=f"key of {name}")
        label(tree, *self.ports)

    def wake(self, name: str) -> None:
        """Starts a killed node again, and waits until it answers."""
        self.tree.restart(name)
        answers(self.ports[name])
        until(lambda: self.tree.nodes()[name]["state"] == "online")


@pytest.fixture(scope="module")
def driving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driving]:
    with LocalTree(tmp_path_factory.mktemp("http"), env=SETTINGS) as tree:
        yield Driving(tree)


def test_work_reaches_the_nodes_and_its_rows_come_back_once(driving):
    tree = driving.tree
    items = numbered(40)
    run = tree.submit("echo", items, params={"seconds": 0.02}, shard_size=2)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert {each["node_name"] for each in allocations(tree, run)} == {"one", "two"}


def test_bars_brought_by_a_foreign_node_are_the_sources_own(driving):
    tree = driving.tree
    run = tree.submit("data_import", yearly(), params={"source": "sample"}, labels={"by": "foreign"}, shard_size=9)
    assert tree.wait(run)["state"] == "completed"
    assert as_rows(tree.json("GET", f"/api/v1/runs/{run}/results")) == all_bars()
    assert len(tree.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"})) == len(all_bars())


def test_large_results_go_through_the_spool(driving):
    tree = driving.tree
    items = numbered(3, "large")
    run = tree.submit("echo", items, params={"rows": 3_000}, shard_size=1)
    assert tree.wait(run)["rows"] == 9_000
    assert account(tree, run, items, rows_each=3_000) == EVEN


def test_items_that_fail_and_workers_that_die_are_told_as_by_an_agent(driving):
    tree = driving.tree
    run = tree.submit(
        "echo", ["a", "b", "c"], params={"fail_items": ["b"], "crash_items": ["c"]}, shard_size=1, max_attempts=1
    )
    ended = tree.wait(run)
    assert (ended["saved"], ended["failed"], ended["quarantined"]) == (1, 1, 1)
    failed = {each["item"]: each["error"] for each in tree.json("GET", f"/api/v1/runs/{run}/items")["results"]}
    assert "fail_items" in failed["b"]
    assert "died" in failed["c"]


def test_an_unknown_symbol_costs_that_item_on_a_foreign_node_too(driving):
    tree = driving.tree
    run = tree.submit(
        "data_import",
        ["FB", "NOPE"],
        params={"source": "sample"},
        labels={"by": "foreign"},
        shard_size=2,
        max_attempts=1,
    )
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["failed"]) == ("partial", 1, 1)
    assert as_rows(tree.json("GET", f"/api/v1/runs/{run}/results")) == all_bars(["FB"])


def test_a_node_killed_in_the_middle_loses_no_row_and_doubles_none(driving):
    tree = driving.tree
    items = numbered(60)
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1)
    until(lambda: len(executing(tree, run, "one")) == 2 and tree.progress(run)["saved"] > 4)
    tree.kill("one", machine=True)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert {each["state"] for each in allocations(tree, run) if each["node_name"] == "one"} >= {"completed", "expired"}
    driving.wake("one")


def test_a_node_that_comes_back_without_its_tasks_is_not_waited_for(driving):
    """It says 404 of what it had before, so the leases need not run out."""
    tree = driving.tree
    run = tree.submit("echo", numbered(2), params={"seconds": 1.5}, labels={"by": "two"}, shard_size=1)
    until(lambda: active(driving.ports["two"], "key of two") == 2)
    tree.kill("two", machine=True)
    driving.wake("two")
    assert tree.wait(run)["state"] == "completed"
    lost = [each for each in allocations(tree, run) if each["state"] == "expired"]
    assert lost
    assert account(tree, run, numbered(2)) == EVEN


def test_a_parent_killed_in_the_middle_takes_up_again_what_runs_on_the_nodes(driving):
    tree = driving.tree
    before = executed(driving, "foreign")
    run = tree.submit(
        "data_import", yearly(["IBM"]), params={"source": "sample"}, labels={"by": "foreign"}, shard_size=7
    )
    until(lambda: len(held(tree, run, "foreign")) == 2)
    tree.kill(PARENT)
    tree.restart(PARENT)
    assert tree.wait(run)["state"] == "completed"
    assert as_rows(tree.json("GET", f"/api/v1/runs/{run}/results")) == all_bars(["IBM"])
    # Nothing was given to the node a second time.
    assert executed(driving, "foreign") - before == 2
    assert {each["state"] for each in allocations(tree, run)} == {"completed"}


def test_a_cancel_reaches_what_runs_on_a_node(driving):
    tree = driving.tree
    run = tree.submit("data_import", yearly(), params={"source": "sample"}, labels={"by": "foreign"}, shard_size=35)
    until(lambda: running(driving) == 2)
    tree.json("POST", f"/api/v1/runs/{run}/cancel")
    until(lambda: running(driving) == 0, 1.5, "the cancel on the node")


def test_a_node_with_fewer_workers_than_our_capacity_is_given_so_many(driving):
    """It has two; ten in our books are too many, and would come back with 503 for ever."""
    tree = driving.tree
    tree.json("PATCH", f"/api/v1/nodes/{tree.nodes()['two']['id']}", json={"capacity": 10})
    run = tree.submit("echo", numbered(12), params={"seconds": 0.1}, labels={"by": "two"}, shard_size=1)
    assert tree.wait(run)["state"] == "completed"
    assert {each["state"] for each in allocations(tree, run)} == {"completed"}
    tree.json("PATCH", f"/api/v1/nodes/{tree.nodes()['two']['id']}", json={"capacity": 2})


def test_a_node_that_is_full_gives_work_back_and_it_is_done_in_the_end(driving):
    """The foreign one does not say how many workers it has: two, where our books say six."""
    tree = driving.tree
    tree.json("PATCH", f"/api/v1/nodes/{tree.nodes()['foreign']['id']}", json={"capacity": 6})
    run = tree.submit("data_import", yearly(["FB", "IBM"]), params={"source": "sample"}, labels={"by": "foreign"})
    ended = tree.wait(run)
    assert ended["state"] == "completed"
    assert as_rows(tree.json("GET", f"/api/v1/runs/{run}/results")) == all_bars(["FB", "IBM"])


def test_a_node_with_a_wrong_key_gets_nothing_and_others_do_its_work(driving):
    tree = driving.tree
    guarded = foreign(tree, "guarded", "--api-key", "right")  # its health is open to all
    drive(tree, "stranger", guarded, api_key="wrong")
    items = yearly(["FB"])
    run = tree.submit("data_import", items, params={"source": "sample"}, shard_size=1)
    assert tree.wait(run)["state"] == "completed"
    assert as_rows(tree.json("GET", f"/api/v1/runs/{run}/results")) == all_bars(["FB"])
    tried = [each for each in allocations(tree, run) if each["node_name"] == "stranger"]
    assert tried
    assert len(tried) <= 4  # it is left alone for longer and longer
    assert {each["state"] for each in tried} == {"cancelled"}


def executed(driving: Driving, name: str) -> int:
    return int(requests.get(f"http://127.0.0.1:{driving.ports[name]}/executed", timeout=5).json()["executed"])


def running(driving: Driving) -> int:
    found = requests.get(f"http://127.0.0.1:{driving.ports['foreign']}/executed", timeout=5).json()["tasks"]
    return list(found.values()).count("running")

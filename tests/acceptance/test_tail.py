"""The end of a run does not wait for the slowest: its last shards are given to an idle node, too, and count once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cascade.local import Child, LocalTree
from nodes.executors.echo import SLOWNESS
from tests.acceptance.trees import EVEN, account, allocations, executing, numbered, rows, until

LEASE = 60.0
PARAMS = {"seconds": 0.5}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("quick", 1), Child("slow", 1, env={SLOWNESS: "20"})]
    env = {"CASCADE_LEASE_SECONDS": str(LEASE), "CASCADE_OFFLINE_SECONDS": str(LEASE)}
    with LocalTree(tmp_path_factory.mktemp("tail"), children=children, env=env) as tree:
        run = tree.submit("echo", numbered(4, "measured"), params={"seconds": 0.05}, shard_size=1)
        assert tree.wait(run)["state"] == "completed"
        yield tree


def check(tree: LocalTree, run: int, items: list[str]) -> None:
    assert account(tree, run, items) == EVEN
    copies = allocations(tree, run, state="superseded")
    assert [each["node_name"] for each in copies] == ["slow"]
    assert {row["_node"] for row in rows(tree, run)} == {"quick"}


def test_a_slow_nodes_last_shard_is_won_by_a_copy_whose_rows_count_once(tree: LocalTree) -> None:
    items = numbered(4)
    run = tree.submit("echo", items, params=PARAMS, shard_size=1)
    assert tree.wait(run)["state"] == "completed"
    check(tree, run, items)
    # Its worker was stopped, and the node is free for the next run.
    until(lambda: not tree.nodes()["slow"]["in_use"])


def test_a_machine_that_stands_still_holds_up_a_run_by_far_less_than_its_lease(tree: LocalTree) -> None:
    items = numbered(4, "still")
    run = tree.submit("echo", items, params=PARAMS, shard_size=1)
    until(lambda: executing(tree, run, "slow"))
    tree.pause("slow")
    try:
        assert tree.wait(run, timeout=LEASE / 2)["state"] == "completed"
    finally:
        tree.resume("slow")
    check(tree, run, items)


def test_a_long_shard_of_a_slow_node_is_divided_with_an_idle_one(tree: LocalTree) -> None:
    # Queued behind what the slow node still drops of the test before, its shard would be taken back whole.
    until(lambda: not tree.nodes()["slow"]["in_use"])
    items = numbered(120, "long")
    # Three shards, two of which the quick node does in 2.4 s. By then the slow one, taken for as quick, would be done:
    # sooner it might be asked to stop at an item that it is far from, and later once more it is not asked. It has
    # done some twelve, at 0.6 s each, when it has taken too long.
    run = tree.submit("echo", items, params={"seconds": 0.03}, shard_size=40)
    assert tree.wait(run, timeout=LEASE / 2)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    by_node = {node: sum(row["_node"] == node for row in rows(tree, run)) for node in ("quick", "slow")}
    assert 0 < by_node["slow"] < 40 < 80 < by_node["quick"]

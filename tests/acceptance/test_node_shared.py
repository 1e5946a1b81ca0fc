"""A served child that works for its parent and for a program that calls it, at the same time, with the same slots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.test_node_dialect import Node, free, sleepers, start
from tests.acceptance.trees import EVEN, QUICK, account, numbered, until


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("shared"), env={**QUICK, "CASCADE_FALLBACK_WORKERS": "0"}) as tree:
        yield tree


@pytest.fixture(scope="module")
def node(tree: LocalTree) -> Node:
    tree.introduce(Child("served", capacity=2))
    key = tree.keys["served"]
    pair = {"CASCADE_ACCESS_KEY": key["access_key"], "CASCADE_SECRET_KEY": key["secret_key"]}
    node = start(tree, "served", "--parent", tree.url, "--carrier", "pull", **pair)
    until(lambda: node.health()["max_workers"] == 2, what="the parent's word on its slots")
    return node


def test_work_of_both_kinds_shares_the_slots(tree: LocalTree, node: Node) -> None:
    names = sleepers(node, 1, "own")
    items = numbered(6)
    run = tree.submit("echo", items, params={"seconds": 0.4}, shard_size=1)
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, node.health()["active_tasks"])
        return bool(tree.progress(run)["state"] == "completed")

    until(done, what="the parent's run")
    assert most == 2
    assert account(tree, run, items) == EVEN
    assert node.status("own-0")["status"] == "running"
    free(node, names)


def test_work_of_the_parent_makes_the_node_busy_for_others(tree: LocalTree, node: Node) -> None:
    run = tree.submit("echo", numbered(2), params={"seconds": 60}, shard_size=1)
    until(lambda: node.health()["active_tasks"] == 2, what="two running shards")
    assert node.health()["status"] == "busy"
    assert node.execute("refused")[0] == 503
    tree.json("POST", f"/api/v1/runs/{run}/cancel")
    node.idle()
    assert node.execute("refused")[0] == 200
    assert node.ended("refused")["status"] == "completed"


def test_the_node_is_called_what_its_parent_calls_it(node: Node) -> None:
    assert node.health()["node_name"] == "served"

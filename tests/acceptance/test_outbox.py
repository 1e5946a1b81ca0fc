"""Results that cannot be brought wait on the child's disk, through kills of both sides, and arrive once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cascade.local import PARENT, Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, allocations, executing, numbered, until, workers

# Leases longer than the outage: what was done before it must not be done again.
SETTINGS = {**QUICK, "CASCADE_LEASE_SECONDS": "60"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    with LocalTree(tmp_path_factory.mktemp("outbox"), children=children, env=SETTINGS) as tree:
        yield tree


def waiting(tree: LocalTree, name: str) -> set[int]:
    """The allocations whose results are in a child's outbox."""
    found: set[int] = set()
    for file in tree.folder(name).glob("*.json"):
        found |= {entry["allocation"] for entry in json.loads(file.read_text())}
    return found


def all_running(tree: LocalTree, *runs: int) -> list[int]:
    """The four allocations that fill all slots, once their workers have them."""
    found = until(lambda: len(found := [id for run in runs for id in executing(tree, run)]) == 4 and found)
    # The parent writes down what it hands out before the child has it.
    until(lambda: all(len(workers(tree, name)) == 2 for name in tree.children))
    return list(found)


def test_results_made_while_the_parent_is_down_arrive_once_even_if_the_child_is_killed_too(tree):
    small = tree.submit("echo", numbered(2, "s"), params={"seconds": 1.0}, shard_size=1)
    large = tree.submit("echo", numbered(2, "l"), params={"seconds": 1.0, "rows": 600}, shard_size=1)
    running = all_running(tree, small, large)
    tree.kill(PARENT)
    until(lambda: waiting(tree, "pusher") | waiting(tree, "puller") == set(running))
    for name in ("pusher", "puller"):
        tree.kill(name, machine=True)
    tree.restart(PARENT)
    assert tree.progress(small)["saved"] + tree.progress(large)["saved"] == 0
    for name in ("pusher", "puller"):
        tree.restart(name)
    assert {tree.wait(run)["state"] for run in (small, large)} == {"completed"}
    assert account(tree, small, numbered(2, "s")) == EVEN
    assert account(tree, large, numbered(2, "l"), rows_each=600) == EVEN
    # They are the results that were made: nothing was run a second time.
    assert {each["id"] for run in (small, large) for each in allocations(tree, run)} == set(running)
    until(lambda: not waiting(tree, "pusher") | waiting(tree, "puller"))
    assert not [file for name in tree.children for file in tree.folder(name).glob("*.arrow")]


def test_a_child_that_outlives_an_outage_brings_its_results_by_itself(tree):
    run = tree.submit("echo", numbered(4), params={"seconds": 0.8}, shard_size=1)
    running = all_running(tree, run)
    tree.kill(PARENT)
    until(lambda: waiting(tree, "pusher") | waiting(tree, "puller") == set(running))
    tree.restart(PARENT)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, numbered(4)) == EVEN
    assert {each["id"] for each in allocations(tree, run)} == set(running)

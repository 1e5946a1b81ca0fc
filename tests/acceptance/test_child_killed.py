"""kill -9 of a child in the middle of a run: the run completes, and every row is saved once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, allocations, executing, held, numbered, until

ITEMS = numbered(60)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    with LocalTree(tmp_path_factory.mktemp("killed"), children=children, env=QUICK) as tree:
        yield tree


@pytest.fixture
def tree(started: LocalTree) -> LocalTree:
    """With both children alive, whatever the test before has done to them."""
    for name in started.children:
        if not started.alive(name):
            started.restart(name)
    return started


@pytest.mark.parametrize("victim", ["pusher", "puller"])
@pytest.mark.parametrize("machine", [False, True], ids=["agent alone", "whole machine"])
def test_a_run_survives_the_kill_of_a_child_in_its_middle(tree, victim, machine):
    run = tree.submit("echo", ITEMS, params={"seconds": 0.08}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["saved"] >= 8)
    until(lambda: held(tree, run, victim))
    tree.kill(victim, machine=machine)
    # What it ran may end between the look and the kill; mostly it is killed with work in hand.
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["rows"]) == ("completed", len(ITEMS), len(ITEMS))
    assert account(tree, run, ITEMS) == EVEN


def test_large_results_survive_it_as_well(tree):
    items = numbered(40, "large")
    run = tree.submit("echo", items, params={"seconds": 0.08, "rows": 600}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["saved"] >= 6)
    until(lambda: held(tree, run, "pusher"))
    tree.kill("pusher", machine=True)
    ended = tree.wait(run)
    assert (ended["state"], ended["rows"]) == ("completed", 600 * len(items))
    assert account(tree, run, items, rows_each=600) == EVEN


def test_a_child_that_comes_back_is_given_work_at_once_and_what_it_lost_is_not_waited_for(tree):
    """Its hello says that it holds nothing, so its leases need not run out."""
    tree.json("POST", f"/api/v1/nodes/{tree.nodes()['puller']['id']}/drain")
    items = numbered(6, "back")
    run = tree.submit("echo", items, params={"seconds": 0.5}, shard_size=1)
    until(lambda: len(executing(tree, run, "pusher")) == 2)
    tree.kill("pusher", machine=True)
    tree.restart("pusher")
    ended = tree.wait(run)
    assert ended["state"] == "completed"
    assert account(tree, run, items) == EVEN
    lost = allocations(tree, run, state="expired")
    assert lost
    assert all(
        "came back without it" in tree.json("GET", f"/api/v1/allocations/{each['id']}")["error"] for each in lost
    )

"""Items that kill their worker, fail or hang: they are found and named, and cost nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, Account, account, numbered


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    with LocalTree(tmp_path_factory.mktemp("poison"), children=children, env=QUICK) as tree:
        yield tree


def failed(tree: LocalTree, run: int) -> dict[str, dict[str, Any]]:
    found = tree.json("GET", f"/api/v1/runs/{run}/items")["results"]
    return {each["item"]: each for each in found}


def test_items_that_kill_their_worker_are_quarantined_alone(tree):
    items = numbered(40)
    bad = ["i7", "i8", "i31"]
    run = tree.submit("echo", items, params={"crash_items": bad}, shard_size=10)
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["quarantined"], ended["failed"]) == ("partial", 37, 3, 0)
    named = failed(tree, run)
    assert set(named) == set(bad)
    assert {each["state"] for each in named.values()} == {"quarantined"}
    assert all("the worker process died (exit status 70)" in each["error"] for each in named.values())
    good = [item for item in items if item not in bad]
    assert account(tree, run, good) == EVEN


def test_very_short_shards_that_share_a_worker_with_a_bad_one_are_saved(tree):
    """Short shards go to a worker in bundles: those beside the bad one must not be blamed."""
    items = numbered(60, "b")
    warm = tree.submit("echo", numbered(40, "w"), shard_size=1)
    assert tree.wait(warm)["state"] == "completed"
    run = tree.submit("echo", items, params={"crash_items": ["b30"]}, shard_size=1)
    ended = tree.wait(run)
    assert (ended["saved"], ended["quarantined"]) == (59, 1)
    assert set(failed(tree, run)) == {"b30"}
    assert account(tree, run, [item for item in items if item != "b30"]) == EVEN


def test_items_that_fail_for_good_are_named_with_the_reason(tree):
    items = numbered(20, "f")
    run = tree.submit("echo", items, params={"fail_items": ["f3", "f4", "f19"]}, shard_size=5)
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["failed"]) == ("partial", 17, 3)
    named = failed(tree, run)
    assert {item: each["error"] for item, each in named.items()} == {
        item: f"{item} is in fail_items" for item in ("f3", "f4", "f19")
    }
    assert {each["attempts"] for each in named.values()} == {1}
    assert account(tree, run, [item for item in items if item not in named]) == EVEN


def test_what_may_succeed_another_time_is_tried_again_as_often_as_allowed(tree):
    run = tree.submit("echo", ["x", "y"], params={"fail": "busy"}, shard_size=2, max_attempts=2, backoff=0.05)
    ended = tree.wait(run)
    assert (ended["state"], ended["failed"]) == ("failed", 2)
    named = failed(tree, run)
    assert {each["attempts"] for each in named.values()} == {2}
    assert all("busy" in each["error"] for each in named.values())
    assert account(tree, run, []) == EVEN


def test_a_shard_over_its_time_is_stopped_and_named_and_slots_are_free_again(tree):
    run = tree.submit("echo", numbered(3, "t"), params={"seconds": 60}, shard_size=1, timeout=0.4, max_attempts=1)
    ended = tree.wait(run)
    assert (ended["state"], ended["failed"]) == ("failed", 3)
    assert all("took longer than its time-out, 0.4 s" in each["error"] for each in failed(tree, run).values())
    after = tree.submit("echo", ["after"])
    assert tree.wait(after)["state"] == "completed"


def test_a_retry_runs_only_what_failed(tree):
    items = numbered(10, "r")
    run = tree.submit("echo", items, params={"crash_items": ["r5"]}, shard_size=5)
    tree.wait(run)
    assert tree.json("POST", f"/api/v1/runs/{run}/retry") == {"retried": 1}
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["quarantined"]) == ("partial", 9, 1)
    assert account(tree, run, items) == Account({"r5:0"}, set(), set())

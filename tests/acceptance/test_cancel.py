"""A cancel reaches a running worker within two seconds, by push and by pull, and its slots are free again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, alive, executing, label, numbered, rows, until, workers

# Beats would bring a cancel as well; here they are rare, so that it is the carrier that brings it.
SETTINGS = {**QUICK, "CASCADE_BEAT_SECONDS": "20", "CASCADE_LEASE_SECONDS": "60", "CASCADE_OFFLINE_SECONDS": "60"}
CARRIERS = ["push", "pull", "auto"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child(carrier, 2, carrier=carrier) for carrier in CARRIERS]
    with LocalTree(tmp_path_factory.mktemp("cancel"), children=children, env=SETTINGS) as tree:
        label(tree, *CARRIERS)
        yield tree


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_cancel_ends_running_workers_and_frees_the_slots(tree, carrier):
    run = tree.submit("echo", numbered(8), params={"seconds": 60}, shard_size=1, labels={"by": carrier})
    until(lambda: len(executing(tree, run)) == 2)
    busy = until(lambda: len(found := workers(tree, carrier)) == 2 and found)
    cancelled = time.monotonic()
    assert tree.json("POST", f"/api/v1/runs/{run}/cancel")["state"] == "cancelled"
    until(lambda: not alive(busy), seconds=2, what="the end of the workers")
    assert time.monotonic() - cancelled < 2
    ended = tree.progress(run)
    assert (ended["state"], ended["cancelled"], ended["saved"]) == ("cancelled", 8, 0)
    assert tree.nodes()[carrier]["in_use"] == 0
    after = tree.submit("echo", numbered(4, "after"), shard_size=1, labels={"by": carrier})
    assert tree.wait(after)["state"] == "completed"
    assert rows(tree, run) == []


def test_what_was_reported_before_the_cancel_is_kept(tree):
    items = numbered(150, "kept")
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["saved"] >= 5)
    tree.json("POST", f"/api/v1/runs/{run}/cancel")
    ended = tree.wait(run, until=lambda progress: progress["saved"] + progress["cancelled"] == len(items))
    assert ended["state"] == "cancelled"
    saved = account(tree, run, items)
    assert (saved.duplicated, saved.strange) == (EVEN.duplicated, EVEN.strange)
    assert len(saved.lost) == ended["cancelled"] > 0
    assert ended["rows"] == ended["saved"] >= 5


def test_a_cancel_of_an_ended_run_is_refused(tree):
    run = tree.submit("echo", ["x"])
    tree.wait(run)
    answer = tree.request("POST", f"/api/v1/runs/{run}/cancel")
    assert answer.status_code == 409
    assert "completed" in answer.json()["detail"]


def test_a_cancelled_bundle_does_not_cost_other_runs(tree):
    """Short shards of two runs may share a bundle; only those of the cancelled one end."""
    first = tree.submit("echo", numbered(3000, "x"), params={"seconds": 0.002}, shard_size=1)
    second = tree.submit("echo", numbered(3000, "y"), params={"seconds": 0.002}, shard_size=1)
    tree.wait(first, until=lambda progress: progress["saved"] >= 50)
    tree.json("POST", f"/api/v1/runs/{first}/cancel")
    assert tree.wait(second)["state"] == "completed"
    assert account(tree, second, numbered(3000, "y")) == EVEN
    assert account(tree, first, numbered(3000, "x")).duplicated == set()

"""Receipts lost after the commit, partitions, half-open sockets, one-way lines: each row counts once all the same."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from cascade.local import LocalTree
from tests.acceptance.trees import EVEN, QUICK, SOON, account, allocations, executing, numbered, until
from tests.chaos.proxy import Proxy

ENV = {**QUICK, "CASCADE_FALLBACK_WORKERS": "0", "CASCADE_SECOND_COPIES": "false"}
CARRIERS = ["push", "pull"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("network"), env=ENV) as tree:
        yield tree


@pytest.fixture
def proxy(tree: LocalTree) -> Iterator[Proxy]:
    with Proxy(tree.port) as proxy:
        yield proxy


def child(tree: LocalTree, url: str, name: str, carrier: str, by: str) -> str:
    """Starts a child that knows the parent by ``url`` and gets what is for ``by``."""
    made = tree.json("POST", "/api/v1/nodes", json={"name": name, "capacity": 2, "labels": {"by": by}})
    argv = [tree.python, "-m", "nodes.agent", "--parent", url, "--carrier", carrier]
    env = {"CASCADE_ACCESS_KEY": made["access_key"], "CASCADE_SECRET_KEY": made["secret_key"]}
    tree.spawn(name, [*argv, "--data-dir", str(tree.folder(name))], env)
    until(lambda: tree.nodes()[name]["state"] == "online")
    return name


def submitted(tree: LocalTree, by: str, items: list[str], **params: Any) -> int:
    return tree.submit("echo", items, params={"seconds": 0.05, **params}, shard_size=1, labels={"by": by})


def receipts(answers: list[bytes]) -> dict[int, str]:
    """Allocation -> receipt, of what answers to reports said."""
    found = (each for answer in answers for each in re.findall(rb'\{[^{}]*"receipt"[^{}]*\}', answer))
    return {entry["allocation"]: entry["receipt"] for entry in map(json.loads, found)}


def states(tree: LocalTree, run: int, node: str) -> set[str]:
    return {each["state"] for each in allocations(tree, run) if each["node_name"] == node}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_receipt_lost_after_the_commit_comes_again_as_it_was(tree, proxy, carrier):
    name = child(tree, proxy.url, f"receipt-{carrier}", carrier, f"receipt-{carrier}")
    deadline = time.monotonic() + SOON
    repeated: dict[int, str] = {}
    # A beat that comes before the retry tells the child as well that the parent has it: then there is no retry.
    while not repeated:
        assert time.monotonic() < deadline, "a lost receipt was never asked for again"
        proxy.lost, proxy.passed = [], []
        proxy.lose_receipts()
        items = numbered(4)
        run = submitted(tree, name, items)
        assert tree.wait(run)["state"] == "completed"
        assert account(tree, run, items) == EVEN
        # Nothing is run twice for it.
        assert len(allocations(tree, run)) == len(items)
        assert states(tree, run, name) == {"completed"}
        first, later = receipts(proxy.lost), receipts(proxy.passed)
        assert first
        repeated = {allocation: receipt for allocation, receipt in later.items() if allocation in first}
    assert repeated == {allocation: first[allocation] for allocation in repeated}
    assert tree.terminate(name) == 0


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_was_offered_into_a_partition_goes_to_others_and_the_node_works_again_afterwards(tree, proxy, carrier):
    by = f"parted-{carrier}"
    far = child(tree, proxy.url, f"far-{carrier}", carrier, by)
    proxy.hold()
    items = numbered(8)
    run = submitted(tree, by, items)
    until(lambda: [each for each in allocations(tree, run) if each["node_name"] == far], what="an offer to the far one")
    near = child(tree, tree.url, f"near-{carrier}", carrier, by)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert states(tree, run, far) == {"expired"}
    assert states(tree, run, near) == {"completed"}
    # No phantom capacity: what was offered does not count against it any more.
    assert tree.nodes()[far]["in_use"] == 0
    assert tree.terminate(near) == 0
    proxy.heal()
    until(lambda: tree.nodes()[far]["state"] == "online")
    run = submitted(tree, by, items)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert tree.terminate(far) == 0


def test_a_half_open_socket_is_closed_by_the_parent_and_its_work_goes_to_others(tree, proxy):
    far = child(tree, proxy.url, "stranded", "push", "half")
    items = numbered(6)
    run = submitted(tree, "half", items, seconds=0.6)
    until(lambda: executing(tree, run, far))
    # The machine is gone without a FIN: its socket stands, and nothing of what is new gets through either.
    assert proxy.strand() == 1
    proxy.faults.mute = True
    near = child(tree, tree.url, "beside", "push", "half")
    until(lambda: tree.nodes()[far]["state"] == "offline")
    until(lambda: proxy.stranded() == 0, what="the parent's end of the socket")
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert "expired" in states(tree, run, far)
    for name in (far, near):
        tree.kill(name)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_line_that_carries_one_way_only_costs_time_and_no_row(tree, proxy, carrier):
    name = child(tree, proxy.url, f"one-way-{carrier}", carrier, f"one-way-{carrier}")
    items = numbered(30)
    run = submitted(tree, name, items)
    for saved, way in ((2, {"down": False}), (8, {"up": False})):
        tree.wait(run, until=lambda progress, saved=saved: progress["saved"] >= saved)
        proxy.hold(**way)
        # Until the parent has given up on it; what it does meanwhile comes late.
        until(lambda: tree.nodes()[name]["state"] == "offline" or not executing(tree, run, name))
        proxy.release()
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert tree.terminate(name) == 0


def _broken(proxy: Proxy, times: int) -> bool:
    return proxy.breaks >= times


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_line_that_is_slow_and_breaks_within_answers_costs_no_row(tree, proxy, carrier):
    name = child(tree, proxy.url, f"slow-{carrier}", carrier, f"slow-{carrier}")
    items, large = numbered(20), numbered(4, "l")
    proxy.faults.drip, proxy.faults.delay = 60_000.0, 0.01
    runs = [submitted(tree, name, items), submitted(tree, name, large, rows=3000)]
    for number, after in enumerate((300, 700, 1500), start=1):
        proxy.faults.cut_after = after  # in the middle of whatever comes there
        until(partial(_broken, proxy, number), what="a break")
        proxy.faults.cut_after = 0
        saved = tree.progress(runs[0])["saved"]
        tree.wait(runs[0], until=lambda progress, saved=saved: progress["saved"] > saved or not progress["pending"])
    proxy.heal()
    assert [tree.wait(run)["state"] for run in runs] == ["completed", "completed"]
    assert account(tree, runs[0], items) == EVEN
    assert account(tree, runs[1], large, rows_each=3000) == EVEN
    assert tree.terminate(name) == 0

"""Every kind of work: its worker killed in the middle, a time-out, a cancel, and what went wrong, item by item."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.gates import Gated, gated
from tests.acceptance.trees import QUICK, rows, until, workers

ENV = {**QUICK, "CASCADE_CUSTOM": "fetch=tests.acceptance.called:fetch", "CASCADE_FALLBACK_WORKERS": "0"}
TRIALS = {"strategy": "ma_cross", "space": {"fast": [2, 3], "slow": [10]}, "search": "grid"}


@dataclass(frozen=True)
class Kind:
    """How a test submits it: ``item`` is a template of its items, ``identity`` names a row's item."""

    type: str
    item: str
    identity: str
    params: dict[str, Any] = field(default_factory=dict)
    bars: bool = False

    def submission(self, server: Gated, names: list[str]) -> dict[str, Any]:
        params = dict(self.params)
        if self.bars:
            params |= {"source": "files", "path": server.url + "/bars/{symbol}.csv"}
        if self.type == "custom":
            params["arguments"] = {"base": server.url}
        items = [self.item.format(url=server.url, name=name) for name in names]
        return {"type": self.type, "items": items, "params": params, "shard_size": 1, "backoff": 0, "max_attempts": 2}


KINDS = [
    Kind("analysis", "{name}", "symbol", {"rows": "latest"}, bars=True),
    Kind("backtest", "{name}", "symbol", {"strategy": "buy_and_hold"}, bars=True),
    Kind("feed_update", "{url}/feed/{name}", "feed"),
    Kind("crawl", "{url}/page/{name}", "url", {"per_second": 100, "respect_robots": False}),
    Kind("custom", "{name}", "item", {"callable": "fetch"}),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    with LocalTree(tmp_path_factory.mktemp("kinds"), children=children, env=ENV) as tree:
        yield tree


@pytest.fixture
def server() -> Iterator[Gated]:
    with gated() as made:
        yield made


def submit(tree: LocalTree, submission: dict[str, Any]) -> int:
    return int(tree.json("POST", "/api/v1/runs", json=submission)["id"])


def errors(tree: LocalTree, run: int) -> list[str]:
    return [each["error"] for each in tree.json("GET", f"/api/v1/runs/{run}/items")["results"]]


def at_the_gate(server: Gated, count: int = 1) -> None:
    for _ in range(count):
        assert server.arrived.acquire(timeout=30), "nobody asked"


def busy_workers(tree: LocalTree) -> list[Any]:
    return [process for child in tree.children for process in workers(tree, child)]


@each_kind
def test_the_kill_of_its_workers_costs_nothing(tree: LocalTree, server: Gated, kind: Kind) -> None:
    names = ["one", "two", "held-1", "held-2"]
    run = submit(tree, kind.submission(server, names))
    at_the_gate(server)
    for process in busy_workers(tree):
        process.kill()
    server.gate.set()
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"]) == ("completed", len(names)), errors(tree, run)
    found = rows(tree, run)
    assert len(found) == len(names) == len({row[kind.identity] for row in found})


@each_kind
def test_a_time_out_fails_its_item_alone_and_says_so(tree: LocalTree, server: Gated, kind: Kind) -> None:
    run = submit(tree, {**kind.submission(server, ["good", "held"]), "timeout": 1.5, "max_attempts": 1})
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["failed"]) == ("partial", 1, 1)
    (error,) = errors(tree, run)
    assert "time-out, 1.5 s" in error
    assert len(rows(tree, run)) == 1


@each_kind
def test_a_cancel_ends_it_within_two_seconds_and_leaves_its_slots_free(
    tree: LocalTree, server: Gated, kind: Kind
) -> None:
    run = submit(tree, kind.submission(server, ["held-1", "held-2", "held-3"]))
    at_the_gate(server, 2)
    began = time.monotonic()
    assert tree.json("POST", f"/api/v1/runs/{run}/cancel")["state"] == "cancelled"
    until(lambda: not any(node["in_use"] for node in tree.nodes().values()), seconds=2, what="free slots")
    assert time.monotonic() - began < 2
    # The gate is still closed: the next one must not wait behind what was cancelled.
    after = submit(tree, kind.submission(server, ["after-1", "after-2"]))
    assert tree.wait(after)["state"] == "completed", errors(tree, after)
    assert rows(tree, run) == []


@each_kind
def test_what_went_wrong_is_said_for_each_item(tree: LocalTree, server: Gated, kind: Kind) -> None:
    run = submit(tree, kind.submission(server, ["good", "gone-1", "gone-2"]))
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["failed"]) == ("partial", 1, 2)
    said = errors(tree, run)
    for name in ("gone-1", "gone-2"):
        assert any(name in error and "404" in error for error in said), said


def test_a_trial_survives_the_kill_of_its_worker_and_a_bad_symbol_is_named(tree: LocalTree, server: Gated) -> None:
    params: dict[str, Any] = {
        **TRIALS,
        "symbols": ["held"],
        "source": "files",
        "path": server.url + "/bars/{symbol}.csv",
    }
    run = submit(tree, {"type": "optimization", "params": params, "shard_size": 1, "backoff": 0})
    at_the_gate(server)
    for process in busy_workers(tree):
        process.kill()
    server.gate.set()
    assert tree.wait(run)["saved"] == 2, errors(tree, run)
    assert {row["trial"] for row in rows(tree, run)} == {0, 1}
    params["symbols"] = ["gone"]
    run = submit(tree, {"type": "optimization", "params": params, "shard_size": 1, "backoff": 0, "max_attempts": 1})
    assert tree.wait(run)["failed"] == 2
    assert all("gone" in error and "404" in error for error in errors(tree, run))


def test_a_search_that_is_cancelled_or_times_out_ends(tree: LocalTree, server: Gated) -> None:
    params: dict[str, Any] = {
        **TRIALS,
        "symbols": ["held"],
        "source": "files",
        "path": server.url + "/bars/{symbol}.csv",
    }
    run = submit(tree, {"type": "optimization", "params": params, "timeout": 1.5, "max_attempts": 1, "shard_size": 1})
    ended = tree.wait(run)
    assert ended["failed"] == 2
    assert all("time-out" in error for error in errors(tree, run))
    params = params | {"search": "tpe", "trials": 10, "space": {"fast": {"low": 2, "high": 9}, "slow": [10]}}
    run = submit(tree, {"type": "optimization", "params": params, "shard_size": 1})
    at_the_gate(server)
    assert tree.json("POST", f"/api/v1/runs/{run}/cancel")["state"] == "cancelled"
    until(lambda: not any(node["in_use"] for node in tree.nodes().values()), seconds=2, what="free slots")
    assert tree.progress(run)["state"] == "cancelled"

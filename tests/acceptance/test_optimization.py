"""A search over two children, with kill -9 of the parent in the middle: all trials, each once, and the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cascade.local import PARENT, Child, LocalTree
from tests.acceptance.trees import QUICK, rows, until
from tests.searches import alone

TRIALS = 30
PARAMS: dict[str, Any] = {
    "source": "sample",
    "symbols": ["AAPL", "IBM"],
    "strategy": "ma_cross",
    "space": {"fast": {"low": 2, "high": 60}, "slow": {"low": 10, "high": 300, "log": True}, "kind": ["sma", "ema"]},
    "search": "tpe",
    "trials": TRIALS,
    "parallel": 4,
    "folds": 2,
    "constraints": {"max_drawdown": {"max": 0.6}},
    "seed": 3,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    folder = tmp_path_factory.mktemp("optimization")
    with LocalTree(folder, children=[Child("one", 1), Child("two", 1)], env=QUICK) as tree:
        yield tree


def trials(tree: LocalTree, run: int) -> list[dict[str, Any]]:
    """The rows of all trials, each of which was saved once, by number."""
    found = sorted(rows(tree, run), key=lambda row: row["trial"])
    assert [row["trial"] for row in found] == list(range(len(found)))
    return found


def params_of(row: dict[str, Any]) -> Any:
    return json.loads(row["params"]) if isinstance(row["params"], str) else row["params"]


def test_a_search_goes_on_after_a_kill_of_the_parent_as_if_nothing_had_been(tree: LocalTree) -> None:
    run = tree.submit("optimization", [], params=PARAMS, fallback="never")
    tree.wait(run, until=lambda progress: progress["saved"] >= 6)
    tree.kill(PARENT)
    tree.restart(PARENT)
    assert tree.json("GET", f"/api/v1/runs/{run}")["state"] == "running"
    ended = tree.wait(run)
    assert (ended["state"], ended["count"], ended["saved"], ended["rows"]) == ("completed", TRIALS, TRIALS, TRIALS)
    found = trials(tree, run)
    assert [params_of(row) for row in found] == alone(PARAMS)
    assert {row["_node"] for row in found} == {"one", "two"}
    reduction = until(lambda: tree.json("GET", f"/api/v1/runs/{run}")["reduction"], what="the reduction")
    best = max((row for row in found if row["feasible"]), key=lambda row: row["value"])
    assert (reduction["best"][0]["trial"], reduction["best"][0]["value"]) == (best["trial"], best["value"])
    assert [each["fold"] for each in reduction["walk_forward"]] == [1, 2]


def test_trials_over_the_parent_s_own_bars_are_worth_what_they_are_over_the_source_s(tree: LocalTree) -> None:
    assert tree.wait(tree.submit("data_import", ["AAPL", "IBM"], params={"source": "sample"}))["state"] == "completed"
    grid = PARAMS | {"search": "grid", "space": {"fast": [5, 20], "slow": [50, 100], "kind": ["sma"]}, "trials": None}
    over: dict[str, list[dict[str, Any]]] = {}
    for source in ("sample", "store"):
        run = tree.submit("optimization", [], params=grid | {"source": source})
        assert tree.wait(run)["state"] == "completed"
        over[source] = trials(tree, run)
    told = [{name: row[name] for name in ("params", "value", "out_of_sample", "folds")} for row in over["sample"]]
    assert told == [{name: row[name] for name in told[0]} for row in over["store"]]
    assert len(told) == 4

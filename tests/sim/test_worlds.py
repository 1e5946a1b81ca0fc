"""Simulated worlds keep every promise, and are the same whenever and wherever they are run."""

from __future__ import annotations

import os

import pytest

from tests.sim.runs import run
from tests.sim.summary import Summary

WORLDS, TREES = 100, 50
"""The first of those that CI runs; the rest of them by ``make worlds``."""
JOBS = os.cpu_count() or 1
"""Processes at a time: pytest-xdist gives all tests of a file to one of its own."""


@pytest.mark.timeout(600)
def test_every_promise_is_kept_in_simulated_worlds() -> None:
    _kept(WORLDS, "plain")


@pytest.mark.timeout(900)
def test_every_promise_is_kept_in_simulated_trees() -> None:
    summary = _kept(TREES, "tree")
    assert all(summary.faults[each] for each in ("relay killed", "moved", "island", "frozen", "clock jump"))
    assert all(summary.reached[each] for each in ("relay.taken", "relay.numbered", "relay.passed"))


def _kept(count: int, kind: str) -> Summary:
    summary = run(range(count), kind=kind, jobs=JOBS)
    print(summary.text())
    assert not summary.broken, summary.text()
    assert summary.seeds == count
    # Worlds in which nothing happens would keep any promise.
    assert summary.rows > count
    assert summary.crashes > count / 4
    return summary


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["plain", "tree"])
def test_a_seed_is_the_same_world_in_any_process(kind: str) -> None:
    first, second = (run(range(3, 13), kind=kind, env={"PYTHONHASHSEED": each}) for each in ("1", "2"))
    assert first.digest == second.digest
    assert first.messages == second.messages > 0

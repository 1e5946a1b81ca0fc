"""Simulated worlds keep every promise, and are the same whenever and wherever they are run."""

from __future__ import annotations

import os

import pytest

from tests.sim.runs import run
from tests.sim.summary import Summary

WORLDS, PART = 500, 100
TREES = 100
"""A tree costs three times what a world with one parent does; CI runs 400 more by themselves (``make trees``)."""
JOBS = os.cpu_count() or 1
"""Processes of a part: pytest-xdist gives all parts to one of its own."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, WORLDS, PART))
def test_every_promise_is_kept_in_simulated_worlds(first: int) -> None:
    _kept(first, "plain")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, TREES, PART))
def test_every_promise_is_kept_in_simulated_trees(first: int) -> None:
    summary = _kept(first, "tree")
    assert all(summary.faults[each] for each in ("relay killed", "moved", "island", "frozen", "clock jump"))
    assert all(summary.reached[each] for each in ("relay.taken", "relay.numbered", "relay.passed"))


def _kept(first: int, kind: str) -> Summary:
    summary = run(range(first, first + PART), kind=kind, jobs=JOBS)
    print(summary.text())
    assert not summary.broken, summary.text()
    assert summary.seeds == PART
    # Worlds in which nothing happens would keep any promise.
    assert summary.rows > PART
    assert summary.crashes > PART / 4
    return summary


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["plain", "tree"])
def test_a_seed_is_the_same_world_in_any_process(kind: str) -> None:
    first, second = (run(range(3, 13), kind=kind, env={"PYTHONHASHSEED": each}) for each in ("1", "2"))
    assert first.digest == second.digest
    assert first.messages == second.messages > 0

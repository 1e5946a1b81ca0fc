"""A child that stands still past its lease and goes on: its late report is refused, only the winner's rows count."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, allocations, executing, numbered, rows, until


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("frozen", 2, carrier="push"), Child("winner", 2, carrier="pull")]
    # Without second copies, which would end the run before a lease does: see test_tail.
    env = {**QUICK, "CASCADE_SECOND_COPIES": "false"}
    with LocalTree(tmp_path_factory.mktemp("frozen"), children=children, env=env) as tree:
        yield tree


def frozen_run(tree: LocalTree, items: list[str]) -> tuple[int, list[int]]:
    """A run of which the child to be frozen is executing something, and what."""
    run = tree.submit("echo", items, params={"seconds": 0.6}, shard_size=1)
    return run, until(lambda: executing(tree, run, "frozen"))


def check(tree: LocalTree, run: int, items: list[str], late: list[int]) -> None:
    assert account(tree, run, items) == EVEN
    states = {each["id"]: each["state"] for each in allocations(tree, run)}
    saved = {row["_allocation"] for row in rows(tree, run)}
    assert {states[id] for id in saved} == {"completed"}
    lost = {id for id in late if states[id] == "expired"}
    assert lost
    assert not lost & saved


def test_a_frozen_machine_that_wakes_up_after_its_lease_saves_nothing_late(tree):
    items = numbered(8, "machine")
    run, late = frozen_run(tree, items)
    tree.pause("frozen")
    assert tree.wait(run)["state"] == "completed"
    tree.resume("frozen")
    until(lambda: tree.nodes()["frozen"]["state"] == "online")
    check(tree, run, items, late)
    assert tree.alive("frozen")


def test_a_frozen_agent_whose_workers_finish_meanwhile_is_refused_its_late_report(tree):
    items = numbered(8, "agent")
    run, late = frozen_run(tree, items)
    os.kill(tree.pid("frozen"), signal.SIGSTOP)
    try:
        # Its workers go on: at its awakening it has results in hand and has not heard that they are not wanted.
        assert tree.wait(run)["state"] == "completed"
    finally:
        os.kill(tree.pid("frozen"), signal.SIGCONT)
    until(lambda: tree.nodes()["frozen"]["state"] == "online")
    check(tree, run, items, late)


def test_afterwards_it_works_like_any_other(tree):
    until(lambda: tree.nodes()["frozen"]["state"] == "online")
    items = numbered(12, "after")
    run = tree.submit("echo", items, params={"seconds": 0.2}, shard_size=1)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert {row["_node"] for row in rows(tree, run)} == {"frozen", "winner"}
    assert [file.suffix for file in tree.folder("frozen").iterdir() if file.suffix in (".json", ".arrow")] == []

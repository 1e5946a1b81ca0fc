"""kill -9 of the parent: every row it had acknowledged is there once, children reconnect, runs complete."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from cascade.local import PARENT, Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, allocations, numbered, until

SMALL = numbered(60, "s")
LARGE = numbered(30, "l")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"), Child("either", 2)]
    with LocalTree(tmp_path_factory.mktemp("parent"), children=children, env=QUICK) as tree:
        yield tree


def test_a_parent_killed_with_all_reported_and_nothing_else_running_still_ends_its_run(tree):
    items = numbered(8)
    run = tree.submit("echo", items, params={"seconds": 0.3}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["pending"] == 0)
    until(lambda: tree.progress(run)["in_flight"] <= 2)
    tree.kill(PARENT)
    tree.restart(PARENT)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN


def test_acknowledged_rows_survive_kills_of_the_parent_and_the_runs_complete(tree):
    small = tree.submit("echo", SMALL, params={"seconds": 0.12}, shard_size=1)
    large = tree.submit("echo", LARGE, params={"seconds": 0.12, "rows": 600}, shard_size=1)
    before = {name: tree.pid(name) for name in tree.children}
    acknowledged: set[int] = set()
    for saved in (6, 18, 30):
        tree.wait(small, until=lambda progress, saved=saved: progress["saved"] >= saved)
        acknowledged |= {each["id"] for run in (small, large) for each in allocations(tree, run, state="completed")}
        tree.kill(PARENT)
        tree.restart(PARENT)
    assert tree.wait(small)["rows"] == len(SMALL)
    assert tree.wait(large)["rows"] == 600 * len(LARGE)
    assert {tree.progress(run)["state"] for run in (small, large)} == {"completed"}
    assert account(tree, small, SMALL) == EVEN
    assert account(tree, large, LARGE, rows_each=600) == EVEN
    # The same agents, which were never restarted.
    assert {name: tree.pid(name) for name in tree.children if tree.alive(name)} == before
    tree.stop()  # which frees the database; no test comes after this one
    with duckdb.connect(str(tree.data_dir / "results.duckdb"), read_only=True) as results:
        by_allocation = dict(results.execute("SELECT _allocation, count(*) FROM echo_rows GROUP BY ALL").fetchall())
        ledger = results.execute(f"SELECT stop - start FROM ledger WHERE run IN ({small}, {large})").fetchall()
    # What had its receipt before a kill is what was saved: none of it was run again instead.
    assert acknowledged <= set(by_allocation)
    assert sum(items for (items,) in ledger) == len(SMALL) + len(LARGE)

"""The parent's own worker: when it takes work, when it leaves it alone, and that nothing is lost with it."""

from __future__ import annotations

import datetime as dt
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from cascade.local import PARENT, ROOT, Child, LocalTree, free_port
from tests.acceptance.drivable import SYMBOLS, all_bars, as_rows, yearly
from tests.acceptance.trees import (
    EVEN,
    QUICK,
    account,
    allocations,
    executing,
    family,
    label,
    numbered,
    rows,
    until,
)

GRACE = 1.0
LOCAL = "local"
NODE = "node"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    env = {**QUICK, "CASCADE_FALLBACK_SECONDS": str(GRACE)}
    with LocalTree(tmp_path_factory.mktemp("fallback"), env=env) as tree:
        yield tree


@pytest.fixture
def alone(started: LocalTree) -> LocalTree:
    """A parent whose nodes, if it has any, are offline."""
    for name in started.children:
        if started.alive(name):
            started.kill(name, machine=True)
    until(lambda: all(node["state"] == "offline" for name, node in started.nodes().items() if name != LOCAL))
    return started


@pytest.fixture
def tree(started: LocalTree) -> LocalTree:
    """A parent with one node online."""
    if NODE not in started.children:
        started.add(Child(NODE, 2))
    elif not started.alive(NODE):
        started.restart(NODE)
    return started


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    """A server of the role standalone."""
    env = {**QUICK, "CASCADE_ROLE": "standalone"}
    with LocalTree(tmp_path_factory.mktemp("standalone"), env=env) as tree:
        until(lambda: online(tree))
        yield tree


@pytest.fixture
def standalone(standing: LocalTree) -> LocalTree:
    if not standing.alive(PARENT):
        standing.restart(PARENT)
    return standing


def online(tree: LocalTree) -> bool:
    return bool(tree.nodes()[LOCAL]["state"] == "online")


def workers_of(tree: LocalTree, run: int) -> set[str]:
    return {row["_node"] for row in rows(tree, run)}


def explained(tree: LocalTree, run: int) -> str:
    return str(tree.json("GET", f"/api/v1/runs/{run}/explain"))


def busy_workers(tree: LocalTree, run: int) -> list[psutil.Process]:
    """The worker processes of the parent itself, once the run is executing in them."""
    until(lambda: len(executing(tree, run, LOCAL)) == 2)
    parent = tree.pid(PARENT)
    return [process for process in family(tree, PARENT)[1:] if process.ppid() != parent]


# When it works


def test_without_any_node_the_parent_waits_its_grace_time_and_runs_it_itself(alone):
    items = numbered(30)
    run = alone.submit("echo", items)
    assert alone.wait(run)["state"] == "completed"
    assert account(alone, run, items) == EVEN
    assert workers_of(alone, run) == {LOCAL}
    created = dt.datetime.fromisoformat(alone.json("GET", f"/api/v1/runs/{run}")["created_at"])
    granted = min(dt.datetime.fromisoformat(each["granted_at"]) for each in allocations(alone, run))
    assert GRACE <= (granted - created).total_seconds() < GRACE + 5


def test_a_run_that_must_not_fall_back_waits_for_a_node_and_says_why(alone):
    items = numbered(4, "never")
    run = alone.submit("echo", items, fallback="never")
    after = alone.submit("echo", ["after"])
    assert alone.wait(after)["state"] == "completed"  # by then the grace time is over for both
    assert alone.progress(run)["saved"] == 0
    assert "must not run here" in explained(alone, run)
    if NODE in alone.children:
        alone.restart(NODE)
    else:
        alone.add(Child(NODE, 2))
    assert alone.wait(run)["state"] == "completed"
    assert workers_of(alone, run) == {NODE}


def test_with_a_node_online_the_parent_takes_nothing_however_busy_that_is(tree):
    items = numbered(12, "left")
    run = tree.submit("echo", items, params={"seconds": 0.4}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["saved"] >= 1)
    assert f"left to the nodes that can run it: {NODE}" in explained(tree, run)
    assert tree.wait(run)["state"] == "completed"  # after 2.4 s, beyond the grace time
    assert account(tree, run, items) == EVEN
    assert {each["node_name"] for each in allocations(tree, run)} == {NODE}


def test_a_run_that_requires_the_parent_goes_to_no_node_and_waits_for_nothing(tree):
    begun = time.monotonic()
    run = tree.submit("echo", numbered(4, "required"), fallback="required")
    assert tree.wait(run)["state"] == "completed"
    assert time.monotonic() - begun < 5
    assert {each["node_name"] for each in allocations(tree, run)} == {LOCAL}


def test_the_last_node_killed_in_mid_run_leaves_the_rest_to_the_parent(tree):
    items = numbered(60, "last")
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["saved"] >= 6)
    tree.kill(NODE, machine=True)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert workers_of(tree, run) == {NODE, LOCAL}


# The four scenarios, bar for bar


def imported(tree: LocalTree, run: int) -> None:
    ended = tree.wait(run)
    assert (ended["state"], ended["rows"]) == ("completed", len(all_bars()))
    assert as_rows(rows(tree, run)) == all_bars()  # replaced and doubled rows would be among them


def test_no_node_imports_every_bar_once(alone):
    run = alone.submit("data_import", SYMBOLS, params={"source": "sample"}, split="year")
    imported(alone, run)
    assert workers_of(alone, run) == {LOCAL}


def test_one_node_imports_every_bar_once(tree):
    run = tree.submit("data_import", SYMBOLS, params={"source": "sample"}, split="year")
    imported(tree, run)
    assert workers_of(tree, run) == {NODE}


@pytest.fixture
def two(tree: LocalTree) -> LocalTree:
    """With another node, which has imported something before: its first import takes longer than a whole run."""
    if "second" not in tree.children:
        tree.add(Child("second", 2))
    elif not tree.alive("second"):
        tree.restart("second")
    label(tree, "second")
    run = tree.submit("data_import", SYMBOLS, params={"source": "sample"}, labels={"by": "second"}, shard_size=1)
    assert tree.wait(run)["state"] == "completed"
    return tree


def test_several_nodes_import_every_bar_once(two):
    run = two.submit("data_import", yearly(), params={"source": "sample"}, shard_size=1)
    imported(two, run)
    assert workers_of(two, run) == {NODE, "second"}


def test_a_node_lost_in_mid_run_costs_no_bar_and_doubles_none(two):
    two.pause(NODE)
    run = two.submit("data_import", yearly(), params={"source": "sample"}, shard_size=1)
    try:
        # Both hold work, and only one does any.
        two.wait(run, every=0.01, until=lambda progress: progress["saved"] >= 2)
        two.kill("second", machine=True)
    finally:
        two.resume(NODE)
    imported(two, run)
    assert {NODE, "second"} <= workers_of(two, run)


# What goes wrong in it


def test_a_worker_of_the_parent_killed_in_mid_shard_costs_nothing(alone):
    items = numbered(8, "worker")
    run = alone.submit("echo", items, params={"seconds": 0.5}, shard_size=2)
    victim = busy_workers(alone, run)[0]
    victim.kill()
    assert alone.wait(run)["state"] == "completed"
    assert account(alone, run, items) == EVEN
    assert online(alone)


def test_a_large_result_of_the_parents_own_worker_is_saved_whole(standalone):
    items = numbered(3, "large")
    run = standalone.submit("echo", items, params={"rows": 5000}, shard_size=1)
    assert standalone.wait(run)["rows"] == 15_000
    assert account(standalone, run, items, rows_each=5000) == EVEN
    until(lambda: not list((standalone.data_dir / "local").glob("*.arrow")), what="no segment left in the outbox")


def test_a_standalone_server_begins_at_once(standalone):
    begun = time.monotonic()
    run = standalone.submit("echo", ["at once"])
    assert standalone.wait(run)["state"] == "completed"
    assert time.monotonic() - begun < 5  # the grace time here is the default, 10 s
    assert workers_of(standalone, run) == {LOCAL}


def test_cancelling_a_run_stops_the_parents_own_workers(standalone):
    run = standalone.submit("echo", numbered(4, "long"), params={"seconds": 60}, shard_size=1)
    until(lambda: len(executing(standalone, run, LOCAL)) == 2)
    begun = time.monotonic()
    standalone.json("POST", f"/api/v1/runs/{run}/cancel")
    until(lambda: not standalone.nodes()[LOCAL]["in_use"])
    again = standalone.submit("echo", ["free again"])
    assert standalone.wait(again)["state"] == "completed"
    assert time.monotonic() - begun < 2


def test_a_second_server_on_the_same_folder_is_refused_and_takes_nothing(standalone):
    argv = [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(
        argv, cwd=ROOT, env=standalone._environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 5
    assert "belongs to one process at a time" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    run = standalone.submit("echo", ["still here"])
    assert standalone.wait(run)["state"] == "completed"


@pytest.mark.parametrize("params", [{}, {"rows": 2500}], ids=["small results", "segments"])
def test_kill_9_of_a_standalone_server_in_mid_run_loses_and_doubles_nothing(standalone, params):
    items = numbered(30, "killed")
    run = standalone.submit("echo", items, params={"seconds": 0.1, **params}, shard_size=1)
    standalone.wait(run, until=lambda progress: progress["saved"] >= 4)
    standalone.kill(PARENT, machine=True)
    standalone.restart(PARENT)
    assert standalone.wait(run)["state"] == "completed"
    assert account(standalone, run, items, rows_each=params.get("rows", 1)) == EVEN


def test_sigterm_of_a_standalone_server_in_mid_run_ends_soon_and_loses_nothing(standalone):
    items = numbered(20, "stopped")
    run = standalone.submit("echo", items, params={"seconds": 0.3}, shard_size=1)
    standalone.wait(run, until=lambda progress: progress["saved"] >= 2)
    begun = time.monotonic()
    standalone.terminate(PARENT)
    assert time.monotonic() - begun < 10
    assert "Traceback" not in standalone.tail(PARENT, 40)
    standalone.restart(PARENT)
    assert standalone.wait(run)["state"] == "completed"
    assert account(standalone, run, items) == EVEN


def test_a_worker_that_cannot_begin_stops_the_start_with_the_reason(standalone):
    standalone.terminate(PARENT)
    folder = standalone.data_dir / "local"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another agent holds it
        done = standalone.manage("runserver", "--noreload", f"127.0.0.1:{free_port()}", check=False, timeout=60)
    assert done.returncode == 5
    assert f"another agent uses {folder}" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout

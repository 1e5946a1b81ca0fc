"""How a child stops: gently at the first SIGTERM, at once at the second, and not at all in part."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cascade.local import PARENT, Child, LocalTree, free_port
from tests.acceptance.trees import (
    EVEN,
    QUICK,
    account,
    alive,
    allocations,
    executing,
    family,
    label,
    numbered,
    until,
    workers,
)

CARRIERS = ["push", "pull", "auto"]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child(carrier, 2, carrier=carrier) for carrier in CARRIERS]
    with LocalTree(tmp_path_factory.mktemp("stop"), children=children, env=QUICK) as tree:
        label(tree, *CARRIERS)
        yield tree


@pytest.fixture
def tree(started: LocalTree) -> LocalTree:
    """With all children alive, whatever the test before has done to them."""
    for name in started.children:
        if not started.alive(name):
            started.restart(name)
    return started


class Other:
    """A child started in another way than LocalTree's: a node, its key, and a name among the tree's processes."""

    def __init__(self, tree: LocalTree, name: str, capacity: int = 2) -> None:
        made = tree.json("POST", "/api/v1/nodes", json={"name": name, "capacity": capacity, "labels": {"by": name}})
        self.tree = tree
        self.name = name
        self.env = {"CASCADE_ACCESS_KEY": made["access_key"], "CASCADE_SECRET_KEY": made["secret_key"]}
        self.folder = str(tree.folder(name))

    def agent(self, *arguments: str) -> None:
        argv = [self.tree.python, "-m", "nodes.agent", "--parent", self.tree.url, "--data-dir", self.folder]
        self._start([*argv, *arguments])

    def served(self, port: int) -> None:
        argv = [self.tree.python, "manage.py", "runserver", str(port), "--role", "child", "--parent", self.tree.url]
        self._start([*argv, "--data-dir", self.folder])

    def _start(self, argv: list[str]) -> None:
        self.tree.spawn(self.name, argv, self.env)
        until(lambda: self.tree.nodes()[self.name]["state"] == "online")


def submitted(tree: LocalTree, by: str, items: list[str], seconds: float, **fields: Any) -> int:
    """A run for one child, fresh from its start, of which it is executing two shards."""
    run = tree.submit("echo", items, params={"seconds": seconds}, shard_size=1, labels={"by": by}, **fields)
    until(lambda: len(executing(tree, run)) == 2)
    # The parent writes down what it hands out before the child has it; its first workers come with its first work.
    until(lambda: len(workers(tree, by)) == 2)
    return run


def check_gentle(tree: LocalTree, run: int, by: str, count: int) -> None:
    """What ran is saved, nothing else was begun, and nothing is waited for."""
    left = tree.wait(run, until=lambda progress: progress["spooled"] == 0)
    assert (left["saved"], left["pending"], left["in_flight"]) == (2, count - 2, 0)
    assert tree.nodes()[by]["state"] == "offline"
    assert tree.nodes()[by]["in_use"] == 0


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_stop_finishes_what_runs_takes_nothing_more_and_ends_well(tree, carrier):
    items = numbered(6, carrier)
    run = submitted(tree, carrier, items, 0.8, max_attempts=1)
    began = time.monotonic()
    assert tree.terminate(carrier) == 0
    assert time.monotonic() - began < 8
    check_gentle(tree, run, carrier, len(items))
    tree.restart(carrier)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN


@pytest.mark.parametrize("carrier", CARRIERS)
def test_an_idle_child_stops_at_once_whatever_it_waits_for(tree, carrier):
    began = time.monotonic()
    assert tree.terminate(carrier) == 0
    assert time.monotonic() - began < 4


def test_what_is_not_done_in_time_is_handed_back_without_an_attempt_counted(tree):
    hasty = Other(tree, "hasty")
    hasty.agent("--drain-seconds", "0.3")
    run = submitted(tree, "hasty", numbered(5, "h"), 60, max_attempts=1)
    processes = family(tree, "hasty")
    began = time.monotonic()
    assert tree.terminate("hasty") == 0
    assert time.monotonic() - began < 8
    until(lambda: not alive(processes), seconds=5, what="the end of the workers")
    left = tree.progress(run)
    assert (left["saved"], left["pending"], left["failed"]) == (0, 5, 0)
    given = allocations(tree, run)
    assert {each["state"] for each in given} == {"cancelled"}
    errors = {tree.json("GET", f"/api/v1/allocations/{each['id']}")["error"] for each in given}
    assert errors == {"released by the node: the node stops"}
    tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_a_second_signal_ends_it_at_once_and_its_workers_with_it(tree):
    run = submitted(tree, "push", numbered(2, "second"), 60)
    processes = family(tree, "push")
    said = len(tree.log("push").read_text())
    os.kill(tree.pid("push"), signal.SIGTERM)
    until(lambda: "stopping: 2 running" in tree.log("push").read_text()[said:])
    began = time.monotonic()
    assert tree.terminate("push") == 1
    assert time.monotonic() - began < 2
    until(lambda: not alive(processes), seconds=5, what="the end of the workers")
    tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_a_signal_to_the_whole_group_is_a_gentle_stop(tree):
    """As an init system stops a service: every process of it gets the signal."""
    items = numbered(4, "group")
    run = submitted(tree, "pull", items, 0.8, max_attempts=1)
    os.killpg(tree.pid("pull"), signal.SIGTERM)
    until(lambda: not tree.alive("pull"))
    assert tree.terminate("pull") == 0
    check_gentle(tree, run, "pull", len(items))
    tree.restart("pull")
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN


def test_workers_of_a_killed_agent_are_gone_within_seconds(tree):
    run = submitted(tree, "auto", numbered(2, "orphan"), 60)
    processes = family(tree, "auto")
    tree.kill("auto")
    until(lambda: not alive(processes), seconds=5, what="the end of the workers")
    tree.json("POST", f"/api/v1/runs/{run}/cancel")


# A child served by manage.py


def health_of(port: int) -> dict[str, Any] | None:
    """What the child says of itself; None before it listens."""
    with requests.Session() as session:
        session.trust_env = False  # a proxy cannot reach this machine's loopback
        try:
            found: dict[str, Any] = session.get(f"http://127.0.0.1:{port}/healthz", timeout=10).json()
        except requests.ConnectionError:
            return None
    return found


@pytest.fixture(scope="module")
def served(started: LocalTree) -> Other:
    return Other(started, "served")


def test_a_served_child_works_answers_for_itself_and_stops_gently(tree, served):
    port = free_port()
    served.served(port)
    until(lambda: health_of(port))
    items = numbered(6, "served")
    run = submitted(tree, "served", items, 0.8, max_attempts=1)
    health = until(lambda: (found := health_of(port)) and found["active_tasks"] == 2 and found)
    assert (health["node_name"], health["status"]) == ("served", "busy")
    assert tree.terminate("served") == 0
    check_gentle(tree, run, "served", len(items))
    served.served(port)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN


def test_a_second_signal_ends_a_served_child_at_once(tree, served):
    if not tree.alive("served"):
        served.served(free_port())
    run = submitted(tree, "served", numbered(2, "served-second"), 60)
    processes = family(tree, "served")
    said = len(tree.log("served").read_text())
    os.kill(tree.pid("served"), signal.SIGTERM)
    until(lambda: "stopping: 2 running" in tree.log("served").read_text()[said:])
    began = time.monotonic()
    assert tree.terminate("served") == 1
    assert time.monotonic() - began < 2
    until(lambda: not alive(processes), seconds=5, what="the end of the workers")
    tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_a_served_child_that_cannot_start_says_why_and_ends(tree):
    done = tree.manage("runserver", str(free_port()), "--role", "child", "--parent", tree.url, check=False)
    assert done.returncode != 0
    assert "CASCADE_ACCESS_KEY: is not set" in done.stderr


def test_a_parent_stops_at_once_while_children_wait_for_work(tree):
    """Their claims are open requests, which may last half a minute."""
    began = time.monotonic()
    assert tree.terminate(PARENT) == 0
    assert time.monotonic() - began < 5
    tree.restart(PARENT)
    tree.wait_for_children("pull")

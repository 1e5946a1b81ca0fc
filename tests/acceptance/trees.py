"""What the acceptance tests share: quick settings, waiting, processes, and the account of a run's rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from cascade.local import LocalTree, next_look

QUICK = {
    "CASCADE_BEAT_SECONDS": "0.3",
    "CASCADE_LEASE_SECONDS": "2",
    "CASCADE_OFFER_SECONDS": "2",
    "CASCADE_OFFLINE_SECONDS": "2",
    "CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
}
SOON = 30.0
"""Seconds after which what should have happened will not; machines that run tests are slow at times."""


def until(condition: Callable[[], Any], seconds: float = SOON, what: str = "it") -> Any:
    """What ``condition`` gives once that is true."""
    began = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() < began + seconds, f"{what} has not come about in {seconds:g} s"
        time.sleep(next_look(began))
    return found


@dataclass(frozen=True)
class Account:
    """Items of ``echo`` by what became of their rows; all of them empty when each was saved exactly once."""

    lost: set[str]
    duplicated: set[str]
    strange: set[str]


EVEN = Account(set(), set(), set())


def rows(tree: LocalTree, run: int) -> list[dict[str, Any]]:
    """Every row that was saved of a run, with lineage."""
    found: list[dict[str, Any]] = tree.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"})
    return found


def account(tree: LocalTree, run: int, items: Iterable[str], rows_each: int = 1) -> Account:
    """What was submitted against what is in the result database."""
    saved = Counter(row["value"] for row in rows(tree, run))
    wanted = {f"{item}:{number}" for item in items for number in range(rows_each)}
    return Account(wanted - set(saved), {value for value, count in saved.items() if count > 1}, set(saved) - wanted)


def label(tree: LocalTree, *names: str) -> None:
    """Runs with the label by=NAME go to that node only."""
    nodes = tree.nodes()
    for name in names:
        tree.json("PATCH", f"/api/v1/nodes/{nodes[name]['id']}", json={"labels": {"by": name}})


def numbered(count: int, prefix: str = "i") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def allocations(tree: LocalTree, run: int, **filters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tree.json(
        "GET", "/api/v1/allocations", params={"run": run, "limit": 1000, **filters}
    )["results"]
    return found


def executing(tree: LocalTree, run: int, node: str | None = None) -> list[int]:
    """Allocations of a run that are running now, on ``node``, as beats tell."""
    found = allocations(tree, run, state="executing")
    return [each["id"] for each in found if node in (None, each["node_name"])]


def held(tree: LocalTree, run: int, node: str) -> list[int]:
    """Live allocations of a run with ``node``, begun or not."""
    live = ("pending", "executing")
    return [each["id"] for each in allocations(tree, run) if each["state"] in live and each["node_name"] == node]


def family(tree: LocalTree, name: str) -> list[psutil.Process]:
    """A process with all below it."""
    root = psutil.Process(tree.pid(name))
    return [root, *root.children(recursive=True)]


def workers(tree: LocalTree, name: str) -> list[psutil.Process]:
    """The worker processes of a child: its grandchildren, which the fork server has forked."""
    found = []
    for process in family(tree, name)[1:]:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() != tree.pid(name):
                found.append(process)
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found

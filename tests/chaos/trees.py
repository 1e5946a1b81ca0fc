"""A tree of real processes that can be stopped at fail-points, and the account of every item that went through it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from cascade.local import PARENT, Child, LocalTree, LocalTreeError
from tests.chaos.report import Items

QUICK = {
    "CASCADE_BEAT_SECONDS": "0.3",
    "CASCADE_LEASE_SECONDS": "3",
    "CASCADE_OFFER_SECONDS": "3",
    "CASCADE_OFFLINE_SECONDS": "3",
    "CASCADE_CUSTOM": "attempt=tests.chaos.work:attempt",
    "CASCADE_DISK_RESERVE": "0",  # disks are to be full to the last byte
}
UNHURRIED = {"CASCADE_LEASE_SECONDS": "20", "CASCADE_OFFER_SECONDS": "20"}
"""Where no lease may end: a busy machine can keep a child from beating for some seconds."""
SEGMENT = 70_000
"""Characters of a row that does not travel inline."""


class ChaosTree(LocalTree):
    """Its processes run inside ``tests.chaos.inside``; ``items`` submits items that can be accounted for.

    ``account()`` ends it. Names of items are unique, by ``name`` and a number that counts up.
    """

    def __init__(
        self, folder: Path, *, name: str, children: Sequence[Child], env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, children=children, env={**QUICK, **(env or {})})
        self.name = name
        self._chaos = self.data_dir / "chaos"
        self._runs: dict[int, tuple[list[str], int]] = {}
        self._ended: dict[int, dict[str, Any]] = {}
        self._made = 0

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.inside(name).mkdir(parents=True, exist_ok=True)
        target = {"manage.py": "manage", "nodes.agent": "agent"}
        for word, kind in target.items():
            if word in argv:
                argv = [argv[0], "-m", "tests.chaos.inside", kind, *argv[argv.index(word) + 1 :]]
        super().spawn(name, argv, {**(env or {}), "CHAOS_FOLDER": str(self.inside(name))})

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """A connection that was idle while the parent's clock jumped may be closed as it is used again."""
        try:
            return super().request(method, path, **options)
        except requests.ConnectionError:
            if method != "GET":
                raise
            return super().request(method, path, **options)

    def inside(self, name: str) -> Path:
        """The folder by which a test reaches into this process and its workers."""
        return self._chaos / name

    # Fail-points

    def arm(self, name: str, point: str) -> None:
        """The first of this process and its workers to reach ``point`` will stand still there."""
        (self.inside(name) / f"{point}.reached").unlink(missing_ok=True)
        (self.inside(name) / f"{point}.armed").touch()

    def disarm(self, name: str) -> None:
        """No point is armed any more, and who stands still at one, or is about to, goes on."""
        for file in self.inside(name).glob("*.armed"):
            file.unlink(missing_ok=True)
        while found := [*self.inside(name).glob("*.part"), *self.inside(name).glob("*.reached")]:
            for file in found:
                _let_go(file)

    def reached(self, name: str, point: str) -> int | None:
        """The process id of who stands still at ``point``, as soon as somebody does."""
        try:
            pid = int((self.inside(name) / f"{point}.reached").read_text())
            return pid if psutil.Process(pid).status() == psutil.STATUS_STOPPED else None
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None

    # Clocks

    def shift(self, name: str, seconds: float) -> None:
        """The clock of this process is off by so much from now on."""
        self.inside(name).mkdir(parents=True, exist_ok=True)
        whole = self.inside(name) / "clock.new"
        whole.write_text(str(seconds))
        os.replace(whole, self.inside(name) / "clock")

    # Items

    def items(self, count: int, *, rows: int = 1, pad: int = 0, seconds: float = 0.0, **fields: Any) -> int:
        """Submits a run of so many items with names of their own; ``fields`` as for ``submit``. Its id."""
        names = [f"{self.name}-{number}" for number in range(self._made, self._made + count)]
        self._made += count
        arguments = {"log": str(self._chaos / "attempted.log"), "rows": rows, "pad": pad, "seconds": seconds}
        run = self.submit("custom", names, params={"callable": "attempt", "arguments": arguments}, **fields)
        self._runs[run] = names, rows
        return run

    def waiting(self) -> int:
        """How many items have not come to an end."""
        return sum(len(names) - _over(self._look(run)) for run, (names, _) in self._runs.items())

    def saved(self) -> int:
        """How many items are saved by now."""
        return sum(int(self._look(run)["saved"]) for run in self._runs)

    def _look(self, run: int) -> dict[str, Any]:
        """The run's progress; of one that has ended, what it was then."""
        if run not in self._ended:
            progress = self.progress(run)
            if progress["state"] == "running":
                return progress
            self._ended[run] = progress
        return self._ended[run]

    def settle(self, seconds: float = 90.0, *, every: float = 0.1) -> None:
        """Returns when all runs have ended. Raises LocalTreeError when they do not."""
        deadline = time.monotonic() + seconds
        for run in self._runs.keys() - self._ended.keys():
            self.wait(run, timeout=max(0.0, deadline - time.monotonic()), every=every)

    def expired(self) -> int:
        """How many leases have ended without a beat, in this tree's life; offers that nobody fetched do not count."""
        return int(
            self.database("SELECT count(*) FROM dispatch_allocation WHERE state = 'expired' AND delivered")[0][0]
        )

    def executing(self, child: str) -> int:
        """How many allocations of this child are running, as the parent knows it."""
        ((count,),) = self.database(
            "SELECT count(*) FROM dispatch_allocation JOIN nodes_node ON node_id = nodes_node.id"
            f" WHERE state = 'executing' AND name = '{child}'"
        )
        return int(count)

    def database(self, sql: str) -> list[tuple[Any, ...]]:
        """What the control database says, past the parent, which may be dead or stand still. Its log stays as it is."""
        file = f"file:{self.data_dir / 'cascade.sqlite3'}?mode=ro"
        with closing(sqlite3.connect(file, uri=True, timeout=30)) as control:
            return control.execute(sql).fetchall()

    def acknowledged(self) -> set[int]:
        """The allocations for which a child has heard the receipt."""
        return {json.loads(line)[0] for line in _lines(self._chaos / "acknowledged.log")}

    def account(self) -> Items:
        """Stops everything; what became of the items then, by the logs, the control database and the result store."""
        self.stop()
        return account(self.data_dir, self._runs)


def _let_go(file: Path) -> None:
    """Removes what says that a process is at a point, once it stands still there and has been sent on, or is dead."""
    with suppress(FileNotFoundError):
        pid = int(file.name.split(".")[-2]) if file.suffix == ".part" else int(file.read_text())
        try:
            if psutil.Process(pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(0.005)
                return
            os.kill(pid, signal.SIGCONT)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
        file.unlink(missing_ok=True)


def account(folder: Path, runs: Mapping[int, tuple[Sequence[str], int]]) -> Items:
    """What became of the items of ``runs`` (id -> names, rows each) of a parent that does not run any more.

    An item counts as saved once where each of its rows is there once, and more often where any row is.
    """
    import duckdb

    chaos = folder / "chaos"
    with closing(sqlite3.connect(folder / "cascade.sqlite3")) as control:
        run_of = dict(control.execute("SELECT id, run_id FROM dispatch_allocation").fetchall())
        ended = control.execute("SELECT run_id, start, stop FROM dispatch_shard WHERE state IN (?, ?, ?)", _ENDED)
        otherwise = {name for run, start, stop in ended.fetchall() if run in runs for name in runs[run][0][start:stop]}
    acknowledged: set[str] = set()
    for line in _lines(chaos / "acknowledged.log"):
        allocation, ranges = json.loads(line)
        for first, last, *_ in ranges:
            acknowledged |= set(runs[run_of[allocation]][0][first:last])
    rows: dict[str, Counter[int]] = defaultdict(Counter)
    if (folder / "results.duckdb").exists():
        with duckdb.connect(str(folder / "results.duckdb"), read_only=True) as store:
            if store.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'custom_rows'").fetchall():
                for item, number in store.execute("SELECT item, number FROM custom_rows").fetchall():
                    rows[item][number] += 1
    wanted = {name: each for names, each in runs.values() for name in names}
    saved = {name: max(found.values()) for name, found in rows.items() if len(found) >= wanted.get(name, 1)}
    return Items(
        submitted=frozenset(wanted),
        attempted=frozenset(_lines(chaos / "attempted.log")),
        acknowledged=frozenset(acknowledged),
        saved=saved,
        ended=frozenset(otherwise),
    )


def _over(progress: Mapping[str, Any]) -> int:
    return sum(int(progress[end]) for end in ("saved", *_ENDED))


_ENDED = ("failed", "quarantined", "cancelled")


def _lines(log: Path) -> Iterator[str]:
    if log.exists():
        yield from log.read_text().splitlines()


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``condition`` gives once that is true; a parent that is away is no error. Raises LocalTreeError."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(requests.RequestException):
            if found := condition():
                return found
        if time.monotonic() > deadline:
            raise LocalTreeError(f"{what} has not come about in {seconds:g} s")
        time.sleep(0.02)


__all__ = ["PARENT", "SEGMENT", "ChaosTree", "Child", "account", "until"]

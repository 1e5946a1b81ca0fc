"""One scenario of late acknowledgement, here and with Celery on Redis: a worker frozen past its lease, then woken.

The same on both sides: the items, the seconds each takes, two workers of one slot, the time-out after which a silent
worker's work is given to the other (lease, visibility time-out), whom the freeze hits (the one that has an item in
hand, with its pool process), how long, and that each finished item brings one row. Celery is set up as its
documentation says for work that must not get lost: ``acks_late``, a prefetch of one, ``reject_on_worker_lost``.
It promises "at least once" for that; what more a queue with fencing saves is what is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from cascade.local import ROOT, Child, LocalTree
from tests.chaos.report import Items, Report
from tests.servers import redis

ITEMS = 24
ITEM_SECONDS = 1.0
TIMEOUT_SECONDS = 4
"""Lease here, visibility time-out there."""
FROZEN_SECONDS = 120.0
"""Celery's Redis transport looks for what has timed out every hundred seconds, and no setting changes that."""
LONGEST = 240.0


def run(seconds: float, report: Report) -> None:
    """Both at the same time, as they mostly wait; whatever ``seconds`` are: the scenario has its own length."""
    items = [f"item-{number}" for number in range(ITEMS)]
    with ThreadPoolExecutor(2) as both:
        ours, theirs = both.submit(cascade, items), both.submit(celery, items)
        here, (there, version) = ours.result(), theirs.result()
    name = f"Celery {version} with Redis"
    report.kill("worker frozen past its lease, then woken")
    report.kill(f"worker of {name} frozen past its visibility time-out, then woken")
    report.items("a worker frozen past its lease", Items(frozenset(items), frozenset(items), frozenset(), here))
    for what, count in (
        ("items submitted", lambda saved: len(items)),
        ("items saved", lambda saved: len(saved.keys() & set(items))),
        ("rows saved", lambda saved: saved.total()),
        ("items saved more than once", lambda saved: sum(number > 1 for number in saved.values())),
        ("items lost", lambda saved: len(set(items) - saved.keys())),
    ):
        report.beside(name, what, count(here), count(there))


# Here


def cascade(items: list[str]) -> Counter[str]:
    """Rows per item that are in the result database at the end."""
    env = {
        "CASCADE_LEASE_SECONDS": str(TIMEOUT_SECONDS),
        "CASCADE_BEAT_SECONDS": str(TIMEOUT_SECONDS / 4),
        "CASCADE_OFFLINE_SECONDS": str(TIMEOUT_SECONDS),
        "CASCADE_FALLBACK_WORKERS": "0",
    }
    children = [Child("frozen", 1), Child("other", 1)]
    with TemporaryDirectory(prefix="cascade-peer-") as folder, LocalTree(folder, children=children, env=env) as tree:
        number = tree.submit("echo", items, params={"seconds": ITEM_SECONDS}, shard_size=1)

        def executing() -> bool:
            found = tree.json("GET", "/api/v1/allocations", params={"run": number, "state": "executing"})["results"]
            return any(each["node_name"] == "frozen" for each in found)

        _until(executing)
        tree.pause("frozen")
        time.sleep(FROZEN_SECONDS)
        tree.resume("frozen")
        tree.wait(number, timeout=LONGEST)
        # What the woken one still has to tell is told before anybody counts.
        _until(lambda: tree.nodes()["frozen"]["state"] == "online" and not tree.nodes()["frozen"]["in_use"])
        time.sleep(2 * ITEM_SECONDS)
        rows = tree.json("GET", f"/api/v1/runs/{number}/results", params={"raw": "true"})
        return Counter(row["item"] for row in rows)


# There


def celery(items: list[str]) -> tuple[Counter[str], str]:
    """(rows per item, version) of the same with Celery."""
    import celery as package

    with TemporaryDirectory(prefix="celery-peer-") as folder, redis() as address:
        table = Path(folder, "rows.sqlite3")
        with sqlite3.connect(table) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE rows (item TEXT, worker INTEGER)")
        given = {
            "broker": address.replace("unix://", "redis+socket://"),
            "table": str(table),
            "seconds": ITEM_SECONDS,
            "visibility": TIMEOUT_SECONDS,
        }
        env = {**os.environ, "CELERY_PEER": json.dumps(given)}
        with _worker("frozen", folder, env) as frozen, _worker("other", folder, env):
            subprocess.run([sys.executable, "-c", _SEND, *items], cwd=ROOT, env=env, check=True, timeout=LONGEST)
            _until(lambda: _saved(table).total() >= 2 and _busy(table, frozen))
            pool = frozen.children(recursive=True)
            for process in (frozen, *pool):
                process.send_signal(signal.SIGSTOP)
            time.sleep(FROZEN_SECONDS)
            for process in (*pool, frozen):
                process.send_signal(signal.SIGCONT)
            _until(lambda: _saved(table).keys() >= set(items))
            # What the woken one has in its hands is finished, and what is on its way again is, too.
            _settled(lambda: _saved(table).total(), 3 * TIMEOUT_SECONDS)
        return _saved(table), package.__version__


_SEND = "import sys; from tests.chaos.celery_tasks import echo; [echo.delay(item) for item in sys.argv[1:]]"


@contextmanager
def _worker(name: str, folder: str, env: dict[str, str]) -> Iterator[psutil.Process]:
    argv = [sys.executable, "-m", "celery", "-A", "tests.chaos.celery_tasks", "worker", "-n", f"{name}@peer"]
    argv += ["--concurrency", "1", "--pool", "prefork", "--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
    with Path(folder, f"{name}.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield psutil.Process(process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _saved(table: Path) -> Counter[str]:
    with sqlite3.connect(table, timeout=30) as connection:
        return Counter(item for (item,) in connection.execute("SELECT item FROM rows"))


def _busy(table: Path, worker: psutil.Process) -> bool:
    """Whether this worker has finished something, and with two workers busy all the time has the next in hand."""
    with sqlite3.connect(table, timeout=30) as connection:
        return bool(connection.execute("SELECT 1 FROM rows WHERE worker = ? LIMIT 1", (worker.pid,)).fetchall())


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("what the scenario waits for has not come about")
        time.sleep(0.05)


def _settled(value: Callable[[], int], seconds: float) -> None:
    """Until ``value`` has been the same for so long."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.2)
        if (now := value()) != last:
            last, since = now, time.monotonic()


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.chaos.celery_peer", description=__doc__).parse_args()
    report = Report()
    run(0, report)
    print(report.markdown())
    return int(report.broken)


if __name__ == "__main__":
    sys.exit(main())

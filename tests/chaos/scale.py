"""A parent of several processes on PostgreSQL and Redis: each of them killed, frozen or restarted while work flows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import requests

from cascade.local import Child, LocalTree
from tests.acceptance.trees import rows
from tests.chaos.report import Items, Report
from tests.chaos.trees import SEGMENT, until
from tests.scale.trees import ScaleTree
from tests.servers import postgresql_server, redis_server

CHILDREN = (Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"))
SETTINGS = {"CASCADE_CUSTOM": "attempt=tests.chaos.work:attempt"}
ITEMS = 24
"""Of each size in a run, of which there is one for each fault."""
PATIENCE = 120.0


def run(seconds: float, report: Report) -> None:
    """Each fault once, and then one after the other for as long as there is time."""
    deadline = time.monotonic() + seconds
    chance = report.chance("scale")
    with (
        TemporaryDirectory() as folder,
        postgresql_server() as postgresql,
        redis_server() as redis,
        ScaleTree(Path(folder), postgresql, redis, children=CHILDREN, env=SETTINGS) as tree,
    ):
        work = Work(tree)
        with watched(tree, report):
            for number in range(1000):
                if number >= len(FAULTS) and time.monotonic() > deadline:
                    break
                kind = list(FAULTS)[number] if number < len(FAULTS) else chance.choice(list(FAULTS))
                work.begin()
                FAULTS[kind](tree, report)
                work.end()
                report.kill(f"several processes: {kind}")
        report.items("several processes", work.account())


class Work:
    """Runs whose items are all known, and what became of them."""

    def __init__(self, tree: ScaleTree) -> None:
        self._tree = tree
        self._log = tree.data_dir / "attempted.log"
        self._runs: dict[int, list[str]] = {}
        self._under_way: list[int] = []

    def begin(self) -> None:
        """Small rows and large ones, some of which are saved when this returns."""
        for pad in (0, SEGMENT):
            names = [f"scale-{len(self._runs)}-{number}" for number in range(ITEMS)]
            params = {"callable": "attempt", "arguments": {"log": str(self._log), "pad": pad, "seconds": 0.2}}
            run = self._tree.submit("custom", names, params=params, shard_size=1)
            self._runs[run] = names
            self._under_way.append(run)
        until(lambda: self._tree.progress(self._under_way[0])["saved"] > 2, PATIENCE, "work under way")

    def end(self) -> None:
        for run in self._under_way:
            until(lambda run=run: self._tree.progress(run)["state"] != "running", PATIENCE, f"the end of run {run}")  # type: ignore[misc]
        self._under_way.clear()

    def account(self) -> Items:
        import psycopg

        with psycopg.connect(self._tree.postgresql.url) as database:
            manifests = database.execute("SELECT manifest FROM dispatch_receipt").fetchall()
        acknowledged = {
            name
            for (manifest,) in manifests
            for entry in manifest
            for first, last, *_ in entry["ranges"]
            for name in self._runs.get(entry["run"], [])[first:last]
        }
        return Items(
            submitted=frozenset(name for names in self._runs.values() for name in names),
            attempted=frozenset(self._log.read_text().splitlines()),
            acknowledged=frozenset(acknowledged),
            saved=Counter(row["item"] for run in self._runs for row in rows(self._tree, run)),
        )


@contextmanager
def watched(tree: ScaleTree, report: Report) -> Iterator[None]:
    """Somebody asks for the list of runs all the time: how often the answer was a 5xx other than 503, which says that
    the database is away and asks to come again.
    """
    over = Event()
    statuses: Counter[int] = Counter()

    def ask() -> None:
        while not over.wait(0.1):
            with suppress(requests.RequestException):  # a process that was killed just then
                statuses[LocalTree.request(tree, "GET", "/api/v1/runs?limit=1").status_code] += 1

    thread = Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    wrong = sum(count for status, count in statuses.items() if status >= 500 and status != 503)
    report.figure("several processes: answers of 5xx but 503", wrong, zero=True)
    report.figure("several processes: answers of 503 while PostgreSQL was away", statuses[503])


def leader_killed(tree: ScaleTree, report: Report) -> None:
    old = tree.leader()
    began = time.monotonic()
    tree.kill(old)
    tree.another_leader(old)
    report.most("until another leads after kill -9 of the leader, at most", time.monotonic() - began, "s")
    tree.start_dispatcher(old)


def leader_frozen(tree: ScaleTree, report: Report) -> None:
    old = tree.leader()
    began = time.monotonic()
    tree.pause(old)
    new = tree.another_leader(old)
    report.most("until another leads after SIGSTOP of the leader, at most", time.monotonic() - began, "s")
    tree.resume(old)
    # Once more the other way round: it is awake when it can lead again.
    tree.kill(new)
    tree.another_leader(new)
    tree.start_dispatcher(new)


def web_killed(tree: ScaleTree, report: Report) -> None:
    tree.kill("web1")
    until(lambda: tree.answers(tree.ports["web2"]), PATIENCE, "an answer of the other web process")
    tree.start_web("web1")
    until(lambda: tree.answers(tree.ports["web1"]), PATIENCE, "the web process that was killed")


def redis_killed(tree: ScaleTree, report: Report) -> None:
    assert tree.redis is not None
    tree.redis.kill()
    run = tree.submit("echo", ["without Redis"])
    until(lambda: tree.progress(run)["state"] == "completed", PATIENCE, "a run without Redis")
    tree.redis.start()


def postgresql_restarted(tree: ScaleTree, report: Report) -> None:
    began = time.monotonic()
    tree.postgresql.stop()
    tree.postgresql.start()
    until(tree.leader, PATIENCE, "a leader")
    report.most("until somebody leads after a restart of PostgreSQL, at most", time.monotonic() - began, "s")


FAULTS: dict[str, Callable[[ScaleTree, Report], None]] = {
    "leader, kill -9": leader_killed,
    "leader, SIGSTOP until it is succeeded": leader_frozen,
    "web process, kill -9": web_killed,
    "Redis, kill -9": redis_killed,
    "PostgreSQL, restart": postgresql_restarted,
}

"""A parent of several processes, with real servers beneath: web processes behind a balancer, dispatchers, children."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cascade.local import Child, LocalTree, free_port
from tests.acceptance.trees import QUICK, Account, account, until
from tests.scale.balancer import Balancer
from tests.servers import Postgresql, Redis

WEBS = ("web1", "web2")
DISPATCHERS = ("dispatcher1", "dispatcher2")
SETTINGS = {
    **QUICK,
    "CASCADE_DISPATCHER": "separate",
    "CASCADE_DJANGO_KEY": "the same in all processes of a parent, and long enough for Django",
    "CASCADE_FALLBACK_WORKERS": "0",
}


class ScaleTree(LocalTree):
    """As ``LocalTree``, with ``webs`` and ``dispatchers`` for a parent; its ``port`` is the balancer's."""

    def __init__(
        self,
        folder: Path,
        postgresql: Postgresql,
        redis: Redis | None = None,
        *,
        children: Sequence[Child] = (),
        webs: Sequence[str] = WEBS,
        dispatchers: Sequence[str] = DISPATCHERS,
        env: Mapping[str, str] | None = None,
    ) -> None:
        servers = {"CASCADE_DATABASE_URL": postgresql.url}
        if redis is not None:
            servers["CASCADE_REDIS_URL"] = redis.url
        super().__init__(folder, children=children, env={**SETTINGS, **servers, **(env or {})})
        self.postgresql = postgresql
        self.redis = redis
        self.dispatchers = dispatchers
        self.ports = {web: free_port() for web in webs}
        self.balancer = Balancer(list(self.ports.values()), free_port())
        self.port = self.balancer.port

    def start_parent(self) -> None:
        self.balancer.__enter__()
        for web in self.ports:
            self.start_web(web)
        for name in self.dispatchers:
            self.start_dispatcher(name)
        for web, port in self.ports.items():
            self._await(web, lambda port=port: self.answers(port), "answer GET /healthz")  # type: ignore[misc]
        if self.dispatchers:
            until(self.leader, what="a leader")

    def start_web(self, name: str) -> None:
        self.spawn(name, [self.python, "manage.py", "runserver", "--noreload", f"127.0.0.1:{self.ports[name]}"])

    def start_dispatcher(self, name: str) -> None:
        self.spawn(name, [self.python, "manage.py", "dispatcher"])

    def answers(self, port: int) -> bool:
        try:
            return self._session.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200
        except OSError:
            return False

    def leader(self) -> str:
        """The name of the process that leads, or nothing; as PostgreSQL has it."""
        import psycopg

        try:
            with psycopg.connect(self.postgresql.url, autocommit=True, connect_timeout=5) as connection:
                query = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'cascade % leads %'"
                row = connection.execute(query).fetchone()
        except psycopg.OperationalError:
            return ""
        pid = int(row[0].split(" ")[2]) if row else 0
        return next(
            (name for name in (*self.dispatchers, *self.ports) if self.alive(name) and self.pid(name) == pid), ""
        )

    def another_leader(self, than: str) -> str:
        """Who leads now, when it is not ``than``."""
        return str(until(lambda: (found := self.leader()) != than and found, what=f"another leader than {than}"))

    def standby(self) -> str:
        leader = self.leader()
        return next(name for name in self.dispatchers if name != leader)

    def manage_json(self, *arguments: str) -> Any:
        return json.loads(self.manage(*arguments, "--json").stdout)

    def stop(self, *, grace: float = 25.0) -> None:
        for name in self.children:
            if self.alive(name):
                self.resume(name)
                self.terminate(name, grace=grace)
        for name in (*self.ports, *self.dispatchers):
            if self.alive(name):
                self.resume(name)
        super().stop(grace=grace)
        if self.balancer._thread.is_alive():
            self.balancer.__exit__(None, None, None)


def saved(tree: ScaleTree, run: int, items: Iterable[str]) -> Account:
    """What was submitted against what is in the result store, which processes share or the leader owns."""
    file = tree.data_dir / "results.duckdb"
    if not file.exists():
        return account(tree, run, items)
    import duckdb

    for name in tree.dispatchers:  # the file is readable when nobody has it
        if tree.alive(name):
            tree.terminate(name)
    with duckdb.connect(str(file), read_only=True) as results:
        found = results.execute(f"SELECT value FROM echo_rows WHERE _run = {run}").fetchall()
    for name in tree.dispatchers:
        tree.start_dispatcher(name)
    until(tree.leader, what="a leader")
    there = Counter(value for (value,) in found)
    wanted = {f"{item}:0" for item in items}
    return Account(wanted - set(there), {value for value, count in there.items() if count > 1}, set(there) - wanted)

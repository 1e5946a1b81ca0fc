"""A parent of several processes, with real servers beneath: web processes behind a balancer, dispatchers, children."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests

from cascade.local import Child, LocalTree, free_port
from tests.acceptance.trees import QUICK, SOON, until
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

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """As the base's; asked again where a process was killed meanwhile, or says that the database is away."""
        deadline = time.monotonic() + SOON
        while True:
            with suppress(requests.ConnectionError):
                answer = super().request(method, path, **options)
                if answer.status_code != 503 or time.monotonic() > deadline:
                    return answer
            assert time.monotonic() < deadline, f"no answer to {method} {path} in {SOON:g} s"
            time.sleep(0.1)

    def sessions(self, where: str) -> list[str]:
        """Names of the sessions of PostgreSQL for which ``where`` holds; none while it is away."""
        import psycopg

        try:
            with psycopg.connect(self.postgresql.url, autocommit=True, connect_timeout=5) as connection:
                found = connection.execute(f"SELECT application_name FROM pg_stat_activity WHERE {where}").fetchall()
        except psycopg.OperationalError:
            return []
        return [name for (name,) in found]

    def leader(self) -> str:
        """The name of the process that leads, or nothing; as PostgreSQL has it."""
        leads = self.sessions("application_name LIKE 'cascade % leads %'")
        pids = {int(name.split(" ")[2]) for name in leads}
        ours = (*self.dispatchers, *self.ports)
        return next((name for name in ours if self.alive(name) and self.pid(name) in pids), "")

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

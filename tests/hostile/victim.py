"""A real parent with something of everything in it, for whoever attacks it; and what its log says afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import requests

from cascade.local import PARENT, LocalTree
from tests.integration import agents
from tests.integration.agents import SOON, Agent, done

_TOKEN = re.compile('name="csrfmiddlewaretoken" value="([^"]+)"')
_FAULT = re.compile(r"^Traceback \(most recent|^ERROR\b|Internal Server Error", re.MULTILINE)


class Victim:
    """``tree`` is its parent; ``child`` a node of it whose key the attacker has, ``other`` one whose key he has not."""

    def __init__(self, tree: LocalTree) -> None:
        self.tree = tree
        self.child = Agent(tree)
        self.other = Agent(tree, quotas=[{"task_type": "echo", "slots": 1}])
        self._fill()

    def _fill(self) -> None:
        """Runs that ended, run and wait; a task, a schedule, a source, a quota, a rate limit, a table with rows."""
        tree = self.tree
        ended, work = self.other.work("a", "b")
        self.other.ask("report", {"reports": [done(each) for each in work]})
        tree.wait(ended)
        for agent in (self.other, self.child):
            agent.work("c", "d")
            tree.submit("echo", ["waits"], labels={"only": "nobody"})
        tree.json("POST", "/api/v1/tasks", json={"name": "daily", "type": "echo", "items": ["x"], "cron": "0 3 * * *"})
        tree.json("POST", "/api/v1/rates", json={"key": "host:*", "per_second": 5})
        tree.json("POST", "/api/v1/sources", json={"kind": "symbol", "key": "AAPL", "name": "Apple"})

    @cache  # noqa: B019  (a victim lives as long as its tests)
    def session_cookie(self) -> str:
        """The operator's, signed in on the pages: the value of a Cookie header."""
        session = requests.Session()
        session.trust_env = False
        url = f"{self.tree.url}/admin/login/"
        form = {"username": self.tree.username, "password": self.tree.password}
        form["csrfmiddlewaretoken"] = _TOKEN.findall(session.get(url, timeout=SOON).text)[0]
        answer = session.post(url, data=form, headers={"Referer": url}, allow_redirects=False, timeout=SOON)
        assert answer.status_code == 302, answer.text
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in session.cookies)

    @property
    def faults(self) -> list[str]:
        """Lines of the parent's log that tell of an exception."""
        text = self.tree.log(PARENT).read_text(errors="replace")
        return [line for line in text.splitlines() if _FAULT.search(line)]

    @property
    def memory(self) -> int:
        """Resident bytes of the parent's own process."""
        return int(psutil.Process(self.tree.pid(PARENT)).memory_info().rss)


@contextmanager
def victim(folder: Path, **env: str) -> Iterator[Victim]:
    """``env`` without the prefix, as for ``agents.parent``. Nobody's claim waits, and nothing runs here by itself."""
    quick = {"LONG_POLL_SECONDS": "0.05", "FALLBACK_WORKERS": "0", "UPLOAD_LIMIT": str(2 * 1024 * 1024), **env}
    with agents.parent(folder, **quick) as tree:
        yield Victim(tree)

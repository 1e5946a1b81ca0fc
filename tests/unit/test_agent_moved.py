"""An agent whose parent is another one: ids of both may be the same, so nothing of the old one may count at the new."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes import signing
from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent
from nodes.agent.outbox import Outbox
from tests.unit.peers import Answer, Asked, Server, told

ACCESS, SECRET, _ = signing.new_key()
OLD, NEW = "a" * 32, "b" * 32


class Parents:
    """Two servers behind one address, of which ``now`` answers. Each gives out its allocation 1, over an item that is
    its own id."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self.now = OLD
        self.takes_reports = True
        self.seconds = {OLD: 0.0, NEW: 0.0}
        self.given: set[str] = set()
        self.hellos: list[tuple[str, list[int]]] = []
        self.rows: list[tuple[str, list[list[Any]]]] = []
        """Who took a report, and its rows."""
        server.answers = [self._answer]

    def _answer(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            return told(304, b"")
        body, verb = json.loads(asked.body), asked.path.rsplit("/", 1)[1]
        if body.get("parent", self.now) != self.now:
            return told(421, {"detail": "another server"})
        if verb == "beat":
            if body.get("hello"):
                self.hellos.append((self.now, body["held"]))
            beat = {"node": "n", "capacity": 1, "beat_seconds": 0.05, "long_poll_seconds": 0.05, "parent": self.now}
            return told(200, beat)
        if verb == "claim":
            if self.now in self.given:
                return told(200, {"work": [], "runs": {}, "cancel": []})
            self.given.add(self.now)
            params = {"seconds": self.seconds[self.now], "rows": 1, "log": "", "fail": "", "fail_items": []}
            runs = {"1": {"type": "echo", "params": {**params, "crash_items": []}, "timeout": 90.0, "priority": 5}}
            return told(200, {"work": [[1, 1, 0, 1, 1, [self.now]]], "runs": runs, "cancel": []})
        if verb == "report":
            if not self.takes_reports:
                return told(503, {"detail": "away"}, Retry_After="0")
            self.rows += [(self.now, entry.get("rows")) for entry in body["reports"]]
            return told(
                200, {"results": [{"allocation": each["allocation"], "status": 200} for each in body["reports"]]}
            )
        return told(200, {"released": body.get("allocations", [])})


@pytest.fixture
def parents() -> Iterator[Parents]:
    with Server() as server:
        yield Parents(server)


def agent(parents: Parents, folder: Path) -> Agent:
    return Agent(AgentConfig(parents.url, ACCESS, SECRET, carrier="pull", data_dir=folder))


async def through(made: Agent, condition: Callable[[], bool], *, kill: bool = False) -> None:
    """Runs it until the condition holds, then ends it, as by kill -9 or in order."""
    running = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(20):
            while not condition():
                assert not running.done(), running.result()
                await asyncio.sleep(0.01)
    finally:
        if kill:
            running.cancel()
            await asyncio.wait([running])
        else:
            made.stop()
            await running


def test_results_for_the_old_parent_never_reach_the_new_one_under_the_same_id(parents: Parents, tmp_path: Path) -> None:
    parents.takes_reports = False
    first = agent(parents, tmp_path)
    asyncio.run(through(first, lambda: 1 in first._outbox, kill=True))
    parents.now, parents.takes_reports = NEW, True
    second = agent(parents, tmp_path)
    asyncio.run(through(second, lambda: bool(parents.rows)))
    assert parents.rows == [(NEW, [[NEW, 0, f"{NEW}:0"]])]
    assert parents.hellos == [(OLD, []), (NEW, [])]


def test_the_same_parent_gets_them_after_a_restart(parents: Parents, tmp_path: Path) -> None:
    parents.takes_reports = False
    first = agent(parents, tmp_path)
    asyncio.run(through(first, lambda: 1 in first._outbox, kill=True))
    parents.takes_reports = True
    second = agent(parents, tmp_path)
    asyncio.run(through(second, lambda: bool(parents.rows)))
    # The first agent's last message may have been on its way still.
    assert all(each == (OLD, [[OLD, 0, f"{OLD}:0"]]) for each in parents.rows)
    assert parents.hellos[-1] == (OLD, [1])


def test_another_server_at_the_same_address_is_noticed_while_work_runs(parents: Parents, tmp_path: Path) -> None:
    parents.seconds[OLD] = 60.0
    made = agent(parents, tmp_path)

    async def both() -> None:
        moving = asyncio.create_task(through(made, lambda: bool(parents.rows)))
        while not made.active:
            assert not moving.done(), moving.result()
            await asyncio.sleep(0.01)
        parents.now = NEW
        await moving

    asyncio.run(both())
    assert parents.rows == [(NEW, [[NEW, 0, f"{NEW}:0"]])]
    assert parents.hellos == [(OLD, []), (NEW, [])]


def test_the_outbox_knows_whose_it_is_after_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.open()
    assert outbox.parent == ""
    outbox.belong(OLD)
    outbox.close()
    again = Outbox(tmp_path)
    again.open()
    assert again.parent == OLD
    again.close()

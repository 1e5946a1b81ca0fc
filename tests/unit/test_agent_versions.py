"""An agent and parents of other versions: what it does not know is ignored; one too old for it gets nothing of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodes import signing
from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent
from tests.unit.peers import Answer, Asked, Server, told

ACCESS, SECRET, _ = signing.new_key()
STRANGE: dict[str, Any] = {"of_tomorrow": {"deep": [1, 2]}, "flags": None}


class Parent:
    """Gives one shard, and says in each reply what no agent of this version knows."""

    def __init__(self, server: Server, protocol: int) -> None:
        self.protocol = protocol
        self.verbs: list[str] = []
        self.reported: list[dict[str, Any]] = []
        self.hello: dict[str, Any] = {}
        server.answers = [self._answer]

    def _answer(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            return told(304, b"")
        body, verb = json.loads(asked.body), asked.path.rsplit("/", 1)[1]
        self.verbs.append(verb)
        if verb == "beat":
            self.hello = self.hello or body
            beat = {"node": "n", "capacity": 1, "beat_seconds": 0.05, "long_poll_seconds": 0.05}
            return told(200, {**beat, **STRANGE, "protocol": self.protocol})
        if verb == "claim":
            params = {"seconds": 0.0, "rows": 1, "log": "", "fail": "", "fail_items": [], "crash_items": []}
            runs = {"1": {"type": "echo", "params": params, "timeout": 90.0, "priority": 5, **STRANGE}}
            work = [[1, 1, 0, 1, 1, ["a"]]] if self.verbs.count("claim") == 1 else []
            return told(200, {"work": work, "runs": runs, "cancel": [], **STRANGE})
        if verb == "report":
            self.reported += body["reports"]
            results = [{"allocation": each["allocation"], "status": 200, **STRANGE} for each in body["reports"]]
            return told(200, {"results": results, **STRANGE})
        return told(200, {"released": [], **STRANGE})


async def through(made: Agent, condition: Callable[[], bool]) -> None:
    running = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(20):
            while not condition():
                assert not running.done(), running.result()
                await asyncio.sleep(0.01)
    finally:
        made.stop()
        await running


def agent(server: Server, folder: Path) -> Agent:
    return Agent(AgentConfig(server.url, ACCESS, SECRET, carrier="pull", data_dir=folder))


def test_what_a_newer_parent_says_beside_is_ignored_and_the_work_done(tmp_path: Path) -> None:
    with Server() as server:
        parent = Parent(server, protocol=1)
        asyncio.run(through(agent(server, tmp_path), lambda: bool(parent.reported)))
    assert parent.hello["protocol"] == 1
    assert parent.reported[0]["ranges"] == [[0, 1, 1]]


def test_a_parent_too_old_is_named_with_the_versions_that_fit_and_given_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Server() as server:
        parent = Parent(server, protocol=0)
        asyncio.run(through(agent(server, tmp_path), lambda: "update the parent" in caplog.text))
    assert "it speaks version 0 of the protocol, we 1 to 1" in caplog.text
    assert set(parent.verbs) == {"beat"}

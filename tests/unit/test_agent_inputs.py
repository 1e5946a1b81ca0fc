"""Rows that a shard works over, on their way to an agent and until it has ended, against a parent that is scripted."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes import signing
from nodes.agent.carriers import Refused, Rest, Unreachable
from nodes.agent.clock import ParentClock
from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent
from tests.unit.peers import Answer, Asked, Server, told

ACCESS, SECRET, _ = signing.new_key()
ROWS = b"rows" * 1000


class Parent:
    """Gives out two shards that each need rows, to be run one after the other."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.work: list[list[Any]] = [[number, 1, number, number + 1, 1, ["a"]] for number in (1, 2)]
        self.cancel: list[int] = []
        self.reported: list[dict[str, Any]] = []
        self.input: Answer = told(200, ROWS)
        self.gate = threading.Event()
        self.gate.set()
        server.answers = [self.answer]

    def answer(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            if "/inputs/" not in asked.path:
                return told(304, b"")
            self.gate.wait(20)
            return self.input
        body, verb = json.loads(asked.body), asked.path.rsplit("/", 1)[1]
        if verb == "beat":
            said = {"node": "n", "capacity": 1, "beat_seconds": 0.05, "long_poll_seconds": 0.05}
            return told(200, {**said, "cancel": [each for each in self.cancel if each in body["held"]]})
        if verb == "claim":
            work, self.work = self.work, []
            params = {"seconds": 60.0, "rows": 1, "log": "", "fail": "", "fail_items": [], "crash_items": []}
            runs = {"1": {"type": "echo", "params": params, "timeout": 90.0, "priority": 5}}
            return told(200, {"work": work, "runs": runs, "inputs": [each[0] for each in work], "cancel": []})
        if verb == "report":
            self.reported += body["reports"]
            return told(
                200, {"results": [{"allocation": each["allocation"], "status": 200} for each in body["reports"]]}
            )
        return told(200, {"released": body.get("allocations", [])})


@pytest.fixture
def parent() -> Iterator[Parent]:
    with Server() as server:
        yield Parent(server)


def config(parent: Parent, folder: Path) -> AgentConfig:
    return AgentConfig(parent.server.url, ACCESS, SECRET, carrier="pull", data_dir=folder)


async def through(agent: Agent, *conditions: Callable[[], bool], then: Callable[[], None] = lambda: None) -> None:
    """Runs ``agent`` until the conditions have held, one after the other; ``then`` is done between them."""
    running = asyncio.create_task(agent.run())
    try:
        async with asyncio.timeout(20):
            for at, condition in enumerate(conditions):
                while not condition():
                    assert not running.done(), running.result()
                    await asyncio.sleep(0.01)
                if at < len(conditions) - 1:
                    then()
    finally:
        agent.stop()
        await running


def test_what_was_brought_for_work_that_is_taken_back_is_not_kept(parent: Parent, tmp_path: Path) -> None:
    agent = Agent(config(parent, tmp_path))
    folder = tmp_path / "inputs"

    def names() -> list[str]:
        return sorted(file.name for file in folder.iterdir()) if folder.exists() else []

    asyncio.run(
        through(
            agent,
            lambda: names() == ["1.arrow", "2.arrow"],
            lambda: names() == [],
            then=lambda: parent.cancel.extend([1, 2]),
        )
    )


def test_what_comes_when_its_work_was_taken_back_is_not_kept(parent: Parent, tmp_path: Path) -> None:
    del parent.work[1:]
    parent.gate.clear()
    agent = Agent(config(parent, tmp_path))
    kept: list[Path] = []

    def cancel() -> None:
        parent.cancel = [1]

    def kept_open() -> bool:
        return parent.gate.is_set()

    async def both() -> None:
        running = asyncio.create_task(
            through(agent, lambda: bool(agent._fetching), lambda: not agent._held, then=cancel)
        )
        while not (parent.cancel and not agent._held):
            assert not running.done(), running.result()
            await asyncio.sleep(0.01)
        parent.gate.set()
        while any(each.name.endswith("/inputs/1") for each in threading.enumerate()):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        kept.extend(tmp_path.joinpath("inputs").iterdir())
        await running

    asyncio.run(both())
    assert kept == []


def test_a_parent_that_cannot_answer_yet_is_asked_again(parent: Parent, tmp_path: Path) -> None:
    agent = Agent(config(parent, tmp_path))
    parent.input = told(503, {"detail": "later"}, Retry_After="0")
    file = tmp_path / "inputs" / "1.arrow"

    def asked() -> bool:
        return sum("/inputs/" in each.path for each in parent.server.asked) >= 2

    asyncio.run(through(agent, asked, file.exists, then=lambda: setattr(parent, "input", told(200, ROWS))))


def test_what_an_earlier_life_left_behind_is_removed(parent: Parent, tmp_path: Path) -> None:
    left = tmp_path / "inputs" / "7.arrow"
    left.parent.mkdir()
    left.write_bytes(ROWS)
    parent.work = []
    asyncio.run(through(Agent(config(parent, tmp_path)), lambda: bool(parent.server.asked) and not left.exists()))


def test_a_file_that_cannot_be_kept_here_fails_its_shard_and_is_not_asked_for_for_ever(
    parent: Parent, tmp_path: Path
) -> None:
    del parent.work[1:]
    agent = Agent(config(parent, tmp_path))
    opened = agent._inputs.open

    def blocked() -> None:
        opened()
        (tmp_path / "inputs" / "1.part").mkdir(parents=True)

    agent._inputs.open = blocked  # type: ignore[method-assign]
    asyncio.run(through(agent, lambda: bool(parent.reported)))
    (entry,) = parent.reported
    assert entry["failure"]["kind"] == "error"
    assert "cannot be kept here" in entry["failure"]["message"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (told(200, b"half", Content_Length="1000", Connection="close"), Unreachable),
        (told(404, {"detail": "no such allocation"}), Refused),
        (told(503, {"detail": "later"}), Unreachable),
    ],
)
def test_a_file_is_there_as_a_whole_or_not_at_all(
    parent: Parent, tmp_path: Path, answer: Answer, error: type[Exception]
) -> None:
    parent.input = answer
    file = tmp_path / "1.arrow"
    with pytest.raises(error):
        asyncio.run(Rest(config(parent, tmp_path), ParentClock()).download("inputs/1", file))
    assert not file.exists()
    parent.input = told(200, ROWS)
    asyncio.run(Rest(config(parent, tmp_path), ParentClock()).download("inputs/1", file))
    assert file.read_bytes() == ROWS

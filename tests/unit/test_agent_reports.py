"""What the agent does with answers to its reports, against a parent whose answers are scripted. No work is run here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from nodes import signing
from nodes.agent import loop
from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent
from nodes.agent.outbox import Outbox
from nodes.agent.runner import NoRoom
from tests.unit.peers import Answer, Asked, Server, told

ACCESS, SECRET, _ = signing.new_key()
SEGMENT = "a" * 64
Verdict = Callable[[dict[str, Any]], dict[str, Any] | None]


class Parent:
    """Answers beats and claims; ``verdict`` says of an entry its result, or None for a message that cannot be."""

    def __init__(self, server: Server) -> None:
        self.reported: list[dict[str, Any]] = []
        self.uploads = 0
        self.room: int | None = None
        """So many uploaded segments it keeps that no report has named; no more."""
        self.released: list[int] = []
        self.leaving = False
        self.verdict: Verdict = lambda entry: {"status": 200}
        self.refusal = told(400, {"field": "reports[0]", "detail": "cannot be read"})
        server.answers = [self.answer]

    def answer(self, asked: Asked) -> Answer:
        verb = asked.path.rsplit("/", 1)[1]
        if asked.method == "PUT":
            if self.room == 0:
                return told(429, {"detail": "no room"}, Retry_After="0")
            if self.room is not None:
                self.room -= 1
            self.uploads += 1
            return told(201, {})
        body = json.loads(asked.body)
        if verb == "beat":
            self.leaving = body["leaving"]
            return told(200, {"node": "n", "capacity": 1, "beat_seconds": 60, "long_poll_seconds": 1})
        if verb == "claim":
            return told(200, {"work": [], "runs": {}, "cancel": []})
        if verb == "release":
            self.released += body["allocations"]
            return told(200, {"released": body["allocations"]})
        results = []
        for entry in body["reports"]:
            result = self.verdict(entry)
            if result is None:
                return self.refusal
            results.append({"allocation": entry["allocation"], **result})
        self.reported += body["reports"]
        if self.room is not None:
            self.room += len({entry["segment"] for entry in body["reports"]})
        statuses = {result["status"] for result in results}
        return told(statuses.pop() if len(statuses) == 1 else 200, {"results": results})


@pytest.fixture
def parent() -> Iterator[tuple[Parent, str]]:
    with Server() as server:
        yield Parent(server), server.url


def entry(allocation: int, **more: Any) -> dict[str, Any]:
    return {"allocation": allocation, "ranges": [[0, 1, 0]], "errors": [], **more}


def prepared(folder: Path, *entries: dict[str, Any], segments: tuple[str, ...] = ()) -> Path:
    """An outbox as a killed agent leaves it: the next one reports it first of all."""
    outbox = Outbox(folder)
    outbox.open()
    for segment in segments:
        outbox.segment(segment).write_bytes(b"rows")
    for each in entries:
        outbox.put([each])
    outbox.close()
    return folder


async def run_until(url: str, folder: Path, condition: Callable[[Agent], bool], seconds: float = 20) -> None:
    """An agent with this outbox, until ``condition(agent)`` holds."""
    agent = Agent(AgentConfig(url, ACCESS, SECRET, carrier="pull", data_dir=folder))
    running = asyncio.create_task(agent.run())
    try:
        async with asyncio.timeout(seconds):
            while not condition(agent):
                assert not running.done(), running.result()
                await asyncio.sleep(0.01)
    finally:
        agent.stop()
        await running


def empty(agent: Agent) -> bool:
    return not len(agent._outbox) and not agent._held


async def test_what_has_its_receipt_is_forgotten_and_what_is_left_of_its_kind_is_none(parent, tmp_path):
    scripted, url = parent
    await run_until(url, prepared(tmp_path, *(entry(pk) for pk in range(5))), empty)
    assert [each["allocation"] for each in scripted.reported] == [0, 1, 2, 3, 4]
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    assert scripted.leaving


@pytest.mark.parametrize("status", [404, 409])
async def test_what_came_too_late_is_dropped(parent, tmp_path, status):
    scripted, url = parent
    scripted.verdict = lambda each: {"status": status, "detail": "late"}
    await run_until(url, prepared(tmp_path, entry(1), entry(2)), empty)
    assert len(scripted.reported) == 2


async def test_a_result_that_contradicts_the_record_becomes_a_failure_that_says_so(parent, tmp_path):
    scripted, url = parent
    scripted.verdict = lambda each: {"status": 200} if "failure" in each else {"status": 422, "detail": "3 rows, not 2"}
    await run_until(url, prepared(tmp_path, entry(1)), empty)
    first, second = scripted.reported
    assert second["allocation"] == first["allocation"] == 1
    assert second["failure"]["kind"] == "error"
    assert "3 rows, not 2" in second["failure"]["message"]


async def test_a_failure_that_is_refused_as_well_is_dropped(parent, tmp_path):
    scripted, url = parent
    scripted.verdict = lambda each: {"status": 422, "detail": "no"}
    await run_until(url, prepared(tmp_path, entry(1)), empty)
    assert len(scripted.reported) == 2


@pytest.mark.parametrize("status", [400, 413])
async def test_one_entry_that_cannot_be_read_does_not_hold_up_the_others(parent, tmp_path, status):
    scripted, url = parent
    scripted.refusal = told(status, {"field": "reports[0].rows", "detail": "cannot be read"})
    scripted.verdict = lambda each: None if each["allocation"] == 13 and "failure" not in each else {"status": 200}
    await run_until(url, prepared(tmp_path, *(entry(pk) for pk in range(40))), empty)
    failures = {each["allocation"]: each["failure"]["message"] for each in scripted.reported if "failure" in each}
    assert set(failures) == {13}
    assert "cannot be read" in failures[13]
    assert sorted(each["allocation"] for each in scripted.reported) == list(range(40))


async def test_one_entry_at_which_the_parent_fails_does_not_hold_up_the_others_and_is_kept(parent, tmp_path):
    scripted, url = parent
    scripted.refusal = told(500, {"detail": "this server failed"})
    scripted.verdict = lambda each: None if each["allocation"] == 2 else {"status": 200}
    prepared(tmp_path, *(entry(pk) for pk in range(6)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodes.agent.loop.GIVE_UP_SECONDS", 0.2)
        await run_until(url, tmp_path, lambda agent: len(agent._outbox) == 1)
    assert sorted(each["allocation"] for each in scripted.reported) == [0, 1, 3, 4, 5]
    kept = Outbox(tmp_path)
    kept.open()
    assert kept.allocations() == [2]
    kept.close()


async def test_a_refused_key_loses_nothing(parent, tmp_path):
    scripted, url = parent
    scripted.refusal = told(401, {"detail": "unknown access key or wrong secret"})
    asked: list[int] = []
    scripted.verdict = lambda each: asked.append(each["allocation"])
    prepared(tmp_path, entry(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodes.agent.loop.GIVE_UP_SECONDS", 0.2)
        await run_until(url, tmp_path, lambda _: bool(asked))
    kept = Outbox(tmp_path)
    kept.open()
    assert kept.allocations() == [1]
    kept.close()


async def test_a_segment_that_the_parent_has_no_more_is_uploaded_again(parent, tmp_path):
    scripted, url = parent
    scripted.verdict = lambda each: {"status": 200 if scripted.uploads > 1 else 412}
    await run_until(url, prepared(tmp_path, entry(1, segment=SEGMENT, offset=0), segments=(SEGMENT,)), empty)
    assert scripted.uploads == 2
    assert not list(tmp_path.glob("*.arrow"))


async def test_a_parent_without_room_for_all_is_told_whose_it_has_or_it_would_wait_for_that_for_ever(parent, tmp_path):
    scripted, url = parent
    scripted.room = 1
    segments = tuple(letter * 64 for letter in "abc")
    entries = [entry(pk, segment=segment, offset=0) for pk, segment in enumerate(segments)]
    await run_until(url, prepared(tmp_path, *entries, segments=segments), empty)
    assert (scripted.room, scripted.uploads) == (1, 3)
    assert [each["segment"] for each in scripted.reported] == list(segments)


async def test_a_parent_that_keeps_no_segment_is_not_sent_one_without_pause(parent, tmp_path):
    scripted, url = parent
    scripted.verdict = lambda each: {"status": 412}
    prepared(tmp_path, entry(1, segment=SEGMENT, offset=0), segments=(SEGMENT,))
    began = asyncio.get_running_loop().time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodes.agent.loop.GIVE_UP_SECONDS", 0.1)
        await run_until(url, tmp_path, lambda _: asyncio.get_running_loop().time() - began > 0.8)
    assert 1 <= scripted.uploads < 20


async def test_rows_that_are_gone_from_the_disk_are_a_failure_of_their_shards_only(parent, tmp_path):
    scripted, url = parent
    lost = [entry(pk, segment=SEGMENT, offset=pk) for pk in (1, 2)]
    prepared(tmp_path, *lost, entry(3), segments=(SEGMENT,))
    (tmp_path / f"{SEGMENT}.arrow").unlink()
    await run_until(url, tmp_path, empty)
    failures = {each["allocation"] for each in scripted.reported if "failure" in each}
    assert failures == {1, 2}
    assert sorted(each["allocation"] for each in scripted.reported) == [1, 2, 3]


async def test_what_finds_no_room_on_this_disk_is_handed_back_and_is_no_failure(parent, tmp_path, monkeypatch):
    scripted, url = parent
    monkeypatch.setattr(loop, "ROOM_SECONDS", 0.01)
    future: Any = Future()
    future.set_exception(NoRoom("no room for results on this node's disk"))
    bundle = loop.Bundle([loop.Work(7, "echo", {}, 10.0, 0, ["a"])], future)

    def handed_back(agent: Agent) -> bool:
        if agent._greeted and future not in seen:
            seen.append(future)
            agent._held.add(7)
            agent._bundles.append(bundle)
            agent._finished(bundle)
        return scripted.released == [7] and not agent._held

    seen: list[Any] = []
    await run_until(url, tmp_path, handed_back)
    assert scripted.reported == []


async def test_two_agents_do_not_take_one_outbox(parent, tmp_path):
    _, url = parent
    prepared(tmp_path)
    first = Outbox(tmp_path)
    first.open()
    with pytest.raises(BlockingIOError):
        await Agent(AgentConfig(url, ACCESS, SECRET, data_dir=tmp_path)).run()
    first.close()

"""Logs on their way from a worker to the parent: what is told when, how much, and where it begins."""

from __future__ import annotations

import asyncio
import time
from queue import SimpleQueue
from typing import Any

import pytest

from nodes.agent import telling
from nodes.agent.capture import Tail
from nodes.agent.carriers import Body, Refused, Unreachable
from nodes.agent.logs import Logs
from nodes.agent.telling import Teller
from nodes.protocol import LOG_CHARACTERS, LOG_CUT, LOG_LIMIT, LOG_PIECES

# Where a kept log begins


@pytest.mark.parametrize("length", [0, 1, LOG_LIMIT, LOG_LIMIT + 1, 2 * LOG_LIMIT, 2 * LOG_LIMIT + 1, 5 * LOG_LIMIT])
@pytest.mark.parametrize("each", [1000, 7919])
def test_a_tail_knows_where_its_text_begins(length, each):
    written = "".join(chr(ord("a") + number % 26) for number in range(length))
    tail = Tail()
    for at in range(0, length, each):
        tail.write(written[at : at + each])
    assert len(tail.text()) <= LOG_LIMIT
    assert tail.text().startswith(LOG_CUT) == (length > LOG_LIMIT) == bool(tail.start)
    assert written[tail.start :] == tail.text().removeprefix(LOG_CUT)


def test_of_a_tail_one_gets_what_is_new_or_what_is_left_of_it():
    tail = Tail()
    tail.write("one\n")
    tail.write("two\n")
    assert tail.since(4) == (4, "two\n")
    assert tail.since(8) == (8, "")
    tail.write("x" * 3 * LOG_LIMIT)
    start, text = tail.since(8)
    assert start > 8
    assert start + len(text) == 8 + 3 * LOG_LIMIT


# The worker


Told = tuple[int, int, int, str]


@pytest.fixture
def told() -> SimpleQueue[Told]:
    return SimpleQueue()


@pytest.fixture
def teller(told: SimpleQueue[Told], monkeypatch: pytest.MonkeyPatch) -> Teller:
    monkeypatch.setattr(telling, "TELL_SECONDS", 0.01)
    return Teller(lambda *piece: told.put(piece))


def grown(teller: Teller, monkeypatch: pytest.MonkeyPatch, allocation: int = 7) -> Tail:
    """A log of a shard that has run for long enough."""
    tail = Tail()
    with monkeypatch.context() as patch:
        began = time.monotonic() - telling.SOONEST_SECONDS
        patch.setattr(telling.time, "monotonic", lambda: began)
        teller.listen(3, allocation, tail)
    return tail


def test_what_is_printed_is_told_with_where_it_begins(teller, told, monkeypatch):
    tail = grown(teller, monkeypatch)
    tail.write("one\n")
    assert told.get(timeout=5) == (3, 7, 0, "one\n")
    tail.write("two\n")
    assert told.get(timeout=5) == (3, 7, 4, "two\n")


def test_of_a_shard_that_has_ended_nothing_is_told(teller, told, monkeypatch):
    over, other = grown(teller, monkeypatch), grown(teller, monkeypatch, 8)
    over.write("its report has it\n")
    over.forget()
    other.write("still here\n")
    assert told.get(timeout=5) == (3, 8, 0, "still here\n")
    assert told.empty()


def test_a_young_shard_is_not_told_of_yet(teller, told, monkeypatch):
    young = Tail()
    began = time.monotonic()
    teller.listen(3, 9, young)
    young.write("at once\n")
    assert told.get(timeout=5) == (3, 9, 0, "at once\n")
    assert time.monotonic() - began >= telling.SOONEST_SECONDS


def test_a_line_without_an_end_waits_for_the_rest_once(teller, told, monkeypatch):
    tail = grown(teller, monkeypatch)
    tail.write("whole\nhalf")
    assert told.get(timeout=5) == (3, 7, 0, "whole\n")
    assert told.get(timeout=5) == (3, 7, 6, "half")
    tail.write(" and half\n")
    assert told.get(timeout=5) == (3, 7, 10, " and half\n")


def test_of_much_at_once_the_end_is_told(teller, told, monkeypatch):
    tail = grown(teller, monkeypatch)
    tail.write("".join(f"{number:09}\n" for number in range(10_000)))
    _, _, start, text = told.get(timeout=5)
    assert (start, len(text)) == (100_000 - LOG_LIMIT, LOG_LIMIT)
    assert text.endswith("000009999\n")


# The agent


class Parent:
    """The far end of a line: notes what it is told, and answers as it is bid."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[list[Any]] = asyncio.Queue()
        self.answer: Body | Exception = {"gone": []}

    async def call(self, verb: str, body: Body) -> Body:
        assert verb == "log"
        self.heard.put_nowait(body["logs"])
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def parent() -> Parent:
    return Parent()


@pytest.fixture
def logs(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> Logs:
    monkeypatch.setattr("nodes.agent.logs.GATHER_SECONDS", 0.0)
    monkeypatch.setattr("nodes.agent.logs.TELL_SECONDS", 0.0)
    monkeypatch.setattr("nodes.agent.logs.REFUSED_SECONDS", 0.0)
    monkeypatch.setattr("nodes.agent.logs.pause", lambda error, attempt: 0.0)
    made = Logs(parent)  # type: ignore[arg-type]  # it has all that is used
    made.on = True
    return made


async def next_of(parent: Parent) -> list[Any]:
    return await asyncio.wait_for(parent.heard.get(), 5)


async def test_all_shards_share_a_message_and_nothing_is_told_twice(logs, parent):
    logs.hear(1, 0, "one\n")
    logs.hear(2, 0, "two\n")
    logs.hear(1, 4, "more\n")
    logs.hear(-1, 0, "handed to this node directly\n")
    running = asyncio.create_task(logs.run())
    assert await next_of(parent) == [[1, 0, "one\nmore\n"], [2, 0, "two\n"]]
    logs.hear(2, 4, "three\n")
    assert await next_of(parent) == [[2, 4, "three\n"]]
    running.cancel()


async def test_nothing_is_kept_for_a_parent_that_wants_no_logs(logs, parent):
    logs.on = False
    logs.hear(1, 0, "one\n")
    assert logs._news() == []
    assert not logs._shards


async def test_what_does_not_arrive_is_told_again_with_what_came_since(logs, parent):
    parent.answer = Unreachable("the line is cut")
    running = asyncio.create_task(logs.run())
    await asyncio.sleep(0)
    logs.hear(1, 0, "one\n")
    assert await next_of(parent) == [[1, 0, "one\n"]]
    logs.hear(1, 4, "two\n")
    while (said := await next_of(parent)) == [[1, 0, "one\n"]]:
        pass
    assert said == [[1, 0, "one\ntwo\n"]]
    parent.answer = {"gone": []}
    while said == [[1, 0, "one\ntwo\n"]] and not logs._shards[1].told:
        said = await next_of(parent)
    logs.hear(1, 8, "three\n")
    while (said := await next_of(parent))[0][1] == 0:
        pass
    assert said == [[1, 8, "three\n"]]
    running.cancel()


@pytest.mark.parametrize("answer", [Refused(400, "too much of it"), {"gone": [1]}])
async def test_what_is_refused_or_gone_is_not_told_again(logs, parent, answer):
    parent.answer = answer
    running = asyncio.create_task(logs.run())
    await asyncio.sleep(0)
    logs.hear(1, 0, "one\n")
    assert await next_of(parent) == [[1, 0, "one\n"]]
    logs.hear(2, 0, "two\n")
    assert await next_of(parent) == [[2, 0, "two\n"]]
    running.cancel()


async def test_messages_are_bounded_and_the_rest_comes_with_the_next(logs, parent):
    many, chatty = LOG_PIECES + 3, 2 * LOG_CHARACTERS // LOG_LIMIT
    for allocation in range(chatty):
        logs.hear(allocation, 0, "x" * LOG_LIMIT)
    for allocation in range(chatty, chatty + many):
        logs.hear(allocation, 0, "y\n")
    running = asyncio.create_task(logs.run())
    told: dict[int, str] = {}
    while len(told) < many + chatty:
        pieces = await next_of(parent)
        assert len(pieces) <= LOG_PIECES
        assert sum(len(text) for _, _, text in pieces) <= LOG_CHARACTERS
        for allocation, start, text in pieces:
            assert (start, allocation in told) == (0, False)
            told[allocation] = text
    assert told[0] == "x" * LOG_LIMIT
    running.cancel()


async def test_of_a_shard_that_outruns_the_line_the_end_is_kept_and_the_gap_shows(logs, parent):
    for number in range(5):
        logs.hear(1, number * LOG_LIMIT, str(number) * LOG_LIMIT)
    assert logs._news() == [[1, 4 * LOG_LIMIT, "4" * LOG_LIMIT]]
    logs._told(logs._news(), [])
    logs.hear(1, 9 * LOG_LIMIT, "after a hole\n")
    assert logs._news() == [[1, 9 * LOG_LIMIT, "after a hole\n"]]


async def test_a_second_try_at_an_allocation_goes_on_behind_the_first(logs, parent):
    logs.hear(1, 0, "first try\n")
    logs.anew(1)
    logs.hear(1, 0, "second\n")
    assert logs._news() == [[1, 0, "first try\nsecond\n"]]
    entries = [{"allocation": 1, "ranges": [], "log": "second\nends\n"}, {"allocation": 2, "log": "short\n"}]
    logs.ended([1, 2], entries)
    assert entries[0]["log_start"] == len("first try\n")
    assert "log_start" not in entries[1]
    assert not logs._shards


async def test_a_failure_without_a_log_gets_what_was_heard(logs, parent):
    logs.hear(1, 0, "x" * LOG_LIMIT)
    logs.hear(1, LOG_LIMIT, "the end\n")
    logs.hear(2, 0, "little\n")
    entries: list[dict[str, Any]] = [
        {"allocation": 1, "failure": {"kind": "timeout", "message": "late"}},
        {"allocation": 2, "failure": {"kind": "crash", "message": "dead"}},
    ]
    logs.ended([1, 2], entries)
    first, second = entries
    assert first["log"].startswith(LOG_CUT)
    assert first["log"].endswith("x" + "the end\n")
    assert len(first["log"]) == LOG_LIMIT
    assert first["log_start"] == LOG_LIMIT + len("the end\n") - (LOG_LIMIT - len(LOG_CUT))
    assert (second["log"], "log_start" in second) == ("little\n", False)

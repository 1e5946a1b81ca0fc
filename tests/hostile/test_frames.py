"""Sockets under fire: the agents' with a valid key and without, and the live view's. The parent answers each frame or
closes that socket; it logs no exception, keeps its memory, and other sockets notice nothing."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator

import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from api.agent import VERBS
from nodes.messages import Beat, Below, Entry, ItemOutcome, Told
from tests.hostile import frames
from tests.hostile.victim import Victim, victim
from tests.integration.agents import SOON
from tests.integration.test_agent_socket import Socket, opened

SEED = 5 if os.environ.get("CI") else random.randrange(2**31)
MUTATIONS = 200
GROWTH = 60 * 1024 * 1024


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with victim(tmp_path_factory.mktemp("parent")) as made:
        yield made


@pytest.fixture
def witness(parent: Victim) -> Iterator[Socket]:
    """Another child's socket, which must not notice anything."""
    with opened(parent.other) as socket:
        yield socket
        assert socket.ask("beat", {"boot": "one", "carrier": "push"})["status"] == 200
    assert parent.faults == []


def statuses(socket: Socket, sent: Iterator[str | bytes]) -> set[int]:
    """What the frames are answered with, one by one."""
    found = set()
    for frame in sent:
        socket.say(frame)
        reply = socket.next(lambda told: told["type"] == "reply")
        assert reply["status"] < 500, (frame, reply)
        if reply["status"] == 400:
            assert reply["body"]["field"], (frame, reply)
            assert reply["body"]["detail"], (frame, reply)
        found.add(reply["status"])
    return found


def test_the_frames_here_have_every_field_that_messages_have() -> None:
    """So that a new field is attacked, too."""
    assert set(frames.BODIES) == set(VERBS) - {"claim"}
    beat, entry = set(frames.BODIES["beat"]), set(frames.BODIES["report"]["reports"][0])
    assert set(Beat.__dataclass_fields__) - {"below"} | set(Below.__dataclass_fields__) <= beat
    assert set(Entry.__dataclass_fields__) - {"message", "inline", "digest", "by"} <= entry
    outcome = frames.BODIES["report"]["reports"][0]["outcomes"][0][1]
    assert set(ItemOutcome.__dataclass_fields__) - {"index"} <= set(outcome)
    assert set(Told.__dataclass_fields__) <= set(frames.BODIES["tell"]["answers"][0])


def test_each_field_of_each_verb_with_each_wrong_type_is_answered(parent: Victim, witness: Socket) -> None:
    before = parent.memory
    every = list(frames.wrong_fields())
    some = random.Random(SEED).sample(every, 400)
    with opened(parent.child) as socket:
        assert statuses(socket, iter(some)) == {200, 400}
    assert parent.memory - before < GROWTH


def test_what_is_no_message_is_answered(parent: Victim, witness: Socket) -> None:
    before = parent.memory
    with opened(parent.child) as socket:
        assert 400 in statuses(socket, itertools.islice(frames.broken(SEED), MUTATIONS))
        assert socket.ask("beat", {"boot": "one", "carrier": "push"})["status"] == 200
    assert parent.memory - before < GROWTH


@pytest.mark.parametrize("name", frames.raw_attacks())
def test_a_broken_protocol_costs_its_own_socket_at_most(parent: Victim, witness: Socket, name: str) -> None:
    before = parent.memory
    raw = frames.Raw("127.0.0.1", parent.tree.port, "/ws/agent", parent.child.headers("GET", "/ws/agent"))
    assert raw.status == 101
    try:
        frames.raw_attacks()[name](raw)
        assert witness.ask("beat", {"boot": "one", "carrier": "push"})["status"] == 200
    except ConnectionError:
        pass  # it was closed while we were sending
    finally:
        raw.close()
    assert witness.ask("beat", {"boot": "one", "carrier": "push"})["status"] == 200
    assert parent.memory - before < GROWTH


def test_without_a_key_or_a_session_there_is_no_socket(parent: Victim, witness: Socket) -> None:
    for path in ("/ws/agent", "/ws/live", "/ws/nothing"):
        for headers in ({}, {"Authorization": "AK-SK x:y"}, {"Signature": "x", "Signature-Input": "\x7f" * 500}):
            raw = frames.Raw("127.0.0.1", parent.tree.port, path, headers)
            assert raw.status in (403, 404), (path, headers)
            raw.close()


def test_a_live_page_that_sends_nonsense_is_ignored_and_costs_nothing(parent: Victim, witness: Socket) -> None:
    before = parent.memory
    with live(parent) as socket:
        json.loads(socket.recv(timeout=SOON))
        for frame in itertools.islice(frames.broken(SEED), MUTATIONS):
            socket.send(frame)
        for frame in ('{"seen":' + "9" * 5000 + "}", '{"seen": {}}', '{"seen": 1}'):
            socket.send(frame)
        assert json.loads(socket.recv(timeout=SOON))["seq"] == 2
    assert parent.memory - before < GROWTH


def live(parent: Victim) -> ClientConnection:
    """The live view's socket, as a page of the operator opens it."""
    cookie = parent.session_cookie()
    url = f"ws://127.0.0.1:{parent.tree.port}/ws/live"
    return connect(
        url, additional_headers={"Cookie": cookie}, origin=Origin(parent.tree.url), open_timeout=SOON, proxy=None
    )


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "http://127.0.0.1.evil.example",
        "file://",
    ],
)
def test_another_sites_page_cannot_open_the_live_socket_with_the_operators_cookie(parent: Victim, origin: str) -> None:
    cookie = parent.session_cookie()
    headers = {"Cookie": cookie, "Origin": origin}
    raw = frames.Raw("127.0.0.1", parent.tree.port, "/ws/live", headers)
    assert raw.status == 403
    raw.close()
    with live(parent) as socket:
        assert json.loads(socket.recv(timeout=SOON))["full"]

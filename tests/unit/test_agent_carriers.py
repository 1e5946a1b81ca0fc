"""How the agent takes answers, from parents and from whatever else may stand at an address."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from nodes import signing
from nodes.agent.carriers import LONGEST_WAIT, Link, Push, Refused, Rest, Unreachable, jitter
from nodes.agent.clock import ParentClock
from nodes.agent.config import AgentConfig
from nodes.protocol import FRAME_BYTES_LIMIT
from tests.unit.peers import Answer, Server, told

ACCESS, SECRET, PUBLIC = signing.new_key()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def config(url: str, **more: Any) -> AgentConfig:
    return AgentConfig(url, ACCESS, SECRET, **more)


def rest(url: str) -> Rest:
    return Rest(config(url), ParentClock())


async def test_a_message_is_signed_and_its_reply_decoded(server):
    server.answers = [told(200, {"work": []})]
    assert await rest(server.url).call("claim", {"slots": 1}) == {"work": []}
    ((method, path, headers, body),) = server.asked
    assert (method, path, json.loads(body)) == ("POST", "/api/v1/agent/claim", {"slots": 1})
    verified = signing.verify(
        "POST",
        server.url + path,
        list(headers.items()),
        find_public_key=lambda _: PUBLIC,
        now=time.time(),
        max_age=60,
    )
    assert verified.access_key == ACCESS
    assert signing.digest_matches(verified.digest, hashlib.sha256(body).digest())


async def test_an_upload_sends_the_file_as_it_is(server, tmp_path: Path):
    server.answers = [told(201, {})]
    file = tmp_path / "segment"
    file.write_bytes(b"rows" * 1000)
    await rest(server.url).upload("a" * 64, file)
    ((method, path, _, body),) = server.asked
    assert (method, path, body) == ("PUT", f"/api/v1/agent/segments/{'a' * 64}", file.read_bytes())


async def test_an_upload_of_a_file_that_has_gone_says_so(server, tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        await rest(server.url).upload("a" * 64, tmp_path / "gone")
    assert server.asked == []


@pytest.mark.parametrize("status", [409, 412, 422])
async def test_a_refusal_that_says_of_each_entry_what_became_of_it_is_a_reply(server, status):
    body = {"results": [{"allocation": 1, "status": status, "detail": "late"}]}
    server.answers = [told(status, body)]
    assert await rest(server.url).call("report", {}) == body


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 422])
async def test_a_refusal_is_final_and_carries_the_parents_words(server, status):
    server.answers = [told(status, {"field": "slots", "detail": "-1 is not a whole number"})]
    with pytest.raises(Refused, match="-1 is not a whole number") as refused:
        await rest(server.url).call("claim", {})
    assert refused.value.status == status


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 507])
async def test_trouble_of_the_parent_may_heal(server, status):
    server.answers = [told(status, b"<html>Bad gateway</html>")]
    with pytest.raises(Unreachable, match="Bad gateway") as unreachable:
        await rest(server.url).call("claim", {})
    assert unreachable.value.wait is None


async def test_the_parent_may_say_how_long_to_wait(server):
    server.answers = [told(429, {"detail": "later"}, Retry_After="7")]
    with pytest.raises(Unreachable) as unreachable:
        await rest(server.url).call("claim", {})
    assert unreachable.value.wait == 7


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed_because_the_signature_is_for_this_address(server, status):
    server.answers = [told(status, b"", Location=f"{server.url}/elsewhere")]
    with pytest.raises(Refused, match="redirects"):
        await rest(server.url).call("report", {})
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [b"<html>Please sign in</html>", b'"text"', b"[]", b"\xff"])
async def test_some_other_servers_page_is_no_reply(server, content):
    server.answers = [told(200, content)]
    with pytest.raises(Unreachable, match="not one of a parent"):
        await rest(server.url).call("claim", {})


async def test_a_parent_that_is_not_there_is_unreachable(server):
    server.close()
    with pytest.raises(Unreachable):
        await rest(server.url).call("claim", {})


async def test_an_answer_that_does_not_come_is_unreachable(server):
    release = threading.Event()

    def wait(_: Any) -> Answer:
        release.wait(10)
        return told(200, {})

    server.answers = [wait]
    with pytest.raises(Unreachable):
        await rest(server.url).call("claim", {}, patience=0.2)
    release.set()


async def test_the_time_in_a_refusal_is_learnt_and_the_message_signed_anew(server):
    parent = time.time() + 3600
    server.answers = [told(401, {"detail": "signed at …", "time": f"{parent:.3f}"}), told(200, {"ok": 1})]
    assert await rest(server.url).call("beat", {}) == {"ok": 1}
    first, second = (headers["Signature-Input"] for _, _, headers, _ in server.asked)
    assert first != second
    created = int(second.partition("created=")[2].partition(";")[0])
    assert abs(created - parent) < 5


async def test_a_time_that_helps_nothing_is_not_tried_for_ever(server):
    server.answers = [told(401, {"detail": "no", "time": f"{time.time() + 3600:.3f}"})]
    with pytest.raises(Refused):
        await rest(server.url).call("beat", {})
    assert len(server.asked) == 2


def test_waits_grow_to_a_bound_and_differ():
    assert all(0 <= jitter(attempt) <= LONGEST_WAIT for attempt in range(200))
    assert max(jitter(1) for _ in range(200)) <= 0.4
    assert max(jitter(50) for _ in range(200)) > LONGEST_WAIT / 2
    assert len({jitter(3) for _ in range(20)}) == 20


# Claims against what is no parent


async def asked_in(server: Server, seconds: float) -> int:
    """How often a pulling agent asks in so many seconds."""

    async def connected() -> None: ...

    link = Link(config(server.url, carrier="pull"), lambda _: None, dict, connected)
    link.long_poll = 0
    running = asyncio.create_task(link.run())
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.wait([running])
    link.close()
    return len(server.asked)


@pytest.mark.parametrize(
    "answer", [told(200, {}), told(200, b""), told(204, b""), told(200, {"work": [], "cancel": []})]
)
async def test_a_server_that_answers_at_once_with_nothing_is_not_asked_without_pause(server, answer):
    server.answers = [answer]
    assert await asked_in(server, 0.6) < 20


# The socket


async def silent(socket: Any) -> None:
    async for _ in socket:
        pass


async def test_a_message_without_a_reply_is_unreachable_after_a_while():
    async with serve(silent, "127.0.0.1", 0) as parent, connect(address(parent), proxy=None) as socket:
        push = Push(socket, lambda _: None)
        with pytest.raises(Unreachable, match="no reply"):
            await push.call("beat", {}, patience=0.1)


async def test_a_message_on_a_socket_that_closes_is_unreachable_at_once():
    async def closing(socket: Any) -> None:
        await socket.recv()

    async with serve(closing, "127.0.0.1", 0) as parent, connect(address(parent), proxy=None) as socket:
        push = Push(socket, lambda _: None)
        listening = asyncio.create_task(push.listen())
        async with asyncio.timeout(5):
            with pytest.raises(Unreachable, match="closed"):
                await push.call("beat", {})
            await listening


async def test_a_message_too_long_for_a_frame_is_not_sent():
    async with serve(silent, "127.0.0.1", 0) as parent, connect(address(parent), proxy=None) as socket:
        with pytest.raises(ValueError, match="does not fit"):
            await Push(socket, lambda _: None).call("report", {"padding": "x" * FRAME_BYTES_LIMIT})


async def test_a_cancel_at_the_moment_when_the_socket_closes_is_a_cancel():
    """Were it swallowed, an agent told to stop would go on."""
    async with serve(silent, "127.0.0.1", 0) as parent, connect(address(parent), proxy=None) as socket:
        push = Push(socket, lambda _: None)
        call = asyncio.create_task(push.call("beat", {}))
        while not push._waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        # Both in one step of the loop, which no closing socket brings about on demand.
        push._waiting[0].set_exception(Unreachable("the socket closed"))
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()


def address(parent: Any) -> str:
    return f"ws://127.0.0.1:{next(iter(parent.sockets)).getsockname()[1]}"


def link(server: Server, came: asyncio.Queue[dict[str, Any]]) -> Link:
    async def connected() -> None:
        """The beat is not what this is about."""

    return Link(config(server.url, carrier="pull"), came.put_nowait, lambda: {"slots": 1}, connected)


async def test_a_knock_ends_the_pause_after_a_failure(server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nodes.agent.carriers.jitter", lambda attempt: 600.0)
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(asked: Any) -> Answer:
        loop.call_soon_threadsafe(failed.set)
        return told(502, {})

    server.answers = [fail, told(200, {"work": [[7]], "runs": {}})]
    came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    line = link(server, came)
    job = asyncio.create_task(line.run())
    try:
        await failed.wait()
        await asyncio.sleep(0.1)  # the answer is read, the pause begun
        assert came.empty()
        line.wake()
        async with asyncio.timeout(5):
            assert (await came.get())["work"] == [[7]]
    finally:
        job.cancel()


async def test_a_knock_claims_beside_a_claim_that_waits(server):
    release = threading.Event()
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(asked: Any) -> Answer:
        loop.call_soon_threadsafe(waiting.set)
        release.wait(30)
        return told(200, {"work": [[1]], "runs": {}})

    server.answers = [wait, told(200, {"work": [[2]], "runs": {}}), told(200, {"work": [], "runs": {}})]
    came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    line = link(server, came)
    job = asyncio.create_task(line.run())
    try:
        async with asyncio.timeout(10):
            await waiting.wait()
            line.wake()
            assert (await came.get())["work"] == [[2]]
            assert [json.loads(each.body)["wait"] for each in server.asked] == [30.0, 0]
            release.set()  # what the first claim brings is not lost
            assert (await came.get())["work"] == [[1]]
    finally:
        release.set()
        job.cancel()

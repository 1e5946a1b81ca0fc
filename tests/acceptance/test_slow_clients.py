"""Clients that are slow, silent, endless or many: they are ended in time, cost little memory, and disturb nobody."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import requests

from cascade.local import LocalTree, free_port
from tests.acceptance.trees import SOON, until
from tests.integration.agents import Agent

RECEIVE_SECONDS = 1.0
RECEIVE_LIMIT = 8 * 1024 * 1024
MANY = 200
MB = 1024 * 1024


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    env = {
        "CASCADE_RECEIVE_SECONDS": str(RECEIVE_SECONDS),
        "CASCADE_RECEIVE_LIMIT": str(RECEIVE_LIMIT),
        "CASCADE_FALLBACK_WORKERS": "0",
    }
    with LocalTree(tmp_path_factory.mktemp("slow"), env=env) as tree:
        yield tree


def connected(tree: LocalTree, sent: bytes = b"") -> socket.socket:
    line = socket.create_connection(("127.0.0.1", tree.port), timeout=SOON)
    line.sendall(sent)
    return line


def head(tree: LocalTree, *lines: str, path: str = "/api/v1/agent/beat", method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{tree.port}", *lines, "", "")).encode()


def everything(line: socket.socket) -> bytes:
    """What comes until the other side ends it, which it must."""
    received = b""
    with suppress(ConnectionError):
        while piece := line.recv(65_536):
            received += piece
    return received


def drip(line: socket.socket, content: bytes, every: float = RECEIVE_SECONDS / 5) -> bytes:
    """Sends byte by byte until the other side has had enough, and what that says."""
    line.settimeout(every)
    received = b""
    for number in range(len(content)):
        with suppress(ConnectionError):
            line.sendall(content[number : number + 1])
        try:
            if not (piece := line.recv(65_536)):
                return received
            received += piece
        except TimeoutError:
            continue
        except ConnectionError:
            return received
    raise AssertionError("it was let drip to the end")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: "], ids=["nothing", "half a head"])
def test_who_says_nothing_or_half_is_ended(tree, sent):
    with closing(connected(tree, sent)) as line:
        answer = everything(line)
    assert answer.startswith(b"HTTP/1.1 408 ") if sent else answer == b""


def test_a_head_that_drips_is_ended(tree):
    with closing(connected(tree, b"GET /healthz HTTP/1.1\r\nX: ")) as line:
        assert drip(line, b"a" * 200).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_drips_is_ended(tree):
    with closing(connected(tree, head(tree, "Content-Length: 200"))) as line:
        assert drip(line, b"a" * 200).startswith(b"HTTP/1.1 408 ")


def test_the_second_request_of_a_connection_has_no_more_time_than_the_first(tree):
    with closing(connected(tree, head(tree, path="/healthz", method="GET"))) as line:
        assert b"200 OK" in line.recv(65_536)
        line.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert drip(line, b"a" * 200).startswith(b"HTTP/1.1 408 ")


def test_an_upgrade_that_is_never_finished_is_ended(tree):
    lines = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    with closing(connected(tree, head(tree, *lines, path="/ws/agent", method="GET")[:-2])) as line:
        assert everything(line).startswith(b"HTTP/1.1 408 ")


def test_a_large_body_of_a_stranger_is_refused_without_being_kept(tree):
    body = b"a" * (2 * MB)
    answer = requests.post(f"{tree.url}/api/v1/agent/beat", data=body, timeout=SOON)
    assert (answer.status_code, answer.json()["field"]) == (413, "body")
    chunked = (body[:65_536] for _ in range(32))
    answer = requests.post(f"{tree.url}/api/v1/runs", data=chunked, timeout=SOON)
    assert (answer.status_code, answer.json()["field"]) == (413, "body")


def test_a_form_of_a_stranger_is_not_taken_apart(tree):
    fields = "&".join(f"a{number}=b" for number in range(100_000))
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": tree.url}
    answer = requests.post(f"{tree.url}/admin/login/", data=fields.encode(), headers=headers, timeout=SOON)
    assert answer.status_code in (400, 403)


def test_endless_bodies_do_not_fill_the_memory(tree):
    before = psutil.Process(tree.pid("parent")).memory_info().rss
    most = before
    lines = ("Transfer-Encoding: chunked", "Authorization: AK-SK nobody:nothing")
    chunk = b"10000\r\n" + b"a" * 65_536 + b"\r\n"

    def pour() -> None:
        to = head(tree, *lines, path=f"/api/v1/agent/segments/{'0' * 64}", method="PUT")
        with closing(connected(tree, to)) as line:
            line.settimeout(SOON)
            with suppress(OSError):
                for _ in range(32 * MB // 65_536):
                    line.sendall(chunk)

    threads = [threading.Thread(target=pour) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, psutil.Process(tree.pid("parent")).memory_info().rss)
        time.sleep(0.01)
    assert most - before < 4 * RECEIVE_LIMIT
    # What was kept of them on the disk is gone with them.
    until(lambda: requests.get(f"{tree.url}/healthz", timeout=SOON).ok)


def test_bodies_that_do_not_fit_beside_each_other_are_asked_to_come_later(tree):
    agent = Agent(tree)
    lines = (f"Content-Length: {RECEIVE_LIMIT - 1000}", "Expect: 100-continue", "Authorization: AK-SK nobody:nothing")
    body = json.dumps({"boot": "one", "held": [], "running": [], "pad": "a" * 900_000}).encode()

    def crowded() -> list[requests.Response]:
        with closing(connected(tree, head(tree, *lines))) as line:
            assert b"100 Continue" in line.recv(65_536)
            line.sendall(b"a" * (RECEIVE_LIMIT - 800_000))
            answers: list[requests.Response] = []
            while not answers or answers[-1].status_code != 429:  # until the parent has read as much
                line.sendall(b"a" * 20_000)
                answers.append(agent.send("POST", "beat", body))
            assert agent.say("beat", {"boot": "one", "held": [], "running": []}).status_code == 200
        return answers

    answers: list[requests.Response] = []
    while not answers:
        with suppress(OSError):  # a machine so busy that the body's time was over first
            answers = crowded()
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert int(answers[-1].headers["Retry-After"]) > 0
    until(lambda: agent.send("POST", "beat", body).status_code == 200)


STREAM = """
import sys, django
django.setup()
from cascade import bounded
sent = 0

async def application(scope, receive, send):
    global sent
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/sent":
        await send({"type": "http.response.body", "body": str(sent).encode()})
        return
    for sent in range(1, 65):
        await send({"type": "http.response.body", "body": bytes(1024 * 1024), "more_body": True})
    await send({"type": "http.response.body"})

bounded.Server(application, endpoints=[f"tcp:{sys.argv[1]}:interface=127.0.0.1"]).run()
"""


def test_an_answer_waits_for_a_client_that_does_not_read_it(tmp_path):
    tree, port = LocalTree(tmp_path), free_port()

    def sent() -> str:
        with suppress(requests.ConnectionError):
            return requests.get(f"http://127.0.0.1:{port}/sent", timeout=SOON).text
        return ""

    try:
        tree.spawn("stream", [tree.python, "-c", STREAM, str(port)])
        until(sent)
        with closing(socket.create_connection(("127.0.0.1", port), timeout=SOON)) as line:
            line.sendall(b"GET / HTTP/1.0\r\n\r\n")
            # As much as the buffers of the system take, and then nothing, however often one looks.
            seen = [sent() for _ in range(50)]
            assert 0 < int(seen[-1]) == int(seen[-20]) < 32
            received = 0
            while piece := line.recv(MB):
                received += len(piece)
        assert received > 64 * MB
    finally:
        tree.stop()


def test_two_hundred_slow_ones_do_not_keep_a_child_waiting(tree):
    agent = Agent(tree)
    agent.beat(hello=True)
    lines = [connected(tree, b"POST /api/v1/agent/beat HTTP/1.1\r\nX: ") for _ in range(MANY)]
    try:
        for number in range(20):
            for line in lines:
                with suppress(OSError):
                    line.sendall(b"a")
            assert agent.beat()["node"] == agent.name, number
    finally:
        for line in lines:
            everything(line)  # to its end: all of them are ended before long
            line.close()


def test_files_of_bodies_do_not_stay_behind(tree):
    assert not [file for file in Path(tree.data_dir).iterdir() if file.name.startswith("tmp")]
    assert tree.terminate("parent") == 0

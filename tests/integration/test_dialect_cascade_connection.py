"""POST /nodes/{id}/test-connection: a real server is asked whether it takes the credentials."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.test import Client

from nodes import registry
from tests.integration.feeds import Speaker

pytestmark = pytest.mark.django_db


class Parent(ThreadingHTTPServer):
    """Answers as it is told and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Parent

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers["Authorization"]))
        status, headers, content = self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def parent() -> Iterator[Parent]:
    server = Parent()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def operator(admin_client: Client) -> Speaker:
    return Speaker(admin_client)


@pytest.fixture
def address() -> str:
    node, _ = registry.add_node("kid", dialect="cascade")
    return f"nodes/{node.pk}/test-connection"


def test_a_parent_that_takes_the_credentials_is_connected(operator: Speaker, address: str, parent: Parent) -> None:
    reply = {"code": 0, "message": "ok", "data": {"status": "alive"}}
    parent.answer = (200, {}, json.dumps(reply).encode())
    body = {"api_url": f"{parent.url}/", "api_key": "CNa", "api_secret": "CSb"}
    assert operator.post(address, body).good() == {"connected": True, "parent_response": reply}
    assert parent.asked == [("/api/v1/wx/cascade/heartbeat", "AK-SK CNa:CSb")]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}, b'{"code": 401, "message": "wrong key"}'), "401: wrong key"),
        ((307, {"Location": "http://127.0.0.1:1/"}, b""), "307"),
        ((200, {}, b"<html>"), "not as a parent"),
        ((200, {}, b'{"code": 5}'), "not as a parent"),
        ((500, {}, b"[" * 100_000), "500"),
    ],
)
def test_whatever_else_it_answers_is_an_error(
    operator: Speaker, address: str, parent: Parent, answer: Any, words: str
) -> None:
    parent.answer = answer
    said = operator.post(address, {"api_url": parent.url, "api_key": "CNa", "api_secret": "CSb"}).good()
    assert said["connected"] is False
    assert words in said["error"]
    assert len(parent.asked) == 1


def test_nobody_there_is_an_error_and_the_secret_is_not_in_it(operator: Speaker, address: str) -> None:
    said = operator.post(address, {"api_url": "http://127.0.0.1:1", "api_key": "CNa", "api_secret": "CStop"}).good()
    assert said["connected"] is False
    assert "CStop" not in said["error"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"api_url": None}, "api_url"),
        ({"api_url": "file:///etc/passwd"}, "api_url"),
        ({"api_key": None}, "api_key"),
        ({"api_secret": None}, "api_secret"),
        ({"api_secret": "a\r\nHost: b"}, "api_secret"),
        ({"api_key": 5}, "api_key"),
    ],
)
def test_what_cannot_be_asked_names_the_field(operator: Speaker, address: str, change: Any, field: str) -> None:
    body = {"api_url": "http://127.0.0.1:1", "api_key": "CNa", "api_secret": "CSb", **change}
    answer = operator.post(address, body)
    assert answer.status == 400
    assert answer.why.startswith(f"{field}: ")

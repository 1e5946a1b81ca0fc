"""A web server of feeds on loopback, with ETag and Last-Modified as servers have them, and a log of its requests."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LAST_MODIFIED = "Wed, 31 Jan 2024 12:00:00 GMT"


@dataclass
class Document:
    """What is at a path: ``validators`` names which of etag and modified it has. ``answers`` is called instead."""

    content: bytes = b""
    kind: str = "application/rss+xml"
    validators: tuple[str, ...] = ("etag",)
    modified: str = LAST_MODIFIED
    answers: Callable[[Any], None] | None = None

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'


@dataclass(frozen=True)
class Asked:
    path: str
    etag: str | None
    modified: str | None
    agent: str | None
    status: int


@dataclass
class FeedServer:
    url: str
    documents: dict[str, Document] = field(default_factory=dict)
    log: list[Asked] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    """Cleared, it holds all answers back."""
    waiting: list[str] = field(default_factory=list)
    """The paths of what is held back."""

    def put(self, path: str, content: bytes | str, **more: Any) -> str:
        """The document at ``path`` from now on; its address."""
        self.documents[path] = Document(content.encode() if isinstance(content, str) else content, **more)
        return self.url + path

    def taken(self) -> list[Asked]:
        """The requests since this was called last."""
        taken, self.log[:] = list(self.log), []
        return taken


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        feeds: FeedServer = self.server.feeds
        feeds.waiting.append(self.path)
        feeds.gate.wait(60)
        feeds.waiting.remove(self.path)
        document = feeds.documents.get(self.path)
        if document is None:
            self.say(404, b"not here")
        elif document.answers:
            document.answers(self)
        elif self._known(document):
            self.say(304, b"", **self._validators(document))
        else:
            self.say(200, document.content, content_type=document.kind, **self._validators(document))

    def say(self, status: int, content: bytes, **headers: str) -> None:
        etag, modified, agent = map(self.headers.get, ("if-none-match", "if-modified-since", "user-agent"))
        self.server.feeds.log.append(Asked(self.path, etag, modified, agent, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 304 and "content_length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _known(self, document: Document) -> bool:
        if "etag" in document.validators and self.headers.get("if-none-match"):
            return self.headers["if-none-match"] == document.etag
        return "modified" in document.validators and self.headers.get("if-modified-since") == document.modified

    def _validators(self, document: Document) -> dict[str, str]:
        every = {"etag": document.etag, "modified": document.modified}
        names = {"etag": "ETag", "modified": "Last_Modified"}
        return {names[name]: every[name] for name in document.validators}

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what some tests are about."""


@contextmanager
def serving() -> Iterator[FeedServer]:
    server = _Server(("127.0.0.1", 0), _Request)
    feeds = FeedServer(f"http://127.0.0.1:{server.server_address[1]}")
    feeds.gate.set()
    server.feeds = feeds  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield feeds
    finally:
        feeds.gate.set()
        server.shutdown()
        server.server_close()

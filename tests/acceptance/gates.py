"""A web server whose answers wait at a gate: bars, feeds and pages that a test holds back while it does its worst."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BARS = 120


def bars(symbol: str) -> bytes:
    """Daily bars that go up and down."""
    lines = ["date,open,high,low,close,volume"]
    for day in range(BARS):
        close = 100 + 10 * ((day // 7) % 3) + len(symbol)
        lines.append(f"{20240101 + 100 * (day // 28) + day % 28},{close},{close + 1},{close - 1},{close},1000")
    return "\n".join(lines).encode()


def feed(name: str) -> bytes:
    item = f"<item><guid>{name}-1</guid><title>{name}</title><link>https://example.org/{name}</link></item>"
    return f'<rss version="2.0"><channel><title>{name}</title>{item}</channel></rss>'.encode()


def page(name: str) -> bytes:
    return f"<html><head><title>{name}</title></head><body><p>About {name}.</p></body></html>".encode()


KINDS = {"bars": ("text/csv", bars), "feed": ("application/rss+xml", feed), "page": ("text/html", page)}


class Gated(ThreadingHTTPServer):
    """``/<kind>/<name>``; names with "held" in them wait while ``gate`` is closed, those with "gone" are 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.gate = threading.Event()
        self.asked: Counter[str] = Counter()
        self.arrived = threading.Semaphore(0)
        """Counts requests that came to the gate."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Killed workers hang up; that is what the tests are about."""


class _Answer(BaseHTTPRequestHandler):
    server: Gated
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind, _, name = self.path.strip("/").partition("/")
        self.server.asked[name] += 1
        if "held" in name and not self.server.gate.is_set():
            self.server.arrived.release()
            self.server.gate.wait(60)
        if kind not in KINDS or "gone" in name:
            self.send_error(404)
            return
        content_type, make = KINDS[kind]
        body = make(name.removesuffix(".csv"))
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def gated() -> Iterator[Gated]:
    with Gated() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()

"""What a process that serves nobody (`manage.py dispatcher`) answers to who watches it: /metrics, /healthz, /readyz."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import TimeoutError as TookTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from django.db import connections

from api import health, metrics
from nodes.protocol import CascadeError

logger = logging.getLogger(__name__)

READ_SECONDS = 5.0
"""A connection that is silent for so long is closed."""


class _Handler(BaseHTTPRequestHandler):
    timeout = READ_SECONDS
    server_version, sys_version = "cascade", ""

    def do_GET(self) -> None:
        try:
            self._answer()
        finally:
            connections.close_all()  # this thread's: each connection has one

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._json(200, {"status": health.OK})
        elif path == "/readyz":
            try:
                found = health.probe.begin().result(health.ANSWER_SECONDS)
            except TookTooLong:
                found = health.TOO_LATE
            self._json(*health.answer(found))
        elif path == "/metrics":
            forwarded = any(name in self.headers for name in metrics.FORWARDED)
            try:
                metrics.admit(str(self.client_address[0]), self.headers.get("Authorization", ""), forwarded)
            except CascadeError as error:
                self._json(error.status, error.as_dict())
                return
            self._send(200, metrics.CONTENT_TYPE, metrics.text().encode())
        else:
            self._json(404, {"detail": "there are /metrics, /healthz and /readyz"})

    def _json(self, status: int, body: Any) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", content_type), ("X-Content-Type-Options", "nosniff")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for each scrape."""


class CannotListen(CascadeError):
    """The port is taken, or not this machine's."""

    status = 503


class Watched:
    """A loop: the server, in a thread. ``start`` raises CannotListen."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._server: ThreadingHTTPServer | None = None
        self._thread = threading.Thread(target=self._serve, name="watched", daemon=True)

    def start(self) -> None:
        try:
            self._server = ThreadingHTTPServer(self._address, _Handler)
        except OSError as error:
            raise CannotListen(f"dispatcher_port: {self._address[1]} cannot be listened on: {error.strerror}") from None
        self._server.daemon_threads = True
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    @property
    def port(self) -> int:
        return 0 if self._server is None else int(self._server.server_address[1])

    def _serve(self) -> None:
        assert self._server is not None
        self._server.serve_forever()

"""Daphne's server, bounded: what strangers send takes a limited time, disk and memory before anybody is asked.

Daphne takes whole requests before it tells the application of any: slow ones for ever, large ones into memory, form
fields decoded. Here a request's head has its time, a body its size, its least speed and its share of what may be under
way at once; bodies are files that the application reads piece by piece; an answer waits for a client that reads slowly.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import resource
import shutil
import tempfile
import time
from functools import partial
from typing import Any

from daphne import http_protocol
from daphne import server as daphne
from django.conf import settings
from twisted.internet import task
from twisted.web import http

from dispatch import metrics
from nodes.protocol import SEGMENT_BYTES_LIMIT

logger = logging.getLogger(__name__)

SMALL = 64 * 1024
"""Bytes of a body that are kept in memory; a longer one becomes a file. Also the piece that the application gets."""
STRANGER_LIMIT = 1024 * 1024
"""Largest body of a request that shows no credentials at all."""
CREDENTIALS = ("authorization", "signature", "cookie", "x-api-key")
LEAST_SPEED = 4 * 1024
"""Bytes a second that a body must make in each stretch of ``receive_seconds``."""
SPARE_FILES = 256
"""File descriptors that connections leave to databases, the spool and what this process starts."""
MOST_FILES = 65_536
SWEEP_SECONDS = 1.0
UNREAD_SECONDS = 60.0
"""A client that takes nothing of its answer for so long is gone."""
RETRY_SECONDS = 5
REASONS = {408: b"Request Timeout", 413: b"Content Too Large", 429: b"Too Many Requests", 507: b"Insufficient Storage"}


class Refusal(Exception):
    """A request that is not read to its end, or not kept: with this status, and why."""

    def __init__(self, status: int, detail: str, retry_after: int = 0) -> None:
        super().__init__(detail)
        self.status, self.retry_after = status, retry_after

    def content(self) -> bytes:
        return json.dumps({"field": "body", "detail": str(self)}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"Content-Type", b"application/json"), (b"Content-Length", str(len(self.content())).encode())]
        retry = [(b"Retry-After", str(self.retry_after).encode())] if self.retry_after else []
        return [*headers, *retry]


def body_limit(method: bytes, path: bytes, *, known: bool) -> int:
    """Most bytes of a body that are taken; ``known``: the request shows credentials, whatever they are worth."""
    # What drives a child need not show anything, unless the child asks for it.
    if not known and settings.CASCADE.role != "child":
        return min(STRANGER_LIMIT, int(settings.CASCADE.upload_limit))
    if method == b"PUT" and path.startswith(b"/api/v1/agent/segments/"):
        return SEGMENT_BYTES_LIMIT
    return int(settings.CASCADE.upload_limit)


class Content(io.RawIOBase):
    """Where a body goes while it comes: nowhere, once it is refused; it counts against what all bodies may have."""

    def __init__(self, factory: Factory, limit: int, length: int | None) -> None:
        self._factory = factory
        self._limit = limit
        self._file: Any = io.BytesIO()
        self.size = 0
        self.refusal: Refusal | None = None
        if length is not None and length > limit:
            self.refuse(413, f"is {length} bytes long; {limit} are allowed here")
        elif (
            length
            and length > SMALL
            and shutil.disk_usage(settings.CASCADE.data_dir).free < (settings.CASCADE.disk_reserve + length)
        ):
            self.refuse(507, "does not fit on this server's disk at this moment", RETRY_SECONDS)
        elif length and factory.under_way + length > settings.CASCADE.receive_limit:
            self._too_much()

    def refuse(self, status: int, detail: str, retry_after: int = 0) -> None:
        """What is here is dropped, what still comes is not kept."""
        if self.refusal is None:
            self.refusal = Refusal(status, detail, retry_after)
            if status == 507:
                metrics.put_off.add(of="disk")
            self._release()
            self._file.close()
            self._file = io.BytesIO()

    def write(self, data: Any) -> int:
        if self.refusal is not None:
            return len(data)
        if self.size + len(data) > self._limit:
            self.refuse(413, f"is longer than the {self._limit} bytes that are allowed here")
        elif self._factory.under_way + len(data) > settings.CASCADE.receive_limit:
            self._too_much()
        else:
            self.size += len(data)
            self._factory.under_way += len(data)
            try:
                if self.size > SMALL and isinstance(self._file, io.BytesIO):
                    self._to_disk()
                self._file.write(data)
            except OSError as error:
                self.refuse(507, f"cannot be kept while it comes: {error.strerror}", RETRY_SECONDS)
        return len(data)

    def _too_much(self) -> None:
        metrics.put_off.add(of="body")
        self.refuse(429, "does not fit beside what others send at this moment; send it again later", RETRY_SECONDS)

    def _to_disk(self) -> None:
        # Beside the spool, not in /tmp, which is memory on many machines.
        file = tempfile.TemporaryFile(dir=settings.CASCADE.data_dir)  # noqa: SIM115  (closed with us)
        file.write(self._file.getvalue())
        self._file = file

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._file.read(size)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        at: int = self._file.seek(offset, whence)
        return at

    def tell(self) -> int:
        at: int = self._file.tell()
        return at

    def close(self) -> None:
        if not self.closed:
            self._release()
            self._file.close()
        super().close()

    def _release(self) -> None:
        self._factory.under_way -= self.size
        self.size = 0


class Receiving:
    """What the application's ``receive`` reads from, in place of a queue that Daphne fills with the whole body."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._left = content.size
        self._whole = False
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def put_nowait(self, message: dict[str, Any]) -> None:
        if message["type"] != "http.request":
            self._events.put_nowait(message)

    async def get(self) -> dict[str, Any]:
        if self._whole or not self._events.empty():
            return await self._events.get()
        if self._left > SMALL:
            await asyncio.sleep(0)  # a large one must not keep the others waiting until it is read
        piece = self._content.read(SMALL)
        self._left -= len(piece)
        self._whole = self._left <= 0 or not piece
        return {"type": "http.request", "body": piece, "more_body": not self._whole}


class Request(http_protocol.WebRequest):
    """One request; ``content`` is bounded from its first byte on."""

    channel: Any
    kept: Content | None = None
    # Twisted would decode the fields of a form, of a body as large as it likes; nobody asks for them.
    _parsePOSTFormSubmission = False

    def gotLength(self, length: int | None) -> None:
        path = self.channel._path.split(b"?", 1)[0]
        known = any(self.requestHeaders.hasHeader(name) for name in CREDENTIALS)
        limit = body_limit(self.channel._command, path, known=known)
        self.content = self.kept = Content(self.channel.factory, limit, length)

    def process(self) -> Any:
        assert self.kept is not None
        # An upgrade can be put off here only: once it is a WebSocket's handshake there is no Retry-After.
        if self.requestHeaders.hasHeader("upgrade") and (wait := behind()):
            metrics.put_off.add(of="busy")
            self.kept.refuse(429, "this parent has more to do than it can at this moment", math.ceil(wait))
        if self.kept.refusal is not None:
            return self._refuse(self.kept.refusal)
        return super().process()

    def _refuse(self, refusal: Refusal) -> None:
        metrics.responses.add(of=str(refusal.status))
        self.handle_reply({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers()})
        self.handle_reply({"type": "http.response.body", "body": refusal.content()})

    def finish(self) -> None:
        super().finish()
        self._let_go()

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self._let_go()

    def _let_go(self) -> None:
        if self.kept is not None:
            self.kept.close()


class Channel(http.HTTPChannel):
    """One connection."""

    abortTimeout = 5
    transport: Any
    factory: Any
    began: float | None = None
    """Since when it is receiving a request, or the present stretch of its body; None while it is not."""
    counted = 0
    """Bytes of the body before that stretch."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.began = time.monotonic()
        self.writable = asyncio.Event()
        self.writable.set()
        self.factory.channels.add(self)
        # The lowest free number is taken for each, so that a high one says how many are open.
        if self.transport.getHandle().fileno() > self.factory.most_files - SPARE_FILES:
            self.transport.abortConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.channels.discard(self)
        self.writable.set()
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        if self.began is None and not self._handlingRequest:
            self.began = time.monotonic()
        super().dataReceived(data)

    def allContentReceived(self) -> None:
        self.began, self.counted = None, 0
        super().allContentReceived()

    def pauseProducing(self) -> None:
        self.writable.clear()
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.writable.set()
        super().resumeProducing()

    def overdue(self, now: float) -> bool:
        """Whether what is coming takes longer than it may: the head as a whole, the body in each stretch of time."""
        if self.began is None or now - self.began < settings.CASCADE.receive_seconds:
            return False
        content = self.requests[-1].kept if self.requests else None
        size = content.size if content is not None else 0
        if size - self.counted < LEAST_SPEED * (now - self.began):
            return True
        self.began, self.counted = now, size
        return False

    def give_up(self) -> None:
        self.began = None
        refusal: Refusal | None = None
        if self.requests:
            kept: Content | None = self.requests[-1].kept
            refusal = (kept and kept.refusal) or Refusal(408, "the request did not come in time")
            metrics.responses.add(of=str(refusal.status))
            head = [b"HTTP/1.1 %d %s" % (refusal.status, REASONS[refusal.status]), b"Connection: close"]
            head += [b": ".join(pair) for pair in refusal.headers()]
            self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + refusal.content())
        self.timeoutConnection()


class Factory(http_protocol.HTTPFactory):
    """Makes the connections, and looks after those that are receiving."""

    protocol = Channel

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.channels: set[Channel] = set()
        self.under_way = 0
        """Bytes of bodies that are here and whose requests are not answered."""
        self.most_files = raise_file_limit()
        self._sweep = task.LoopingCall(self.sweep)

    def startFactory(self) -> None:
        super().startFactory()
        self._sweep.start(SWEEP_SECONDS, now=False)

    def stopFactory(self) -> None:
        if self._sweep.running:
            self._sweep.stop()
        super().stopFactory()

    def buildProtocol(self, addr: Any) -> Any:
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = Request
        return protocol

    def sweep(self) -> None:
        now = time.monotonic()
        for channel in [each for each in self.channels if each.overdue(now)]:
            channel.give_up()


class Server(daphne.Server):
    """Daphne's, with ``Factory`` in place of its own, and pings by this parent's own pace."""

    ping_interval: float
    ping_timeout: float
    websocket_handshake_timeout: float
    websocket_connect_timeout: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A half-open socket is closed about when its node is offline.
        half = settings.CASCADE.offline_seconds / 2
        self.ping_interval = min(self.ping_interval, max(half, 1.0))
        self.ping_timeout = min(self.ping_timeout, max(half, 3.0))
        # A busy parent takes a while to look at an upgrade's signature.
        self.websocket_handshake_timeout = self.websocket_connect_timeout

    def run(self) -> None:
        daphne.HTTPFactory = Factory  # Daphne has no other place to say which
        super().run()

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        if scope["type"] != "http":
            return super().create_application(protocol, scope)
        receiving = Receiving(protocol.kept)
        scope.setdefault("asgi", {"version": "3.0"})
        made = self.application(scope=scope, receive=receiving.get, send=partial(self.handle_reply, protocol))
        if protocol not in self.connections:
            return None
        self.connections[protocol]["application_instance"] = asyncio.ensure_future(made)
        protocol.content = io.BytesIO()  # Daphne would read all of it into what we return
        return receiving

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        await super().handle_reply(protocol, message)
        channel = getattr(protocol, "channel", None)
        if message.get("more_body") and isinstance(channel, Channel) and not channel.writable.is_set():
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    await channel.writable.wait()
            except TimeoutError:
                channel.transport.abortConnection()


def behind() -> float:
    """Seconds that a new socket should wait, because more than enough is under way; 0: none."""
    if settings.SERVES_CHILD:
        return 0.0
    from api import agent  # with all that a parent loads

    return agent.turns.next()


def raise_file_limit() -> int:
    """As many open files as the system lets this process have, within reason; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST_FILES if soft == resource.RLIM_INFINITY else soft

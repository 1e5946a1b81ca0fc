"""A TCP proxy on loopback before the parent, which a test can make a bad network of: at run time, fault by fault."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

ANSWER = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
PIECE = 65_536
DRIP_SECONDS = 0.02
RECEIPTS = b'"results"'
"""What an answer to a report has in it, on either carrier: frames from a server are not masked."""


@dataclass
class Faults:
    """What the network does to whoever passes through it; all of it off. "up" is towards the parent."""

    sockets: bool = True
    """Off: WebSocket upgrades are answered with 403, as company proxies do."""
    open: bool = True
    """Off: connections are closed as they come."""
    mute: bool = False
    """Connections are taken and nothing is ever said: half-open from their beginning."""
    drop: float = 0.0
    """Of new connections, this share is closed as they come."""
    delay: float = 0.0
    """Seconds before a piece goes on, either way."""
    drip: float = 0.0
    """Bytes a second, each way; 0: no limit."""
    cut_after: int = 0
    """A connection is reset when the parent has sent it so many bytes; 0: never."""


@dataclass(eq=False)
class _Link:
    """One connection, from its child to the parent."""

    is_socket: bool
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    down: int = 0
    """Bytes from the parent so far."""
    dead: bool = False
    """Nothing passes any more, and neither end hears of it."""
    left: bool = False
    """The parent has closed its side."""
    tail: bytes = field(default=b"", repr=False)

    def reset(self) -> None:
        """RST to both, as from a middle box that has forgotten the connection."""
        for writer in (self.near, self.far):
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                with suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def strand(self) -> None:
        self.dead = True


class Proxy:
    """Forwards TCP connections to ``port`` of this machine, in a thread of its own.

    ``faults`` may be changed at any time; what follows from chance follows from ``seed``.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[_Link] = set()
        self._chance = random.Random(seed)
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._up.set()
        self._down.set()
        self._lose = 0
        self.faults = Faults()
        self.upgrades = 0
        """WebSocket upgrades let through so far."""
        self.breaks = 0
        """Connections reset by ``cut_after`` so far."""
        self.lost: list[bytes] = []
        """Answers to reports that were not passed on; see ``lose_receipts``."""
        self.passed: list[bytes] = []
        """Answers to reports that were passed on since ``lose_receipts`` was called first."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    # Faults beside those of ``faults``

    def cut(self, *, sockets_only: bool = False) -> int:
        """Resets what is connected now; how many connections."""
        return self._run(self._each(_Link.reset, sockets_only))

    def strand(self, *, sockets_only: bool = False) -> int:
        """Lets what is connected now stand open for ever and carry nothing: each end's peer is gone without a FIN."""
        return self._run(self._each(_Link.strand, sockets_only))

    def hold(self, *, up: bool = True, down: bool = True) -> None:
        """A partition, or one-way a black hole: nothing passes until ``release``, nothing closes."""
        self._run(self._gates(not up, not down))

    def release(self) -> None:
        """What was held goes on, as TCP sends again what was not acknowledged."""
        self._run(self._gates(True, True))

    def lose_receipts(self, times: int = 1) -> None:
        """The next answers to reports do not pass: their connection is reset instead. The parent has committed them."""
        self._lose += times

    def heal(self) -> None:
        """No faults; what was stranded stays so."""
        self.faults = Faults()
        self._lose = 0
        self.release()

    def stranded(self) -> int:
        """How many stranded connections the parent has not closed yet."""
        return self._run(self._count_stranded())

    # Inside

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _each(self, act: Callable[[_Link], None], sockets_only: bool) -> int:
        links = [link for link in self._links if not link.dead and (link.is_socket or not sockets_only)]
        for link in links:
            act(link)
        return len(links)

    async def _gates(self, up: bool, down: bool) -> None:
        for gate, opens in ((self._up, up), (self._down, down)):
            gate.set() if opens else gate.clear()

    async def _count_stranded(self) -> int:
        return sum(link.dead and not link.left for link in self._links)

    async def _end(self) -> None:
        self._server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: _Link | None = None
        try:
            if not self.faults.open or self._chance.random() < self.faults.drop:
                return
            if self.faults.mute:
                await reader.read()  # for as long as it likes to wait
                return
            head = await reader.readuntil(b"\r\n\r\n")
            is_socket = b"upgrade: websocket" in head.lower()
            if is_socket and not self.faults.sockets:
                writer.write(ANSWER)
                await writer.drain()
                return
            self.upgrades += is_socket
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target)
            link = _Link(is_socket, writer, back_writer)
            self._links.add(link)
            try:
                await asyncio.gather(
                    self._copy(link, reader, back_writer, self._up, head),
                    self._copy(link, back_reader, writer, self._down),
                )
            finally:
                back_writer.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            if link is not None:
                self._links.discard(link)
            writer.close()

    async def _copy(
        self,
        link: _Link,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        piece: bytes = b"",
    ) -> None:
        downwards = writer is link.near
        with suppress(OSError):
            while piece := piece or await reader.read(PIECE):
                if link.dead:
                    piece = b""
                    continue  # read, so that the end is noticed, and never passed on
                if self.faults.delay:
                    await asyncio.sleep(self.faults.delay)
                await gate.wait()
                if downwards and self._swallows(link, piece):
                    link.reset()
                    return
                await self._pass_on(piece, writer)
                piece = b""
        link.left |= downwards
        if not link.dead:
            writer.close()

    def _swallows(self, link: _Link, piece: bytes) -> bool:
        """Whether this piece from the parent is where the connection breaks."""
        link.down += len(piece)
        seen, link.tail = link.tail + piece, piece[-len(RECEIPTS) :]
        if RECEIPTS in seen and (self._lose or self.lost):
            if self._lose:
                self._lose -= 1
                self.lost.append(seen)
                return True
            self.passed.append(seen)
        breaks = 0 < self.faults.cut_after <= link.down
        self.breaks += breaks
        return breaks

    async def _pass_on(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        while piece:
            size = max(int(self.faults.drip * DRIP_SECONDS), 1) if self.faults.drip else len(piece)
            writer.write(piece[:size])
            await writer.drain()
            piece = piece[size:]
            if piece:
                await asyncio.sleep(DRIP_SECONDS)

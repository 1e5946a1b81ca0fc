"""A proxy on loopback before the parent, which a test can make a bad one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

ANSWER = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Proxy:
    """Forwards TCP connections to ``port`` of this machine, in a thread of its own.

    ``sockets`` off: answers WebSocket upgrades with 403, as company proxies do. ``open`` off: takes no connection.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[tuple[bool, asyncio.StreamWriter]] = set()
        self.sockets = True
        self.open = True
        self.upgrades = 0
        """WebSocket upgrades let through so far."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
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

    def cut(self, *, sockets_only: bool = False) -> int:
        """Resets what is connected now; how many connections."""
        return self._run(self._cut(sockets_only))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _end(self) -> None:
        self._server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _cut(self, sockets_only: bool) -> int:
        links = [writer for is_socket, writer in self._links if is_socket or not sockets_only]
        for writer in links:
            writer.transport.abort()
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: tuple[bool, asyncio.StreamWriter] | None = None
        try:
            if not self.open:
                return
            head = await reader.readuntil(b"\r\n\r\n")
            is_socket = b"upgrade: websocket" in head.lower()
            if is_socket and not self.sockets:
                writer.write(ANSWER)
                await writer.drain()
                return
            self.upgrades += is_socket
            link = is_socket, writer
            self._links.add(link)
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target)
            back_writer.write(head)
            try:
                await asyncio.gather(_copy(reader, back_writer), _copy(back_reader, writer))
            finally:
                back_writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if link is not None:
                self._links.discard(link)
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    writer.close()

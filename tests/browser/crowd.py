"""Nodes that beat without a pause over sockets of their own, so that far more happens than a page can show."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

from cascade.local import LocalTree
from nodes import signing


class Crowd:
    """``count`` nodes of ``tree``; each beats again as soon as the parent has answered. A context manager."""

    def __init__(self, tree: LocalTree, count: int) -> None:
        self._tree = tree
        self._keys = []
        self.names = [f"crowd-{number:03}" for number in range(count)]
        for name in self.names:
            made = tree.json("POST", "/api/v1/nodes", json={"name": name})
            self._keys.append({field: made[field] for field in ("access_key", "secret_key")})
        self.beats = 0
        self._loop = asyncio.new_event_loop()
        self._all = threading.Event()
        self._trouble: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="crowd", daemon=True)
        self._thread.start()
        assert self._all.wait(60), self._trouble
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(30)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._together())

    async def _together(self) -> None:
        self._ending = asyncio.Event()
        heard = [asyncio.Event() for _ in self._keys]
        tasks = [asyncio.create_task(self._one(key, event)) for key, event in zip(self._keys, heard, strict=True)]
        for event in heard:
            await event.wait()
        self._all.set()
        await self._ending.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, key: dict[str, str], heard: asyncio.Event) -> None:
        address = f"{self._tree.url}/ws/agent"
        headers = signing.sign("GET", address, access_key=key["access_key"], secret_key=key["secret_key"])
        try:
            async with connect(
                address.replace("http", "ws", 1), additional_headers=headers, compression=None, proxy=None
            ) as socket:
                await self._beat(socket, heard)
        except Exception as error:
            self._trouble = error
            raise

    async def _beat(self, socket: ClientConnection, heard: asyncio.Event) -> None:
        for number in itertools.count():
            said: dict[str, Any] = {"boot": "one", "held": [], "running": [], "version": "0.0", "executors": ["echo"]}
            said |= {
                "carrier": "push",
                "hello": not number,
                "cpu": float(number % 89 + 1),
                "memory": 20.0,
                "disk": 30.0,
            }
            await socket.send(json.dumps({"type": "beat", "id": number, "body": said}))
            while json.loads(await socket.recv()).get("re") != number:
                pass
            self.beats += 1
            heard.set()

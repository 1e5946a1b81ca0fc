"""The wire between children and parent: exchanges that are lost, doubled, late or out of order; sockets that break.

What is sent is JSON in bytes, as on a real wire, so that nothing is shared between two processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.agent import carriers
from tests.sim.clock import Process

if TYPE_CHECKING:
    from tests.sim.children import Below
    from tests.sim.world import World

PING_SECONDS = 30.0
"""A socket over which nothing comes for so long is closed, by each side for itself."""
UP, DOWN = "up", "down"


class Network:
    """How bad it is: chances per message until the world's calm, seconds of delay."""

    def __init__(self, world: World) -> None:
        dice = world.dice("network")
        self._world = world
        self._dice = dice
        self.drop = dice.choice([0.0, 0.02, 0.1, 0.2])
        self.double = dice.choice([0.0, 0.05, 0.15])
        self.slow = dice.choice([0.0, 0.05, 0.2])
        self.slowest = dice.choice([1.0, 5.0, 40.0])
        self.messages = 0
        self._cut: dict[tuple[str, str], float] = {}
        self.wires: list[Wire] = []

    # What is wrong with it

    def partition(self, child: str, directions: list[str], until: float) -> None:
        for direction in directions:
            self._cut[child, direction] = until
        if until - self._world.now > PING_SECONDS:
            for wire in self.wires:
                if wire.child_name == child:
                    wire.fall_silent()

    def heal(self) -> None:
        self._cut.clear()

    def healed_at(self, child: str, direction: str) -> float:
        return max(self._cut.get((child, direction), 0.0), self._world.now)

    def lost(self, child: str, direction: str) -> bool:
        if self.healed_at(child, direction) > self._world.now:
            return True
        return self._world.troubled and self._dice.random() < self.drop

    def doubled(self) -> bool:
        return self._world.troubled and self._dice.random() < self.double

    def delay(self) -> float:
        if self._world.troubled and self._dice.random() < self.slow:
            return self._dice.uniform(0.0, self.slowest)
        return self._dice.uniform(0.0005, 0.03)

    # What travels

    def send(self, process: Process, work: Callable[..., Any], *args: Any) -> None:
        """``work`` in ``process`` after a while."""
        self.messages += 1
        self._world.after(self.delay(), process.call, work, *args)

    async def exchange(
        self, below: Below, child: Process, method: str, path: str, content: bytes, patience: float
    ) -> dict[str, Any]:
        """A request of ``below``, whose process is ``child``, and its answer. Raises Unreachable, Refused."""
        answered: asyncio.Future[tuple[int, bytes, str | None] | None] = child.loop.create_future()

        def hear(answer: tuple[int, bytes, str | None] | None) -> None:
            if not answered.done():
                answered.set_result(answer)

        def answer(sent: tuple[int, bytes, str | None] | None) -> None:
            """From the parent; None: its end of the connection is gone."""
            if not self.lost(child.name, DOWN):
                self.send(child, hear, sent)
            elif self._dice.random() < 0.7:
                # Mostly one learns of it soon: a reset.
                self._world.after(self._dice.uniform(0.1, 5.0), child.call, hear, None)

        above, caller = below.above, below.caller
        for _ in range(2 if self.doubled() else 1):
            if self.lost(child.name, UP):
                self._world.after(self._dice.uniform(0.05, 5.0), child.call, hear, None)
            else:
                self.messages += 1
                self._world.after(self.delay(), above.receive, below, caller, method, path, content, answer)
        try:
            async with asyncio.timeout(patience):
                came = await answered
        except TimeoutError:
            raise carriers.Unreachable(f"{path}: no answer in {patience:g} s") from None
        if came is None:
            raise carriers.Unreachable(f"{path}: the connection was reset")
        return carriers._decoded(*came)


class Rest(carriers.Rest):
    """The production one, whose requests go over this network."""

    def __init__(self, below: Below, process: Process, other: carriers.Rest) -> None:
        self.__dict__.update(other.__dict__)
        self._below = below
        self._process = process

    async def _run(self, method: str, path: str, content: bytes | Path, patience: float) -> dict[str, Any]:
        if method == "GET":
            raise carriers.Unreachable("nothing here reads tables, or the configuration")
        sent = content.read_bytes() if isinstance(content, Path) else content
        verb = path.removeprefix("/api/v1/agent/")
        network = self._below._world.network
        return await network.exchange(self._below, self._process, method, verb, sent, patience)


class Wire:
    """A WebSocket. What is sent arrives in order and once, or the wire breaks; each side learns of that for itself."""

    def __init__(self, world: World, child: Process, parent: Process) -> None:
        self.child_name = child.name
        self.open = True
        """Off: what is sent gets lost."""
        self._world = world
        self._network = world.network
        self._child = child
        self._parent = parent
        self._last = {UP: world.now, DOWN: world.now}
        self.to_child: asyncio.Queue[str | None] = asyncio.Queue()
        self.to_parent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._network.wires.append(self)

    def up(self, text: str) -> None:
        self._carry(UP, self._parent, self.to_parent.put_nowait, {"type": "websocket.receive", "text": text})

    def down(self, text: str) -> None:
        self._carry(DOWN, self._child, self.to_child.put_nowait, text)

    def _carry(self, direction: str, process: Process, put: Callable[[Any], None], what: Any) -> None:
        if not self.open:
            return
        if self._network._world.troubled and self._network._dice.random() < self._network.drop / 5:
            self.break_off()
            return
        self._network.messages += 1
        at = max(self._network.healed_at(self.child_name, direction), self._last[direction]) + self._network.delay()
        if at - self._world.now > PING_SECONDS:
            self.fall_silent()
            return
        self._last[direction] = at
        self._world.at(at, process.call, put, what)

    def break_off(self) -> None:
        """Both sides learn of it soon."""
        self._close(self._network.delay(), self._network.delay())

    def fall_silent(self) -> None:
        """Half-open: each side learns of it by its pings."""
        dice = self._network._dice
        self._close(PING_SECONDS * dice.uniform(0.7, 1.2), PING_SECONDS * dice.uniform(0.7, 1.5))

    def _close(self, child_after: float, parent_after: float) -> None:
        if not self.open:
            return
        self.open = False
        if self in self._network.wires:
            self._network.wires.remove(self)
        gone = {"type": "websocket.disconnect", "code": 1006}
        self._world.after(child_after, self._child.call, self.to_child.put_nowait, None)
        self._world.after(parent_after, self._parent.call, self.to_parent.put_nowait, gone)

    def of(self, process: Process) -> bool:
        return process in (self._child, self._parent)


class Socket:
    """The child's end, with what ``carriers.Push`` uses of a ``ClientConnection``."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._closed = False

    async def send(self, text: str) -> None:
        if self._closed:
            raise _closed()
        self._wire.up(text)

    def __aiter__(self) -> Socket:
        return self

    async def __anext__(self) -> str:
        text = None if self._closed else await self._wire.to_child.get()
        if text is None:
            self._closed = True
            raise _closed()
        return text

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._wire.break_off()


def _closed() -> Exception:
    from websockets.exceptions import ConnectionClosedError

    return ConnectionClosedError(None, None)

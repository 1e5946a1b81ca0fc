"""A parent: a process with the production views, sockets, dispatcher and saver, in threads of ``clock``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from api import agent as rest
from api import sockets
from dispatch import events
from dispatch.dispatcher import Dispatcher
from dispatch.results import saver as saver_
from nodes.keys import Caller
from nodes.protocol import Unauthenticated
from tests.sim import environment
from tests.sim.clock import Bell, Crash, Process, Thread
from tests.sim.machine import Machine
from tests.sim.network import Wire

if TYPE_CHECKING:
    from tests.sim.children import Below
    from tests.sim.promises import Promises
    from tests.sim.world import World

Answer = Callable[[tuple[int, bytes, str | None] | None], None]

_caller: ContextVar[Caller] = ContextVar("caller")
_perform = rest.perform


def authenticated() -> Caller:
    """Who sent what is served now. Signatures are another matter, and have tests of their own."""
    caller = _caller.get()
    # By hand: this is asked with every request, and Django's way takes as long as the rest of a short verb.
    sql = "SELECT 1 FROM nodes_accesskey WHERE id = ? AND revoked_at IS NULL"
    if environment.database().execute(sql, [caller.key_id]).fetchone() is None:
        raise Unauthenticated("the key was revoked")
    return caller


def perform(caller: Caller, verb: str, body: Any) -> Any:
    """As ``api.agent.perform``, noting who acts: promises look at that when something is committed."""
    thread = Thread.current
    assert thread is not None
    thread.acting = caller, verb, body  # type: ignore[attr-defined]
    try:
        return _perform(caller, verb, body)
    finally:
        del thread.acting  # type: ignore[attr-defined]


class Request:
    """What the views use of Django's."""

    def __init__(self, method: str, content: bytes) -> None:
        self.method = method
        self.META = {"CONTENT_LENGTH": str(len(content))}
        self._content = content

    def read(self, most: int = -1) -> bytes:
        content, self._content = self._content, b""
        return content

    def is_secure(self) -> bool:
        return True


class Parent:
    """Its processes, one after the other. ``machine`` and ``store`` are what stays."""

    KIND = "parent"
    machine: Machine
    promises: Promises

    def __init__(self, world: World, name: str = "parent") -> None:
        dice = world.dice(name)
        self.name = name
        self._world = world
        self._open: dict[Answer, None] = {}
        self.offset = dice.choice([0.0, 3600.0, -86_400.0])
        self.store: Any = None
        self.process: Process = Process(world, name)
        self.process.dead = True

    @property
    def alive(self) -> bool:
        return not self.process.dead

    # Its life

    def start(self) -> None:
        if self.alive:
            return
        self._world.note(f"the {self.name} starts")
        self.process = Process(self._world, self.name, offset=self.offset, machine=self.machine)
        self._world.of[self.process.loop] = self
        self._world.processes.append(self.process)
        self.process.call(self._boot)

    def _boot(self) -> None:
        self.machine.forget()
        events._loop = self.process.loop
        self.save()
        made = Dispatcher()
        made._stopping = Bell()  # type: ignore[assignment]
        self.thread(made.run)

    def save(self) -> None:
        """A saver begins, as in a process that has just started."""
        saver = saver_.Saver()
        saver.store = self.store
        saver._stopping = Bell()  # type: ignore[assignment]
        saver_._store = saver.store
        self.thread(saver.run)

    def thread(self, work: Callable[[], Any]) -> None:
        """In its process, as one of its threads; call it there."""
        Thread(work).start()

    def kill(self, *, torn: bool = False) -> None:
        """kill -9; ``torn``: its machine with it, and of the result store's log nothing is left."""
        if not self.alive:
            return
        world = self._world
        world.note(f"the {self.name} is killed" + (", and the log is torn" if torn else ""))
        self.process.dead = True
        self.store = self.store.crash(torn=torn)
        for wire in [wire for wire in world.network.wires if wire.of(self.process)]:
            wire.break_off()
        for answer in list(self._open):
            answer(None)
        self._open.clear()

    def crash_here(self, *, torn: bool = False) -> None:
        """In the middle of its own code."""
        self.kill(torn=torn)
        raise Crash

    def freeze(self, seconds: float) -> None:
        if not self.alive:
            return
        self._world.note(f"the {self.name} freezes for {seconds:.1f} s")
        self.process.frozen_until = self._world.now + seconds
        if seconds > 25.0:
            for wire in [wire for wire in self._world.network.wires if wire.of(self.process)]:
                wire.fall_silent()

    def jump(self, seconds: float) -> None:
        """Somebody sets its clock."""
        self._world.note(f"the {self.name}'s clock jumps by {seconds:.0f} s")
        self.offset += seconds
        self.process.offset = self.offset

    def do(self, what: str, work: Callable[[], Any]) -> None:
        """An operator's wish, if there is somebody to hear it. What comes of it is noted."""

        def wished() -> None:
            try:
                told = str(work())
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
            self._world.note(f"operator: {what}: {told[:80]}")

        if self.alive:
            self.process.call(self.thread, wished)

    # What children send

    def receive(self, child: Below, caller: Caller, method: str, path: str, content: bytes, answer: Answer) -> None:
        """A request has arrived at its machine."""
        if not self.alive:
            answer(None)
            return
        self._open[answer] = None
        self.process.call(self._serve, child, caller, method, path, content, answer)

    def _serve(self, child: Below, caller: Caller, method: str, path: str, content: bytes, answer: Answer) -> None:
        async def serve() -> None:
            _caller.set(caller)
            request: Any = Request(method, content)
            try:
                if path == "claim":
                    response = await rest.claim(request)
                elif path.startswith("segments/"):
                    response = await rest.segment(request, path.removeprefix("segments/"))
                else:
                    response = await rest.verb(request, path)
                # (FileResponse has no content; nothing here reads tables.)
                sent = response.status_code, response.content, response.get("Retry-After")  # type: ignore[attr-defined]
            except Exception as error:
                sent = 500, json.dumps({"detail": str(error)}).encode(), None
            self._open.pop(answer, None)
            problem = f": {sent[1][:200]!r}" if sent[0] == 500 else ""
            self._world.note(f"{child.name} {path[:12]} -> {sent[0]}{problem}")
            answer(sent)

        self._task(serve())

    def upgrade(self, child: Below, caller: Caller, wire: Wire, hear: Callable[[bool], None]) -> None:
        """A child asks for a socket."""
        if not self.alive or wire._parent is not self.process:
            self._world.after(0.01, child.process.call, hear, False)
            return
        self.process.call(self._socket, child, caller, wire, hear)

    def _socket(self, child: Below, caller: Caller, wire: Wire, hear: Callable[[bool], None]) -> None:
        heard = child.process

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "websocket.send":
                wire.down(message["text"])
            elif message["type"] == "websocket.accept":
                self._world.network.send(heard, hear, True)
            else:
                self._world.network.send(heard, hear, False)
                wire.break_off()

        async def serve() -> None:
            _caller.set(caller)
            wire.to_parent.put_nowait({"type": "websocket.connect"})
            try:
                await sockets.AgentSocket.as_asgi()({"type": "websocket"}, wire.to_parent.get, send)
            finally:
                wire.break_off()

        self._task(serve())

    def _task(self, work: Any) -> None:
        task = self.process.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    _tasks: set[asyncio.Task[None]] = set()

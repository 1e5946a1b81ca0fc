"""The parent: a process with the production views, sockets, dispatcher and saver, in threads of ``clock``."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import channels.layers

from api import agent as rest
from api import beats, limits, revoked, sockets
from dispatch import configuration, ending, events, queue, synclog
from dispatch.dispatcher import Dispatcher
from dispatch.lifecycle import kept
from dispatch.results import room
from dispatch.results import saver as saver_
from nodes.keys import Caller
from nodes.protocol import Unauthenticated
from tests.sim import environment
from tests.sim.clock import Bell, Crash, Process, Thread
from tests.sim.network import Wire

if TYPE_CHECKING:
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
    """Its processes, one after the other."""

    def __init__(self, world: World) -> None:
        dice = world.dice("parent")
        self._world = world
        self._open: dict[Answer, None] = {}
        self.offset = dice.choice([0.0, 3600.0, -86_400.0])
        self.process: Process = Process(world, "parent")
        self.process.dead = True

    @property
    def alive(self) -> bool:
        return not self.process.dead

    # Its life

    def start(self) -> None:
        if self.alive:
            return
        self._world.note("the parent starts")
        self.process = Process(self._world, "parent", offset=self.offset)
        self._world.processes.append(self.process)
        self.process.call(self._boot)

    def _boot(self) -> None:
        forget()
        events._loop = self.process.loop
        for name in ("dispatcher", "saver"):
            setattr(events, name, Bell())
        self.save()
        made = Dispatcher()
        made._stopping = Bell()  # type: ignore[assignment]
        self.thread(made.run)

    def save(self) -> None:
        """A saver begins, as in a process that has just started."""
        saver = saver_.Saver()
        saver.store = self._world.store
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
        world.note("the parent is killed" + (", and the log is torn" if torn else ""))
        self.process.dead = True
        world.store = world.store.crash(torn=torn)
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
        self._world.note(f"the parent freezes for {seconds:.1f} s")
        self.process.frozen_until = self._world.now + seconds
        if seconds > 25.0:
            for wire in list(self._world.network.wires):
                wire.fall_silent()

    def jump(self, seconds: float) -> None:
        """Somebody sets its clock."""
        self._world.note(f"the parent's clock jumps by {seconds:.0f} s")
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

    def receive(self, child: str, method: str, path: str, content: bytes, answer: Answer) -> None:
        """A request has arrived at its machine."""
        if not self.alive:
            answer(None)
            return
        self._open[answer] = None
        self.process.call(self._serve, child, method, path, content, answer)

    def _serve(self, child: str, method: str, path: str, content: bytes, answer: Answer) -> None:
        async def serve() -> None:
            _caller.set(self._world.children[child].caller)
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
            self._world.note(f"{child} {path[:12]} -> {sent[0]}{problem}")
            answer(sent)

        self._task(serve())

    def upgrade(self, child: str, wire: Wire, hear: Callable[[bool], None]) -> None:
        """A child asks for a socket."""
        if not self.alive or wire._parent is not self.process:
            self._world.after(0.01, self._world.children[child].process.call, hear, False)
            return
        self.process.call(self._socket, child, wire, hear)

    def _socket(self, child: str, wire: Wire, hear: Callable[[bool], None]) -> None:
        heard = self._world.children[child].process

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "websocket.send":
                wire.down(message["text"])
            elif message["type"] == "websocket.accept":
                self._world.network.send(heard, hear, True)
            else:
                self._world.network.send(heard, hear, False)
                wire.break_off()

        async def serve() -> None:
            _caller.set(self._world.children[child].caller)
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


def forget() -> None:
    """What a process knows is gone with it."""
    kept.about.cache_clear()
    kept.frozen.cache_clear()
    configuration.forget()
    revoked.watch = revoked.Watch()
    limits.keys = limits.KeyLimits()
    beats.pace, beats.gathering = beats.Pace(), beats.Gathering()
    room._waiting, room._looked = 0, -room.LOOK_SECONDS
    ending._asked.clear()
    ending._begun.clear()
    queue._wakes = queue.Wakes()
    synclog._sums = {}
    synclog._flushed = 0.0
    events._listeners.clear()
    events._loop = None
    events._count = itertools.count(1)
    channels.layers.channel_layers.backends.clear()

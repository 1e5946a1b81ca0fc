"""Children: the production agent on a process of its own, which may be killed, frozen, stopped and started again.

``Below`` is what a relay has of that, too: a name and a key at a server above, and a line to it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.agent.carriers import Link
from nodes.agent.config import AgentConfig
from nodes.agent.loop import Agent
from nodes.keys import Caller, IssuedKey
from nodes.models import AccessKey
from tests.sim.clock import Crash, Process
from tests.sim.network import Rest, Socket, Wire
from tests.sim.pool import Fates, Pool

if TYPE_CHECKING:
    from tests.sim.parent import Parent
    from tests.sim.world import World

_of: dict[int, Below] = {}
"""Loop -> whose line to a server above is on it."""


class Vitals:
    """This machine is nothing to a simulated one."""

    def __init__(self, folder: Path) -> None:
        pass

    def now(self) -> dict[str, float]:
        return {"cpu": 10.0, "memory": 10.0, "disk": 10.0}


class Sampler:
    def __init__(self, folder: Path, *, resident: bool = False) -> None:
        pass

    def take(self) -> None:
        pass


class Overheard(Link):
    """What it is told of its work is noted."""

    child: Below

    async def call(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        above = self.child.above
        reply = await super().call(verb, body)
        above.promises.heard(verb, body, reply)
        return reply


class SimulatedAgent(Agent):
    """Its workers are simulated; nothing else is."""

    child: Child

    def _workers(self) -> Any:
        if self._pool is None or self._pool.size != self.capacity:
            made: Any = Pool(self.child, self.capacity, str(self._outbox.folder), self._note_progress)
            self._pool = made
        return self._pool


def connect_by_the_network() -> None:
    """Sockets of agents, which production code opens by this function, are wires of the network."""
    import websockets.asyncio.client

    async def connect(*_: Any, **__: Any) -> Socket:
        import asyncio

        child = _of[id(asyncio.get_running_loop())]
        return await child.connect()

    websockets.asyncio.client.connect = connect  # type: ignore[assignment,misc]


class Below:
    """Who has a key of the server ``above``, and is the node ``node`` there."""

    name: str
    process: Process
    caller: Caller
    gone = False
    """It never comes back."""
    _world: World
    _config: AgentConfig

    def belongs(self, above: Parent, node: int, config: AgentConfig) -> None:
        self.above = above
        self.node = node
        self._config = config

    def has_key(self, key: IssuedKey) -> None:
        """This one from the next start on. Call it where the server above is."""
        row = AccessKey.objects.get(access_key=key.access_key)
        self._config = replace(self._config, access_key=key.access_key, secret_key=key.secret_key)
        self.caller = Caller(self.node, row.pk, key.access_key)

    def moves(self, above: Parent, node: int, key: IssuedKey) -> None:
        """To another server, from the next start on. Call it where that is."""
        self.above, self.node = above, node
        self.has_key(key)

    def way(self) -> str:
        """As the root names it: through whom its rows come."""
        above = self.above
        return f"{above.way()}/{self.name}" if isinstance(above, Below) else self.name

    def line(self, *told: Any) -> Link:
        """What its code has for a line to the server above."""
        _of[id(self.process.loop)] = self
        link = Overheard(self._config, *told)
        link.rest = Rest(self, self.process, link.rest)
        link.child = self
        return link

    async def connect(self) -> Socket:
        """A socket to the server above. Raises OSError."""
        import asyncio

        world = self._world
        answered: asyncio.Future[bool] = self.process.loop.create_future()

        def hear(accepted: bool) -> None:
            if not answered.done():
                answered.set_result(accepted)

        wire = Wire(world, self.process, self.above.process)
        if not world.network.lost(self.name, "up"):
            world.network.messages += 1
            world.after(world.network.delay(), self.above.upgrade, self, self.caller, wire, hear)
        try:
            async with asyncio.timeout(10):
                accepted = await answered
        except TimeoutError:
            wire.break_off()
            raise OSError("no answer to the upgrade") from None
        if not accepted:
            wire.break_off()
            raise OSError("the upgrade is refused")
        return Socket(wire)


class Child(Below):
    """A node, its machine's clock and disk, and its agent, if it runs."""

    KIND = "child"
    CAPACITIES = (1, 1, 2, 3)

    def __init__(self, world: World, name: str) -> None:
        dice = world.dice(name)
        self.name = name
        self.dice = dice
        self.fates: Fates = world.fates
        self.slowness = dice.choice([0.5, 1.0, 1.0, 1.5, 4.0])
        self._rate = dice.choice([1.0, 1.0, 0.97, 1.03, 0.8, 1.25])
        self._offset = dice.choice([0.0, 600.0, -600.0, dice.uniform(-1e6, 1e6)])
        self._world = world
        self.process = Process(world, name)
        self.process.dead = True
        self.agent: SimulatedAgent | None = None

    @property
    def alive(self) -> bool:
        return not self.process.dead

    def start(self) -> None:
        if self.alive or self.gone:
            return
        world = self._world
        self.process = Process(world, self.name, self._rate, self._offset)
        world.processes.append(self.process)
        world.of[self.process.loop] = self
        world.note(f"{self.name} starts")
        self.process.call(self._boot)

    def _boot(self) -> None:
        agent = SimulatedAgent(self._config, "sim", line=self.line)
        agent.child = self
        agent._sync = None
        self.agent = agent
        running = self.process.loop.create_task(agent.run())

        def ended(_: Any) -> None:
            error = None if running.cancelled() else running.exception()
            self._world.note(f"{self.name} has ended{': ' if error else ''}{error or ''}")
            self._end(self.process)

        running.add_done_callback(ended)

    def kill(self) -> None:
        """kill -9."""
        if self.alive:
            self._world.note(f"{self.name} is killed")
            self._end(self.process)

    def _end(self, process: Process) -> None:
        """The process is over; its disk stays, and its connections break."""
        process.dead = True
        if self.agent is not None:
            if lock := getattr(self.agent._outbox, "_lock", None):
                lock.close()  # as the system does with what a dead process held
            self.agent = None
        for wire in [wire for wire in self._world.network.wires if wire.of(process)]:
            wire.break_off()

    def crash_here(self) -> None:
        """In the middle of its own code."""
        self.kill()
        raise Crash

    def stop(self) -> None:
        """SIGTERM."""
        if self.alive and self.agent is not None:
            self._world.note(f"{self.name} is asked to stop")
            self.process.call(self.agent.stop)

    def freeze(self, seconds: float) -> None:
        if not self.alive:
            return
        self._world.note(f"{self.name} freezes for {seconds:.1f} s")
        self.process.frozen_until = self._world.now + seconds
        if seconds > 25.0:
            for wire in [wire for wire in self._world.network.wires if wire.of(self.process)]:
                wire.fall_silent()


def forget() -> None:
    _of.clear()

"""What goes wrong in a world, and when: at named points of the code, and at random moments."""

from __future__ import annotations

import errno
from collections import Counter
from typing import TYPE_CHECKING, Any

from django.db import OperationalError, connection

from nodes import failpoints
from tests.sim.children import Child
from tests.sim.clock import Thread

if TYPE_CHECKING:
    from tests.sim.parent import Parent
    from tests.sim.world import World

CHILD_POINTS = ("agent.", "outbox.")
MOST_CRASHES = 4
"""Of the parent, and of each child."""


class Undone(Exception):
    """As PostgreSQL's driver says that it broke a deadlock: the transaction did nothing, and may be tried again."""

    sqlstate = "40P01"


class Faults:
    """Chances are low everywhere and high at a few points, other ones in each world, so that worlds differ."""

    NUMBERS: tuple[int, ...] = (0, 2, 5, 8)
    """How much goes wrong at random moments."""
    FIRST = 1.0
    """Nothing of that sooner. Seconds."""

    def __init__(self, world: World) -> None:
        dice = world.dice("faults")
        self._world = world
        self._dice = dice
        self._base = dice.choice([0.0, 0.002, 0.01])
        points = sorted(failpoints.POINTS)
        self._hot = {point: dice.choice([0.03, 0.1, 0.3]) for point in dice.sample(points, dice.choice([0, 1, 2, 3]))}
        self._torn = dice.random() < 0.3
        self.counts: Counter[str] = Counter()
        self._crashes: Counter[str] = Counter()

    # At named points

    def reach(self, name: str) -> None:
        """The code that runs now is at ``name``."""
        if name == "write.committed":
            self._world.committed()
        if not self._world.troubled or self._dice.random() >= self._hot.get(name, self._base):
            return
        acting = self._world.acting()
        if isinstance(acting, Child):
            self._in_child(acting, name)
        elif acting is not None and acting.alive and not name.startswith(CHILD_POINTS):
            self._in_parent(acting, name)

    def _in_child(self, child: Child, name: str) -> None:
        if name == "outbox.written" and self._dice.random() < 0.3:
            self._count("full", f"{child.name} has no room at {name}")
            raise OSError(errno.ENOSPC, "no space left on device (simulated)")
        if self._may_crash(child):
            self._count("child killed", f"{child.name} dies at {name}")
            self._plan_return(child)
            child.crash_here()

    def _may_crash(self, who: Any) -> bool:
        self._crashes[who.name] += 1
        return self._crashes[who.name] <= MOST_CRASHES

    def _in_parent(self, server: Parent, name: str) -> None:
        dice = self._dice
        can_wait = Thread.current is not None and not connection.in_atomic_block
        what = dice.choice(["crash", "error", "wait", "wait"] if can_wait else ["crash", "error", "undone"])
        if what == "crash":
            if self._may_crash(server):
                self._count(f"{server.KIND} killed", f"the {server.name} dies at {name}")
                self._plan_start(server)
                server.crash_here(torn=self._torn and dice.random() < 0.5)
        elif what == "wait":
            seconds = dice.choice([0.01, 0.5, 5.0, 40.0]) * dice.random()
            self._count("thread stands", f"a thread stands at {name} for {seconds:.2f} s")
            assert Thread.current is not None
            Thread.current.wait(seconds)
        elif what == "undone" and name.startswith("write."):
            self._count("undone", f"a deadlock is broken at {name}")
            raise OperationalError("deadlock detected (simulated)") from Undone()
        else:
            self._count("no answer", f"the database does not answer at {name}")
            raise OperationalError("server closed the connection unexpectedly (simulated)")

    def _count(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self._world.note(what)

    def _plan_start(self, server: Any) -> None:
        if server is self._world.parent:
            self._world.after(self._dice.choice([0.5, 5.0, 60.0]) * self._dice.random(), server.start)
        else:
            self._plan_return(server)

    def _plan_return(self, child: Any) -> None:
        if self._dice.random() < 0.1:
            child.gone = True
            return
        self._world.after(self._dice.choice([0.2, 5.0, 90.0]) * self._dice.random(), child.start)

    # At random moments

    def plan(self) -> None:
        """Everything until the world's calm."""
        world, dice = self._world, self._dice
        kinds: list[Any] = [self._kill_child, self._stop_child, self._freeze_child, self._cut_off, self._break_socket]
        kinds += [self._kill_parent, self._freeze_parent, self._jump, self._spoil]
        kinds += self._more()
        for _ in range(dice.choice(self.NUMBERS)):
            world.at(dice.uniform(self.FIRST, world.calm), dice.choice(kinds))

    def _more(self) -> list[Any]:
        """What else goes wrong in worlds of this kind."""
        return []

    def _some_child(self) -> Any:
        return self._dice.choice(list(self._world.children.values()))

    def _kill_child(self) -> None:
        child = self._some_child()
        if child.alive and self._may_crash(child):
            self._count(f"{child.KIND} killed", f"{child.name} is hit")
            child.kill()
            self._plan_return(child)

    def _stop_child(self) -> None:
        child = self._some_child()
        if child.alive:
            self._count("child stopped", f"{child.name} is told to stop")
            child.stop()
            self._world.after(self._dice.uniform(1.0, 40.0), child.start)

    def _freeze_child(self) -> None:
        child = self._some_child()
        if child.alive:
            self._count("frozen", child.name)
            child.freeze(self._dice.choice([2.0, 20.0, 90.0]) * self._dice.random())

    def _freeze_parent(self) -> None:
        if self._world.parent.alive:
            self._count("frozen", "parent")
            self._world.parent.freeze(self._dice.choice([2.0, 20.0, 90.0]) * self._dice.random())

    def _cut_off(self) -> None:
        child = self._some_child()
        directions = self._dice.choice([["up"], ["down"], ["up", "down"]])
        seconds = self._dice.choice([3.0, 30.0, 100.0]) * self._dice.random()
        self._count("partition", f"{child.name} is cut off ({', '.join(directions)}) for {seconds:.1f} s")
        self._world.network.partition(child.name, directions, self._world.now + seconds)

    def _break_socket(self) -> None:
        if wires := self._world.network.wires:
            self._count("socket broken", "a socket breaks")
            self._dice.choice(wires).break_off()

    def _kill_parent(self) -> None:
        if self._world.parent.alive and self._may_crash(self._world.parent):
            self._count("parent killed", "the parent is hit")
            self._world.parent.kill(torn=self._torn and self._dice.random() < 0.5)
            self._world.after(self._dice.choice([0.5, 5.0, 60.0]) * self._dice.random(), self._world.parent.start)

    def _jump(self) -> None:
        self._count("clock jump", "")
        self._world.parent.jump(self._dice.choice([-600.0, -20.0, 20.0, 600.0, 86_400.0]))

    def _spoil(self) -> None:
        """A bit of a spooled segment flips."""
        server = self._world.parent
        files = sorted(server.machine.settled.spool.glob("*.arrow"))
        if files:
            file = self._dice.choice(files)
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
            server.promises.damaged = True
            self._count("bit flipped", f"a bit flips in {file.name[:8]}")

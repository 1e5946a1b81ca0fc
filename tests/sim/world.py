"""One world: made from a seed, run until everything has come to rest, and looked at all the while."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import os
import random
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from nodes import failpoints, journal, registry
from nodes.agent import runner
from nodes.agent.config import AgentConfig
from nodes.fields import QuotaSpec
from tests.sim import children, clock, environment
from tests.sim.children import Child
from tests.sim.clock import Process, Thread, Timeline
from tests.sim.faults import Faults
from tests.sim.machine import Machine
from tests.sim.network import Network
from tests.sim.operator import Operator
from tests.sim.parent import Parent
from tests.sim.pool import Fates
from tests.sim.promises import Broken, Promises
from tests.sim.store import FileStore, MemoryStore

REST_SECONDS = 900.0
"""After its calm a world comes to rest within so long."""
STEPS = 400_000
"""More steps than this at one virtual time or another are a world that turns in circles."""
TOLD = 60
REAL_STORE = 10
"""Each so-manieth world has the real result store."""


@dataclass
class Result:
    """What became of one world."""

    seed: str
    digest: str
    """Of everything that happened in it: the same whenever it is run."""
    broken: str = ""
    trace: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Simulated."""
    messages: int = 0
    commits: int = 0
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)


class World(Timeline):
    """A parent and its children. See ``run``."""

    KIND = ""
    """Before the seed, where a person names it."""
    ROOT = "parent"
    CALM: tuple[float, ...] = (8.0, 15.0, 25.0, 60.0)
    """When nothing goes wrong any more, in seconds."""
    BEATS: tuple[float, ...] = (6.0, 12.0)
    STARTED = 5.0
    """Until when everybody has been started, in seconds."""
    COUNTS: tuple[int, ...] = (1, 2, 3, 4, 6, 10)
    """Items of a run."""
    SECONDS: tuple[float, ...] = (0.05, 0.5, 1.0)
    """Of one item."""
    RUNS: tuple[int, ...] = (1, 1, 1, 2, 3)
    """How many there are."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.seed = seed
        self._tell = tell
        self._trace: deque[str] = deque(maxlen=TOLD)
        self._hash = hashlib.sha256()
        self._events: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._number = 0
        self._broken = ""
        self.reached: Counter[str] = Counter()
        self.processes: list[Process] = []
        self._keep: list[Process] = []
        self._folder = environment.folder / f"world-{os.getpid()}"  # worlds of other processes are beside it
        dice = self.dice("world")
        self.calm = dice.choice(self.CALM)
        self.rows = dice.choice([0, 1, 1, 2, 3])
        self.timeout = dice.choice([8.0, 15.0])
        keys = [f"r{run}-{index}" for run in range(3) for index in range(10)]
        self.fates = Fates(
            seconds=dice.choice(self.SECONDS),
            poison=frozenset(dice.sample(keys, dice.choice([0, 0, 0, 1, 3]))),
            hang=frozenset(dice.sample(keys, dice.choice([0, 0, 0, 0, 1]))),
            doomed=frozenset(dice.sample(keys, dice.choice([0, 0, 2, 6]))),
            fails=dice.choice([0.0, 0.0, 0.1, 0.3]),
        )
        self.children: dict[str, Any] = {}
        """By name; whatever has a key of a server here."""
        self.of: dict[asyncio.AbstractEventLoop, Parent | Child] = {}
        """Whose process has this loop."""
        self.network = Network(self)
        self.faults = Faults(self)
        self.parent = Parent(self, self.ROOT)
        self.servers = [self.parent]
        self.operator = Operator(self)

    # For all of it

    def dice(self, purpose: str) -> random.Random:
        return clock.dice(f"{self.KIND}{self.seed}", purpose)

    @property
    def troubled(self) -> bool:
        """Things go wrong still."""
        return self.now < self.calm

    def at(self, when: float, work: Callable[..., Any], *args: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (max(when, self.now), self._number, work, args))

    def after(self, seconds: float, work: Callable[..., Any], *args: Any) -> None:
        self.at(self.now + seconds, work, *args)

    def note(self, what: str) -> None:
        line = f"{self.now:9.3f} {what}"
        self._hash.update(line.encode())
        self._trace.append(line)
        if self._tell is not None:
            self._tell(line)

    def committed(self) -> None:
        """Called at each commit of a control database."""
        assert Machine.current is not None
        self.look(Machine.current.server.promises.look)

    def acting(self) -> Parent | Child | None:
        """Whose code runs now."""
        return None if clock.running is None else self.of.get(clock.running.loop)

    def look(self, what: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            what()
        except Broken as broken:
            self._broken = str(broken)
            self.note(f"BROKEN PROMISE {broken}")

    def reach(self, name: str) -> None:
        self.reached[name] += 1
        self.faults.reach(name)

    # Its beginning

    def _make(self) -> None:
        Machine.current = None
        random.seed(self.seed)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        dice = self.dice("settings")
        self._set_up(self.parent, Machine(self.parent, environment.restore(), settings.CASCADE), self._folder, dice)
        self._set_pace(dice)
        real = self.seed % REAL_STORE == REAL_STORE - 1
        self.parent.store = FileStore(self._folder) if real else MemoryStore()
        self.parent.start()
        self._people(dice)

    def _set_up(self, server: Parent, machine: Machine, folder: Path, dice: random.Random) -> None:
        server.machine = machine
        server.promises = Promises(self, server)
        settled = machine.settled
        settled.data_dir = folder
        settled.beat_seconds = dice.choice(self.BEATS)
        settled.lease_seconds = settled.beat_seconds * dice.choice([2.5, 4.0])
        settled.offer_seconds = dice.choice([5.0, 15.0])
        settled.offline_seconds = 45.0
        settled.lookahead_limit = dice.choice([0, 2, 4])
        settled.worker_deaths = dice.choice([1, 2, 3])

    def _set_pace(self, dice: random.Random) -> None:
        """Of all servers' loops, in longer steps than in production: what nobody woke them for costs a world most of
        its time."""
        from dispatch import dispatcher, synclog, watching
        from dispatch.results import saver

        dispatcher.PASS_SECONDS = dice.choice([3.0, 6.0])
        saver.IDLE_SECONDS = dice.choice([3.0, 6.0])
        saver.CHECKPOINT_SECONDS = dice.choice([2.0, 20.0])
        synclog.FLUSH_SECONDS = journal.FLUSH_SECONDS = watching.LOOK_SECONDS = 30.0
        # Rows beyond this go as segments.
        runner.INLINE_ROWS = dice.choice([2000, 2000, 0])

    def _people(self, dice: random.Random) -> None:
        """Who is there beside the parent."""
        for number in range(dice.choice([1, 2, 2, 3])):
            self._add_child(Child(self, f"child-{number}"), self.parent, dice)

    def _add_child(self, child: Any, above: Parent, dice: random.Random) -> None:
        """``child``, which starts soon, has a key of ``above``."""
        with above.machine.here():
            self._introduce(child, above, dice)
        self.children[child.name] = child
        self.at(dice.uniform(0.0, self.STARTED), child.start)

    def _introduce(self, child: Any, above: Parent, dice: random.Random) -> None:
        capacity = dice.choice(child.CAPACITIES)
        quotas = []
        if dice.random() < 0.3:
            limit = dice.choice([None, 1, capacity])
            quotas.append(QuotaSpec("sim", slots=dice.choice([0, 1]), limit=limit))
        if dice.random() < 0.1:
            quotas.append(QuotaSpec("sim", slots=1, limit=1, item="r0-1"))
        node, key = registry.add_node(child.name, capacity=capacity, quotas=quotas)
        config = AgentConfig(
            parent="http://parent.example",
            access_key=key.access_key,
            secret_key=key.secret_key,
            carrier=dice.choice(["push", "pull", "pull", "auto"]),
            data_dir=Path(self._folder / child.name),
            drain_seconds=5.0,
        )
        child.belongs(above, node.pk, config)
        child.has_key(key)

    def _make_peace(self) -> None:
        """From now on nothing goes wrong any more, and whoever can comes back."""
        self.note("calm")
        self.network.heal()
        self.parent.process.frozen_until = 0.0
        self.parent.start()
        for child in self.children.values():
            if child.alive:
                child.process.frozen_until = 0.0
            child.start()
        # Who is just being moved is where it goes to by then.
        self.after(0.5, self._welcome)
        self.after(0.5, self.operator.make_good)

    def _welcome(self) -> None:
        """One at least can work: a machine that is new, and knows nothing of what was."""
        dice = self.dice("newcomer")
        self._add_child(Child(self, "newcomer"), self._host(dice), dice)

    def asked(self, run: int) -> Parent:
        """Who is to do run number ``run``."""
        return self.parent

    def _host(self, dice: random.Random) -> Parent:
        """Who gets one more child."""
        return self.parent

    # Its course

    def run(self) -> Result:
        self._make()
        with failpoints.armed(self.reach):
            self.at(self.calm, self._make_peace)
            self.faults.plan()
            self.operator.plan()
            try:
                self._course()
                for server in self.servers:
                    with server.machine.here():
                        self.look(server.promises.settle)
            finally:
                self._end()
        database = self.parent.machine.database
        rows = database.execute("SELECT coalesce(sum(rows), 0) FROM dispatch_run").fetchone()[0]
        return Result(
            f"{self.KIND}{self.seed}",
            self._hash.hexdigest(),
            self._broken,
            list(self._trace) if self._broken else [],
            self.now,
            self.network.messages,
            sum(server.promises.commits for server in self.servers),
            rows,
            self.faults.counts,
            self.reached,
        )

    def _course(self) -> None:
        looked = 0.0
        for _ in range(STEPS):
            if self._broken:
                return
            first = min(self.processes, key=Process.due, default=None)
            due = first.due() if first is not None else float("inf")
            if self._events and self._events[0][0] <= due:
                when, _, work, args = heapq.heappop(self._events)
                self.now = max(self.now, when)
                work(*args)
            elif first is not None and due != float("inf"):
                self.now = max(self.now, due)
                first.step()
            else:
                self._broken = "liveness: nothing will ever happen again"
                return
            if any(process.dead for process in self.processes):
                self._keep += [process for process in self.processes if process.dead]
                self.processes = [process for process in self.processes if not process.dead]
            if self.now > self.calm + 2.0 and self.now > looked + 0.5:
                looked = self.now
                if self._at_rest():
                    return
            if self.now > self.calm + REST_SECONDS:
                break
        self._broken = f"liveness: {self._unfinished()}"
        self.note(self._broken)

    def _at_rest(self) -> bool:
        return not self._unfinished()

    def _unfinished(self) -> str:
        """What still goes on, in words."""
        for server in self._connected():
            if told := server.promises.unfinished():
                return f"{server.name}: {told}"
            # Whose key was revoked keeps what it has, for nobody takes it.
            heard = server.promises.keyed()
            for child in self.children.values():
                agent = getattr(child, "agent", None)
                if child.above is server and agent is not None and child.name in heard and len(agent._outbox):
                    return f"{child.name} has {agent._outbox.allocations()} to report"
        return ""

    def _connected(self) -> Iterator[Parent]:
        """The servers that have a way to the root."""
        yield self.parent

    def _end(self) -> None:
        """Nothing of it is left behind."""
        for process in [*self._keep, *self.processes]:
            process.dead = True
        Thread.end_all()
        for child in self.children.values():
            if getattr(child, "agent", None) is not None:
                child._end(child.process)
        for server in self.servers:
            server.store.remove()
        children.forget()
        self._events.clear()

"""One world: made from a seed, run until everything has come to rest, and looked at all the while."""

from __future__ import annotations

import hashlib
import heapq
import os
import random
import shutil
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings

from dispatch.items import item_key
from dispatch.lifecycle import kept
from nodes import failpoints, registry
from nodes.agent import runner
from nodes.agent.config import AgentConfig
from nodes.fields import QuotaSpec
from tests.sim import children, clock, environment, parent
from tests.sim.children import Child
from tests.sim.clock import Process, Thread, Timeline
from tests.sim.faults import Faults
from tests.sim.network import Network
from tests.sim.operator import Operator
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

    seed: int
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
    """See ``run``."""

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
        self.calm = dice.choice([8.0, 15.0, 25.0, 60.0])
        self.rows = dice.choice([0, 1, 1, 2, 3])
        self.timeout = dice.choice([8.0, 15.0])
        keys = [f"r{run}-{index}" for run in range(3) for index in range(10)]
        self.fates = Fates(
            seconds=dice.choice([0.05, 0.5, 1.0]),
            poison=frozenset(dice.sample(keys, dice.choice([0, 0, 0, 1, 3]))),
            hang=frozenset(dice.sample(keys, dice.choice([0, 0, 0, 0, 1]))),
            doomed=frozenset(dice.sample(keys, dice.choice([0, 0, 2, 6]))),
            fails=dice.choice([0.0, 0.0, 0.1, 0.3]),
        )
        self.store: Any = None
        self.children: dict[str, Child] = {}
        self.network = Network(self)
        self.faults = Faults(self)
        self.parent = parent.Parent(self)
        self.operator = Operator(self)

    # For all of it

    def dice(self, purpose: str) -> random.Random:
        return clock.dice(self.seed, purpose)

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
        """Called at each commit of the control database."""
        self.look(self.promises.look)

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

    def heard(self, child: str, verb: str, body: dict[str, Any], reply: dict[str, Any]) -> None:
        """A child has its answer. A receipt is a promise."""
        if verb == "report":
            ranges = {entry["allocation"]: entry.get("ranges", []) for entry in body["reports"]}
            for result in reply.get("results", []):
                if result["status"] == 200:
                    self.promises.acknowledged[result["allocation"]] = ranges[result["allocation"]]

    def items_of(self, run: int) -> list[str]:
        frozen = kept.frozen(run)
        count = self._read("SELECT count FROM dispatch_run WHERE id = ?", [run]).fetchone()[0]
        return [item_key(item) for item in frozen.slice(0, count)]

    # Its beginning

    def _make(self) -> None:
        environment.restore()
        parent.forget()
        self._read = environment.database().execute
        self.promises = Promises(self, environment.database())
        random.seed(self.seed)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        dice = self.dice("settings")
        settled = settings.CASCADE
        settled.data_dir = self._folder
        settled.beat_seconds = dice.choice([6.0, 12.0])
        settled.lease_seconds = settled.beat_seconds * dice.choice([2.5, 4.0])
        settled.offer_seconds = dice.choice([5.0, 15.0])
        settled.offline_seconds = 45.0
        settled.lookahead_limit = dice.choice([0, 2, 4])
        settled.worker_deaths = dice.choice([1, 2, 3])
        from dispatch import dispatcher, synclog
        from dispatch.results import saver

        # Longer than in production: what nobody woke them for costs a world most of its time.
        dispatcher.PASS_SECONDS = dice.choice([3.0, 6.0])
        saver.IDLE_SECONDS = dice.choice([3.0, 6.0])
        saver.CHECKPOINT_SECONDS = dice.choice([2.0, 20.0])
        synclog.FLUSH_SECONDS = 30.0
        # Rows beyond this go as segments.
        runner.INLINE_ROWS = dice.choice([2000, 2000, 0])
        self.store = FileStore(self._folder) if self.seed % REAL_STORE == REAL_STORE - 1 else MemoryStore()
        self.parent.start()
        for number in range(dice.choice([1, 2, 2, 3])):
            self._add_child(f"child-{number}", dice)

    def _add_child(self, name: str, dice: random.Random) -> None:
        capacity = dice.choice([1, 1, 2, 3])
        quotas = []
        if dice.random() < 0.3:
            limit = dice.choice([None, 1, capacity])
            quotas.append(QuotaSpec("sim", slots=dice.choice([0, 1]), limit=limit))
        if dice.random() < 0.1:
            quotas.append(QuotaSpec("sim", slots=1, limit=1, item="r0-1"))
        node, key = registry.add_node(name, capacity=capacity, quotas=quotas)
        config = AgentConfig(
            parent="http://parent.example",
            access_key=key.access_key,
            secret_key=key.secret_key,
            carrier=dice.choice(["push", "pull", "pull", "auto"]),
            data_dir=Path(self._folder / name),
            drain_seconds=5.0,
        )
        child = Child(self, name, node.pk, config)
        child.has_key(key)
        self.children[name] = child
        self.at(dice.uniform(0.0, 5.0), child.start)

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
        # One at least can work: a machine that is new, and knows nothing of what was.
        self._add_child("newcomer", self.dice("newcomer"))
        self.after(0.5, self.operator.make_good)

    # Its course

    def run(self) -> Result:
        self._make()
        with failpoints.armed(self.reach):
            self.at(self.calm, self._make_peace)
            self.faults.plan()
            self.operator.plan()
            try:
                self._course()
                if not self._broken:
                    self.look(self.promises.settle)
            finally:
                self._end()
        rows = self._read("SELECT coalesce(sum(rows), 0) FROM dispatch_run").fetchone()[0]
        return Result(
            self.seed,
            self._hash.hexdigest(),
            self._broken,
            list(self._trace) if self._broken else [],
            self.now,
            self.network.messages,
            self.promises.commits,
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
        # Whose key was revoked keeps what it has, for nobody takes it.
        keyed = self._read(
            "SELECT DISTINCT name FROM nodes_node JOIN nodes_accesskey ON node_id = nodes_node.id "
            "WHERE revoked_at IS NULL"
        )
        heard = {name for (name,) in keyed.fetchall()}
        return not self._unfinished() and all(
            child.agent is None or not len(child.agent._outbox) or name not in heard
            for name, child in self.children.items()
        )

    def _unfinished(self) -> str:
        runs = self._read("SELECT id, state, count, saved FROM dispatch_run WHERE state = 'running'").fetchall()
        receipts = self._read("SELECT id FROM dispatch_receipt WHERE saved_at IS NULL").fetchall()
        if not runs and not receipts:
            return ""
        shards = self._read(
            "SELECT run_id, start, stop, state, attempts, deaths, losses FROM dispatch_shard "
            "WHERE state IN ('pending', 'allocated', 'executing', 'spooled')"
        ).fetchall()
        return f"runs {runs} have not ended; open shards are {shards}; receipts {receipts} are not saved"

    def _end(self) -> None:
        """Nothing of it is left behind."""
        for process in [*self._keep, *self.processes]:
            process.dead = True
        Thread.end_all()
        for child in self.children.values():
            if child.agent is not None:
                child._end(child.process)
        self.store.remove()
        children.forget()
        self._events.clear()

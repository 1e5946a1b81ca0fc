"""A pool of worker processes whose work takes virtual time. What it brings is made by the production runner."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nodes.agent import runner
from nodes.agent.workers import Cancelled, Crashed, TimedOut
from tests.sim.work import Script

if TYPE_CHECKING:
    from tests.sim.children import Child


@dataclass
class Fates:
    """How the items of a world go, wherever they run."""

    seconds: float
    poison: frozenset[str] = frozenset()
    """Keys of items that kill their worker."""
    hang: frozenset[str] = frozenset()
    doomed: frozenset[str] = frozenset()
    """These fail for good, always."""
    fails: float = 0.0
    """Chance that an attempt at any other item fails; another one may follow."""


class Task(Future):
    """A bundle that runs."""

    def __init__(self, pool: Pool, bundle: list[dict[str, Any]], timeout: float) -> None:
        super().__init__()
        self._pool = pool
        self.bundle = bundle
        self.timeout = timeout
        self.stops: dict[int, int] = {}
        self.began = pool.now()
        self.reached: list[tuple[float, dict[str, Any], int]] = []
        """When each item is done, in seconds since the beginning."""
        self.verdict: tuple[float, Exception] | None = None
        self.failing: dict[str, bool] = {}
        self.timer: Any = None

    def cancel(self) -> bool:
        if self.done():
            return False
        self._pool.end(self, Cancelled())
        return True


@dataclass
class Stops(runner.Orders):
    stops: dict[int, int] = field(default_factory=dict)

    def stop_of(self, allocation: int) -> float:
        return self.stops.get(allocation, float("inf"))


class Pool:
    """As ``nodes.agent.pool.Pool``, on the loop of its child."""

    def __init__(self, child: Child, size: int, outbox: str, progress: Callable[[int, int], None]) -> None:
        self.size = size
        self._child = child
        self._outbox = outbox
        self._progress = progress
        self._dice: random.Random = child.dice
        self.running: list[Task] = []

    def now(self) -> float:
        return self._child.process.monotonic()

    def start(self, bundle: list[dict[str, Any]], timeout: float, *, alone: bool = False) -> Task:
        task = Task(self, bundle, timeout)
        fates = self._child.fates
        at = 0.0
        for shard in bundle:
            for index, item in enumerate(shard["items"], shard["start"]):
                if item in fates.hang:
                    task.verdict = timeout, TimedOut()
                    break
                at += fates.seconds * self._child.slowness * self._dice.uniform(0.5, 1.5)
                if item in fates.poison:
                    task.verdict = at, Crashed("the worker process died (simulated)")
                    break
                if item in fates.doomed:
                    task.failing[item] = False
                elif self._dice.random() < fates.fails:
                    task.failing[item] = True
                task.reached.append((at, shard, index))
            if task.verdict:
                break
        if at > timeout:
            task.verdict = timeout, TimedOut()
        self.running.append(task)
        self._plan(task)
        for seconds, shard, index in task.reached[:-1]:
            if seconds > 1.0:
                self._child.process.loop.call_later(seconds, self._tell, task, shard, index)
        return task

    def _tell(self, task: Task, shard: dict[str, Any], index: int) -> None:
        if not task.done():
            self._progress(shard["allocation"], index + 1 - shard["start"])

    def _plan(self, task: Task) -> None:
        if task.timer is not None:
            task.timer.cancel()
        last = 0.0
        verdict = task.verdict
        passed = self.now() - task.began
        for seconds, shard, index in task.reached:
            # An item that has begun is finished, whatever is wished.
            stop = task.stops.get(shard["allocation"])
            if stop is not None and index >= stop:
                verdict = None
                break
            last = seconds
        at, error = verdict or (last, None)
        task.timer = self._child.process.loop.call_later(max(at - passed, 0.0), self.end, task, error)

    def shorten(self, task: Task, allocation: int, stop: int) -> None:
        if task.done():
            return
        passed = self.now() - task.began
        done = sum(1 for seconds, shard, _ in task.reached if shard["allocation"] == allocation and seconds <= passed)
        start = next(shard["start"] for shard in task.bundle if shard["allocation"] == allocation)
        task.stops[allocation] = max(stop, start + done + 1)
        self._plan(task)

    def end(self, task: Task, error: Exception | None) -> None:
        if task.done():
            return
        if task.timer is not None:
            task.timer.cancel()
        self.running.remove(task)
        if error is not None:
            task.set_exception(error)
            return
        entries = []
        for shard in task.bundle:
            Script.allocation, Script.failing, Script.way = shard["allocation"], task.failing, self._child.way()
            entries += runner.keep([shard], runner.work([shard], Stops(task.stops)), self._outbox)
        took = (self.now() - task.began) / max(len(entries), 1)
        for entry in entries:
            entry["seconds"] = took
            entry.pop("log", None)
        task.set_result(entries)

    def close(self) -> None:
        """What runs is finished."""

    def stop(self) -> None:
        for task in list(self.running):
            self.end(task, Cancelled())

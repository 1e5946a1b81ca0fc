"""One worker process as its pool sees it, and the bundles it is given. What to do about it is decided in ``pool``."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from nodes.agent import runner
from nodes.agent.serving import Message

if TYPE_CHECKING:
    from nodes.agent.pool import Pool

Entries = list[dict[str, Any]]

THREADS = 64
"""Bundles that wait, at most, in one worker process."""
IDLE_SECONDS = 60.0
"""A worker that has loaded pandas holds 100 MB; one without work for so long gives them back."""
WRITER_SECONDS = 5.0

_numbers = count()


class Crashed(Exception):
    """The worker died in the middle of the bundle."""


class TimedOut(Exception):
    """The bundle took longer than it may; its worker was killed or, where others were at work in it, left it alone."""


class Cancelled(Exception):
    """The bundle was cancelled; its worker was killed or, where others were at work in it, left it alone."""


class Task(Future[Entries]):
    """A bundle on its way through the pool. Unlike other futures, a running one can be cancelled."""

    def __init__(self, pool: Pool, bundle: list[runner.Shard], timeout: float, threads: bool) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.bundle = bundle
        self.timeout = timeout
        self.threads = threads
        """It runs beside others, in a thread; otherwise in a process of its own."""
        self.stops: dict[int, int] = {}
        """What was asked for: allocation -> item before which it shall end."""
        self.verdict: Exception | None = None
        """Why it must end; it has ended when its worker is dead or has said that nothing more comes of it."""
        self.deadline = math.inf
        """When it must be done or, once there is a verdict, when its worker must have answered."""
        self._pool = pool

    def cancel(self) -> bool:
        return self._pool.kill(self)


@dataclass(slots=True, eq=False)
class Worker:
    """``running``: its bundles by number. ``late``: bundles that have ended for us, and their threads have not: a
    thread cannot be killed. As long as there are any, the worker takes nothing new."""

    process: Any
    pipe: connection.Connection
    threads: bool
    running: dict[int, Task] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)
    late_until: float = math.inf
    rests_until: float = field(default_factory=lambda: time.monotonic() + IDLE_SECONDS)
    verdict: Exception | None = None
    """Why it was killed; None for one that dies by itself."""
    gone: bool = False
    """It is dead, and what becomes of its bundles is being settled."""
    _letters: SimpleQueue[tuple[Message, Any] | None] = field(default_factory=SimpleQueue, init=False)
    _unsent: set[int] = field(default_factory=set, init=False)
    _writer: threading.Thread | None = field(default=None, init=False)

    def has_room(self, task: Task) -> bool:
        if self.gone or self.verdict is not None or self.threads is not task.threads or self.late:
            return False
        return len(self.running) < (THREADS if self.threads else 1)

    @property
    def shared(self) -> bool:
        """Whoever does something to this process does it to several bundles."""
        return len(self.running) + len(self.late) > 1

    @property
    def due(self) -> float:
        """When something must be done about it unless it speaks before."""
        if self.gone or self.verdict is not None:
            return math.inf  # its end is on its way
        if not self.running:
            return self.rests_until
        return min(self.late_until, *(task.deadline for task in self.running.values()))

    def give(self, task: Task) -> None:
        """Raises OSError for a worker that has died while it had nothing to do."""
        self.send(("run", task.number, task.bundle, task.stops))
        self.running[task.number] = task
        task.deadline = time.monotonic() + task.timeout

    def send(self, message: Message) -> None:
        """To one with threads never at once: while it is stuck, the pipe may be full, and nobody here must wait.
        Others read before they are given anything."""
        if not self.threads:
            self.pipe.send(message)
            return
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="worker's letters", daemon=True)
            self._writer.start()
        # Pickled here, so that what cannot be is an error of who brings it.
        self._letters.put((message, ForkingPickler.dumps(message)))

    def _write(self) -> None:
        while (letter := self._letters.get()) is not None:
            (verb, number, *_), content = letter
            try:
                self.pipe.send_bytes(content)
            except OSError:  # it is dead
                if verb == "run":
                    self._unsent.add(number)

    def let_go(self, number: int) -> Task | None:
        """The bundle has ended; None for one that had ended for us before."""
        task = self.running.pop(number, None)
        self.late.discard(number)
        if not self.late:
            self.late_until = math.inf
        self.rests_until = time.monotonic() + IDLE_SECONDS
        return task

    def kill(self, verdict: Exception) -> None:
        """SIGKILL, since workers do not end by SIGTERM (see ``serving``). The pool's keeper hears of the death."""
        self.verdict = self.verdict or verdict
        self.process.kill()

    def bury(self, seconds: float) -> set[int]:
        """Of a dead one: the numbers of the bundles that never reached it."""
        self.process.join(seconds)
        if self._writer is not None:
            self._letters.put(None)
            self._writer.join(WRITER_SECONDS)
        self.pipe.close()
        return self._unsent

    @property
    def cause(self) -> str:
        """Of its death."""
        exitcode = self.process.exitcode
        return f"signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit status {exitcode}"

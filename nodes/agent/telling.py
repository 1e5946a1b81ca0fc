"""A worker process tells of its shards' logs while they run: a thread that sleeps as long as nothing is printed.

A shard that ends within SOONEST_SECONDS is not told of; its log comes with its report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from nodes.agent.capture import Tail
from nodes.protocol import LOG_LIMIT

TELL_SECONDS = 0.1
SOONEST_SECONDS = 0.5

Say = Callable[[int, int, int, str], None]
"""(number of the bundle, allocation, where the text begins in the shard's log, text)."""


@dataclass(slots=True)
class _Log:
    number: int
    allocation: int
    began: float
    told: int = 0
    held: bool = False
    """The beginning of a line was kept back for the rest of it; not a second time."""


class Teller:
    """Tells of what is written to the logs that it listens to. ``say`` is called from its thread."""

    def __init__(self, say: Say) -> None:
        self._say = say
        # Its put may be called at any moment, by a finalizer in the middle of another one, too.
        self._noticed: SimpleQueue[Tail] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def listen(self, number: int, allocation: int, tail: Tail) -> None:
        if allocation < 0:
            return  # a task handed directly to this node has no parent
        # Most shards print nothing: nothing is made for them.
        tail.about = number, allocation, time.monotonic()
        tail.noticed = self._notice

    def _notice(self, tail: Tail) -> None:
        self._noticed.put(tail)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
            with suppress(RuntimeError):  # this machine allows no more threads: the report brings it
                self._thread.start()

    def _run(self) -> None:
        waiting: set[Tail] = set()
        while True:
            if not waiting:
                waiting.add(self._noticed.get())
            time.sleep(TELL_SECONDS)
            with suppress(Empty):
                while True:
                    waiting.add(self._noticed.get_nowait())
            now = time.monotonic()
            waiting = {tail for tail in waiting if self._tell(tail, now)}

    def _tell(self, tail: Tail, now: float) -> bool:
        """Says what is new of a log; whether there is more to say, or will be soon."""
        if not isinstance(tail.about, _Log):
            tail.about = _Log(*tail.about)
        log: _Log = tail.about
        if now - log.began < SOONEST_SECONDS:
            return True
        start, text = tail.since(log.told)
        whole = len(text) if log.held else text.rfind("\n") + 1
        log.held = whole < len(text)
        if whole:
            log.told = start + whole
            at = max(whole - LOG_LIMIT, 0)
            with suppress(OSError):  # the agent is gone, and so is this process in a moment
                self._say(log.number, log.allocation, start + at, text[at:whole])
        if log.held:
            return True
        tail.noticed = self._notice
        # What was written before it listened again has woken nobody.
        return bool(tail.since(log.told)[1])

"""A worker process tells of its shards' logs while they run: a thread that sleeps as long as nothing is printed.

A shard that ends within SOONEST_SECONDS is not told of; its log comes with its report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
    tail: Tail
    began: float
    told: int = 0
    held: bool = False
    """The beginning of a line was kept back for the rest of it; not a second time."""


class Teller:
    """Tells of what is written to the logs that it listens to. ``say`` is called from its thread."""

    def __init__(self, say: Say) -> None:
        self._say = say
        # Its put may be called at any moment, by a finalizer in the middle of another one, too.
        self._noticed: SimpleQueue[_Log] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def listen(self, number: int, allocation: int, tail: Tail) -> None:
        log = _Log(number, allocation, tail, time.monotonic())
        tail.noticed = partial(self._notice, log)

    def _notice(self, log: _Log) -> None:
        self._noticed.put(log)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
            with suppress(RuntimeError):  # this machine allows no more threads: the report brings it
                self._thread.start()

    def _run(self) -> None:
        waiting: dict[int, _Log] = {}
        while True:
            if not waiting:
                first = self._noticed.get()
                waiting[first.allocation] = first
            time.sleep(TELL_SECONDS)
            with suppress(Empty):
                while True:
                    log = self._noticed.get_nowait()
                    waiting[log.allocation] = log
            now = time.monotonic()
            waiting = {allocation: log for allocation, log in waiting.items() if self._tell(log, now)}

    def _tell(self, log: _Log, now: float) -> bool:
        """Says what is new of ``log``; whether there is more to say, or will be soon."""
        if now - log.began < SOONEST_SECONDS:
            return True
        start, text = log.tail.since(log.told)
        whole = text.rfind("\n") + 1
        if log.held:
            whole = len(text)
        log.held = whole < len(text)
        if whole:
            log.told = start + whole
            at = max(whole - LOG_LIMIT, 0)
            with suppress(OSError):  # the agent is gone, and so is this process in a moment
                self._say(log.number, log.allocation, start + at, text[at:whole])
        if log.held:
            return True
        log.tail.noticed = partial(self._notice, log)
        # What was written before it listened again has woken nobody.
        return bool(log.tail.since(log.told)[1])

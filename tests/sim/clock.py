"""Virtual time: processes with event loops and clocks of their own, and production's threads as greenlets in them."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import greenlet

EPOCH = dt.datetime(2030, 1, 1, tzinfo=dt.UTC).timestamp()
MOMENT = 1e-6
"""No thread is woken sooner. Seconds."""
RESOLUTION = 1e-6
"""Seconds; timers so close together are due together, so that rounding cannot make time stand still."""

real_time, real_monotonic, real_sleep = time.time, time.monotonic, time.sleep

running: Process | None = None
"""The process whose code runs now; None outside of a world."""


class Crash(SystemExit):
    """A process ends here and now, as by kill -9. Event loops let a SystemExit through, so nothing else of it runs."""


class Loop(asyncio.BaseEventLoop):
    """An event loop that never waits: its world calls it when something is due."""

    def __init__(self, process: Process) -> None:
        self._process = process
        super().__init__()
        self._clock_resolution = RESOLUTION
        self._selector = self
        self.set_exception_handler(self._unexpected)

    def time(self) -> float:
        return self._process.monotonic()

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self._process.dead and error is not None:
            self._process.line.note(f"{self._process.name}: {type(error).__name__}: {str(error)[:100]}")

    def run_in_executor(self, _executor: Any, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """In a thread of this kind: a real one would have a time of its own."""
        ended = self.create_future()
        Thread(lambda: work(*args), ended).start()
        return ended

    def is_running(self) -> bool:
        return running is self._process

    def select(self, _timeout: float | None) -> list[Any]:
        return []

    def _process_events(self, _events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def due(self) -> float | None:
        """When its next timer is, by its own clock; now where something is ready."""
        if self._ready:  # type: ignore[attr-defined]
            return self.time()
        timers = self._scheduled  # type: ignore[attr-defined]
        return timers[0].when() if timers else None


class Place(Protocol):
    """Where code of a server finds what is that server's (``machine.Machine``)."""

    def enter(self) -> None: ...


class Timeline:
    """The one true time of a world, in seconds since its beginning."""

    def __init__(self) -> None:
        self.now = 0.0

    def note(self, what: str) -> None:
        """Something happened."""


class Process:
    """Something with a clock that can freeze or end at any moment. ``rate`` and ``offset``: how wrong its clock is.

    ``machine`` is put in place before anything of it runs, where it has one.
    """

    def __init__(
        self, line: Timeline, name: str, rate: float = 1.0, offset: float = 0.0, machine: Place | None = None
    ) -> None:
        self.name = name
        self.rate = rate
        self.offset = offset
        self.frozen_until = 0.0
        self.dead = False
        self.line = line
        self.machine = machine
        self._born = line.now
        self.loop = Loop(self)

    def monotonic(self) -> float:
        return (self.line.now - self._born) * self.rate

    def wall(self) -> float:
        """Seconds since 1970, as this process has it."""
        return EPOCH + self.line.now * self.rate + self.offset

    def due(self) -> float:
        """The true time of its next step."""
        if self.dead or (at := self.loop.due()) is None:
            return float("inf")
        return max(self._born + at / self.rate, self.frozen_until, self.line.now)

    @property
    def frozen(self) -> bool:
        return self.frozen_until > self.line.now

    def step(self) -> None:
        """Everything that is due. A crash in it ends the process."""
        global running
        if self.machine is not None:
            self.machine.enter()
        running = self
        asyncio._set_running_loop(self.loop)
        try:
            self.loop._run_once()  # type: ignore[attr-defined]
        except Crash:
            self.dead = True
        finally:
            asyncio._set_running_loop(None)
            running = None

    def call(self, work: Callable[..., Any], *args: Any) -> None:
        """``work`` in this process, as soon as it runs."""
        if not self.dead:
            self.loop.call_soon(work, *args)


class Thread:
    """A thread of a process. It runs until it waits, and goes on when its loop says so."""

    current: Thread | None = None
    begun: ClassVar[list[Thread]] = []
    """All that did not end in this world."""

    def __init__(self, work: Callable[[], Any], ended: asyncio.Future[Any] | None = None) -> None:
        assert running is not None
        self.process = running
        self._work = work
        self._ended = ended
        self._greenlet = greenlet.greenlet(self._main)
        self._greenlet.gr_context = contextvars.copy_context()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = False

    def start(self) -> None:
        Thread.begun.append(self)
        self._go_on()
        if self._greenlet.dead:
            Thread.begun.remove(self)

    @classmethod
    def end_all(cls) -> None:
        """They end where they stand, as their processes have."""
        for thread in cls.begun:
            if not thread._greenlet.dead:
                if thread.process.machine is not None:
                    thread.process.machine.enter()
                thread._greenlet.throw(greenlet.GreenletExit)
        cls.begun.clear()

    def _main(self) -> None:
        try:
            result = self._work()
        except Exception as error:
            if self._ended is not None and not self._ended.done():
                self._ended.set_exception(error)
        else:
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(result)

    def _go_on(self) -> None:
        before, Thread.current = Thread.current, self
        # A thread of its own has no loop running in it, and Django looks.
        asyncio._set_running_loop(None)
        try:
            self._greenlet.switch()
        finally:
            Thread.current = before
            asyncio._set_running_loop(self.process.loop)

    def wait(self, seconds: float | None) -> None:
        """Called by what runs in this thread: others go on until ``wake()``, or so many seconds from now."""
        self._waiting = True
        if seconds is not None:
            # At least a moment: a rest that is lost in rounding would be waited for without end.
            self._timer = self.process.loop.call_later(max(seconds, MOMENT), self._woken)
        parent = self._greenlet.parent
        assert parent is not None
        parent.switch()

    def wake(self) -> None:
        if self._waiting:
            self.process.loop.call_soon(self._woken)

    def _woken(self) -> None:
        if not self._waiting:
            return
        self._waiting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._go_on()


class Bell:
    """``threading.Event`` for threads of this kind."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Thread] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for thread in self._waiting:
            thread.wake()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            thread = Thread.current
            assert thread is not None, "only threads wait"
            self._waiting.append(thread)
            thread.wait(timeout)
            self._waiting.remove(thread)
        return self._set


async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
    """As ``api.agent.in_thread``."""
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    Thread(lambda: work(*args), ended).start()
    return await ended


def install() -> None:
    """From now on whatever asks for the time gets that of the process it runs in. Before Django's models are loaded:
    they keep the functions that their defaults call."""
    from django.utils import timezone

    def wall() -> float:
        return real_time() if running is None else running.wall()

    def monotonic() -> float:
        return real_monotonic() if running is None else running.monotonic()

    def sleep(seconds: float) -> None:
        if running is None:
            real_sleep(seconds)
        elif Thread.current is not None:
            Thread.current.wait(seconds)

    time.time, time.monotonic, time.sleep = wall, monotonic, sleep  # type: ignore[assignment]
    timezone.now = lambda: dt.datetime.fromtimestamp(wall(), dt.UTC)


def dice(seed: int | str, purpose: str) -> random.Random:
    """Chance for one purpose, the same whatever else was thrown, in every process: no hash is in it."""
    return random.Random(f"{seed}/{purpose}")

"""The life of a worker process: one bundle after the other, or many at once, each in a thread.

What goes through the pipe is a tuple: a verb, the number of the bundle it is about, and the rest.

    to the worker    run (bundle, stops: item by allocation)   shorten (allocation, stop)   drop ()
    from the worker  progress (allocation, items done)   log (allocation, where the text begins, text)
                     done (entries or an exception)   dropped ()
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from nodes import surroundings
from nodes.agent import capture, runner
from nodes.agent.telling import Teller
from nodes.given import PREFIX, is_secret

NICER = 5
ORDER_SECONDS = 0.01
"""An order that came while a process runs its one bundle is looked for so often."""

Message = tuple[Any, ...]


def serve(pipe: Connection, outbox: str, around: dict[str, Any] | None = None) -> None:
    """One bundle at a time, until the pipe is closed. ``around``: this process's Surroundings."""
    _begin(around)
    turn = threading.Lock()

    def say(message: Message) -> None:
        with turn:
            pipe.send(message)

    orders = _Looked(pipe, say, _teller(say))
    while True:
        try:
            verb, number, *rest = pipe.recv()
        except EOFError:
            return
        if verb != "run":
            continue  # an order for what has just ended
        bundle, stops = rest
        orders.begin(number, stops)
        try:
            outcome: Any = runner.keep(bundle, runner.work(bundle, orders), outbox)
        except runner.NoRoom as error:
            outcome = error
        except Exception as error:  # a folder that is gone, say; the agent reports it for the bundle
            outcome = RuntimeError(runner.describe(error))
        _say_done(say, number, outcome)


class _Looked(runner.Orders):
    """Orders of a process's one bundle, which looks for them itself: a second thread would slow it down."""

    def __init__(self, pipe: Connection, say: Callable[[Message], None], teller: Teller) -> None:
        self._pipe = pipe
        self._say = say
        self._teller = teller
        self._looked = 0.0

    def begin(self, number: int, stops: dict[int, int]) -> None:
        self._number = number
        self._stops = stops

    def stop_of(self, allocation: int) -> float:
        if (now := time.monotonic()) - self._looked > ORDER_SECONDS:
            self._looked = now
            while self._pipe.poll():
                # While a bundle runs, the agent sends nothing but orders to shorten it.
                _verb, _number, about, stop = self._pipe.recv()
                self._stops[about] = stop
        return self._stops.get(allocation, math.inf)

    def tell(self, allocation: int, done: int) -> None:
        self._say(("progress", self._number, allocation, done))

    def listen(self, allocation: int, log: capture.Tail) -> None:
        self._teller.listen(self._number, allocation, log)


def serve_threads(pipe: Connection, outbox: str, around: dict[str, Any] | None = None) -> None:
    """All bundles that come, each in a thread, until the pipe is closed. How many at once is the agent's business."""
    _begin(around)
    capture.keep_apart()
    turn = threading.Lock()

    def say(message: Message) -> None:
        content = bytes(ForkingPickler.dumps(message))
        with turn, suppress(OSError):  # the agent is gone, and so is this process in a moment
            _send_whole(pipe, content)

    teller = _teller(say)
    jobs: dict[int, _Job] = {}
    while True:
        try:
            verb, number, *rest = pipe.recv()
        except EOFError:
            return
        if verb == "run":
            jobs = {each: job for each, job in jobs.items() if not job.over}
            bundle, stops = rest
            jobs[number] = _Job(number, bundle, stops, outbox, say, teller)
            jobs[number].start()
        elif number in jobs:
            jobs[number].hear(verb, *rest)


def _send_whole(pipe: Connection, content: bytes) -> None:
    """As ``pipe.send_bytes`` (its format: the length as four bytes, then the content), but in one write: between two,
    another thread could take the interpreter and never give it back, and the agent would wait for the rest for ever."""
    frame = struct.pack("!i", len(content)) + content
    while frame:
        frame = frame[os.write(pipe.fileno(), frame) :]


class _Job(runner.Orders):
    """One bundle in its thread. It is over, or dropped: of one that was dropped nothing is kept from then on."""

    def __init__(
        self,
        number: int,
        bundle: list[runner.Shard],
        stops: dict[int, int],
        outbox: str,
        say: Callable[[Message], None],
        teller: Teller | None = None,
    ) -> None:
        self.over = False
        self._number = number
        self._bundle = bundle
        self._stops = stops
        self._outbox = outbox
        self._say = say
        self._teller = teller or _teller(say)
        self._turn = threading.Lock()

    def start(self) -> None:
        try:
            threading.Thread(target=self._run, name=f"bundle-{self._number}", daemon=True).start()
        except RuntimeError as error:  # this machine allows no more threads
            self._end(error)

    def hear(self, verb: str, *rest: int) -> None:
        if verb == "shorten":
            allocation, stop = rest
            self._stops[allocation] = stop
        elif verb == "drop":
            with self._turn:
                if not self.over:
                    self.wanted = False
                    self._say(("dropped", self._number))

    def stop_of(self, allocation: int) -> float:
        return self._stops.get(allocation, math.inf)

    def tell(self, allocation: int, done: int) -> None:
        self._say(("progress", self._number, allocation, done))

    def listen(self, allocation: int, log: capture.Tail) -> None:
        self._teller.listen(self._number, allocation, log)

    def _run(self) -> None:
        outcome: list[runner.Result] | BaseException
        try:
            outcome = runner.work(self._bundle, self)
        except BaseException as error:  # whatever it is: a bundle whose thread just ends would never be answered
            outcome = error
        self._end(outcome)

    def _end(self, outcome: list[runner.Result] | BaseException) -> None:
        """Keeps what came and says so in one turn: between the two it cannot be dropped."""
        with self._turn:
            answer: Any = None
            if isinstance(outcome, BaseException):
                answer = RuntimeError(runner.describe(outcome))
            elif self.wanted:
                try:
                    answer = runner.keep(self._bundle, outcome, self._outbox)
                except runner.NoRoom as error:
                    answer = error
                except Exception as error:
                    answer = RuntimeError(runner.describe(error))
            self.over = True
            _say_done(self._say, self._number, answer)


def _teller(say: Callable[[Message], None]) -> Teller:
    return Teller(lambda number, *piece: say(("log", number, *piece)))


def _say_done(say: Callable[[Message], None], number: int, outcome: Any) -> None:
    try:
        say(("done", number, outcome))
    except Exception as error:  # an executor's outcome has something in it that does not travel
        say(("done", number, RuntimeError(runner.describe(error))))


def _begin(around: dict[str, Any] | None) -> None:
    _forget_secrets()
    surroundings.settle(surroundings.Surroundings(**around or {}))
    threading.Thread(target=_end_with_agent, daemon=True).start()
    # Ctrl-C at a terminal and a stop by the init system reach the whole group; what becomes of the shards is the
    # agent's decision, which kills when it means it. Not SIG_IGN: programs that an executor starts would inherit it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Beats and questions of how this node is must not wait behind the work they are about.
    os.nice(NICER)


def _forget_secrets() -> None:
    """A worker needs no key: what executors print is in the shard's log, and programs that they start inherit this."""
    for name in list(os.environ):
        own = name.removeprefix(PREFIX).lower()
        if name.startswith(PREFIX) and (is_secret(own) or own in ("database_url", "redis_url")):
            del os.environ[name]


def _end_with_agent() -> None:
    """A worker whose agent was killed must not go on alone. (Its parent by process id is the fork server.)"""
    agent = multiprocessing.parent_process()
    assert agent is not None
    agent.join()
    os._exit(1)

"""Worker processes: a bundle in, a future out. A crash, a time-out or a cancel costs one worker and one bundle.

Our own and not a library's, because the one that fits (time-outs and kills per task) has a licence that does not.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

from nodes.agent import runner
from nodes.surroundings import Surroundings

logger = logging.getLogger(__name__)

Entries = list[dict[str, Any]]

DEFAULT = Surroundings()
HIRE_WAITS = (0.0, 0.05, 0.2, 0.5)
END_SECONDS = 5.0
IDLE_SECONDS = 60.0
"""A worker that has loaded pandas holds 100 MB; one without work for so long gives them back."""


class Crashed(Exception):
    """The worker died in the middle of the bundle."""


class TimedOut(Exception):
    """The bundle took longer than it may; its worker was killed."""


class Cancelled(Exception):
    """The bundle was cancelled; its worker was killed."""


class Task(Future[Entries]):
    """A bundle on its way through the pool. Unlike other futures, a running one can be cancelled: that kills."""

    def __init__(self, pool: Pool, bundle: list[runner.Shard], timeout: float) -> None:
        super().__init__()
        self.bundle = bundle
        self.timeout = timeout
        self._pool = pool

    def cancel(self) -> bool:
        return self._pool.kill(self)


@dataclass(slots=True, eq=False)
class _Worker:
    process: Any
    pipe: connection.Connection
    task: Task | None = None
    deadline: float = 0.0
    """When its bundle must be done or, while it has none, when it ends."""
    verdict: Exception | None = None
    """Why it was killed; None for one that dies by itself."""


class Pool:
    """``size`` workers, started with the first bundles. ``progress`` is called from a thread: (allocation, items done).

    Workers come from a fork server, which is small and has no threads: forking the agent itself, with its threads
    and sockets, could copy a held lock. One thread waits for all of them.
    """

    def __init__(
        self,
        size: int,
        outbox: str,
        progress: Callable[[int, int], None],
        around: Surroundings = DEFAULT,
    ) -> None:
        self.size = size
        self._around = around.plain()
        self._outbox = outbox
        self._progress = progress
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["nodes.agent.runner"])
        _start_fork_server()
        self._turn = threading.Lock()
        self._waiting: deque[Task] = deque()
        self._workers: list[_Worker] = []
        self._closed = False
        self._heard, self._wake = self._context.Pipe(duplex=False)
        self._keeper = threading.Thread(target=self._keep, name="workers", daemon=True)
        self._keeper.start()

    def start(self, bundle: list[runner.Shard], timeout: float) -> Task:
        """Runs ``bundle`` for at most ``timeout`` seconds. The future ends in entries, Crashed, TimedOut or Cancelled.

        Cancelling the future kills the worker.
        """
        task = Task(self, bundle, timeout)
        with self._turn:
            if self._closed:
                raise RuntimeError("the pool is closed")
            idle = next((worker for worker in self._workers if worker.task is None and worker.verdict is None), None)
            # Straight to a worker that waits: a trip through the keeper would cost a thread's switch.
            if idle is None or self._waiting or not self._give(idle, task):
                self._waiting.append(task)
        self._nudge()
        return task

    def kill(self, task: Task) -> bool:
        """Ends ``task``, wherever it is, as Cancelled; False when it has ended."""
        with self._turn:
            if task in self._waiting:
                self._waiting.remove(task)
                task.set_exception(Cancelled())
                return True
            for worker in self._workers:
                if worker.task is task:
                    _kill(worker, Cancelled())
                    return True
        return False

    def shorten(self, task: Task, allocation: int, stop: int) -> None:
        """Asks the worker that runs ``task`` to end ``allocation`` before its item number ``stop``."""
        with self._turn:
            worker = next((each for each in self._workers if each.task is task and each.verdict is None), None)
            if worker is not None:
                with suppress(OSError):  # it has just died
                    worker.pipe.send((allocation, stop))

    def close(self) -> None:
        """Takes no more work; what was given is finished, then the workers end. Returns at once."""
        with self._turn:
            self._closed = True
        self._nudge()

    def stop(self) -> None:
        """Ends all workers now."""
        with self._turn:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().set_exception(Cancelled())
            for worker in self._workers:
                _kill(worker, Cancelled())
        self._nudge()
        self._keeper.join(END_SECONDS)

    def _nudge(self) -> None:
        with suppress(OSError):  # the keeper has ended
            self._wake.send_bytes(b".")

    def _keep(self) -> None:
        """Until closed and empty: start workers, hand out, hear results, find the dead, enforce time-outs."""
        while True:
            with self._turn:
                self._hand_out()
                if self._closed and not any(worker.task for worker in self._workers):
                    break
                deadlines = [worker.deadline for worker in self._workers]
                pipes = {worker.pipe: worker for worker in self._workers}
            left = max(min(deadlines) - time.monotonic(), 0) if deadlines else None
            for ready in connection.wait([self._heard, *pipes], left):
                if ready is self._heard:
                    while self._heard.poll():
                        self._heard.recv_bytes()
                else:
                    self._hear(pipes[ready])  # type: ignore[index]
            with self._turn:
                now = time.monotonic()
                for worker in self._workers:
                    if worker.verdict is None and now >= worker.deadline:
                        _kill(worker, TimedOut() if worker.task else Cancelled())
        for worker in self._workers:
            _kill(worker, Cancelled())
            worker.process.join(END_SECONDS)
            worker.pipe.close()
        self._heard.close()
        self._wake.close()

    def _hand_out(self) -> None:
        while self._waiting:
            idle = next((worker for worker in self._workers if worker.task is None and worker.verdict is None), None)
            if idle is None:
                if len(self._workers) >= self.size:
                    return
                try:
                    idle = self._hire()
                except (OSError, EOFError) as error:  # no memory, say
                    _end(self._waiting.popleft(), RuntimeError(f"no worker could be started: {error}"))
                    continue
            if self._give(idle, self._waiting[0]):
                self._waiting.popleft()

    def _hire(self) -> _Worker:
        for wait in HIRE_WAITS:
            with suppress(OSError, EOFError):
                return self._new_worker()
            # Somebody killed the fork server, which shows only now. Until it is quite dead, it counts as running.
            time.sleep(wait)
            with suppress(OSError, EOFError):
                _start_fork_server()
        return self._new_worker()

    def _new_worker(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=runner.serve, args=(theirs, self._outbox, self._around), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, deadline=time.monotonic() + IDLE_SECONDS)
        self._workers.append(worker)
        return worker

    def _give(self, worker: _Worker, task: Task) -> bool:
        try:
            worker.pipe.send(task.bundle)
        except OSError:
            # It died while it had nothing to do; the keeper hears of it, and another one gets the bundle.
            worker.verdict = Crashed()
            return False
        worker.task = task
        worker.deadline = time.monotonic() + task.timeout
        return True

    def _hear(self, worker: _Worker) -> None:
        """A result, a progress, or the end of a worker."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if isinstance(message, tuple):
            self._progress(*message)
            return
        with self._turn:
            task, worker.task = worker.task, None
            worker.deadline = time.monotonic() + IDLE_SECONDS
            self._hand_out()
        if task is not None:
            _end(task, message)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join(END_SECONDS)
        with self._turn:
            self._workers.remove(worker)
            task = worker.task
        worker.pipe.close()
        if task is not None:
            _end(task, worker.verdict or Crashed(f"the worker process died ({_how(worker.process.exitcode)})"))


def _kill(worker: _Worker, verdict: Exception) -> None:
    """SIGKILL, since workers do not end by SIGTERM (see ``runner.serve``). The keeper hears of the death."""
    worker.verdict = worker.verdict or verdict
    worker.process.kill()


def _end(task: Task, outcome: Entries | Exception) -> None:
    if isinstance(outcome, Exception):
        task.set_exception(outcome)
    else:
        task.set_result(outcome)


def _start_fork_server() -> None:
    """With SIGTERM blocked: one that is meant for the whole group must not take it, and the workers, from the agent."""
    # First, because to start it lifts the block again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode}"
    return f"exit status {exitcode}"

"""Worker processes: a bundle in, a future out. A crash, a time-out or a cancel costs one bundle and no other.

What computes has a process of its own, which is killed where it must end. What waits (``Executor.waits``) shares one
with others, each in a thread; a thread cannot be killed, so there the bundle ends, its worker drops what still comes of
it and takes nothing new until the thread has ended, too. The pool is our own and not a library's, because the one that
fits (time-outs and kills per task) has a licence that does not.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection, forkserver, resource_tracker
from typing import TYPE_CHECKING

from nodes import executors
from nodes.agent import runner, serving
from nodes.agent.workers import Cancelled, Crashed, Entries, Task, TimedOut, Worker
from nodes.surroundings import Surroundings

if TYPE_CHECKING:
    from nodes.agent.logs import Logs

__all__ = ["Cancelled", "Crashed", "Entries", "Pool", "Task", "TimedOut"]

DEFAULT = Surroundings()
HIRE_WAITS = (0.0, 0.05, 0.2, 0.5)
END_SECONDS = 5.0
ANSWER_SECONDS = 1.5
"""A worker with threads that does not say within so long that it has dropped a bundle is stuck, by one of them."""
LATE_SECONDS = 300.0
"""Longer than any fetch: a dropped bundle whose thread still runs will go on for ever."""


class Pool:
    """At most ``size`` bundles that compute at a time, and as many that wait. Workers are started with the first
    bundles. ``progress`` is called from a thread: (allocation, items done); so is ``logs``.

    Workers come from a fork server, which is small and has no threads: forking the agent itself, with its threads
    and sockets, could copy a held lock. One thread waits for all of them.
    """

    def __init__(
        self,
        size: int,
        outbox: str,
        progress: Callable[[int, int], None],
        around: Surroundings = DEFAULT,
        logs: Logs | None = None,
    ) -> None:
        self.size = size
        self._logs = logs
        self._around = around.plain()
        self._outbox = outbox
        self._progress = progress
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["nodes.agent.serving"])
        _start_fork_server()
        self._turn = threading.Lock()
        self._queue: list[Task] = []
        self._workers: list[Worker] = []
        self._closed = self._stopped = False
        self._due = math.inf
        """Until then the keeper sleeps unless it hears something."""
        self._heard, self._wake = self._context.Pipe(duplex=False)
        self._keeper = threading.Thread(target=self._keep, name="workers", daemon=True)
        self._keeper.start()

    def start(self, bundle: list[runner.Shard], timeout: float, *, alone: bool = False) -> Task:
        """Runs ``bundle``, shards of one type, for at most ``timeout`` seconds. The future ends in entries, Crashed,
        TimedOut or Cancelled. ``alone``: in a process of its own, whatever its type.

        Cancelling the future ends it; what it would still bring is dropped.
        """
        task = Task(self, bundle, timeout, threads=not alone and _waits(bundle[0]["type"]))
        with self._turn:
            if self._closed:
                raise RuntimeError("the pool is closed")
            # Straight to a worker that waits: a trip through the keeper would cost a thread's switch.
            queued = bool(self._queue) or not self._give(task)
            if queued:
                self._queue.append(task)
            sooner = task.deadline < self._due
        if queued or sooner:
            self._nudge()
        return task

    def kill(self, task: Task) -> bool:
        """Ends ``task``, wherever it is, as Cancelled; False when it has ended."""
        with self._turn:
            if task in self._queue:
                self._queue.remove(task)
            elif worker := self._worker_of(task):
                self._end_early(worker, task, Cancelled())
                self._nudge()  # the keeper may wait for longer than the worker may take to answer
                return True
            else:
                return False
        task.set_exception(Cancelled())
        return True

    def shorten(self, task: Task, allocation: int, stop: int) -> None:
        """Asks the worker that runs ``task`` to end ``allocation`` before its item number ``stop``."""
        with self._turn:
            task.stops[allocation] = stop
            worker = self._worker_of(task)
            if worker is not None and worker.verdict is None:
                with suppress(OSError):  # it has just died
                    worker.send(("shorten", task.number, allocation, stop))

    def close(self) -> None:
        """Takes no more work; what was given is finished, then the workers end. Returns at once."""
        with self._turn:
            self._closed = True
        self._nudge()

    def stop(self) -> None:
        """Ends all workers now."""
        with self._turn:
            self._closed = self._stopped = True
            queue, self._queue = self._queue, []
            for worker in self._workers:
                worker.kill(Cancelled())
        for task in queue:
            task.set_exception(Cancelled())
        self._nudge()
        self._keeper.join(END_SECONDS)

    def _nudge(self) -> None:
        with suppress(OSError):  # the keeper has ended
            self._wake.send_bytes(b".")

    def _worker_of(self, task: Task) -> Worker | None:
        return next((worker for worker in self._workers if worker.running.get(task.number) is task), None)

    # The keeper

    def _keep(self) -> None:
        """Until closed and empty: start workers, hand out, hear results, find the dead, enforce time-outs."""
        while True:
            self._hand_out()
            with self._turn:
                if self._closed and not self._queue and not any(worker.running for worker in self._workers):
                    break
                self._due = min((worker.due for worker in self._workers), default=math.inf)
                pipes = {worker.pipe: worker for worker in self._workers}
            left = None if self._due == math.inf else max(self._due - time.monotonic(), 0)
            for ready in connection.wait([self._heard, *pipes], left):
                if ready is self._heard:
                    while self._heard.poll():
                        self._heard.recv_bytes()
                else:
                    self._hear(pipes[ready])  # type: ignore[index]
            with self._turn:
                now = time.monotonic()
                for worker in self._workers:
                    if now >= worker.due:
                        self._overdue(worker, now)
        for worker in self._workers:
            worker.kill(Cancelled())
            worker.bury(END_SECONDS)
        self._heard.close()
        self._wake.close()

    def _hand_out(self) -> None:
        """What is queued, to whoever has room; starts the workers that it takes."""
        failed: list[tuple[Task, Exception]] = []
        if not self._queue:  # mostly; who appends to it wakes the keeper
            return
        with self._turn:
            for task in list(self._queue):
                try:
                    if not self._give(task) and not (self._may_hire(task) and self._hire(task) and self._give(task)):
                        continue
                except Exception as error:  # no memory, say
                    failed.append((task, error))
                self._queue.remove(task)
        for task, reason in failed:
            task.set_exception(RuntimeError(f"no worker could be started: {reason}"))

    def _give(self, task: Task) -> bool:
        """To a worker with room for it, if there is one."""
        if task.threads and self._waiting() >= self.size:
            return False
        for worker in self._workers:
            if worker.has_room(task):
                try:
                    worker.give(task)
                    return True
                except OSError:
                    # It died while it had nothing to do; the keeper hears of it, and another one gets the bundle.
                    worker.verdict = Crashed()
        return False

    def _waiting(self) -> int:
        """Bundles in threads."""
        return sum(len(worker.running) for worker in self._workers if worker.threads)

    def _may_hire(self, task: Task) -> bool:
        if task.threads:
            return self._waiting() < self.size
        return sum(not worker.threads for worker in self._workers) < self.size

    def _hire(self, task: Task) -> Worker:
        for wait in HIRE_WAITS:
            with suppress(OSError, EOFError):
                return self._new_worker(task.threads)
            # Somebody killed the fork server, which shows only now. Until it is quite dead, it counts as running.
            time.sleep(wait)
            with suppress(OSError, EOFError):
                _start_fork_server()
        return self._new_worker(task.threads)

    def _new_worker(self, threads: bool) -> Worker:
        ours, theirs = self._context.Pipe()
        life = serving.serve_threads if threads else serving.serve
        process = self._context.Process(target=life, args=(theirs, self._outbox, self._around), daemon=True)
        process.start()
        theirs.close()
        worker = Worker(process, ours, threads)
        self._workers.append(worker)
        return worker

    def _hear(self, worker: Worker) -> None:
        """A result, a progress, a bundle dropped, or the end of a worker."""
        try:
            verb, number, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        except Exception as error:  # a result with something of a module in it that only the worker has
            with self._turn:
                worker.kill(Crashed(f"what it sent cannot be read: {error}"))
            return
        if verb == "progress":
            if number in worker.running:  # it may come from a thread that should have ended
                self._progress(*rest)
            return
        if verb == "log":
            if number in worker.running and self._logs is not None:
                self._logs.hear(*rest)
            return
        with self._turn:
            task = worker.let_go(number)
            if verb == "dropped":
                worker.late.add(number)
                worker.late_until = min(worker.late_until, time.monotonic() + LATE_SECONDS)
            if worker.late and not worker.running:
                worker.kill(Cancelled())
        if task is not None:
            # A result that was on its way when its time ran out is as good as any.
            _end(task, rest[0] if verb == "done" else task.verdict or Cancelled())

    def _bury(self, worker: Worker) -> None:
        """Of a dead one: its bundles end. Where several were at work, nobody can say which of them it was: each of them
        runs again, in a process of its own, and so the blame falls on the right one. So does one that is left of a
        process which was killed because of another."""
        with self._turn:
            worker.gone = True
        unsent = worker.bury(END_SECONDS)
        ended: list[tuple[Task, Exception]] = []
        again: list[Task] = []
        with self._turn:
            self._workers.remove(worker)
            for task in worker.running.values():
                verdict = task.verdict or worker.verdict
                for_another = worker.threads and worker.verdict is not None and task.verdict is None
                if self._stopped or isinstance(verdict, Cancelled):
                    ended.append((task, Cancelled()))
                elif worker.shared or for_another or task.number in unsent:
                    task.verdict = None
                    task.threads = task.number in unsent
                    again.append(task)
                else:
                    ended.append((task, verdict or Crashed(f"the worker process died ({worker.cause})")))
            self._queue += again
        for task in again:
            for shard in task.bundle:
                if self._logs is not None:
                    self._logs.anew(shard["allocation"])
        for task, reason in ended:
            task.set_exception(reason)

    def _overdue(self, worker: Worker, now: float) -> None:
        if not worker.running:
            worker.kill(Cancelled())
        elif now >= worker.late_until:
            worker.kill(Crashed("a thread in it does not end"))
        for task in worker.running.values():
            if now >= task.deadline:
                if task.verdict is None:
                    self._end_early(worker, task, TimedOut())
                else:
                    worker.kill(Crashed("it does not answer"))

    def _end_early(self, worker: Worker, task: Task, verdict: Exception) -> None:
        """Kills the worker where that ends nothing else, otherwise tells it to drop the bundle."""
        asked = task.verdict is not None
        if not asked or isinstance(verdict, Cancelled):
            task.verdict = verdict
        if not worker.shared:
            worker.kill(verdict)
        elif not asked:
            task.deadline = time.monotonic() + ANSWER_SECONDS
            worker.send(("drop", task.number))


def _waits(task_type: str) -> bool:
    try:
        return executors.get(task_type).waits
    except Exception:  # the worker will say what is wrong with it
        return False


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

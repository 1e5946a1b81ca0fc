"""Worker processes: a bundle in, a future out. A crash, a time-out or a cancel costs one worker and one bundle."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any

from pebble import CONSTS, ProcessExpired, ProcessPool

from nodes.agent import runner

logger = logging.getLogger(__name__)

Entries = list[dict[str, Any]]

# Workers do not end by SIGTERM (see runner.prepare), so waiting for it to act would only delay a cancel.
CONSTS.term_timeout = 0


class Crashed(Exception):
    """The worker died in the middle of the bundle."""


class TimedOut(Exception):
    """The bundle took longer than it may; its worker was killed."""


class Cancelled(Exception):
    """The bundle was cancelled; its worker was killed."""


class Pool:
    """``size`` workers, started with the first bundle. ``progress`` is called from a thread: (allocation, items done).

    Workers come from a fork server, which is small and has no threads: forking the agent itself, with its threads
    and sockets, could copy a held lock.
    """

    def __init__(self, size: int, outbox: str, progress: Callable[[int, int], None]) -> None:
        self.size = size
        self._outbox = outbox
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["nodes.agent.runner"])
        _start_fork_server()
        self._told = self._context.SimpleQueue()
        self._pool = self._workers()
        threading.Thread(target=self._listen, args=(progress,), name="progress", daemon=True).start()

    def start(self, bundle: list[runner.Shard], timeout: float) -> Future[Entries]:
        """Runs ``bundle`` for at most ``timeout`` seconds. The future ends in entries, Crashed, TimedOut or Cancelled.

        Cancelling the future kills the worker.
        """
        try:
            return self._schedule(bundle, timeout)
        except RuntimeError:
            # A worker that died while it had nothing to do (out of memory, say) breaks the whole of pebble's pool.
            logger.warning("the workers are started anew: one of them died while it was idle")
            _end(self._pool.stop, self._pool)
            self._pool = self._workers()
            return self._schedule(bundle, timeout)

    def close(self) -> None:
        """Takes no more work; what runs is finished, then the workers end. Returns at once."""
        _end(self._pool.close, self._pool, lambda: self._told.put(None))

    def stop(self) -> None:
        """Ends all workers now."""
        self._pool.stop()
        self._pool.join()
        self._told.put(None)

    def _workers(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self.size, initializer=runner.prepare, initargs=[self._told], context=self._context
        )

    def _schedule(self, bundle: list[runner.Shard], timeout: float) -> Future[Entries]:
        running: Future[Entries] = self._pool.schedule(runner.run, args=[bundle, self._outbox], timeout=timeout)
        return running

    def _listen(self, progress: Callable[[int, int], None]) -> None:
        while (told := self._told.get()) is not None:
            progress(*told)


def _start_fork_server() -> None:
    """With SIGTERM blocked: one that is meant for the whole group must not take it, and the workers, from the agent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(ending: Callable[[], None], pool: ProcessPool, afterwards: Callable[[], None] = lambda: None) -> None:
    """``ending`` (close or stop), then the wait for the workers, in a thread of its own."""

    def wait() -> None:
        pool.join()
        afterwards()

    ending()
    threading.Thread(target=wait, name="workers end", daemon=True).start()


def outcome(future: Future[Entries]) -> Entries:
    """The entries of a finished future. Raises Crashed, TimedOut or Cancelled."""
    try:
        return future.result()
    except CancelledError:
        raise Cancelled from None
    except FutureTimeout:
        raise TimedOut from None
    except ProcessExpired as error:
        raise Crashed(f"the worker process died ({_how(error.exitcode)})") from None
    except BrokenProcessPool:
        # It died before its first word about the bundle was heard.
        raise Crashed("the worker process died") from None


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode}"
    return f"exit status {exitcode}"

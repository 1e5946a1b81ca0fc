"""Worker processes: a bundle in, a future out. A crash, a time-out or a cancel costs one worker and one bundle."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from pebble import ProcessExpired, ProcessPool

from nodes.agent import runner

logger = logging.getLogger(__name__)

Entries = list[dict[str, Any]]


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
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["nodes.agent.runner"])
        self._told = context.SimpleQueue()
        self._pool = ProcessPool(max_workers=size, initializer=runner.prepare, initargs=[self._told], context=context)
        self._listener = threading.Thread(target=self._listen, args=(progress,), name="progress", daemon=True)
        self._listener.start()

    def start(self, bundle: list[runner.Shard], timeout: float) -> Future[Entries]:
        """Runs ``bundle`` for at most ``timeout`` seconds. The future ends in entries, Crashed, TimedOut or Cancelled.

        Cancelling the future kills the worker.
        """
        running: Future[Entries] = self._pool.schedule(runner.run, args=[bundle, self._outbox], timeout=timeout)
        return running

    def close(self) -> None:
        """Takes no more work; what runs is finished, then the workers end."""
        self._pool.close()

    def stop(self) -> None:
        """Ends all workers now."""
        self._pool.stop()
        self._pool.join()
        self._told.put(None)

    def _listen(self, progress: Callable[[int, int], None]) -> None:
        while (told := self._told.get()) is not None:
            progress(*told)


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


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode}"
    return f"exit status {exitcode}"

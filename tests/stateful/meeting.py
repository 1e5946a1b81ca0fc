"""Verbs that run at once in several threads, and come as far as they can before the first of them commits.

Just before its commit a verb waits until every other one has come there too, has ended, or waits for a lock of the
database. So what two transactions read before they write is always what neither has written yet, and a lock that is
missing shows, whatever the machine's mood.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Self

from django.db import connection

from nodes import failpoints

PATIENCE = 20.0
"""Seconds after which verbs that neither meet nor end are stuck."""
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s) AND wait_event_type = 'Lock'"


class Crew:
    """Threads with a connection each, which are kept from bundle to bundle."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="verb")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        gate = threading.Barrier(self._pool._max_workers)

        def leave() -> None:
            gate.wait(PATIENCE)
            connection.close()

        for each in [self._pool.submit(leave) for _ in range(self._pool._max_workers)]:
            each.result()
        self._pool.shutdown()

    def at_once(self, verbs: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each verb returned or raised."""
        begin = threading.Barrier(len(verbs))
        meeting = _Meeting(len(verbs))

        def act(verb: Callable[[], Any]) -> Any:
            connection.ensure_connection()
            begin.wait(PATIENCE)
            meeting.enter(connection.connection.info.backend_pid)
            try:
                return verb()
            except Exception as error:
                return error
            finally:
                meeting.leave()

        with failpoints.armed(meeting.reached):
            under_way = [self._pool.submit(act, verb) for verb in verbs]
            meeting.preside()
            return [each.result(PATIENCE) for each in under_way]


class _Meeting:
    def __init__(self, size: int) -> None:
        self._size = size
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._pids: list[int] = []
        self._ended = 0
        self._here = 0

    def enter(self, pid: int) -> None:
        self._mine.inside = True
        with self._lock:
            self._pids.append(pid)

    def leave(self) -> None:
        self._mine.inside = False
        with self._lock:
            self._ended += 1

    def reached(self, point: str) -> None:
        if point != "write.committing" or self._open.is_set() or not getattr(self._mine, "inside", False):
            return
        with self._lock:
            self._here += 1
        self._open.wait(PATIENCE)

    def preside(self) -> None:
        """Opens the way to the commits when nobody can come any nearer."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with self._lock:
                known, come = len(self._pids), self._ended + self._here
                pids = list(self._pids)
            if known == self._size and (come == known or come + self._waiting(pids) >= known):
                break
        self._open.set()

    @staticmethod
    def _waiting(pids: list[int]) -> int:
        with closing(connection.cursor()) as cursor:
            cursor.execute(_WAITING, [pids])
            return int(cursor.fetchone()[0])

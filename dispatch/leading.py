"""Which of a parent's processes leads: the one that allocates and saves, where PostgreSQL lets there be several.

Leadership is a session's advisory lock, on a connection that is used for nothing else: who has it leads, and who loses
the connection leads no longer. While it leads a process beats over this connection, so that

* its own loops stop writing HELD_SECONDS after the last beat that was answered (``held``), whatever has become of it;
* the others, who wait for the lock, see in PostgreSQL's list of sessions how long it has been silent. A process that is
  frozen, or cut off without a word, keeps its connections and so its lock: after FROZEN_SECONDS they are ended for it,
  all of them, so that nothing it had begun is committed when it wakes.

Two that lead at once, should that come about all the same, do no harm: grants are made under row locks, everything else
is compare-and-set, and the result store keeps its own fence. Leading is about doing the work once, not about safety.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from django.conf import settings
from django.db import connection

from nodes.protocol import CascadeError

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often who waits tries for the lock."""
BEAT_SECONDS = 1.0
HELD_SECONDS = 6.0
FROZEN_SECONDS = 8.0
"""Longer than HELD_SECONDS: whoever is succeeded has stopped by itself, if it can do anything at all."""
RETRY_SECONDS = 1.0
UNFIT_SECONDS = 5.0
"""Who led and could not start its loops lets others go first for so long."""
LOCK = int.from_bytes(b"cascade")
"""The advisory lock's key; PostgreSQL keeps these locks per database."""
LEADS = "leads"

_HOLDER = """
    SELECT a.pid, a.application_name, coalesce(host(a.client_addr), ''),
           extract(epoch FROM clock_timestamp() - greatest(a.state_change, a.query_start))::float8
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s AND l.objid = %s AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_PLACE = (LOCK >> 32, LOCK & 0xFFFFFFFF)


class Loop(Protocol):
    """Something with a thread of its own, ``_thread``, or several, ``_threads``."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


running: list[Loop] = []
"""The loops that were started in this process and not stopped since."""


def threads() -> dict[str, bool]:
    """By name, whether each thread of the running loops is alive. One that has not begun is left out."""
    found = [thread for loop in list(running) for thread in threads_of(loop)]
    return {thread.name: thread.is_alive() for thread in found if thread.ident is not None}


def threads_of(loop: object) -> list[threading.Thread]:
    several = getattr(loop, "_threads", None)
    return list(several) if several is not None else [each for each in [getattr(loop, "_thread", None)] if each]


class Leader(NamedTuple):
    """Who leads, as PostgreSQL's list of sessions has it."""

    process: str
    """The name of all its connections: "cascade HOST PID TOKEN"."""
    address: str
    since: dt.datetime | None
    silent: float | None
    """Seconds since its last beat; None where the list does not tell this database user."""
    backend: int

    @property
    def host(self) -> str:
        return self.process.split(" ")[1] if self.process.count(" ") >= 2 else self.address or "?"

    @property
    def pid(self) -> int | None:
        number = self.process.split(" ")[2] if self.process.count(" ") >= 2 else ""
        return int(number) if number.isdigit() else None

    def __str__(self) -> str:
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"process {self.pid} on {self.host}{since}"


def as_dict(found: Leader) -> dict[str, Any]:
    """For a JSON document; ``since`` is a datetime."""
    return {
        "host": found.host,
        "pid": found.pid,
        "address": found.address,
        "since": found.since,
        "silent_seconds": found.silent,
    }


_until = math.inf
"""Until when (monotonic) this process leads. For ever where there is no other."""


def held() -> bool:
    """Whether this process leads now. Loops that are the leader's ask before each pass; it costs nothing."""
    return time.monotonic() < _until


def _hold(until: float) -> None:
    global _until
    _until = until


def forgo() -> None:
    """This process does not lead, and will not unless it takes part in the election."""
    _hold(0.0)


def leader() -> Leader | None:
    """Who leads; None where nobody does. To be asked on PostgreSQL only."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDER, _PLACE)
        row = cursor.fetchone()
    return None if row is None else _read(row)


def _read(row: tuple[Any, ...]) -> Leader:
    backend, name, address, silent = row
    process, _, since = name.partition(f" {LEADS} ")
    at = None
    with suppress(ValueError):
        at = dt.datetime.fromtimestamp(int(since, 16), dt.UTC)
    return Leader(process, address, at, silent, backend)


def connect() -> psycopg.Connection[Any]:
    """A connection to the state database beside Django's, in autocommit."""
    import psycopg

    params = connection.get_connection_params()
    return psycopg.connect(**{**params, "autocommit": True, "cursor_factory": psycopg.Cursor})


class Candidate:
    """Takes part in the election in a thread of its own; has ``loops`` run whenever, and as long as, it leads.

    ``loops`` makes them anew for each time.
    """

    def __init__(self, loops: Callable[[], Sequence[Loop]]) -> None:
        self._loops = loops
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="candidate", daemon=True)
        self._known: Leader | None = None
        self._trouble = ""

    def start(self) -> None:
        forgo()
        self._thread.start()

    def stop(self) -> None:
        """Ends the loops, where this process leads, and then lets the others lead."""
        self._stopping.set()
        self._thread.join()

    def run(self) -> None:
        import psycopg

        while not self._stopping.is_set():
            pause = RETRY_SECONDS
            try:
                with connect() as lock:
                    self._told("")
                    if self._wait(lock):
                        pause = self._lead(lock)
            except psycopg.Error as error:
                self._told(" ".join(str(error).split()))
            except Exception:
                logger.exception("leading failed; it is tried again")
            finally:
                forgo()
            self._stopping.wait(pause)

    def _told(self, trouble: str) -> None:
        """Says once that there is no connection, and once that there is one again."""
        if trouble and not self._trouble:
            logger.warning("no connection to the database, so that this process cannot lead: %s", trouble)
        elif self._trouble and not trouble:
            logger.info("connected to the database again")
        self._trouble = trouble

    def _wait(self, lock: psycopg.Connection[Any]) -> bool:
        """Returns True with the lock, False when this process is to end."""
        while not self._stopping.is_set():
            row = lock.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
            if row is not None and row[0]:
                return True
            found = lock.execute(_HOLDER, _PLACE).fetchone()
            if found is not None:
                self._look_at(lock, _read(found))
            self._stopping.wait(LOOK_SECONDS)
        return False

    def _look_at(self, lock: psycopg.Connection[Any], other: Leader) -> None:
        if self._known is None or other.backend != self._known.backend:
            logger.info("standing by: %s leads", other)
        self._known = other
        if other.silent is not None and other.silent > FROZEN_SECONDS:
            logger.warning("%s leads and has not been heard of for %.0f s: it is succeeded", other, other.silent)
            _end_connections(lock, other)

    def _lead(self, lock: psycopg.Connection[Any]) -> float:
        """Leads until the connection is lost or this process is to end; how long then to let others go first."""
        since = int(time.time())
        lock.execute("SELECT set_config('application_name', %s, false)", (f"{settings.PROCESS} {LEADS} {since:x}",))
        heart = _Heart(lock)
        self._known = None
        heart.beat()
        logger.info("this process leads")
        heart.start()
        started: list[Loop] = []
        try:
            for loop in self._loops():
                if heart.lost.is_set() or self._stopping.is_set():
                    break
                loop.start()
                started.append(loop)
                running.append(loop)
            else:
                heart.wait(self._stopping)
        except CascadeError as error:
            logger.error("this process cannot lead, and lets others try: %s", error)
            return UNFIT_SECONDS
        finally:
            if heart.lost.is_set():
                logger.warning("this process leads no longer: %s", heart.why)
            for loop in reversed(started):
                running.remove(loop)
                try:
                    loop.stop()
                except Exception:
                    logger.exception("%s did not stop as it should", type(loop).__name__)
            # Not before the loops have ended: the connection's end is what lets others lead.
            heart.stop()
        return RETRY_SECONDS


class _Heart:
    """Beats over the connection that holds the lock, and notices at once when it breaks."""

    def __init__(self, lock: psycopg.Connection[Any]) -> None:
        self._lock = lock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leading", daemon=True)
        self.lost = threading.Event()
        self.why = ""
        self._over = threading.Event()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def wait(self, stopping: threading.Event) -> None:
        """Returns when the lock is lost or ``stopping`` is set."""
        while not self.lost.wait(LOOK_SECONDS) and not stopping.is_set():
            pass

    def beat(self) -> None:
        # From before the question: the answer may have been long on its way.
        asked = time.monotonic()
        self._lock.execute("SELECT 1")
        _hold(asked + HELD_SECONDS)

    def _run(self) -> None:
        import psycopg

        try:
            while not self._stopping.is_set():
                # Readable without a question means that the server has closed the connection, or says why it will.
                select.select([self._lock.fileno()], [], [], BEAT_SECONDS)
                self.beat()
        except (psycopg.Error, OSError, ValueError) as error:
            forgo()
            self.why = " ".join(str(error).split())
            self.lost.set()


def _end_connections(lock: psycopg.Connection[Any], other: Leader) -> None:
    """Ends the lock's connection and all others of that process: what it has begun is undone, its row locks free."""
    lock.execute(
        """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE pid = %s OR (application_name = %s OR starts_with(application_name, %s)) AND datname = current_database()
        """,
        (other.backend, other.process, f"{other.process} "),
    )

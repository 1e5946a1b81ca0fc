"""What a lake needs done now and then, by the process that leads: each append adds files, and nothing goes away by
itself. Readers are not disturbed: what they read stays for ``keep_seconds`` after it was replaced.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dispatch.results import catalogue, lake_place
from dispatch.results.lake_place import Place

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

MERGE_SECONDS = 300.0
KEEP_SECONDS = 3600.0
MERGE_BELOW = 32 * 1024 * 1024
"""Bytes. Larger files are left alone, so that a row is written again only until its file is of this size."""

Write = Callable[[Callable[["duckdb.DuckDBPyConnection"], None]], None]
"""Calls something with a connection in a transaction that nobody's commit came before."""


class Tidying:
    """Keeps the number of files small, and when it has done so last."""

    def __init__(self, *, merge_seconds: float = MERGE_SECONDS, keep_seconds: float = KEEP_SECONDS) -> None:
        self.merge_seconds = merge_seconds
        self.keep_seconds = keep_seconds
        self._done = time.monotonic()
        self._swept: float | None = None
        self._until = 0.0

    def note(self) -> None:
        """Something was appended: it is merged soon, and what that leaves is removed when its time has come."""
        self._until = time.monotonic() + 2 * self.keep_seconds + 2 * self.merge_seconds

    def due(self) -> bool:
        now = time.monotonic()
        return now < self._until and now - self._done >= self.merge_seconds

    def run(self, write: Write, place: Place) -> None:
        """Each step is a transaction of its own; one that fails is tried again the next time."""
        self._done = time.monotonic()
        now = _fence(write)
        for table in _tables(write):
            merge(write, place, table)
        before = now - dt.timedelta(seconds=self.keep_seconds)
        _call(write, "ducklake_expire_snapshots", before)
        _call(write, "ducklake_cleanup_old_files", before)
        if self._swept is None or time.monotonic() - self._swept >= self.keep_seconds:
            self._swept = time.monotonic()
            # Files that never became part of a table. None of them can still become one: whoever wrote it before
            # the fence and was frozen since is refused, for the fence is a commit.
            _call(write, "ducklake_delete_orphaned_files", before)


def merge(write: Write, place: Place, table: str) -> None:
    """Makes one file of the small ones of ``table``, in the order of their rows."""
    folder = place.folder and place.folder / "main" / table

    def act(connection: duckdb.DuckDBPyConnection) -> None:
        before = set(folder.glob("*")) if folder else set()
        merged = "CALL ducklake_merge_adjacent_files('writing', ?, max_file_size => ?)"
        connection.execute(merged, [table, MERGE_BELOW]).fetchall()
        for file in (set(folder.glob("*")) if folder else set()) - before:
            lake_place.sync(file)

    write(act)


def _fence(write: Write) -> dt.datetime:
    """A commit after which no append that began earlier can succeed; when it was, by the server's clock.

    It changes the ledger, as every append does: PostgreSQL then refuses the older one for the row with the ledger's
    statistics, also when the number of this state has been forgotten and could be given once more.
    """
    told: list[dt.datetime] = []

    def act(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("INSERT INTO ledger VALUES (0, -1, -1, 0, 'fence', 0, NULL)")

    def lift(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("DELETE FROM ledger WHERE start = -1")

    def ask(connection: duckdb.DuckDBPyConnection) -> None:
        found = connection.execute("SELECT max(snapshot_time)::VARCHAR FROM ducklake_snapshots('writing')").fetchall()
        told.append(dt.datetime.fromisoformat(found[0][0]))

    write(act)
    write(ask)
    write(lift)
    return told[-1]


def _tables(write: Write) -> list[str]:
    found: list[str] = []

    def act(connection: duckdb.DuckDBPyConnection) -> None:
        found[:] = ["ledger", *(catalogue.rows_of(name) for name, *_ in catalogue.known(connection))]

    write(act)
    return found


def _call(write: Write, function: str, before: dt.datetime) -> None:
    def act(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(f"CALL {function}('writing', older_than => ?::TIMESTAMPTZ)", [before.isoformat()]).fetchall()

    write(act)

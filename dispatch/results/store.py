"""The result store of a parent that is one process: a DuckDB file with the rows of all datasets and the ledger.

Per dataset there is ``<table>_rows``, which only grows (the dataset's columns and LINEAGE), and the view ``<table>``
with the newest row per natural key. ``ledger`` has one entry per range of items saved; it is written in the
transaction that writes the rows, so rows and entry are there both or not at all.

How rows are checked is in ``datasets``, what is asked of them in ``reading``, and how they leave in ``formats``; which
rows are still to be saved is the saver's concern. Where several processes read and write there is ``lake`` instead.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch.results import catalogue
from dispatch.results.base import BATCH_ROWS, SETTINGS, Part, Store, StoreBusy
from dispatch.results.catalogue import Entry
from dispatch.results.reading import quoted
from nodes import failpoints
from nodes.executors.base import Dataset
from nodes.protocol import Conflict

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

__all__ = ["BATCH_ROWS", "Entry", "Part", "ResultStore", "StoreBusy"]

_SETTINGS = {**SETTINGS, "enable_external_access": "false", "lock_configuration": "true"}

_owned: set[Path] = set()
_owning = threading.Lock()


class ResultStore(Store):
    """The owner of one DuckDB file, in which no other process can read meanwhile."""

    def __init__(self, path: Path, *, memory: str = "1GB") -> None:
        super().__init__(memory=memory)
        self.path = Path(path).resolve()
        self.where = str(self.path)
        self._lock: int | None = None

    def open(self) -> None:
        """Takes the ownership. Raises StoreBusy."""
        with _owning:
            if self.path in _owned:
                raise StoreBusy(f"{self.path} is in use by this process already")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _own(self.path)
            _owned.add(self.path)

    def close(self) -> None:
        """Ends what is being read, writes everything into the file and gives up the ownership."""
        with self._writing, _owning:
            self._disconnect()
            if self._lock is not None:
                os.ftruncate(self._lock, 0)
                os.close(self._lock)
                self._lock = None
                _owned.discard(self.path)

    def checkpoint(self) -> None:
        """Moves everything committed so far from the write-ahead log into the file, durably.

        Only then may a spooled segment go: a log that was cut short opens without an error, but lacks its end.
        """
        with self._writing, self._errors():
            connection = self._connection()
            try:
                connection.execute("CHECKPOINT")
            finally:
                connection.close()

    @contextmanager
    def still(self) -> Iterator[Path]:
        """The file, with everything committed in it; nothing is written to it meanwhile."""
        with self._writing, self._errors():
            with closing(self._connection()) as connection:
                connection.execute("CHECKPOINT")
            yield self.path

    def maintain(self) -> None:
        """The file needs nothing but its checkpoints."""

    def _append(
        self, tables: Mapping[Dataset, Sequence[pa.Table | pa.RecordBatchReader]], entries: Sequence[Entry]
    ) -> None:
        with self._transaction() as connection:
            # First, so that a repetition costs no writing of rows.
            _record(connection, entries)
            for dataset, pieces in tables.items():
                into = quoted(catalogue.rows_of(dataset.table))
                for rows in pieces:
                    connection.register("_incoming", rows)
                    connection.execute(f"INSERT INTO {into} BY NAME SELECT * FROM _incoming")
                    connection.unregister("_incoming")
            failpoints.reach("store.rows")

    def _connection(self, *, writing: bool = False) -> duckdb.DuckDBPyConnection:
        with self._connecting:
            if self._lock is None:
                raise StoreBusy(f"{self.path} is not open in this process")
            return super()._connection(writing=writing)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        try:
            root = duckdb.connect(str(self.path), config={**_SETTINGS, "memory_limit": self.memory})
        except duckdb.IOException as error:
            if "lock" not in str(error):
                raise
            raise StoreBusy(_busy(self.path, str(error).splitlines()[0])) from None
        for name, columns in catalogue.TABLES.items():
            key = f", PRIMARY KEY ({catalogue.KEYS[name]})" if name in catalogue.KEYS else ""
            root.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns}{key})")
        return root


def _record(connection: duckdb.DuckDBPyConnection, entries: Sequence[Entry]) -> None:
    import duckdb

    if not entries:
        return
    connection.register("_entries", catalogue.ledger_table(entries))
    try:
        connection.execute("INSERT INTO ledger BY NAME SELECT * FROM _entries")
    except duckdb.ConstraintException as error:
        raise Conflict(f"saved before: {str(error).splitlines()[0]}") from error
    connection.unregister("_entries")


def _own(path: Path) -> int:
    """Locks the file beside ``path``; the lock ends with this process. Raises StoreBusy."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": dt.datetime.now(dt.UTC).isoformat()}
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(holder).encode(), 0)
    except OSError:
        content = os.pread(lock, 1000, 0)
        os.close(lock)
        raise StoreBusy(_busy(path, _holder(content))) from None
    if path.exists() and not _free(path):
        os.close(lock)
        raise StoreBusy(_busy(path, "another program has it open, such as DuckDB's command line or a notebook"))
    return lock


def _free(path: Path) -> bool:
    """Whether no other process has the database open: DuckDB locks it, also for reading only."""
    database = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(database, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(database)
    return True


def _holder(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} has held it since {holder['since'][:19]} UTC"
    except (ValueError, KeyError, TypeError):  # it locked the file this very moment
        return "another process holds it"


def _busy(path: Path, holder: str) -> str:
    return (
        f"the result database {path} belongs to one process at a time: {holder}. "
        "Stop that process, read through its API, or give this one another data_dir."
    )

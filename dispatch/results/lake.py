"""The result store of a parent that is several processes: a lake. Every process reads; the one that leads appends.

The same tables and views as in the file of ``store``, kept by DuckLake: rows and ledger are Parquet files in a shared
folder or on S3, and which files there are stands in the same PostgreSQL as the control database. A commit there is what
makes files part of a table.

A lake has no keys, so an append looks its entries up in the ledger and commits in the same transaction, and the commit
is refused if anybody committed anything since it began (the snapshot's number is a key in PostgreSQL, and the row with
the ledger's statistics was changed by somebody else); it then looks again. A process that was frozen in between and
wakes after its successor has saved the same shards therefore finds them in the ledger.

Files are written, and synced, before that transaction and by this module, not by INSERT: when the answer to a COMMIT is
lost, DuckLake takes it for a failure and removes what an INSERT has written, although the catalogue may list it.
What was written and never became part of a table is removed later (``lake_tidying``).
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch.results import catalogue, lake_place
from dispatch.results.base import Store, StoreBusy
from dispatch.results.catalogue import Entry
from dispatch.results.lake_place import Place
from dispatch.results.lake_tidying import Tidying
from nodes import failpoints
from nodes.executors.base import Dataset
from nodes.protocol import Conflict, StorageFull

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

TRIES = 50
"""How often a commit is tried again that somebody else was faster than. One leader alone never needs a second."""
PAUSE_SECONDS = 0.05
_AWAY = (
    *("Unable to connect", "server closed the connection", "terminating connection", "connection to server"),
    *('Failed to execute query "ROLLBACK"', 'Failed to execute query "COMMIT"', "connection not open"),
    *("no connection to the server", "the database system is", "SSL SYSCALL", "Could not connect", "Connection error"),
    *("Could not establish connection", "Timeout was reached", "too many clients"),
)
"""What errors say when PostgreSQL or S3 is away, or went away meanwhile."""
_OVERTAKEN = ("duplicate key", "could not serialize", "ransaction conflict", "deadlock detected")
"""What they say when another process has committed since our transaction began."""
_FULL = ("No space left", "Disk quota exceeded", "File too large", "could not extend file", "XMinioStorageFull")


class Overtaken(Exception):
    """Somebody else has committed since this transaction began, so that what it looked up may be wrong by now."""


class LakeStore(Store):
    """The lake, as one process uses it: ``writing`` for the one that leads, the others can only read."""

    def __init__(
        self, place: Place, *, memory: str = "1GB", writing: bool = True, tidying: Tidying | None = None
    ) -> None:
        super().__init__(memory=memory)
        self.place = place
        self.where = str(place)
        self.writing = writing
        self._tidying = tidying or Tidying()
        self._open = False

    def open(self) -> None:
        """Nothing is connected yet: that comes with the first use."""
        self._open = True

    def close(self) -> None:
        with self._writing:
            self._open = False
            self._disconnect()

    def ensure(self, dataset: Dataset) -> None:
        """As in Store; a process that only reads leaves it to the one that leads."""
        if self.writing:
            super().ensure(dataset)

    def checkpoint(self) -> None:
        """Nothing: files are synced before the commit that names them, and that is PostgreSQL's, which syncs."""

    def maintain(self) -> None:
        """Merges small files, forgets old states and removes what nothing refers to, when it is time for that."""
        if self.writing and self._tidying.due():
            with self._writing:
                self._tidying.run(self._write, self.place)

    # Writing

    def _append(
        self, tables: Mapping[Dataset, Sequence[pa.Table | pa.RecordBatchReader]], entries: Sequence[Entry]
    ) -> None:
        ranges = [entry[:3] for entry in entries]
        if len(set(ranges)) < len(ranges):
            raise Conflict("saved before: the same range is given twice")
        written: list[tuple[str, str]] = []
        tried = False
        try:
            with self._errors():
                for dataset, pieces in tables.items():
                    name = catalogue.rows_of(dataset.table)
                    for rows in pieces:
                        written.append((name, self.write_file(name, rows)))
                if entries:
                    written.append(("ledger", self.write_file("ledger", catalogue.ledger_table(entries))))

            def act(connection: duckdb.DuckDBPyConnection) -> None:
                nonlocal tried
                if ranges and (found := catalogue.recorded(connection, ranges)):
                    raise Conflict(f"saved before: {len(found)} of {len(ranges)} ranges, such as {min(found)}")
                for name, path in written:
                    self.add_file(connection, name, path)
                failpoints.reach("store.rows")
                tried = True

            self._write(act)
        except BaseException:
            # After a COMMIT whose answer is unknown the catalogue may list them; removing is for the tidying then.
            if not tried:
                self._remove(path for _, path in written)
            raise
        self._tidying.note()

    def write_file(self, name: str, table: pa.Table | pa.RecordBatchReader) -> str:
        """Writes ``table`` as a Parquet file, durably, in the folder of the table ``name``; returns its path."""
        path = f"{self.place.root}main/{name}/{uuid.uuid4().hex}.parquet"
        if self.place.folder is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        connection = super()._connection()
        try:
            connection.register("_incoming", table)
            target = lake_place.text(path)
            connection.execute(f"COPY (SELECT * FROM _incoming) TO {target} (FORMAT parquet, COMPRESSION zstd)")
        finally:
            self._let_go(connection)
        if self.place.folder is not None:
            lake_place.sync(Path(path))
        return path

    def add_file(self, connection: duckdb.DuckDBPyConnection, name: str, path: str) -> None:
        """Makes a file that ``write_file`` has written part of the table ``name``, when ``connection`` commits."""
        connection.execute("CALL ducklake_add_data_files('writing', ?, ?, allow_missing => true)", [name, path])

    def write(self, act: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """Calls ``act`` with a connection in a transaction that nobody's commit comes before; again, where one did."""
        with self._writing:
            self._ensured.clear()
            self._write(act)

    def _remove(self, paths: Iterable[str]) -> None:
        if self.place.folder is not None:
            for path in paths:
                Path(path).unlink(missing_ok=True)

    def _write(self, act: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """As in Store; and again from its beginning where somebody else has committed meanwhile."""
        for number in range(TRIES):
            try:
                return super()._write(act)
            except Overtaken:
                time.sleep(PAUSE_SECONDS * random.random() * min(number + 1, 10))
        raise StoreBusy(f"{self.where} is written to by others without a pause; is there more than one leader?")

    # Connections

    def _connection(self, *, writing: bool = False) -> duckdb.DuckDBPyConnection:
        with self._connecting:
            if not self._open:
                raise StoreBusy(f"{self.where} is not open in this process")
            if writing and not self.writing:
                raise Conflict(f"{self.where} is written to by the process that leads; this one reads")
            connection = super()._connection()
        try:
            connection.execute(f"USE {'writing' if writing else 'lake'}")
        except BaseException:
            self._let_go(connection)
            raise
        return connection

    def _let_go(self, connection: duckdb.DuckDBPyConnection) -> None:
        with suppress(Exception):
            # First, for a connection that is closed inside a transaction ends the whole process where PostgreSQL is
            # gone by then: DuckLake's rollback fails in a destructor. Here it is an error like any other.
            connection.rollback()
        connection.close()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        import psycopg

        try:
            return lake_place.connect(self.place, self.memory, writing=self.writing)
        except psycopg.Error as error:
            raise StoreBusy(f"the catalogue of {self.where} cannot be reached: {error}") from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import duckdb

        try:
            with super()._errors():
                yield
        except duckdb.Error as error:
            text = str(error)
            if any(each in text for each in _AWAY):
                raise StoreBusy(f"{self.where} cannot be reached: {text.splitlines()[0]}") from error
            if any(each in text for each in _OVERTAKEN):
                raise Overtaken from error
            if any(each in text for each in _FULL):
                raise StorageFull(f"no room for results in {self.where}: {text.splitlines()[0]}") from error
            raise

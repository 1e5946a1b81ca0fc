"""What is the same in both result stores, the file of one process and the lake of several: the words for asking and
saving, transactions, and reading as a stream. Where the rows are is for ``store`` and ``lake`` to say.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from dispatch.results import catalogue, reading
from dispatch.results.catalogue import Entry, Range
from dispatch.results.datasets import LINEAGE
from dispatch.results.reading import quoted
from nodes import failpoints
from nodes.executors.base import Column, Dataset, Reading, shown
from nodes.protocol import CascadeError, FieldError, NotFound, StorageFull, Unprocessable

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

BATCH_ROWS = 50_000
"""Rows per batch of what is read back: some megabytes, whatever the size of the table."""
SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


class StoreBusy(CascadeError):
    """The rows cannot be reached now, and the message says why: another process owns the file, or a server is away."""

    status = 503


@dataclass(frozen=True)
class Part:
    """Rows of one dataset with their LINEAGE, and the ledger entries they belong to. ``table`` None: no rows.

    A reader stands for more rows than shall be in memory at once; it can be read once.
    """

    dataset: Dataset
    table: pa.Table | pa.RecordBatchReader | None
    entries: Sequence[Entry]


class Store(ABC):
    """Rows of all datasets, and the ledger of what is saved. ``open`` before anything else; every method may be called
    from any thread.

    DuckDB itself is loaded and connected at the first use: that costs tens of megabytes, which an idle parent need
    not have. Each operation takes its own connection (microseconds), because a connection serves one thread.
    """

    def __init__(self, *, memory: str = "1GB") -> None:
        self.memory = memory
        self._root: duckdb.DuckDBPyConnection | None = None
        self._connecting = threading.RLock()
        self._writing = threading.Lock()
        self._reading: set[duckdb.DuckDBPyConnection] = set()
        self._ensured: set[Dataset] = set()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the two have in their own way

    where: str
    """Which database this is, for messages."""

    @abstractmethod
    def open(self) -> None:
        """Makes this process one that may use the rows. Raises StoreBusy."""

    @abstractmethod
    def close(self) -> None:
        """Ends what is being read, and lets go of everything."""

    @abstractmethod
    def checkpoint(self) -> None:
        """After this, nothing appended so far is lost with the power: only then may a spooled segment go."""

    @abstractmethod
    def maintain(self) -> None:
        """Does what the store needs done now and then; mostly nothing. The one that appends calls it often."""

    @abstractmethod
    def _append(
        self, tables: Mapping[Dataset, Sequence[pa.Table | pa.RecordBatchReader]], entries: Sequence[Entry]
    ) -> None:
        """Writes each of ``tables`` as one, and the entries, in one transaction."""

    @abstractmethod
    def _connect(self) -> duckdb.DuckDBPyConnection:
        """The connection that all others are made from. Raises StoreBusy."""

    # Writing

    def ensure(self, dataset: Dataset) -> None:
        """Makes the table and the view of ``dataset``, or adds the columns that its newer version has.

        Raises FieldError for names that cannot be, Conflict where a column is there with another type.
        """
        with self._writing:
            self._ensure(dataset)

    def recorded(self, ranges: Sequence[Range]) -> dict[Range, int]:
        """Those (run, start, stop) of ``ranges`` that the ledger has, each with the allocation that was saved."""
        if not ranges:
            return {}  # before the import: an idle parent need not have it
        with self.reader() as connection:
            return catalogue.recorded(connection, ranges)

    def append(self, parts: Sequence[Part]) -> int:
        """Writes all rows and entries of ``parts`` in one transaction; returns how many rows.

        Raises Conflict, and writes nothing, where the ledger has one of the entries already; StorageFull where
        the disk has no room.
        """
        import pyarrow as pa

        entries = [entry for part in parts for entry in part.entries]
        small: dict[Dataset, list[pa.Table]] = {}
        tables: dict[Dataset, list[pa.Table | pa.RecordBatchReader]] = {}
        for part in parts:
            if isinstance(part.table, pa.RecordBatchReader):
                tables.setdefault(part.dataset, []).append(part.table)
            elif part.table is not None and part.table.num_rows:
                small.setdefault(part.dataset, []).append(part.table)
        for dataset, pieces in small.items():
            tables.setdefault(dataset, []).append(pa.concat_tables(pieces).combine_chunks())
        if not entries and not tables:
            return 0
        with self._writing:
            for part in parts:
                self._ensure(part.dataset)
            self._append(tables, entries)
            failpoints.reach("store.committed")
        return sum(entry[-1] for entry in entries)

    # Reading

    @contextmanager
    def reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for this thread: one consistent state of the database, and no writing."""
        connection = self._begin_reading()
        try:
            yield connection
        finally:
            self._end_reading(connection)

    def tables(self) -> list[dict[str, Any]]:
        """The datasets: ``name``, ``columns`` [{"name", "type"}], ``key``, and ``rows``, counting replaced ones too.

        Then their views, which have no key, each with the table it is ``of``.
        """
        found: list[dict[str, Any]] = []
        with self.reader() as connection, self._errors():
            for name, columns, key in catalogue.known(connection):
                counted = connection.execute(f"SELECT count(*) FROM {quoted(catalogue.rows_of(name))}").fetchone()
                shape = [{"name": column.name, "type": column.type} for column in columns]
                found.append({"name": name, "columns": shape, "rows": counted[0] if counted else 0, "key": list(key)})
            for name, of in catalogue.views(connection).items():
                counted = connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()
                shape = [{"name": each.name, "type": each.type} for each in catalogue.described(connection, name)]
                found.append(
                    {"name": name, "columns": shape, "rows": counted[0] if counted else 0, "key": [], "of": of}
                )
        return found

    def select(
        self,
        table: str,
        *,
        run: int | None = None,
        where: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
        order: Sequence[str] = (),
        limit: int | None = None,
        offset: int = 0,
        raw: bool = False,
        distinct: bool = False,
    ) -> pa.RecordBatchReader:
        """Rows of ``table``, read as they are asked for; the reader holds its state of the database until it is
        read to its end, closed or dropped.

        The newest row per natural key; with ``run`` the newest of that run's own rows. ``raw``: every row, with
        LINEAGE. ``where``: a column, or one with an operator (``reading_filters``), and its value (None: is null);
        text is read as the column's type. ``order`` has columns, descending with a leading "-". A page (``limit``,
        ``offset``) without an order goes by the natural key. ``distinct``: each combination of values once.
        A view has no runs and no lineage.
        Raises NotFound for an unknown table; FieldError for an unknown column or a value that cannot be.
        """
        with self.reader() as connection, self._errors():
            known = next((each for each in catalogue.known(connection) if each[0] == table), None)
            if known is None and table in catalogue.views(connection):
                if run is not None or raw:
                    raise FieldError("raw" if raw else "run", f"{table} is a view, whose rows come from no run")
                known = table, catalogue.described(connection, table), ()
        if known is None:
            raise NotFound(f"{shown(table)} is no table with results")
        _, shape, key = known
        if raw:
            shape = [*shape, *(Column(name, kind) for name, kind in LINEAGE.items())]
        sql, values = reading.select(table, shape, key, run, where or {}, columns, order, limit, offset, raw, distinct)
        return self._stream(sql, values)

    def read(self, asked: Reading) -> pa.RecordBatchReader:
        """The newest rows that ``asked`` names, as ``select`` gives them; no row where the table is not there yet."""
        with self.reader() as connection, self._errors():
            known = next((each for each in catalogue.known(connection) if each[0] == asked.table), None)
        if known is None:
            import pyarrow as pa

            return pa.RecordBatchReader.from_batches(pa.schema([(name, pa.null()) for name in asked.columns]), [])
        sql, values = reading.asked(asked, known[1], known[2])
        return self._stream(sql, values)

    def reduce(self, dataset: Dataset, sql: str, run: int, most: int) -> list[dict[str, Any]]:
        """The first ``most`` rows of ``sql``, a SELECT over ``rows``: the run's newest rows by key. No rows where the
        run saved none. Raises Unprocessable for SQL that fails.
        """
        import duckdb

        self.ensure(dataset)
        with self.reader() as connection, self._errors():
            mine = reading.newest(dataset.table, dataset.key, f"WHERE _run = {int(run)}")
            try:
                found = connection.execute(f"WITH rows AS ({mine}) SELECT * FROM ({sql}) LIMIT {int(most)}")
            except (duckdb.ProgrammingError, duckdb.DataError) as error:
                raise Unprocessable(str(error).splitlines()[0]) from error
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    @property
    def reading(self) -> int:
        """How many readers are not at their end yet; each keeps what it may still read from being tidied away."""
        return len(self._reading)

    def to_frame(self, table: str, **how: Any) -> pd.DataFrame:
        """What ``select`` reads, as a DataFrame."""
        frame: pd.DataFrame = self.select(table, **how).read_pandas()
        return frame

    # Below: connections and transactions

    def _connection(self, *, writing: bool = False) -> duckdb.DuckDBPyConnection:
        """A new connection, for reading or for ``writing``; the caller ends it with ``_let_go``. Raises StoreBusy."""
        with self._connecting:
            if self._root is None:
                self._root = self._connect()
            return self._root.cursor()

    def _let_go(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.close()

    def _disconnect(self) -> None:
        with self._connecting:
            for connection in list(self._reading):
                connection.interrupt()
                self._let_go(connection)
            self._reading.clear()
            if self._root is not None:
                self._root.close()
                self._root = None
            self._ensured.clear()

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._errors():
            connection = self._connection(writing=True)
            try:
                connection.begin()
                yield connection
                connection.commit()
            except BaseException:
                with suppress(Exception):
                    connection.rollback()
                raise
            finally:
                self._let_go(connection)

    def _write(self, act: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """Calls ``act`` with a connection in a transaction, which is then committed."""
        with self._transaction() as connection:
            act(connection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            if isinstance(error, duckdb.FatalException):
                # DuckDB refuses everything after a write that failed half-way, until the file is opened again.
                self._disconnect()
            first = str(error).splitlines()[0]
            if any(text in first for text in _FULL):
                raise StorageFull(f"no room for results on the parent's disk: {first}") from error
            if isinstance(error, duckdb.OutOfMemoryException):
                raise Unprocessable(f"this takes more than {self.memory} of memory: {first}") from error
            raise

    def _begin_reading(self) -> duckdb.DuckDBPyConnection:
        with self._connecting, self._errors():
            connection = self._connection()
            try:
                connection.execute("BEGIN TRANSACTION READ ONLY")
            except BaseException:
                self._let_go(connection)
                raise
            self._reading.add(connection)
            return connection

    def _end_reading(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._reading.discard(connection)
        self._let_go(connection)

    def _stream(self, sql: str, values: Sequence[Any]) -> pa.RecordBatchReader:
        import duckdb
        import pyarrow as pa

        connection = self._begin_reading()
        try:
            with self._errors():
                # Each of the two versions reads one of these lazily and the other into memory first.
                if duckdb.__version__.startswith("1."):
                    batches = connection.execute(sql, values).to_arrow_reader(BATCH_ROWS)
                else:
                    batches = connection.sql(sql, params=values).to_arrow_reader(BATCH_ROWS)
        except BaseException:
            self._end_reading(connection)
            raise

        def each() -> Iterator[Any]:
            try:
                yield None
                yield from batches
            finally:
                self._end_reading(connection)

        # Started here, because a generator that never was does not reach its ``finally`` when it is dropped.
        started = each()
        next(started)
        return pa.RecordBatchReader.from_batches(batches.schema, started)

    def _ensure(self, dataset: Dataset) -> None:
        if dataset in self._ensured:
            return
        self._write(lambda connection: catalogue.declare(connection, dataset, self.where))
        self._ensured.add(dataset)

"""The result store: a DuckDB file, owned by one process, with the rows of all datasets and the ledger of what is saved.

Per dataset there is ``<table>_rows``, which only grows (the dataset's columns and LINEAGE), and the view ``<table>``
with the newest row per natural key. ``ledger`` has one entry per range of items saved; it is written in the
transaction that writes the rows, so rows and entry are there both or not at all.

How rows are checked is in ``datasets``, what is asked of them in ``reading``, and how they leave in ``formats``; which
rows are still to be saved is the saver's concern.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch.results import reading
from dispatch.results.datasets import LINEAGE, check
from dispatch.results.reading import quoted
from nodes import failpoints
from nodes.executors.base import Column, Dataset, Reading, shown
from nodes.protocol import CascadeError, Conflict, FieldError, NotFound, StorageFull, Unprocessable

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

Entry = tuple[int, int, int, int, str, int]
"""run, start, stop, allocation, sha256, rows."""

BATCH_ROWS = 50_000
"""Rows per batch of what is read back: some megabytes, whatever the size of the table."""

_SQL_TYPES = {
    "string": "VARCHAR",
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMP",
    "json": "VARCHAR",
}
_VIEW_TYPES = {
    **dict.fromkeys(("BIGINT", "INTEGER", "HUGEINT", "UBIGINT", "UINTEGER", "SMALLINT"), "int64"),
    **dict.fromkeys(("DOUBLE", "FLOAT"), "float64"),
    "BOOLEAN": "bool",
    "TIMESTAMP": "timestamp",
    "DATE": "timestamp",
}
"""What the columns of views are, in our words; others are read as text."""
_SETTINGS = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "lock_configuration": "true",
}
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_LEDGER = """
    CREATE TABLE IF NOT EXISTS ledger (
        run BIGINT, start BIGINT, stop BIGINT, allocation BIGINT, sha256 VARCHAR, rows BIGINT, saved_at TIMESTAMP,
        PRIMARY KEY (run, start, stop)
    )
"""
_DATASETS = "CREATE TABLE IF NOT EXISTS _datasets (name VARCHAR, columns VARCHAR, key VARCHAR)"

_VIEWS = "CREATE TABLE IF NOT EXISTS _views (name VARCHAR PRIMARY KEY, of VARCHAR)"

_owned: set[Path] = set()
_owning = threading.Lock()


class StoreBusy(CascadeError):
    """Another process (or another ResultStore of this one) owns the file; the message says who."""

    status = 503


@dataclass(frozen=True)
class Part:
    """Rows of one dataset with their LINEAGE, and the ledger entries they belong to. ``table`` None: no rows."""

    dataset: Dataset
    table: pa.Table | None
    entries: Sequence[Entry]


class ResultStore:
    """The owner of one DuckDB file. ``open`` before anything else; every method may be called from any thread.

    DuckDB itself is loaded and connected at the first use: that costs tens of megabytes, which an idle parent need
    not have. Each operation takes its own connection (microseconds), because a connection serves one thread.
    """

    def __init__(self, path: Path, *, memory: str = "1GB") -> None:
        self.path = Path(path).resolve()
        self.memory = memory
        self._lock: int | None = None
        self._root: duckdb.DuckDBPyConnection | None = None
        self._connecting = threading.RLock()
        self._writing = threading.Lock()
        self._reading: set[duckdb.DuckDBPyConnection] = set()
        self._ensured: set[Dataset] = set()

    def __enter__(self) -> ResultStore:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Ownership

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

    # Writing

    def ensure(self, dataset: Dataset) -> None:
        """Makes the table and the view of ``dataset``, or adds the columns that its newer version has.

        Raises FieldError for names that cannot be, Conflict where a column is there with another type.
        """
        with self._writing:
            self._ensure(dataset)

    def recorded(self, ranges: Sequence[tuple[int, int, int]]) -> dict[tuple[int, int, int], int]:
        """Those (run, start, stop) of ``ranges`` that the ledger has, each with the allocation that was saved."""
        if not ranges:
            return {}  # before the import: an idle parent need not have it
        import pyarrow as pa

        asked = pa.table(
            [pa.array(values, pa.int64()) for values in zip(*ranges, strict=True)], ["run", "start", "stop"]
        )
        with self.reader() as connection:
            connection.register("_asked", asked)
            found = connection.execute(
                "SELECT run, start, stop, allocation FROM ledger JOIN _asked USING (run, start, stop)"
            ).fetchall()
            connection.unregister("_asked")
        return {(run, start, stop): allocation for run, start, stop, allocation in found}

    def append(self, parts: Sequence[Part]) -> int:
        """Writes all rows and entries of ``parts`` in one transaction; returns how many rows.

        Raises Conflict, and writes nothing, where the ledger has one of the entries already; StorageFull where
        the disk has no room.
        """
        import pyarrow as pa

        tables: dict[Dataset, list[pa.Table]] = {}
        entries: list[Entry] = []
        for part in parts:
            entries += part.entries
            if part.table is not None and part.table.num_rows:
                tables.setdefault(part.dataset, []).append(part.table)
        if not entries and not tables:
            return 0
        with self._writing:
            for part in parts:
                self._ensure(part.dataset)
            with self._transaction() as connection:
                # First, so that a repetition costs no writing of rows.
                self._record(connection, entries)
                rows = 0
                for dataset, pieces in tables.items():
                    table = pa.concat_tables(pieces).combine_chunks()
                    connection.register("_incoming", table)
                    connection.execute(f"INSERT INTO {quoted(dataset.table + '_rows')} BY NAME SELECT * FROM _incoming")
                    connection.unregister("_incoming")
                    rows += table.num_rows
                failpoints.reach("store.rows")
            failpoints.reach("store.committed")
        return rows

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
        with self.reader() as connection:
            for name, columns, key in self._known(connection):
                counted = connection.execute(f"SELECT count(*) FROM {quoted(name + '_rows')}").fetchone()
                shape = [{"name": column.name, "type": column.type} for column in columns]
                found.append({"name": name, "columns": shape, "rows": counted[0] if counted else 0, "key": list(key)})
            for name, of in self._views(connection).items():
                counted = connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()
                shape = [{"name": each.name, "type": each.type} for each in self._described(connection, name)]
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
        LINEAGE. ``where`` has a column and the value it must equal (None: is null); text is read as the column's
        type. ``order`` has columns, descending with a leading "-". A page (``limit``, ``offset``) without an order
        goes by the natural key. ``distinct``: each combination of values once. A view has no runs and no lineage.
        Raises NotFound for an unknown table; FieldError for an unknown column or a value that cannot be.
        """
        with self.reader() as connection:
            known = next((each for each in self._known(connection) if each[0] == table), None)
            if known is None and table in self._views(connection):
                if run is not None or raw:
                    raise FieldError("raw" if raw else "run", f"{table} is a view, whose rows come from no run")
                known = table, self._described(connection, table), ()
        if known is None:
            raise NotFound(f"{shown(table)} is no table with results")
        _, shape, key = known
        if raw:
            shape = [*shape, *(Column(name, kind) for name, kind in LINEAGE.items())]
        sql, values = reading.select(table, shape, key, run, where or {}, columns, order, limit, offset, raw, distinct)
        return self._stream(sql, values)

    def read(self, asked: Reading) -> pa.RecordBatchReader:
        """The newest rows that ``asked`` names, as ``select`` gives them; no row where the table is not there yet."""
        with self.reader() as connection:
            known = next((each for each in self._known(connection) if each[0] == asked.table), None)
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

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """A new connection; the caller closes it. Raises StoreBusy."""
        import duckdb

        with self._connecting:
            if self._lock is None:
                raise StoreBusy(f"{self.path} is not open in this process")
            if self._root is None:
                try:
                    root = duckdb.connect(str(self.path), config={**_SETTINGS, "memory_limit": self.memory})
                except duckdb.IOException as error:
                    if "lock" not in str(error):
                        raise
                    raise StoreBusy(_busy(self.path, str(error).splitlines()[0])) from None
                root.execute(_LEDGER)
                root.execute(_DATASETS)
                root.execute(_VIEWS)
                self._root = root
            return self._root.cursor()

    def _disconnect(self) -> None:
        with self._connecting:
            for connection in list(self._reading):
                connection.interrupt()
                connection.close()
            self._reading.clear()
            if self._root is not None:
                self._root.close()
                self._root = None
            self._ensured.clear()

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._errors():
            connection = self._connection()
            try:
                connection.begin()
                yield connection
                connection.commit()
            except BaseException:
                with suppress(Exception):
                    connection.rollback()
                raise
            finally:
                connection.close()

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
            connection.execute("BEGIN TRANSACTION READ ONLY")
            self._reading.add(connection)
            return connection

    def _end_reading(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._reading.discard(connection)
        connection.close()

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

    # Below: what is in the file

    def _ensure(self, dataset: Dataset) -> None:
        if dataset in self._ensured:
            return
        check(dataset)
        with self._transaction() as connection:
            known = next((each for each in self._known(connection) if each[0] == dataset.table), None)
            rows = quoted(dataset.table + "_rows")
            there = {} if known is None else {column.name: column.type for column in known[1]}
            for column in dataset.columns:
                if there.get(column.name, column.type) != column.type:
                    raise Conflict(
                        f"{dataset.table}.{column.name} is {there[column.name]} in {self.path}; "
                        f"this version of the dataset has {column.type}: give it another name"
                    )
            if known is None:
                columns = [f"{quoted(column.name)} {_SQL_TYPES[column.type]}" for column in dataset.columns]
                columns += [f"{quoted(name)} {_SQL_TYPES[kind]}" for name, kind in LINEAGE.items()]
                connection.execute(f"CREATE TABLE {rows} ({', '.join(columns)})")
            for column in dataset.columns if known else ():
                if column.name not in there:
                    connection.execute(f"ALTER TABLE {rows} ADD COLUMN {quoted(column.name)} {_SQL_TYPES[column.type]}")
            # Columns that only an older version had stay, with its rows.
            all_columns = [
                *dataset.columns,
                *(each for each in (known[1] if known else ()) if each.name not in dataset.names),
            ]
            if known is None or known[1] != all_columns or known[2] != dataset.key:
                names = ", ".join(quoted(column.name) for column in all_columns)
                newest = reading.newest(dataset.table, dataset.key)
                connection.execute(f"CREATE OR REPLACE VIEW {quoted(dataset.table)} AS SELECT {names} FROM ({newest})")
                connection.execute("DELETE FROM _datasets WHERE name = ?", [dataset.table])
                shape = json.dumps([[column.name, column.type] for column in all_columns])
                connection.execute(
                    "INSERT INTO _datasets VALUES (?, ?, ?)", [dataset.table, shape, json.dumps(dataset.key)]
                )
            for name in [name for name, of in self._views(connection).items() if of == dataset.table]:
                connection.execute(f"DROP VIEW IF EXISTS {quoted(name)}")
            connection.execute("DELETE FROM _views WHERE of = ?", [dataset.table])
            for name, sql in dataset.views:
                told = sql.replace("{table}", quoted(dataset.table))
                connection.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS {told}")
                connection.execute("INSERT INTO _views VALUES (?, ?)", [name, dataset.table])
        self._ensured.add(dataset)

    def _record(self, connection: duckdb.DuckDBPyConnection, entries: Sequence[Entry]) -> None:
        import duckdb
        import pyarrow as pa

        if not entries:
            return
        names = ["run", "start", "stop", "allocation", "sha256", "rows"]
        values = zip(names, zip(*entries, strict=True), strict=True)
        arrays = [pa.array(column, pa.string() if name == "sha256" else pa.int64()) for name, column in values]
        now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
        arrays.append(pa.repeat(pa.scalar(now, pa.timestamp("us")), len(entries)))
        connection.register("_entries", pa.table(arrays, [*names, "saved_at"]))
        try:
            connection.execute("INSERT INTO ledger BY NAME SELECT * FROM _entries")
        except duckdb.ConstraintException as error:
            raise Conflict(f"saved before: {str(error).splitlines()[0]}") from error
        connection.unregister("_entries")

    def _views(self, connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
        """View -> the table it is of."""
        return dict(connection.execute("SELECT name, of FROM _views ORDER BY name").fetchall())

    def _described(self, connection: duckdb.DuckDBPyConnection, name: str) -> list[Column]:
        found = connection.execute(f"DESCRIBE {quoted(name)}").fetchall()
        return [Column(column, _VIEW_TYPES.get(kind, "string")) for column, kind, *_ in found]

    def _known(self, connection: duckdb.DuckDBPyConnection) -> list[tuple[str, list[Column], tuple[str, ...]]]:
        found = connection.execute("SELECT name, columns, key FROM _datasets ORDER BY name").fetchall()
        return [
            (name, [Column(*column) for column in json.loads(columns)], tuple(json.loads(key)))
            for name, columns, key in found
        ]


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

"""The SQL box: one SELECT over the tables of results, run in a process that has nothing but the rows it is sent.

This process asks it which tables the statement reads, looks whether they are there, and reads what is needed of them by
SQL of its own (``reading``), all in one state of the database. The statement itself never comes near the result store,
its file, the lake or the catalogue. When the time is up both are ended: the reading here, and the process.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from dispatch.results import catalogue, reading
from dispatch.results import reading_filters as filters
from dispatch.results import reading_pages as pages
from dispatch.results.base import BATCH_ROWS, Store
from dispatch.results.reading_filters import quoted
from nodes.executors.base import shown
from nodes.protocol import FieldError, NotYet, TooMany

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

PROCESSES = 2
"""At once at most. Whoever comes meanwhile waits for its turn."""
WAIT_SECONDS = 5.0
START_SECONDS = 60.0
QUERY_LENGTH = 100_000
ANSWER_BYTES = 64 * 1024 * 1024
HEAD_BYTES = 4 * 1024 * 1024
PIECE = 1024 * 1024
ROOT = Path(__file__).resolve().parents[2]
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Of the environment; the rest holds secrets."""


class Failed(FieldError):
    """The statement can be, but its running failed, or took more than is allowed."""

    status = 422


class _Ended(Exception):
    """The process has ended."""


@dataclass(frozen=True)
class Limits:
    """``rows`` of the answer, ``seconds`` from the start of the statement, ``megabytes`` for it and what it reads."""

    rows: int
    seconds: float
    megabytes: int


@dataclass(frozen=True)
class Answer:
    """``body``: JSON with columns, rows, took (milliseconds) and truncated; or a file, about which ``rows`` says how
    many rows it has, and ``truncated`` whether there were more."""

    body: bytes
    rows: int
    truncated: bool
    took: float


def run(store: Store, query: str, limits: Limits, format: str | None = None) -> Answer:
    """The answer to ``query``, one SELECT. Raises FieldError on ``query`` where it cannot be, Failed where it failed or
    met a limit, TooMany where others are busy.
    """
    if "\x00" in query:
        raise FieldError("query", "holds a NUL character")
    if len(query) > QUERY_LENGTH:
        raise FieldError("query", f"has {len(query):,} characters; at most {QUERY_LENGTH:,} are allowed")
    if not query.strip():
        raise FieldError("query", "is empty; a SELECT is needed")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise FieldError("query", "holds half a character") from None
    asked = {"query": query, "limit": limits.rows, "format": format, "seconds": limits.seconds}
    while True:
        with _process(limits.megabytes) as process:
            fresh, process.fresh = process.fresh, False
            try:
                return _Asking(store, process, limits).answer(asked)
            except _Ended:
                # One that was there before may have come to its end, or been ended, before it was asked.
                if fresh:
                    raise _too_large(limits) from None


class _Asking:
    """One statement: what passes between this process, the other one and the store."""

    def __init__(self, store: Store, process: _Process, limits: Limits) -> None:
        self.store = store
        self.process = process
        self.limits = limits
        self._late = threading.Event()
        self._over = False
        """Whether the process has said all that it says of this statement, and waits for the next one."""

    def answer(self, asked: dict[str, Any]) -> Answer:
        done = threading.Event()
        reading: list[duckdb.DuckDBPyConnection] = []

        def end() -> None:
            if done.wait(self.limits.seconds):
                return
            self._late.set()
            self.process.kill()
            while not done.wait(0.005):  # again: between two statements it would be lost
                for connection in list(reading):
                    with suppress(Exception):  # it may be closed this moment
                        connection.interrupt()

        watch = threading.Thread(target=end, name="sql", daemon=True)
        watch.start()
        try:
            self.process.write(json.dumps(asked).encode() + b"\n")
            about = self._told()
            names = [name for name in about["tables"] if name not in about["made"]]
            if about["tables"]:
                with self.store.reader() as connection, self.store._errors():
                    reading.append(connection)
                    try:
                        self._bring(connection, names, about["made"])
                    finally:
                        reading.clear()  # what follows needs no state of the database
            else:
                self._send(b"{}\n")
                self._told()
            head = self._told()
            if head["bytes"] > ANSWER_BYTES:
                raise _Ended
            body = self.process.read(head["bytes"])
            self._over = True
            return Answer(body, head["rows"], head["truncated"], head["took"])
        except Exception:
            if self._late.is_set():
                raise Failed(
                    "query",
                    f"took longer than {1000 * self.limits.seconds:,.0f} ms and was ended: the setting sql_seconds is "
                    f"{self.limits.seconds:g}. Conditions that compare a column with a constant are looked at first",
                ) from None
            raise
        finally:
            done.set()
            watch.join()
            if self._late.is_set() or not self._over:
                self.process.kill()

    def _bring(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str], made: Sequence[str]) -> None:
        """Sends the shapes of the tables that are read, then what is needed of each. Raises FieldError, Failed."""
        import duckdb

        known = tables(connection)
        types: dict[str, dict[str, str]] = {}
        for name in names:
            if name not in known:
                self._send(b"null\n")
                with suppress(FieldError):
                    self._told()
                raise FieldError("query", f"there is no table {shown(name)}; there are: {', '.join(known)}")
        for name in [*names, *(each for each in made if each in known)]:
            described = connection.execute(f"DESCRIBE {quoted(name)}").fetchall()
            types[name] = {column: kind for column, kind, *_ in described}
        self._send(json.dumps(types).encode() + b"\n")
        shapes = {name: pages.table(connection, known[name]) for name in types}
        for need in self._told()["needs"]:
            sql, values = _rows(shapes[need["table"]], types[need["table"]], need)
            try:
                self._stream(connection, sql, values)
            except (duckdb.DataError, duckdb.ProgrammingError) as error:  # a view may fail over rows that are there
                raise Failed("query", str(error).splitlines()[0]) from error

    def _stream(self, connection: duckdb.DuckDBPyConnection, sql: str, values: Sequence[Any]) -> None:
        import pyarrow as pa

        rows = connection.execute(sql, list(values)).to_arrow_reader(BATCH_ROWS)
        try:
            with pa.ipc.new_stream(pa.PythonFile(cast("BinaryIO", self.process), mode="w"), rows.schema) as writer:
                for batch in rows:
                    writer.write_batch(batch)
        except (BrokenPipeError, _Ended):
            self._told()  # says why it has ended
            raise _Ended from None

    def _send(self, line: bytes) -> None:
        with suppress(_Ended):
            self.process.write(line)

    def _told(self) -> Any:
        """What the process says next. Raises FieldError, Failed, _Ended."""
        try:
            told = json.loads(self.process.line())
            kind = told.get("error")
        except (ValueError, AttributeError):
            raise _Ended from None
        self._over = kind in ("query", "run")
        if kind == "query":
            raise FieldError("query", told["detail"])
        if kind == "run":
            raise Failed("query", told["detail"])
        if kind == "memory":
            raise _too_large(self.limits)
        return told


def _too_large(limits: Limits) -> Failed:
    return Failed(
        "query",
        f"took more memory than is allowed, with the rows that it reads: the setting sql_megabytes is "
        f"{limits.megabytes}. Name the columns, and compare columns with constants",
    )


def tables(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """What a statement may read: the newest rows of each dataset, its views, and ``<table>_rows``, all rows with where
    they came from. Each with the dataset or view that it is of.
    """
    known = [name for name, *_ in catalogue.known(connection)]
    views = list(catalogue.views(connection))
    return {**{name: name for name in [*known, *views]}, **{catalogue.rows_of(name): name for name in known}}


def _rows(shape: pages.Shape | None, types: dict[str, str], need: dict[str, Any]) -> tuple[str, list[Any]]:
    """SQL for a need, whose every name is looked up: what asks is not trusted."""
    assert shape is not None
    table = need["table"]
    kinds = {name: catalogue.kind_of(kind) for name, kind in types.items()}
    if any(name not in types for name in [*need["columns"], *(column for column, *_ in need["order"])]):
        raise _Ended
    where: dict[str, Any] = {}
    more: list[dict[str, Any]] = []
    for column, operator, value in need["where"]:
        name = f"{column}__{operator}" if operator else column
        if name not in where:
            where[name] = value
        else:
            more.append({name: value})
    raw = table != shape.name
    source, tests, values = reading.matching(shape.name, kinds, () if raw else shape.key, None, where, raw)
    for each in more:
        further, given = filters.tests(each, kinds, table)
        tests, values = [*tests, *further], [*values, *given]
    sql = f"SELECT {', '.join(map(quoted, need['columns']))} FROM {source}"
    if tests:
        sql += f" WHERE {' AND '.join(tests)}"
    if need["order"]:
        by = [f"{quoted(n)} {'DESC' if d else 'ASC'} NULLS {'FIRST' if f else 'LAST'}" for n, d, f in need["order"]]
        sql += f" ORDER BY {', '.join(by)}"
    if need["limit"] is not None:
        sql += f" LIMIT {int(need['limit']):d}"
    return sql, values


# Processes


class _Process:
    """Reads and writes never wait for longer than the process lives."""

    closed = False  # for Arrow, which takes this for a file
    fresh = True

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "dispatch.results.sql_process", str(megabytes)],
                cwd=ROOT,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError as error:
            raise NotYet(f"no process could be started for the statement: {error.strerror}", retry_after=5) from error
        self._in = cast("IO[bytes]", self._popen.stdin)
        self._out = cast("IO[bytes]", self._popen.stdout)
        self._ahead = b""
        try:
            ready = select.select([self._out], [], [], START_SECONDS)[0] and json.loads(self.line()).get("ready")
        except (_Ended, ValueError):
            ready = False
        if not ready:
            self.kill()
            raise NotYet("the process for statements did not start", retry_after=5)

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        with suppress(OSError):
            self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        self.kill()
        self._in.close()
        self._out.close()

    def flush(self) -> None:
        """For Arrow."""

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        try:
            at = 0
            while at < len(view):
                at += os.write(self._in.fileno(), view[at : at + PIECE])
        except (BrokenPipeError, ValueError):
            raise _Ended from None
        return len(view)

    def line(self) -> bytes:
        while b"\n" not in self._ahead:
            if len(self._ahead) > HEAD_BYTES:
                raise _Ended
            self._more(65536)
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line

    def read(self, size: int) -> bytes:
        pieces, have = [self._ahead], len(self._ahead)
        while have < size:
            self._ahead = b""
            self._more(PIECE)
            pieces.append(self._ahead)
            have += len(self._ahead)
        self._ahead = b""
        return b"".join(pieces)

    def _more(self, size: int) -> None:
        try:
            piece = os.read(self._out.fileno(), size)
        except (OSError, ValueError):
            raise _Ended from None
        if not piece:
            raise _Ended
        self._ahead += piece


_free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
"""Last in, first out: while one suffices, the other comes to its end."""
for _ in range(PROCESSES):
    _free.put(None)


@contextmanager
def _process(megabytes: int) -> Iterator[_Process]:
    """A process that waits for a statement. Raises TooMany, NotYet."""
    try:
        process = _free.get(timeout=WAIT_SECONDS)
    except queue.Empty:
        raise TooMany(f"{PROCESSES} statements are running; try again", retry_after=WAIT_SECONDS) from None
    try:
        if process is not None and (not process.alive or process.megabytes != megabytes):
            process.close()
            process = None
        if process is None:
            began = time.monotonic()
            process = _Process(megabytes)
            logger.debug("a process for statements took %.2f s to start", time.monotonic() - began)
        yield process
    finally:
        if process is not None and not process.alive:
            process.close()
            process = None
        _free.put(process)

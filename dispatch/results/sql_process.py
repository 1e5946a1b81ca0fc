"""The program that runs statements of the SQL box: a process that has nothing but the rows it is sent.

Before it reads a statement it has given up to open files and sockets, to write files, and to import; DuckDB is in
memory, with external access off and its settings locked. Its memory is limited, its environment is nearly empty.
Whoever started it (``sql``) ends it when the time is up.

Lines of JSON and, between them, Arrow IPC streams in; a line of JSON and the bytes of the answer out. Django-free.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

from dispatch.results import formats, sql_needs
from dispatch.results.reading_filters import quoted

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

IDLE_SECONDS = 60.0
BATCH_ROWS = 2_000
ANSWER_BYTES = 64 * 1024 * 1024
_LARGE = f"the answer takes more than {ANSWER_BYTES // 1024**2} MB; ask for fewer rows or columns"
OWN_MEMORY = 64 * 1024 * 1024
"""Bytes beside those for rows: what the answer is made with."""
_SETTINGS = (
    "temp_directory = ''",
    "TimeZone = 'UTC'",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "python_enable_replacements = false",
    "allow_community_extensions = false",
    "enable_external_access = false",
    "lock_configuration = true",
)


class _Without:
    """Arrow looks for pandas, which is large, and for pytz, which not every machine has; neither is needed here."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("pandas", "pytz"):
            raise ModuleNotFoundError(name)


class Wrong(Exception):
    """What is told of a statement: ``kind`` is query (it cannot be) or run (it failed)."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def main(megabytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's; this ends with its input
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    sys.meta_path.insert(0, _Without())
    connection = _ready(megabytes)
    _tell({"ready": True})
    source = sys.stdin.buffer
    while select.select([source], [], [], IDLE_SECONDS)[0] and (line := source.readline()):
        asked = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime + asked["seconds"]) + 5
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))  # should nobody be left to end it
        head, body = _answer(connection, asked, source)
        _tell(head)
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
        if head.get("error") == "memory":
            return  # rows may still be on their way here


def _ready(megabytes: int) -> duckdb.DuckDBPyConnection:
    import duckdb
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    connection = duckdb.connect(config={"threads": 1, "memory_limit": f"{megabytes}MB"})
    for setting in _SETTINGS:
        connection.execute(f"SET {setting}")
    _try_all(connection)
    with suppress(OSError):
        os.nice(5)
    used = _data_bytes()
    limits = {
        resource.RLIMIT_DATA: used + megabytes * 1024 * 1024 + OWN_MEMORY,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    sys.meta_path.clear()  # an import would need files
    return connection


def _try_all(connection: duckdb.DuckDBPyConnection) -> None:
    """Every path once, so that what is imported on the way is here before files are given up."""
    import pyarrow as pa

    connection.execute("SELECT json_serialize_sql('SELECT 1')").fetchall()
    connection.sql("SELECT 1 AS a").columns  # noqa: B018
    table = pa.table({"a": [1], "b": ["x"], "c": pa.array([0], pa.timestamp("us", "UTC"))})
    connection.register("_tried", table)
    rows = connection.execute(
        "SELECT *, now() AS n, [1] AS l, {'a': DATE '2020-01-01'} AS s, 1.5 AS d FROM _tried WHERE b = 'x'"
    )
    found = rows.to_arrow_reader(10).read_all()
    connection.unregister("_tried")
    for format in (None, *formats.FORMATS):
        _made(found, format, False, 0.0)


def _data_bytes() -> int:
    with suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _tell(about: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(about).encode() + b"\n")
    sys.stdout.buffer.flush()


def _answer(
    connection: duckdb.DuckDBPyConnection, asked: dict[str, Any], source: BinaryIO
) -> tuple[dict[str, Any], bytes]:
    import duckdb
    import pyarrow as pa

    began = time.monotonic()
    held: list[str] = []
    try:
        node = _node(connection, asked["query"])
        _tell({"tables": sql_needs.tables(node), "made": sorted(sql_needs.made_here(node))})
        types: dict[str, dict[str, str]] | None = json.loads(source.readline())
        if types is None:
            raise sql_needs.Refused("a table is not there")
        _bind(connection, asked["query"], types)
        needs = sql_needs.needs(node, types, asked["limit"] + 1)
        _tell({"needs": [asdict(need) for need in needs]})
        for number, need in enumerate(needs):
            with pa.ipc.open_stream(source) as reader:
                rows = _read(reader)
            _show(connection, number, need, types[need.table], rows)
            held.append(need.table)
            del rows
        found, cut = _run(connection, asked["query"], asked["limit"])
        return _made(found, asked["format"], cut, 1000 * (time.monotonic() - began))
    except sql_needs.Refused as error:
        return {"error": "query", "detail": str(error)}, b""
    except Wrong as error:
        return {"error": error.kind, "detail": str(error)}, b""
    except (MemoryError, pa.ArrowMemoryError, duckdb.OutOfMemoryException):
        return {"error": "memory"}, b""
    except (duckdb.Error, pa.ArrowException, RecursionError, ValueError, OverflowError, TypeError) as error:
        if "bad_alloc" in str(error) or "failed to allocate" in str(error).lower():
            return {"error": "memory"}, b""
        return {"error": "run", "detail": _first_line(error)}, b""
    finally:
        for number, table in enumerate(held):
            connection.execute(f"DROP VIEW IF EXISTS {quoted(table)}")
            connection.unregister(f"_rows_{number}")


def _read(reader: pa.RecordBatchReader) -> pa.Table:
    import pyarrow as pa

    try:
        return reader.read_all()
    except (pa.ArrowException, OSError, EOFError):
        raise MemoryError from None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:1000] if lines else type(error).__name__


def _node(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    found = connection.execute(
        "SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)", [query]
    ).fetchone()
    try:
        return sql_needs.statement(json.loads(found[0] if found else "{}"))
    except RecursionError:
        raise sql_needs.Refused("it is nested too deeply") from None


def _bind(connection: duckdb.DuckDBPyConnection, query: str, types: dict[str, dict[str, str]]) -> None:
    """Whether the statement means something over tables with these columns. Raises Wrong, with DuckDB's words."""
    import duckdb

    try:
        for table, columns in types.items():
            told = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
            connection.execute(f"CREATE TABLE {quoted(table)} ({told})")
        connection.sql(query).columns  # noqa: B018
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise Wrong("query", _first_line(error)) from None
    finally:
        for table in types:
            connection.execute(f"DROP TABLE IF EXISTS {quoted(table)}")


def _show(
    connection: duckdb.DuckDBPyConnection, number: int, need: sql_needs.Need, types: dict[str, str], rows: pa.Table
) -> None:
    """``rows`` as the table of that name, with its types."""
    connection.register(f"_rows_{number}", rows)
    told = ", ".join(f"CAST({quoted(name)} AS {types[name]}) AS {quoted(name)}" for name in need.columns)
    connection.execute(f"CREATE VIEW {quoted(need.table)} AS SELECT {told} FROM _rows_{number}")


def _run(connection: duckdb.DuckDBPyConnection, query: str, limit: int) -> tuple[pa.Table, bool]:
    """The first ``limit`` rows, and whether there are more."""
    import pyarrow as pa

    reader = connection.execute(query).to_arrow_reader(min(BATCH_ROWS, limit + 1))
    batches, rows, size = [], 0, 0
    for batch in reader:
        batches.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if size > ANSWER_BYTES:
            raise Wrong(
                "run", f"the answer takes more than {ANSWER_BYTES // 1024**2} MB; ask for fewer rows or columns"
            )
        if rows > limit:
            break
    found = pa.Table.from_batches(batches, reader.schema)
    return found.slice(0, limit), rows > limit


def _made(found: pa.Table, format: str | None, cut: bool, took: float) -> tuple[dict[str, Any], bytes]:
    """The head of the answer and its body: an object with columns and rows, or a file in ``format``."""

    head = {"rows": found.num_rows, "truncated": cut, "took": round(took, 1)}
    if format is None:
        columns = [{"name": field.name, "type": str(field.type)} for field in found.schema]
        rows = list(zip(*(formats.cells(column) for column in found.columns), strict=True))
        body = json.dumps({"columns": columns, "rows": rows, "took": head["took"], "truncated": cut}).encode()
    else:
        found = _fitting(found, format)
        sink = io.BytesIO()
        for piece in formats.stream(found.to_reader(), format)[1]:
            sink.write(piece)
            if sink.tell() > ANSWER_BYTES:
                break
        body = sink.getvalue()
    if len(body) > ANSWER_BYTES:
        raise Wrong("run", _LARGE)
    return {**head, "bytes": len(body)}, body


def _fitting(found: pa.Table, format: str) -> pa.Table:
    """``found`` with text for what files of this format cannot hold: lists and objects in CSV, intervals."""
    import pyarrow as pa

    columns = []
    for column in found.columns:
        nested = pa.types.is_nested(column.type)
        if pa.types.is_interval(column.type) or (format == "csv" and nested):
            cells = formats.cells(column)
            told = [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells]
            column = pa.chunked_array([pa.array(told, pa.string())])
        columns.append(column)
    return pa.Table.from_arrays(columns, names=found.schema.names)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent is gone
        main(int(sys.argv[1]))

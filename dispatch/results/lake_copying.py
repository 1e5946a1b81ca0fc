"""All that is in a result file, into a lake: rows with their lineage and in their order, and the ledger as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from dispatch.results import catalogue
from dispatch.results.base import BATCH_ROWS
from dispatch.results.lake import LakeStore
from dispatch.results.reading import quoted
from dispatch.results.store import ResultStore
from nodes.executors.base import Dataset
from nodes.protocol import Conflict

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

FILE_ROWS = 1_000_000


def copy(source: ResultStore, lake: LakeStore, views: Mapping[str, Dataset]) -> dict[str, int]:
    """Table -> rows. What the lake had before is dropped: a copy that was cut off is begun again.

    ``views``: by table, the datasets whose views are to be there. Raises Conflict where the numbers do not agree.
    """
    files: list[tuple[str, str]] = []
    counts: dict[str, int] = {}
    with source.reader() as reading:
        known = catalogue.known(reading)
        ordered = {catalogue.rows_of(name): "rowid" for name, *_ in known} | {"ledger": "run, start"}
        for name, order in ordered.items():
            counts[name] = _count(reading, name)
            rows = reading.execute(f"SELECT * FROM {quoted(name)} ORDER BY {order}").to_arrow_reader(BATCH_ROWS)
            files += [(name, lake.write_file(name, piece)) for piece in _pieces(rows)]

    def begin(connection: duckdb.DuckDBPyConnection) -> None:
        _drop(connection)
        for name, columns, key in known:
            shown = views[name].views if name in views else ()
            catalogue.declare(connection, Dataset(name, tuple(columns), key, shown), lake.where)

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        for name, path in files:
            lake.add_file(connection, name, path)
        if (there := {name: _count(connection, name) for name in counts}) != counts:
            raise Conflict(f"{lake.where} would have {there} rows instead of {counts}")

    lake.write(begin)
    lake.write(fill)
    return counts


def _pieces(rows: pa.RecordBatchReader) -> Iterator[pa.RecordBatchReader]:
    """``rows`` as the files they become."""
    import pyarrow as pa

    batches = iter(rows)
    while first := next(batches, None):
        more = islice(batches, FILE_ROWS // BATCH_ROWS - 1)
        yield pa.RecordBatchReader.from_batches(rows.schema, _chained(first, more))


def _chained(first: pa.RecordBatch, more: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from more


def _drop(connection: duckdb.DuckDBPyConnection) -> None:
    for view in (*catalogue.views(connection), *(name for name, *_ in catalogue.known(connection))):
        connection.execute(f"DROP VIEW IF EXISTS {quoted(view)}")
    for name, *_ in catalogue.known(connection):
        connection.execute(f"DROP TABLE IF EXISTS {quoted(catalogue.rows_of(name))}")
    for name in catalogue.TABLES:
        connection.execute(f"DELETE FROM {name}")


def _count(connection: duckdb.DuckDBPyConnection, name: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchall()[0][0])

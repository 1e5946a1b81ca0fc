"""Rows on their way out: batches as pieces of a Parquet file, an Arrow IPC stream, CSV, JSON or JSON lines."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from nodes.executors.base import shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = {
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
}


def stream(reader: pa.RecordBatchReader, format: str) -> tuple[str, Iterator[bytes]]:
    """The content type, and what ``reader`` reads as pieces of a Parquet file, an Arrow IPC stream, CSV with a head
    line, a JSON array of objects, or an object a line; a batch at a time.

    In JSON times are ISO 8601, and NaN and the infinities null. Raises FieldError for another ``format``.
    """
    if format not in FORMATS:
        raise FieldError("format", f"{shown(format)} is not one of: {', '.join(FORMATS)}")
    texts = {"json": _json, "jsonl": _json_lines}
    return FORMATS[format], texts[format](reader) if format in texts else _binary(reader, format)


class _Pieces(io.RawIOBase):
    """A file that is only written, and taken away in pieces."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        self._written += len(self._pieces[-1])
        return len(self._pieces[-1])

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def _binary(reader: pa.RecordBatchReader, format: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    sink = _Pieces()
    writer: Any
    if format == "parquet":
        writer = pa.parquet.ParquetWriter(sink, reader.schema, compression="zstd")
    elif format == "arrow":
        writer = pa.ipc.new_stream(sink, reader.schema)
    else:
        writer = pa.csv.CSVWriter(sink, reader.schema)
    try:
        for batch in reader:
            writer.write_batch(batch)
            if piece := sink.take():
                yield piece
        writer.close()
        yield sink.take()
    finally:
        reader.close()


def _json(reader: pa.RecordBatchReader) -> Iterator[bytes]:
    lead = "["
    for lines in _objects(reader):
        yield (lead + "\n" + ",\n".join(lines)).encode()
        lead = ","
    yield (b"[]" if lead == "[" else b"\n]") + b"\n"


def _json_lines(reader: pa.RecordBatchReader) -> Iterator[bytes]:
    for lines in _objects(reader):
        yield ("\n".join(lines) + "\n").encode()


def _objects(reader: pa.RecordBatchReader) -> Iterator[list[str]]:
    """The rows of each batch that has any, as JSON objects."""
    names = reader.schema.names
    try:
        for batch in reader:
            if batch.num_rows:
                columns = [cells(column) for column in batch.columns]
                yield [json.dumps(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
    finally:
        reader.close()


def cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of ``column`` as JSON has them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    values: list[Any] = column.to_pylist()
    if any(test(column.type) for test in (pa.types.is_floating, pa.types.is_integer, pa.types.is_string)):
        return values
    return [plain(value) for value in values]


def plain(value: Any) -> Any:
    """``value`` as JSON has it: times and intervals in ISO 8601, NaN and the infinities null, bytes in hexadecimal."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.date | dt.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value() if value.is_finite() else False
        return int(value) if whole else plain(float(value))
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "months"):  # an interval, as Arrow has it
        return f"P{value.months}M{value.days}DT{value.nanoseconds / 1e9:g}S"
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value)

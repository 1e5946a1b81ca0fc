"""Rows from outside against the dataset they claim to be: inline JSON rows and uploaded segments. No files are written.

What comes in is untrusted. Identifiers pass an allow-list, values their column's type, and a segment is read message
by message with its unpacked size known before anything is unpacked; its footer is not read at all.
"""

from __future__ import annotations

import datetime as dt
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.executors import rows as _rows
from nodes.executors.base import Dataset, shown
from nodes.executors.rows import schema
from nodes.protocol import CascadeError, FieldError, TooLarge, Unprocessable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LINEAGE", "check", "check_rows", "count", "decode", "from_rows", "identifier", "schema", "with_lineage"]

LINEAGE = {
    "_run": "int64",
    "_start": "int64",
    "_allocation": "int64",
    "_node": "string",
    "_saved_at": "timestamp",
}
"""Columns that each stored row carries beside its dataset's: where it came from. ``_saved_at`` is naive UTC."""

TYPES = ("string", "int64", "float64", "bool", "timestamp", "json")

MAX_ROWS = 10_000_000
MAX_BYTES = 512 * 1024 * 1024
"""Unpacked; what one segment may cost the parent in memory."""
BATCH_LIMIT = 256 * 1024 * 1024
"""Unpacked, of one record batch, which is in memory as a whole; our own writers make far smaller ones."""
SCHEMA_BYTES = 1024 * 1024
"""A schema message above this is no dataset's: its fields would cost far more memory than its bytes."""
JSON_ROWS = 256
"""Cells that are Python objects at once."""
BATCH_BYTES = 4096
"""Charged for each record batch beside its values, so that millions of tiny ones meet the same limit."""

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MAGIC = b"ARROW1"
_FIRST_MESSAGE = 8  # the magic, padded


def identifier(name: Any, field: str) -> str:
    """``name``, if it may be a table or column. Raises FieldError on ``field``."""
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise FieldError(field, f"{shown(name)} is not a name: 1 to 63 of a-z, 0-9 and _, not starting with a digit")
    return name


def check(dataset: Dataset) -> None:
    """Whether ``dataset`` can be a table. Raises FieldError on ``dataset.table``, ``.columns`` or ``.key``."""
    table = identifier(dataset.table, "dataset.table")
    # The store's own tables, and a name that would meet another dataset's <table>_rows.
    if table == "ledger" or table.startswith(("_", "duckdb_", "pg_", "sqlite_")) or table.endswith("_rows"):
        raise FieldError("dataset.table", f"{table!r} is reserved")
    names = [identifier(name, "dataset.columns") for name in dataset.names]
    for name in names:
        if name.startswith("_") or name == "rowid":
            raise FieldError("dataset.columns", f"{name!r} is reserved")
    if not names or len(set(names)) < len(names):
        raise FieldError("dataset.columns", f"{', '.join(names) or 'none'}: at least one, each once")
    for column in dataset.columns:
        if column.type not in TYPES:
            raise FieldError("dataset.columns", f"{column.name} is {shown(column.type)}; known are: {', '.join(TYPES)}")
    for name, _ in dataset.views:
        if identifier(name, "dataset.views") == table or not name.startswith(f"{table}_"):
            raise FieldError("dataset.views", f"{shown(name)} does not begin with {table}_")
    for name in dataset.key:
        if name not in names:
            raise FieldError("dataset.key", f"{shown(name)} is not a column of {table}")


def check_rows(dataset: Dataset, rows: Sequence[Sequence[Any]]) -> None:
    """Whether inline ``rows`` fit the dataset, without pyarrow. Raises FieldError as ``from_rows`` does."""
    _rows.columns(dataset, rows)


def from_rows(dataset: Dataset, rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Inline JSON rows, values in the dataset's column order, as its table; times are ISO 8601 text.

    Raises FieldError on ``rows.<number>.<column>`` naming the value and what is allowed.
    """
    import pyarrow as pa

    target = schema(dataset)
    cells = _rows.columns(dataset, rows)
    return pa.Table.from_arrays(
        [pa.array(values, field.type) for values, field in zip(cells, target, strict=True)], schema=target
    )


def decode(source: bytes | Path, dataset: Dataset, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES) -> pa.Table:
    """The rows of a segment (an Arrow IPC file, plain, lz4 or zstd) as the dataset's table.

    ``max_bytes`` limits the unpacked size. Raises Unprocessable where it is no such file, is cut short or damaged,
    FieldError on ``segment`` or ``segment.<column>`` for other columns than the dataset's, TooLarge above a limit.
    """
    import pyarrow as pa

    with _opened(source) as content:
        return pa.Table.from_batches(_batches(content, dataset, max_rows, max_bytes), schema(dataset))


def count(source: bytes | Path, dataset: Dataset, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES) -> int:
    """How many rows ``decode`` would give; raises what that would, and FieldError for a cell of JSON that is none.

    One record batch is unpacked at a time.
    """
    rows = 0
    with _opened(source) as content:
        for batch in _batches(content, dataset, max_rows, max_bytes):
            for column, cells in zip(dataset.columns, batch.columns, strict=True):
                if column.type == "json":
                    _check_json(column.name, cells)
            rows += batch.num_rows
    return rows


def _check_json(name: str, cells: pa.Array) -> None:
    for at in range(0, len(cells), JSON_ROWS):
        for text in cells.slice(at, JSON_ROWS).to_pylist():
            try:
                if text is not None:
                    _rows.check_json(text)
            except ValueError:
                raise FieldError(f"segment.{name}", f"{shown(text)} is not JSON") from None


def batches(source: Path, dataset: Dataset) -> Iterator[pa.RecordBatch]:
    """What ``decode`` would give, piece by piece, for a segment that is larger than shall be in memory at once."""
    with _opened(source) as content:
        yield from _batches(content, dataset, MAX_ROWS, MAX_BYTES)


@contextmanager
def _opened(source: bytes | Path) -> Iterator[pa.Buffer]:
    """The bytes of a segment; whatever Arrow says of them is Unprocessable."""
    import pyarrow as pa

    try:
        if isinstance(source, Path):
            with pa.memory_map(str(source)) as file:
                content = file.read_buffer()
        else:
            content = pa.py_buffer(source)
        yield content
    except CascadeError:
        raise
    except FileNotFoundError:
        raise Unprocessable("the segment is not here") from None
    except (pa.ArrowException, OSError, EOFError, MemoryError, ValueError, IndexError, struct.error) as error:
        raise Unprocessable(f"the segment is not a whole Arrow IPC file: {str(error)[:200]}") from None


def with_lineage(
    table: pa.Table,
    *,
    run: int | Sequence[int] | pa.ChunkedArray,
    start: int | Sequence[int] | pa.ChunkedArray,
    allocation: int | Sequence[int] | pa.ChunkedArray,
    node: str | Sequence[str] | pa.ChunkedArray,
    saved_at: dt.datetime,
) -> pa.Table:
    """``table`` with the LINEAGE columns: one value for all rows, or one for each."""
    import pyarrow as pa

    if saved_at.tzinfo is not None:
        saved_at = saved_at.astimezone(dt.UTC).replace(tzinfo=None)
    values = (run, start, allocation, node, saved_at)
    for (name, kind), value in zip(LINEAGE.items(), values, strict=True):
        type_ = {"int64": pa.int64(), "string": pa.string(), "timestamp": pa.timestamp("us")}[kind]
        if isinstance(value, int | str | dt.datetime):
            value = pa.repeat(pa.scalar(value, type_), table.num_rows)
        elif not isinstance(value, pa.ChunkedArray):
            value = pa.array(value, type_)
        table = table.append_column(name, value)
    return table


def _batches(content: pa.Buffer, dataset: Dataset, max_rows: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """The record batches, checked, one after another, as the dataset's."""
    import pyarrow as pa

    if content.size < _FIRST_MESSAGE + len(_MAGIC) or bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise Unprocessable("the segment is not an Arrow IPC file")
    if bytes(content[content.size - len(_MAGIC) :]) != _MAGIC:
        raise Unprocessable("the segment is cut short: an Arrow IPC file ends as it begins")

    messages = _messages(content[_FIRST_MESSAGE:])
    first = next(messages, None)
    if first is None or first.type != "schema":
        raise Unprocessable("the segment does not begin with its schema")
    if first.metadata.size > SCHEMA_BYTES:
        raise Unprocessable(f"the segment's schema takes {first.metadata.size} bytes; {SCHEMA_BYTES} are allowed")
    found = pa.ipc.read_schema(first)
    target = schema(dataset)
    _compare(found, target, dataset)

    rows = size = 0
    for message in messages:
        if message.type != "record batch":
            raise Unprocessable(f"the segment has a message of type {message.type}; only record batches are allowed")
        length, unpacked = _size(message, len(target))
        rows += length
        size += unpacked + BATCH_BYTES
        if rows > max_rows:
            raise TooLarge(f"the segment has more than {max_rows} rows")
        if size > max_bytes:
            raise TooLarge(f"the segment takes more than {max_bytes} bytes unpacked")
        if unpacked > BATCH_LIMIT:
            raise TooLarge(
                f"a record batch takes {unpacked} bytes unpacked; {BATCH_LIMIT} are allowed: use smaller ones"
            )
        batch = pa.ipc.read_record_batch(message, found)
        # Offsets that point outside and text that is no UTF-8 would otherwise be met by whoever reads the rows.
        batch.validate(full=True)
        if batch.num_rows:
            columns = [_cast(column, field) for column, field in zip(batch.columns, target, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=target)


def _messages(content: pa.Buffer) -> Iterator[pa.Message]:
    """The messages up to the end mark. Raises EOFError where there is none."""
    import pyarrow as pa

    reader = pa.BufferReader(content)
    while True:
        at = reader.tell()
        try:
            message = pa.ipc.read_message(reader)
        except EOFError:
            # Also raised at the end of the bytes, which a file cut between two batches has instead of the mark.
            if bytes(content[at : at + 8]) != b"\xff\xff\xff\xff\0\0\0\0":
                raise EOFError("it is cut short") from None
            return
        yield message


def _compare(found: pa.Schema, target: pa.Schema, dataset: Dataset) -> None:
    import pyarrow as pa

    if found.names != target.names:
        has, needs = shown(", ".join(found.names)), ", ".join(target.names)
        raise FieldError("segment", f"has the columns {has}; {dataset.table} has: {needs}")
    for ours, theirs in zip(target, found, strict=True):
        same = (
            theirs.type == ours.type
            or (ours.type == pa.string() and theirs.type == pa.large_string())
            or (pa.types.is_timestamp(ours.type) and pa.types.is_timestamp(theirs.type) and theirs.type.tz is None)
        )
        if not same:
            raise FieldError(f"segment.{ours.name}", f"is {str(theirs.type)[:100]}; {dataset.table} has {ours.type}")


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        column = column.cast(field.type)
        _rows.check_times(column)
        return column
    except ValueError as error:
        raise FieldError(f"segment.{field.name}", str(error)[:200]) from None


# A record batch says how long each of its buffers becomes in two places: in the message's header (a flatbuffer,
# github.com/apache/arrow/blob/main/format/Message.fbs) and, where it is compressed, in the first 8 bytes of the buffer.
# Arrow allocates that much before it unpacks, and has no limit to set; so it is added up here first.


def _size(message: pa.Message, columns: int) -> tuple[int, int]:
    """Rows and unpacked bytes of a record batch. Raises Unprocessable, IndexError, struct.error, ValueError."""
    header = memoryview(message.metadata)
    body = memoryview(message.body)
    root = _at("<I", header, 0)
    # Before version 5 (2020) compression could hide in free-form metadata.
    version = _field(header, root, 0)
    if version is None or _at("<h", header, version) != 4:
        raise Unprocessable("the segment is of an Arrow format before 1.0")
    record = _field(header, root, 2)
    if record is None:
        raise ValueError("a record batch has no header")
    record += _at("<I", header, record)
    at = _field(header, record, 0)
    length = 0 if at is None else _at("<q", header, at)
    if length < 0:
        raise ValueError("a record batch has a negative length")
    compressed = _field(header, record, 3) is not None
    vector = _field(header, record, 2)
    unpacked = 0
    if vector is not None:
        vector += _at("<I", header, vector)
        buffers = _at("<I", header, vector)
        if buffers > 3 * columns:
            raise ValueError(f"{buffers} buffers in a record batch of {columns} columns")
        for number in range(buffers):
            offset, size = _at("<q", header, vector + 4 + 16 * number), _at("<q", header, vector + 12 + 16 * number)
            if compressed and size > 0:
                claimed = _at("<q", body, offset)
                size = size - 8 if claimed == -1 else claimed
            if size < 0:
                raise ValueError("a buffer has a negative length")
            unpacked += size
    return length, unpacked


def _at(form: str, content: memoryview, at: int) -> int:
    if at < 0:
        raise IndexError("an offset is negative")
    value: int = struct.unpack_from(form, content, at)[0]
    return value


def _field(header: memoryview, table: int, number: int) -> int | None:
    """Where field ``number`` of a flatbuffer table is, or None where it is left out."""
    vtable = table - _at("<i", header, table)
    entry = 4 + 2 * number
    if entry >= _at("<H", header, vtable):
        return None
    offset = _at("<H", header, vtable + entry)
    return table + offset if offset else None

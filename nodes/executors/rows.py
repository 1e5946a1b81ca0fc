"""What ``Executor.run`` returned, checked and turned into the dataset's Arrow table, inline rows or an IPC file.

For worker processes, and for the parent's ``dispatch.results.datasets``. Django-free. Nothing here writes to a table.

NaN in a float column and NaT in a timestamp are stored as null, whichever way the rows came: pandas knows no
difference, and so small results (inline JSON) and large ones (Arrow) read back the same.
"""

from __future__ import annotations

import datetime as dt
import json
import numbers
import operator
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nodes.executors.base import Column, Dataset, ItemFailed, Rows, shown
from nodes.protocol import FieldError

if TYPE_CHECKING:
    import pyarrow as pa

_LISTS = (list, tuple)

_EPOCH = dt.datetime(1970, 1, 1)
_FIRST = (dt.datetime.min - _EPOCH) // dt.timedelta(microseconds=1)
_LAST = (dt.datetime.max - _EPOCH) // dt.timedelta(microseconds=1)

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

BATCH_ROWS = 65_536
BATCH_BYTES = 64 * 1024 * 1024
"""Rows and bytes per record batch of a segment: bound what a reader has to unpack at once."""


def schema(dataset: Dataset) -> pa.Schema:
    """The Arrow schema of the dataset's columns, in order; json travels as text."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us"),
        "json": pa.string(),
    }
    return pa.schema([(column.name, types[column.type]) for column in dataset.columns])


def columns(dataset: Dataset, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """``rows`` (values in the dataset's column order) turned into one checked list per column.

    Aware times become naive UTC. Raises FieldError on ``rows``, ``rows.<number>`` or ``rows.<number>.<column>``,
    naming the value and what is allowed.
    """
    if not isinstance(rows, _LISTS):
        raise FieldError("rows", f"{shown(rows)} is not a list of rows")
    width = len(dataset.columns)
    for number, row in enumerate(rows):
        if not isinstance(row, _LISTS):
            raise FieldError(f"rows.{number}", f"{shown(row)} is not a row: a list of {width} values")
        if len(row) != width:
            names = ", ".join(dataset.names)
            raise FieldError(f"rows.{number}", f"has {len(row)} values; {dataset.table} has {width}: {names}")
    if not rows:
        return [[] for _ in range(width)]
    return [_cells(column, cells) for column, cells in zip(dataset.columns, zip(*rows, strict=True), strict=True)]


def read(kind: str, value: Any) -> Any:
    """``value`` as a column of type ``kind`` holds it. Raises TypeError, ValueError or OverflowError."""
    return _READERS[kind][0](value)


def to_table(dataset: Dataset, rows: Rows) -> pa.Table:
    """What ``Executor.run`` returned as a table with exactly the dataset's columns, in its order.

    Columns that the dataset does not have are left out. Raises ItemFailed for a missing column or a value of
    another type, naming the column.
    """
    import pyarrow as pa

    target = schema(dataset)
    if rows is None:
        return target.empty_table()
    # While another thread is importing pandas, there is no DataFrame yet.
    frame = getattr(sys.modules.get("pandas"), "DataFrame", None)
    if frame is not None and isinstance(rows, frame):
        names = list(rows.columns)
    elif isinstance(rows, pa.Table | pa.RecordBatch):
        names = rows.schema.names
    elif isinstance(rows, list | tuple):
        names = None
    else:
        raise ItemFailed(f"returned {type(rows).__name__}, not a list of tuples, a DataFrame, a Table or None")

    if names is None:
        arrays = [pa.array(cells, field.type) for cells, field in zip(_work(dataset, rows), target, strict=True)]
    else:
        missing = [name for name in dataset.names if name not in names]
        if missing:
            found = ", ".join(str(name) for name in names)
            raise ItemFailed(f"{dataset.table}: column {', '.join(missing)} is missing; there are: {found}")
        arrays = [
            _array(column, field.type, rows[column.name]) for column, field in zip(dataset.columns, target, strict=True)
        ]
    return pa.Table.from_arrays(arrays, schema=target)


def inline(dataset: Dataset, rows: Rows, limit: int) -> list[list[Any]] | None:
    """What ``Executor.run`` returned as rows for JSON, or None where there are more than ``limit``.

    A list of tuples is turned without pyarrow: a worker that only ever returns a few values never loads it.
    Raises ItemFailed as ``to_table`` does.
    """
    if rows is None:
        return []
    if hasattr(rows, "__len__") and len(rows) > limit:
        return None
    cells = _work(dataset, rows) if isinstance(rows, list | tuple) else to_table(dataset, rows).to_pydict().values()
    return [
        [value.isoformat() if isinstance(value, dt.datetime) else value for value in row]
        for row in zip(*cells, strict=True)
    ]


def check_times(array: Any) -> None:
    """Raises ValueError where a timestamp column has a year outside 1 to 9999, which no reader could show."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(array.type):
        ends = pc.min_max(array.cast(pa.int64()))
        least, most = ends["min"].as_py(), ends["max"].as_py()
        if least is not None and (least < _FIRST or most > _LAST):
            raise ValueError("a year is outside 1 to 9999")


def encode(table: pa.Table) -> bytes:
    """The table as an Arrow IPC file, zstd, with batches of at most BATCH_ROWS rows and about BATCH_BYTES."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * plain.num_rows // max(1, plain.nbytes)))
    with pa.ipc.new_file(sink, plain.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(plain, max_chunksize=rows)
    return bytes(sink.getvalue())


def _cells(column: Column, cells: Sequence[Any]) -> list[Any]:
    read_cell, allowed = _READERS[column.type]
    try:
        return [None if cell is None else read_cell(cell) for cell in cells]
    except (TypeError, ValueError, OverflowError):
        pass
    # Only now, on the way to the error, is it worth knowing which row it was.
    for number, cell in enumerate(cells):
        try:
            if cell is not None:
                read_cell(cell)
        except (TypeError, ValueError, OverflowError):
            raise FieldError(f"rows.{number}.{column.name}", f"{shown(cell)} is not {allowed}") from None
    raise AssertionError("a value was refused once and taken the second time")


def _work(dataset: Dataset, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    try:
        return columns(dataset, rows)
    except FieldError as error:
        raise ItemFailed(str(error)) from None


def _array(column: Column, kind: pa.DataType, values: Any) -> Any:
    """A pandas Series or an Arrow column as an Arrow array of ``kind``. Raises ItemFailed for what does not fit."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if isinstance(values, pa.Array | pa.ChunkedArray):
            array = values.cast(kind)
            if pa.types.is_floating(kind):
                array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
        elif column.type == "json":
            array = pa.array(
                [None if gone else _json(cell) for cell, gone in zip(values, values.isna(), strict=True)], kind
            )
        else:
            array = pa.array(values, kind, from_pandas=True)
        check_times(array)
        return array
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ItemFailed(f"column {column.name} is not all {column.type}: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # a lone surrogate has no UTF-8
    return str(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise OverflowError
    return number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    number = float(value)
    return None if number != number else number


def _boolean(value: Any) -> bool:
    # numpy's bool is no bool, and its name differs between numpy 1 and 2.
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _timestamp(value: Any) -> dt.datetime | None:
    if value != value:
        return None
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value)
    elif isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime.combine(value, dt.time())
    if not isinstance(value, dt.datetime):
        raise TypeError
    return value if value.tzinfo is None else value.astimezone(dt.UTC).replace(tzinfo=None)


def check_json(text: str) -> None:
    """Raises ValueError for what DuckDB would not read: one such cell would be an error to whoever asks for a view."""
    try:
        value = json.loads(text, parse_constant=_number)  # refuses NaN and Infinity, which are not JSON
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # a half of a pair is no character; a whole pair is
    except TypeError:
        raise ValueError("NaN and Infinity are not JSON") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _json(value: Any) -> str:
    if isinstance(value, str):
        check_json(value)
        return _text(value)
    try:
        text = json.dumps(value, allow_nan=False)
        if _SURROGATE.search(text):
            text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
        return text
    except RecursionError:
        raise ValueError("nested too deeply") from None


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "string": (_text, "a text"),
    "int64": (_integer, "a whole number of 64 bits"),
    "float64": (_number, "a number"),
    "bool": (_boolean, "true or false"),
    "timestamp": (_timestamp, "a time like 2024-01-31T09:30:00"),
    "json": (_json, "JSON"),
}

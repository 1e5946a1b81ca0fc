"""Segments that are small and become large, or lie about themselves: as Arrow files of the dataset ``echo``."""

from __future__ import annotations

import gzip
import io
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from nodes import executors
from nodes.executors.rows import encode, schema, to_table

ECHO = executors.get("echo").dataset
MB = 1024 * 1024


def honest(rows: int = 3) -> bytes:
    """What an agent would send."""
    return encode(to_table(ECHO, [(f"i{number}", number, f"i{number}:{number}") for number in range(rows)]))


def _written(batches: Iterator[pa.RecordBatch], columns: pa.Schema | None = None, compression: str = "zstd") -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression or None)
    with pa.ipc.new_file(sink, columns or schema(ECHO), options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _batch(rows: int, text: bytes = b"") -> pa.RecordBatch:
    """Rows of zeros; the first item has all of ``text``."""
    offsets = struct.pack("<i", 0) + struct.pack("<i", len(text)) * rows
    texts = pa.Array.from_buffers(pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    numbers = pa.Array.from_buffers(pa.int64(), rows, [None, pa.py_buffer(bytes(8 * rows))])
    return pa.RecordBatch.from_arrays([texts, numbers, texts], schema=schema(ECHO))


def one_batch_of_zeros() -> bytes:
    """600 MB in one record batch, of some kilobytes."""
    return _written(iter([_batch(1, bytes(300 * MB))]))


def many_batches_of_zeros() -> bytes:
    """A gigabyte, each batch within its limit."""
    return _written(_batch(1, bytes(50 * MB)) for _ in range(10))


def many_rows() -> bytes:
    return _written(_batch(1_000_000) for _ in range(11))


def _other(columns: pa.Schema, arrays: list[pa.Array]) -> bytes:
    return _written(iter([pa.RecordBatch.from_arrays(arrays, schema=columns)]), columns)


def nulls() -> bytes:
    """Ten million rows in no bytes at all."""
    columns = pa.schema([(name, pa.null()) for name in ECHO.names])
    return _other(columns, [pa.nulls(10_000_000)] * 3)


def run_ends() -> bytes:
    """A billion rows of one run. (Compression would be of no use to it.)"""
    kind = pa.run_end_encoded(pa.int32(), pa.string())
    array = pa.RunEndEncodedArray.from_arrays(pa.array([1_000_000_000], pa.int32()), pa.array(["x"]))
    return _other(pa.schema([(name, kind) for name in ECHO.names]), [array] * 3)


def dictionary() -> bytes:
    """A million rows that point at one text of a megabyte."""
    indices = pa.repeat(pa.scalar(0, pa.int8()), 1_000_000)
    array = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * MB]))
    return _other(pa.schema([(name, array.type) for name in ECHO.names]), [array] * 3)


def nested() -> bytes:
    """A list in a list, 60 times."""
    array: Any = pa.array([1])
    for _ in range(60):
        array = pa.ListArray.from_arrays(pa.array([0, len(array)], pa.int32()), array)
    return _other(pa.schema([(name, array.type) for name in ECHO.names]), [array] * 3)


def many_columns() -> bytes:
    columns = pa.schema([(f"c{number}", pa.int64()) for number in range(100_000)])
    return _written(iter([]), columns)


def no_columns() -> bytes:
    """Rows that have nothing in them, as many as the header says."""
    sink = pa.BufferOutputStream()
    batch = pa.RecordBatch.from_struct_array(pa.array([{}] * 1000, pa.struct([])))
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue()).replace(struct.pack("<q", 1000), struct.pack("<q", 2**62))


def claims(size: int) -> Callable[[], bytes]:
    """A compressed buffer that says it becomes ``size`` bytes."""
    true = MB + 54_321

    def made() -> bytes:
        return _written(iter([_batch(1, bytes(true))])).replace(struct.pack("<q", true), struct.pack("<q", size))

    return made


def parquet() -> bytes:
    """Run-length coded: 400 MB to the reader who believes it, in a kilobyte."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    table = pa.table({name: pa.repeat(pa.scalar(7), 1_000_000) for name in ECHO.names})
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for _ in range(16):
            writer.write_table(table)
    return sink.getvalue()


def packed() -> bytes:
    """A gigabyte of zeros in a megabyte of gzip."""
    return gzip.compress(bytes(16 * MB)) * 64


BOMBS: dict[str, Callable[[], bytes]] = {
    "one_batch_of_zeros": one_batch_of_zeros,
    "many_batches_of_zeros": many_batches_of_zeros,
    "many_rows": many_rows,
    "nulls": nulls,
    "run_ends": run_ends,
    "dictionary": dictionary,
    "nested": nested,
    "many_columns": many_columns,
    "no_columns": no_columns,
    "claims_a_terabyte": claims(2**40),
    "claims_less_than_nothing": claims(-(2**40)),
    "claims_too_little": claims(10),
    "claims_too_much": claims(200 * MB),
    "parquet": parquet,
    "gzip": packed,
}


def mutations(content: bytes, seed: int) -> Iterator[bytes]:
    """``content`` damaged without end: bytes turned, cut, doubled, moved; numbers made huge or negative."""
    chance = random.Random(seed)
    huge = [2**31 - 1, 2**31, 2**63 - 1, 2**40, -1, -(2**63), 0]
    while True:
        made = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            at = chance.randrange(len(made))
            match chance.randrange(6):
                case 0:
                    made[at] ^= 1 << chance.randrange(8)
                case 1:
                    made[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
                case 2:
                    made[at : at + 8] = struct.pack("<q", chance.choice([n for n in huge if -(2**63) <= n < 2**63]))
                case 3:
                    made[at : at + 4] = struct.pack("<I", chance.choice([2**32 - 1, 2**31, 2**31 - 1, 0, 1]))
                case 4:
                    del made[at : at + chance.choice((1, 4, 8, 64))]
                case 5:
                    to = chance.randrange(len(made))
                    made[to:to] = made[at : at + chance.choice((1, 8, 64, 256))]
            if not made:
                break
        yield bytes(made)

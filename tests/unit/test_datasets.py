"""What outsiders send as rows: values, names, schemas, and files that lie about their size."""

from __future__ import annotations

import datetime as dt
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.results import datasets
from nodes.executors import rows as executor_rows
from nodes.executors.base import Column, Dataset, ItemFailed
from nodes.protocol import FieldError, TooLarge, Unprocessable

KINDS = Dataset(
    table="kinds",
    columns=(
        Column("name", "string"),
        Column("count", "int64"),
        Column("price", "float64"),
        Column("open", "bool"),
        Column("at", "timestamp"),
        Column("more", "json"),
    ),
    key=("name", "at"),
)
ROW = ["AAPL", 3, 1.5, True, "2024-01-31T09:30:00.000001", '{"a": [1]}']
READ = {
    "name": "AAPL",
    "count": 3,
    "price": 1.5,
    "open": True,
    "at": dt.datetime(2024, 1, 31, 9, 30, 0, 1),
    "more": '{"a": [1]}',
}
PLAIN = Dataset("plain", (Column("symbol", "string"), Column("price", "float64")), ("symbol",))


def ipc(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def bars(count: int) -> pa.Table:
    return datasets.from_rows(PLAIN, [[f"S{number}", number / 7] for number in range(count)])


# Inline rows


def test_inline_rows_become_typed_columns() -> None:
    table = datasets.from_rows(KINDS, [ROW, [None] * 6])
    assert table.schema == datasets.schema(KINDS)
    assert table.to_pylist() == [READ, dict.fromkeys(KINDS.names)]


def test_no_rows_are_an_empty_table_of_the_same_columns() -> None:
    assert datasets.from_rows(KINDS, []).schema == datasets.schema(KINDS)


def test_nan_is_null_and_an_aware_time_is_utc() -> None:
    table = datasets.from_rows(KINDS, [["A", 1.0, float("nan"), False, "2024-01-31T09:30:00+02:00", None]])
    (row,) = table.to_pylist()
    assert row["price"] is None
    assert row["count"] == 1
    assert row["at"] == dt.datetime(2024, 1, 31, 7, 30)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", 7),
        ("name", "a lone \ud800 surrogate"),
        ("count", "3"),
        ("count", 1.5),
        ("count", True),
        ("count", 2**63),
        ("count", float("inf")),
        ("price", "1.5"),
        ("price", True),
        ("price", 10**400),
        ("price", [1]),
        ("open", 1),
        ("open", "true"),
        ("at", "yesterday"),
        ("at", 1706693400),
        ("at", "10000-01-01"),
        ("at", "0001-01-01T00:00:00+23:00"),
        ("more", "{"),
        ("more", "NaN"),
        ("more", '"\\ud800"'),
        ("more", '{"\\uDC00": 1}'),
        ("more", "[" * 5000),
        ("more", {"a": float("nan")}),
    ],
)
def test_a_value_of_another_type_is_named_with_its_row_and_column(column: str, value: Any) -> None:
    row = list(ROW)
    row[KINDS.names.index(column)] = value
    with pytest.raises(FieldError) as caught:
        datasets.from_rows(KINDS, [ROW, row])
    assert caught.value.field == f"rows.1.{column}"
    assert "is not" in caught.value.message
    assert len(caught.value.message) < 250
    caught.value.message.encode()
    with pytest.raises(FieldError, match=column):
        datasets.check_rows(KINDS, [ROW, row])


@pytest.mark.parametrize(
    ("rows", "field", "message"),
    [
        ([ROW, ROW[:5]], "rows.1", "has 5 values; kinds has 6: name, count"),
        ([[*ROW, 1]], "rows.0", "has 7 values"),
        ([ROW, "AAPL"], "rows.1", "'AAPL' is not a row"),
        ([{"name": "AAPL"}], "rows.0", "is not a row"),
        ({"rows": []}, "rows", "is not a list"),
        ("rows", "rows", "is not a list"),
    ],
)
def test_a_row_of_another_shape_is_named(rows: Any, field: str, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        datasets.from_rows(KINDS, rows)
    assert caught.value.field == field


def test_checking_inline_rows_loads_neither_pyarrow_nor_pandas() -> None:
    """Agents and idle parents do it, and each of the two costs more memory than all the rest of them."""
    script = (
        "import sys\n"
        "from dispatch.results import datasets\n"
        "from nodes.executors.base import Column, Dataset\n"
        "dataset = Dataset('plain', (Column('symbol', 'string'), Column('price', 'float64')), ('symbol',))\n"
        "datasets.check_rows(dataset, [['A', 1.0]])\n"
        "from nodes.executors.rows import inline\n"
        "assert inline(dataset, [('A', 1)], 64) == [['A', 1.0]]\n"
        "assert not {'pyarrow', 'pandas', 'numpy', 'duckdb', 'django'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# What executors return


def test_tuples_a_frame_and_a_table_give_the_same_rows() -> None:
    at = dt.datetime(2024, 1, 31, 9, 30)
    tuples = [("A", 1, 0.5, True, at, {"a": 1}), ("B", 2, float("nan"), False, None, None)]
    expected = executor_rows.to_table(KINDS, tuples)
    assert expected.column("more").to_pylist() == ['{"a": 1}', None]

    frame = pd.DataFrame(tuples, columns=list(KINDS.names))
    shuffled = frame[["more", "at", "open", "price", "count", "name"]].assign(extra=1)
    assert executor_rows.to_table(KINDS, shuffled).equals(expected)

    table = pa.table(
        {
            "at": pa.array([at, None], pa.timestamp("ms")),
            "extra": [1, 2],
            "more": ['{"a": 1}', None],
            "open": [True, False],
            "price": [0.5, float("nan")],
            "count": pa.array([1, 2], pa.int32()),
            "name": pa.array(["A", "B"], pa.large_string()),
        }
    )
    assert executor_rows.to_table(KINDS, table).equals(expected)
    assert executor_rows.to_table(KINDS, table.to_batches()[0]).equals(expected)
    assert executor_rows.to_table(KINDS, None).num_rows == 0

    as_json = [["A", 1, 0.5, True, at.isoformat(), '{"a": 1}'], ["B", 2, None, False, None, None]]
    for rows in (tuples, frame, table):
        assert executor_rows.inline(KINDS, rows, 2) == as_json
        assert executor_rows.inline(KINDS, rows, 1) is None
    assert executor_rows.inline(KINDS, None, 0) == []
    assert datasets.from_rows(KINDS, json.loads(json.dumps(as_json))).equals(expected)


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame({"symbol": ["A"], "cost": [1.0]}),
        pa.table({"symbol": ["A"], "cost": [1.0]}),
    ],
    ids=["frame", "table"],
)
def test_a_missing_column_fails_the_item_and_is_named(rows: Any) -> None:
    with pytest.raises(ItemFailed, match=r"plain: column price is missing; there are: symbol, cost") as caught:
        executor_rows.to_table(PLAIN, rows)
    assert not caught.value.retry


@pytest.mark.parametrize(
    "rows",
    [
        [("A", "expensive")],
        pd.DataFrame({"symbol": ["A"], "price": ["expensive"]}),
        pa.table({"symbol": ["A"], "price": ["expensive"]}),
        pa.table({"symbol": ["A"], "price": [[1.0]]}),
    ],
    ids=["tuples", "frame", "table", "nested"],
)
def test_a_value_that_does_not_fit_fails_the_item_and_names_the_column(rows: Any) -> None:
    with pytest.raises(ItemFailed, match="price"):
        executor_rows.to_table(PLAIN, rows)


def test_a_time_that_no_reader_could_show_fails_the_item() -> None:
    far = pa.table({"at": pa.array([10**15], pa.timestamp("s"))})
    timed = Dataset("timed", (Column("at", "timestamp"),), ())
    with pytest.raises(ItemFailed, match="at"):
        executor_rows.to_table(timed, far)
    just = pa.table({"at": pa.array([400_000_000_000], pa.timestamp("s"))})
    with pytest.raises(ItemFailed, match="year"):
        executor_rows.to_table(timed, just)


def test_something_else_fails_the_item() -> None:
    with pytest.raises(ItemFailed, match="returned int"):
        executor_rows.to_table(PLAIN, 7)


# Segments


def test_a_segment_comes_back_as_it_went(tmp_path: Path) -> None:
    table = datasets.from_rows(KINDS, [ROW, [None] * 6] * 100_000)
    content = executor_rows.encode(table)
    assert datasets.decode(content, KINDS).equals(table)
    file = tmp_path / "segment"
    file.write_bytes(content)
    decoded = datasets.decode(file, KINDS)
    file.unlink()
    assert decoded.equals(table)


def test_an_empty_segment_has_no_rows() -> None:
    assert datasets.decode(executor_rows.encode(datasets.schema(PLAIN).empty_table()), PLAIN).num_rows == 0


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_other_writers_are_read(compression: str | None) -> None:
    at = dt.datetime(2024, 1, 31, 9, 30)
    table = pa.table(
        {"name": pa.array(["A"], pa.large_string()), "at": pa.array([at], pa.timestamp("ns"))},
        metadata={"pandas": "{}"},
    )
    dataset = Dataset("timed", (Column("name", "string"), Column("at", "timestamp")), ())
    decoded = datasets.decode(ipc(table, compression=compression), dataset)
    assert decoded.schema == datasets.schema(dataset)
    assert decoded.to_pylist() == [{"name": "A", "at": at}]


@pytest.mark.parametrize(
    ("table", "field", "message"),
    [
        (pa.table({"symbol": ["A"]}), "segment", "plain has: symbol, price"),
        (pa.table({"price": [1.0], "symbol": ["A"]}), "segment", "plain has: symbol, price"),
        (pa.table({"symbol": ["A"], "price": ["1"]}), "segment.price", "is string; plain has double"),
        (pa.table({"symbol": [["A"]], "price": [1.0]}), "segment.symbol", "is list"),
        (pa.table({"symbol": pa.array(["A"]).dictionary_encode(), "price": [1.0]}), "segment.symbol", "dictionary"),
        (pa.table({"symbol": pa.array(["A"], pa.string_view()), "price": [1.0]}), "segment.symbol", "string_view"),
    ],
)
def test_another_schema_is_refused_and_named(table: pa.Table, field: str, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        datasets.decode(ipc(table), PLAIN)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "kind_and_value", [(pa.timestamp("ns"), 1), (pa.timestamp("s"), 2**62), (pa.timestamp("us"), 2**62)], ids=str
)
def test_a_time_that_would_change_is_refused(kind_and_value: tuple[pa.DataType, int]) -> None:
    kind, value = kind_and_value
    dataset = Dataset("timed", (Column("at", "timestamp"),), ())
    with pytest.raises(FieldError, match=r"segment\.at"):
        datasets.decode(ipc(pa.table({"at": pa.array([value], kind)})), dataset)


def test_a_time_in_a_zone_is_refused() -> None:
    dataset = Dataset("timed", (Column("at", "timestamp"),), ())
    with pytest.raises(FieldError, match=r"segment\.at: is timestamp\[us, tz=Europe/Paris\]"):
        datasets.decode(ipc(pa.table({"at": pa.array([0], pa.timestamp("us", "Europe/Paris"))})), dataset)


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"{}" * 100, b"PAR1" + b"\0" * 100 + b"PAR1", b"ARROW1\0\0ARROW1"])
def test_what_is_no_arrow_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="segment"):
        datasets.decode(content, PLAIN)
    file = tmp_path / "segment"
    file.write_bytes(content)
    with pytest.raises(Unprocessable, match="segment"):
        datasets.decode(file, PLAIN)


def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unprocessable, match="not here"):
        datasets.decode(tmp_path / "none", PLAIN)


def test_a_torn_segment_is_never_silently_short() -> None:
    whole = executor_rows.encode(bars(1000))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, datasets.schema(PLAIN)) as writer:
        for _ in range(5):
            writer.write_table(bars(20))
    many = bytes(sink.getvalue())
    for content in (whole, many):
        for cut in range(0, len(content) - 1, 7):
            with pytest.raises(Unprocessable):
                datasets.decode(content[:cut], PLAIN)
            # The end put back on, as somebody would who knows what is looked at.
            with pytest.raises(Unprocessable):
                datasets.decode(content[:cut][: len(content) // 2] + content[-6:], PLAIN)


def test_a_block_of_zeros_is_not_taken_for_the_end() -> None:
    """What a file system may leave of a block that was not written; an old form of the end mark looks the same."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, datasets.schema(PLAIN)) as writer:
        writer.write_table(bars(20))
        second = sink.tell()
        writer.write_table(bars(20))
    content = bytearray(bytes(sink.getvalue()))
    assert datasets.decode(bytes(content), PLAIN).num_rows == 40
    content[second : second + 64] = bytes(64)
    with pytest.raises(Unprocessable):
        datasets.decode(bytes(content), PLAIN)


def test_a_segment_of_dictionaries_in_the_stream_is_refused() -> None:
    encoded = pa.table({"symbol": pa.array(["A", "B"]).dictionary_encode(), "price": [1.0, 2.0]})
    plain, trick = ipc(bars(2)), ipc(encoded)
    length = struct.unpack_from("<i", plain, 12)[0]
    other = struct.unpack_from("<i", trick, 12)[0]
    with pytest.raises(Unprocessable):
        datasets.decode(plain[: 16 + length] + trick[16 + other :], PLAIN)


def test_the_format_before_1_0_is_refused_because_its_compression_hides() -> None:
    with pytest.raises(Unprocessable, match=r"before 1\.0"):
        datasets.decode(ipc(bars(1), metadata_version=pa.ipc.MetadataVersion.V4), PLAIN)


def test_a_huge_schema_is_refused() -> None:
    with pytest.raises(Unprocessable, match="schema takes"):
        datasets.decode(ipc(bars(1).replace_schema_metadata({"x": "x" * 2_000_000})), PLAIN)


def test_rows_are_limited() -> None:
    content = executor_rows.encode(bars(1001))
    assert datasets.decode(content, PLAIN, max_rows=1001).num_rows == 1001
    with pytest.raises(TooLarge, match="1000 rows"):
        datasets.decode(content, PLAIN, max_rows=1000)


def test_many_tiny_batches_meet_the_limit_on_bytes() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, datasets.schema(PLAIN)) as writer:
        for _ in range(300):
            writer.write_table(bars(1))
    with pytest.raises(TooLarge, match="unpacked"):
        datasets.decode(bytes(sink.getvalue()), PLAIN, max_bytes=1024 * 1024)


def _bomb(size: int) -> bytes:
    """A file of some kilobytes whose one text takes ``size`` bytes."""
    return ipc(pa.table({"symbol": ["A" * size], "price": [1.0]}), compression="zstd")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    content = _bomb(300 * 1024 * 1024)
    assert len(content) < 100_000
    script = (
        "import sys, resource\n"
        "from pathlib import Path\n"
        "from dispatch.results import datasets\n"
        "from nodes.executors.base import Column, Dataset\n"
        "from nodes.protocol import TooLarge\n"
        "import pyarrow, pyarrow.compute\n"
        "plain = Dataset('plain', (Column('symbol', 'string'), Column('price', 'float64')), ('symbol',))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    datasets.decode(sys.stdin.buffer.read(), plain, max_bytes=16 * 1024 * 1024)\n"
        "except TooLarge:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=True, timeout=60)
    assert int(done.stdout) < 50 * 1024, "kilobytes more than before"


def test_a_buffer_that_claims_to_be_small_is_caught() -> None:
    """The size in front of a compressed buffer is what Arrow allocates, so a lie there fails instead of growing."""
    content = bytearray(_bomb(10_000_000))
    at = content.rindex(struct.pack("<q", 10_000_000))
    content[at : at + 8] = struct.pack("<q", 1000)
    with pytest.raises(Unprocessable):
        datasets.decode(bytes(content), PLAIN, max_bytes=1024 * 1024)


def test_a_huge_claim_is_refused() -> None:
    content = bytearray(_bomb(10_000_000))
    at = content.rindex(struct.pack("<q", 10_000_000))
    for claim in (2**62, -(2**40)):
        content[at : at + 8] = struct.pack("<q", claim)
        with pytest.raises((TooLarge, Unprocessable)):
            datasets.decode(bytes(content), PLAIN)


def test_text_that_is_no_utf8_and_offsets_that_point_outside_are_refused() -> None:
    table = pa.table({"symbol": ["ÄÄÄÄÄÄÄÄ", "B"], "price": [1.0, 2.0]})
    content = ipc(table, compression=None)
    broken = content.replace("ÄÄÄÄÄÄÄÄ".encode(), b"\xff" * 16)
    assert broken != content
    with pytest.raises(Unprocessable):
        datasets.decode(broken, PLAIN)
    offsets = struct.pack("<iii", 0, 16, 17)
    assert content.count(offsets) == 1
    with pytest.raises(Unprocessable):
        datasets.decode(content.replace(offsets, struct.pack("<iii", 0, 16, 2**30)), PLAIN)


@pytest.mark.parametrize("text", ["{not json", "NaN", '"\\ud800"', "[" * 5000, ""])
def test_one_cell_of_a_segment_that_is_no_json_is_refused(text: str) -> None:
    """It would be an error to everybody who asks for a view."""
    more = ['{"a": "\\ud83d\\ude00"}', None, text]
    table = pa.table({name: pa.nulls(3) for name in KINDS.names}).cast(datasets.schema(KINDS))
    table = table.set_column(KINDS.names.index("more"), "more", pa.array(more))
    with pytest.raises(FieldError, match=r"segment\.more"):
        datasets.count(ipc(table), KINDS)
    assert datasets.count(ipc(table.slice(0, 2)), KINDS) == 2


def test_half_a_character_in_what_an_executor_gives_as_json_is_replaced() -> None:
    (row,) = executor_rows.inline(KINDS, [(None, None, None, None, None, {"a": "\ud800", "b": "😀"})], 10) or []
    assert json.loads(row[-1]) == {"a": "?", "b": "😀"}


@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=8))
def test_any_damage_gives_the_rows_or_an_error_of_ours(at: int, patch: bytes) -> None:
    content = bytearray(_DAMAGED)
    at %= len(content)
    content[at : at + len(patch)] = patch
    try:
        table = datasets.decode(bytes(content), PLAIN, max_rows=1000, max_bytes=1024 * 1024)
    except (Unprocessable, TooLarge, FieldError):
        return
    assert table.schema == datasets.schema(PLAIN)
    table.validate(full=True)
    table.to_pylist()


_DAMAGED = executor_rows.encode(bars(50))


# Lineage and names


def test_lineage_is_one_value_for_all_rows_or_one_for_each() -> None:
    saved_at = dt.datetime(2024, 1, 31, 10, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    same = datasets.with_lineage(bars(2), run=1, start=2, allocation=3, node="n", saved_at=saved_at)
    assert same.schema.names == ["symbol", "price", *datasets.LINEAGE]
    assert (
        same.select(list(datasets.LINEAGE)).to_pylist()
        == [{"_run": 1, "_start": 2, "_allocation": 3, "_node": "n", "_saved_at": dt.datetime(2024, 1, 31, 9)}] * 2
    )
    each = datasets.with_lineage(
        bars(2), run=[1, 1], start=[0, 1], allocation=[3, 4], node=["a", "b"], saved_at=saved_at
    )
    assert each.column("_allocation").to_pylist() == [3, 4]
    assert each.schema == same.schema


@pytest.mark.parametrize("name", ["kline", "_x", "a" * 63, "select"])
def test_names_on_the_allow_list_pass(name: str) -> None:
    assert datasets.identifier(name, "table") == name


@pytest.mark.parametrize(
    "name",
    ["", "Kline", "1a", "a-b", "a b", 'a"b', "a;drop table ledger", "a" * 64, "é", "a\n", "a\x00", None, 7, ["a"]],
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(FieldError, match="is not a name"):
        datasets.identifier(name, "table")


@pytest.mark.parametrize(
    ("dataset", "field"),
    [
        (Dataset("ledger", PLAIN.columns, ()), "dataset.table"),
        (Dataset("_datasets", PLAIN.columns, ()), "dataset.table"),
        (Dataset("kline_rows", PLAIN.columns, ()), "dataset.table"),
        (Dataset("sqlite_master", PLAIN.columns, ()), "dataset.table"),
        (Dataset('x"; drop table ledger', PLAIN.columns, ()), "dataset.table"),
        (Dataset("x", (), ()), "dataset.columns"),
        (Dataset("x", (Column("a", "int64"), Column("a", "string")), ()), "dataset.columns"),
        (Dataset("x", (Column("_run", "int64"),), ()), "dataset.columns"),
        (Dataset("x", (Column("rowid", "int64"),), ()), "dataset.columns"),
        (Dataset("x", (Column('a" int, "b', "int64"),), ()), "dataset.columns"),
        (Dataset("x", (Column("a", "BLOB"),), ()), "dataset.columns"),
        (Dataset("x", (Column("a", "int64"),), ("b",)), "dataset.key"),
    ],
)
def test_a_dataset_with_reserved_or_impossible_names_is_refused(dataset: Dataset, field: str) -> None:
    with pytest.raises(FieldError) as caught:
        datasets.check(dataset)
    assert caught.value.field == field

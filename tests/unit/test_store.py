"""The result store: rows and ledger together or not at all, one owner, and reading back in every form."""

from __future__ import annotations

import csv
import datetime as dt
import gc
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dispatch.results import datasets
from dispatch.results.formats import stream
from dispatch.results.store import BATCH_ROWS, Entry, Part, ResultStore, StoreBusy
from nodes.executors.base import Column, Dataset
from nodes.protocol import Conflict, FieldError, NotFound

BARS = Dataset(
    "bars",
    (Column("symbol", "string"), Column("day", "timestamp"), Column("close", "float64"), Column("extra", "json")),
    ("symbol", "day"),
)
PLAIN = Dataset("plain", (Column("item", "string"),), ())
SHA256 = "ab" * 32
MORNING = dt.datetime(2026, 11, 21, 8)


def part(
    rows: list[list[Any]],
    *,
    run: int = 1,
    start: int = 0,
    allocation: int = 1,
    saved_at: dt.datetime = MORNING,
    dataset: Dataset = BARS,
) -> Part:
    table = datasets.with_lineage(
        datasets.from_rows(dataset, rows), run=run, start=start, allocation=allocation, node="n1", saved_at=saved_at
    )
    return Part(dataset, table, [(run, start, start + 1, allocation, SHA256, len(rows))])


def bar(symbol: str, day: int, close: float | None) -> list[Any]:
    return [symbol, f"2024-01-{day:02}", close, None]


def read(store: ResultStore, table: str = "bars", **how: Any) -> list[list[Any]]:
    return [list(row.values()) for row in store.select(table, **how).read_all().to_pylist()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.duckdb"


@pytest.fixture
def store(path: Path) -> Iterator[ResultStore]:
    with ResultStore(path, memory="200MB") as store:
        yield store


# Saving


def test_rows_and_ledger_are_saved_together(store: ResultStore) -> None:
    store.append([part([bar("A", 1, 1.0), bar("A", 2, 2.0)]), part([["x"]], dataset=PLAIN, start=1)])
    assert read(
        store, raw=True, columns=["symbol", "close", "_run", "_start", "_allocation", "_node", "_saved_at"]
    ) == [
        ["A", 1.0, 1, 0, 1, "n1", MORNING],
        ["A", 2.0, 1, 0, 1, "n1", MORNING],
    ]
    assert read(store, "plain") == [["x"]]
    with store.reader() as connection:
        ledger = connection.execute(
            "SELECT run, start, stop, allocation, sha256, rows FROM ledger ORDER BY ALL"
        ).fetchall()
    assert ledger == [(1, 0, 1, 1, SHA256, 2), (1, 1, 2, 1, SHA256, 1)]


def test_append_says_how_many_rows_and_nothing_is_nothing(store: ResultStore) -> None:
    assert store.append([part([bar("A", 1, 1.0)]), part([bar("A", 2, 1.0)] * 3, start=1)]) == 4
    assert store.append([]) == 0


def test_a_shard_without_rows_is_in_the_ledger(store: ResultStore) -> None:
    assert store.append([Part(BARS, None, [(1, 0, 5, 9, SHA256, 0)]), part([], start=5)]) == 0
    assert store.recorded([(1, 0, 5), (1, 5, 6), (1, 0, 4), (2, 0, 5)]) == {(1, 0, 5): 9, (1, 5, 6): 1}
    assert read(store) == []
    assert store.recorded([]) == {}


def test_an_entry_that_is_there_keeps_the_whole_append_out(store: ResultStore) -> None:
    store.append([part([bar("A", 1, 1.0)])])
    with pytest.raises(Conflict, match="saved before"):
        store.append([part([bar("B", 1, 1.0)], start=7), part([bar("A", 1, 9.0)], allocation=2)])
    with pytest.raises(Conflict, match="saved before"):
        store.append([part([bar("B", 1, 1.0)], start=8), part([bar("B", 1, 1.0)], start=8)])
    assert read(store, raw=True, columns=["symbol", "close"]) == [["A", 1.0]]
    assert store.recorded([(1, 0, 1), (1, 7, 8), (1, 8, 9)]) == {(1, 0, 1): 1}
    assert store.append([part([bar("B", 1, 1.0)], start=7)]) == 1


def test_rows_that_do_not_fit_leave_no_entry(store: ResultStore) -> None:
    store.ensure(BARS)
    wrong = pa.table({"symbol": ["A"], "surprise": [1]})
    with pytest.raises(duckdb.Error):
        store.append([part([["x"]], dataset=PLAIN), Part(BARS, wrong, [(1, 5, 6, 1, SHA256, 1)])])
    assert store.recorded([(1, 0, 1), (1, 5, 6)]) == {}
    assert read(store) == read(store, "plain") == []


def test_threads_save_and_read_at_once(store: ResultStore) -> None:
    store.ensure(BARS)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for start in range(10):
                store.append([part([bar(f"S{number}", 1 + start, 1.0)], run=number, start=start)])
                assert len(read(store, where={"symbol": f"S{number}"})) == start + 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(read(store, raw=True)) == 60


# Tables and views


def test_the_view_shows_the_newest_row_per_key(store: ResultStore) -> None:
    later = MORNING + dt.timedelta(hours=1)
    store.append([part([bar("A", 1, 1.0), bar("A", 2, 2.0)])])
    store.append([part([bar("A", 1, 1.5)], run=2, allocation=2, saved_at=later)])
    # An older result that arrives last stays hidden; of one moment the later attempt counts.
    store.append([part([bar("A", 1, 0.5)], run=3, allocation=3, saved_at=MORNING - dt.timedelta(hours=1))])
    store.append([part([bar("A", 1, 1.75)], run=4, allocation=4, saved_at=later)])
    assert read(store, order=["day"], columns=["symbol", "close"]) == [["A", 1.75], ["A", 2.0]]
    assert len(read(store, raw=True)) == 5


def test_the_same_import_twice_shows_each_row_once(store: ResultStore) -> None:
    rows = [bar(symbol, day, day / 7) for symbol in "ABC" for day in range(1, 29)]
    for run in (1, 2):
        store.append([part(rows, run=run, allocation=run, saved_at=MORNING + dt.timedelta(hours=run))])
    assert len(read(store)) == len(rows)
    assert len(read(store, raw=True)) == 2 * len(rows)


def test_a_null_in_the_key_is_a_key(store: ResultStore) -> None:
    store.append(
        [part([[None, "2024-01-01", 1.0, None]]), part([[None, "2024-01-01", 2.0, None]], start=1, allocation=2)]
    )
    assert read(store, columns=["close"]) == [[2.0]]


def test_a_key_given_twice_by_one_shard_is_shown_once(store: ResultStore) -> None:
    store.append([part([bar("A", 1, 1.0), bar("A", 1, 2.0)])])
    assert read(store, columns=["close"]) == [[2.0]]


def test_a_dataset_without_a_key_shows_every_row(store: ResultStore) -> None:
    store.append([part([["x"], ["x"]], dataset=PLAIN)])
    assert read(store, "plain") == [["x"], ["x"]]


def test_a_newer_version_of_a_dataset_adds_its_columns(path: Path) -> None:
    newer = Dataset("bars", (BARS.columns[0], Column("open", "float64"), *BARS.columns[1:3]), BARS.key)
    with ResultStore(path) as store:
        store.append([part([bar("A", 1, 1.0)])])
        store.append([part([["A", 0.5, "2024-01-02", 2.0]], dataset=newer, start=1)])
        # The older version goes on, as a child that was not upgraded yet does.
        store.append([part([bar("A", 3, 3.0)], start=2)])
    with ResultStore(path) as store:
        assert read(store, order=["day"], columns=["open", "close", "extra"]) == [
            [None, 1.0, None],
            [0.5, 2.0, None],
            [None, 3.0, None],
        ]
        store.ensure(newer)
        (table,) = store.tables()
    assert [column["name"] for column in table["columns"]] == ["symbol", "open", "day", "close", "extra"]


def test_a_column_that_changes_its_type_is_refused(store: ResultStore) -> None:
    store.ensure(BARS)
    with pytest.raises(Conflict, match=r"bars\.close is float64 .* has string"):
        store.ensure(Dataset("bars", (Column("close", "string"),), ()))
    assert store.append([part([bar("A", 1, 1.0)])]) == 1


def test_reserved_and_hostile_names_make_no_table(store: ResultStore) -> None:
    for name in ("ledger", "bars_rows", "_datasets", 'x"; DROP TABLE ledger; --'):
        with pytest.raises(FieldError):
            store.ensure(Dataset(name, PLAIN.columns, ()))
    with pytest.raises(FieldError):
        store.append([part([["x"]], dataset=Dataset("Upper", PLAIN.columns, ()))])
    assert store.tables() == []
    assert store.recorded([(1, 0, 1)]) == {}


def test_tables_tell_their_shape(store: ResultStore) -> None:
    assert store.tables() == []
    store.append([part([bar("A", 1, 1.0)] * 2), part([["x"]], dataset=PLAIN, start=1)])
    bars, plain = store.tables()
    assert bars == {
        "name": "bars",
        "columns": [{"name": column.name, "type": column.type} for column in BARS.columns],
        "rows": 2,
        "key": ["symbol", "day"],
    }
    assert (plain["name"], plain["rows"], plain["key"]) == ("plain", 1, [])


def test_names_that_are_words_of_sql_are_names(store: ResultStore) -> None:
    words = Dataset("select", (Column("from", "string"), Column("order", "int64")), ("from",))
    store.append([part([["x", 1]], dataset=words)])
    assert read(store, "select", where={"order": "1"}, order=["-from"]) == [["x", 1]]


# Reading


@pytest.fixture
def filled(store: ResultStore) -> ResultStore:
    """Two runs over two symbols; the second changed one bar, and gave it twice."""
    store.append([part([bar(symbol, day, float(day)) for symbol in "AB" for day in (1, 2, 3)])])
    store.append(
        [
            part([bar("A", 3, 30.0)], run=2, allocation=2, saved_at=MORNING + dt.timedelta(hours=1)),
            part([bar("A", 3, 31.0)], run=2, start=1, allocation=3, saved_at=MORNING + dt.timedelta(hours=2)),
        ]
    )
    return store


def test_a_run_shows_its_own_rows_even_where_a_later_run_replaced_them(filled: ResultStore) -> None:
    assert read(filled, run=1, where={"symbol": "A"}, order=["day"], columns=["close"]) == [[1.0], [2.0], [3.0]]
    assert read(filled, run=2, columns=["close"]) == [[31.0]]
    assert read(filled, run=2, raw=True, columns=["close"], order=["close"]) == [[30.0], [31.0]]
    assert read(filled, run=99) == []


def test_filters_are_values_not_sql(filled: ResultStore) -> None:
    assert read(filled, where={"symbol": "A' OR 1=1 --"}) == []
    assert read(filled, where={"symbol": "nul\x00"}) == []
    assert read(filled, where={"day": "2024-01-03", "symbol": "A"}, columns=["close"]) == [[31.0]]
    assert read(filled, where={"close": "2", "symbol": "B"}, columns=["symbol", "close"]) == [["B", 2.0]]
    assert read(filled, where={"close": 2}, order=["symbol"], columns=["symbol"]) == [["A"], ["B"]]
    assert len(read(filled, where={"extra": None})) == 6
    assert len(read(filled, where={"_run": "2", "_node": "n1"}, raw=True)) == 2


def test_a_filter_does_not_bring_back_a_replaced_row(filled: ResultStore) -> None:
    assert read(filled, where={"symbol": "A", "close": 3.0}) == []
    assert read(filled, where={"close": 30.0}, run=2) == []


def test_pages_go_by_the_natural_key_and_join_without_a_gap(filled: ResultStore) -> None:
    pages = [read(filled, limit=4, offset=offset, columns=["symbol", "day"]) for offset in (0, 4)]
    whole = read(filled, order=["symbol", "day"], columns=["symbol", "day"])
    assert pages == [whole[:4], whole[4:]]
    assert read(filled, limit=0) == []
    assert read(filled, offset=6) == []
    assert read(filled, order=["-day", "symbol"], limit=1, columns=["symbol", "close"]) == [["A", 31.0]]


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"columns": ["close; DROP TABLE ledger"]}, "columns"),
        ({"columns": []}, "columns"),
        ({"columns": ["_run"]}, "columns"),
        ({"columns": [None]}, "columns"),
        ({"where": {"nothing": 1}}, "where"),
        ({"where": {"_run": 1}}, "where"),
        ({"where": {'"close" = 1 OR "close"': 1}}, "where"),
        ({"where": {"close": "cheap"}}, "where.close"),
        ({"where": {"close": ["1"]}}, "where.close"),
        ({"where": {"symbol": 7}}, "where.symbol"),
        ({"where": {"symbol": "\ud800"}}, "where.symbol"),
        ({"where": {"day": "someday"}}, "where.day"),
        ({"where": {"extra": {"a": 1}}}, "where.extra"),
        ({"order": ["close desc"]}, "order"),
        ({"order": ["--close"]}, "order"),
        ({"order": [7]}, "order"),
        ({"limit": -1}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"limit": 2**63}, "limit"),
        ({"offset": -1}, "offset"),
        ({"run": "1"}, "run"),
        ({"run": True}, "run"),
    ],
    ids=str,
)
def test_a_bad_question_is_answered_with_its_field(filled: ResultStore, how: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        filled.select("bars", **how)
    assert caught.value.field == field


@pytest.mark.parametrize("table", ["nothing", "ledger", "bars_rows", "_datasets", "duckdb_settings", 'bars"', None])
def test_an_unknown_table_is_not_found(filled: ResultStore, table: Any) -> None:
    with pytest.raises(NotFound):
        filled.select(table)


def test_a_large_table_is_read_in_batches(store: ResultStore) -> None:
    count = 5 * BATCH_ROWS
    table = datasets.with_lineage(
        pa.table({"item": [str(number) for number in range(count)]}),
        run=1,
        start=0,
        allocation=1,
        node="n",
        saved_at=MORNING,
    )
    store.append([Part(PLAIN, table, [(1, 0, 1, 1, SHA256, count)])])
    sizes = [batch.num_rows for batch in store.select("plain", where={"item": None}, raw=True)]
    assert sum(sizes) == 0
    reader = store.select("plain", raw=True, columns=["item"])
    first = reader.read_next_batch()
    assert first.num_rows <= BATCH_ROWS
    # What is saved meanwhile is not mixed in: the reader goes on with the state it began with.
    store.append([part([["late"]], dataset=PLAIN, start=1)])
    store.checkpoint()
    assert first.num_rows + sum(batch.num_rows for batch in reader) == count


def test_a_reader_that_is_dropped_or_closed_lets_go(filled: ResultStore) -> None:
    unread = filled.select("bars")
    begun = filled.select("bars")
    begun.read_next_batch()
    closed = filled.select("bars")
    closed.close()
    _, pieces = stream(filled.select("bars"), "csv")
    next(pieces)
    assert filled.reading > 0
    del unread, begun, closed, pieces
    gc.collect()
    assert filled.reading == 0


def test_readers_cannot_write(filled: ResultStore) -> None:
    with filled.reader() as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("DELETE FROM ledger")
    assert filled.recorded([(1, 0, 1)]) != {}


@pytest.mark.parametrize(
    "sql",
    [
        "SET memory_limit = '100GB'",
        "SET enable_external_access = true",
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY ledger TO '/tmp/ledger.csv'",
        "ATTACH '/tmp/other.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM 'https://example.org/x.parquet'",
    ],
)
def test_the_database_reaches_nothing_outside_and_its_settings_stay(store: ResultStore, sql: str) -> None:
    with store.reader() as connection, pytest.raises(duckdb.Error):
        connection.execute(sql)


def test_more_than_the_memory_allows_goes_by_way_of_the_disk(path: Path) -> None:
    """Sorting needs the temporary folder, which locking out the outside must not lock out."""
    # Each of DuckDB's threads, one a core, needs some memory that no disk can stand in for.
    megabytes = 50 + 25 * (os.cpu_count() or 1)
    count = 20_000 * megabytes
    numbers = Dataset("numbers", tuple(Column(name, "int64") for name in "abcd"), ())
    chance = np.random.default_rng(1)
    shuffled = pa.table({name: chance.integers(0, 2**62, count) for name in "abcd"})
    lined = datasets.with_lineage(shuffled, run=1, start=0, allocation=1, node="node", saved_at=MORNING)
    with ResultStore(path, memory=f"{megabytes}MB") as store:
        store.append([Part(numbers, lined, [(1, 0, 1, 1, SHA256, count)])])
        ordered = store.select("numbers", order=["a"])
        found = np.concatenate([batch.column("a").to_numpy() for batch in ordered])
        assert Path(f"{path}.tmp").is_dir()
    assert np.array_equal(found, np.sort(shuffled.column("a").to_numpy()))


def test_a_frame_has_the_columns_and_types(filled: ResultStore) -> None:
    frame = filled.to_frame("bars", run=1, order=["symbol", "day"])
    assert list(frame.columns) == ["symbol", "day", "close", "extra"]
    assert frame["day"].dtype.kind == "M"
    assert frame["close"].tolist() == [1.0, 2.0, 3.0] * 2


# Streams


ROWS: list[list[Any]] = [
    ['A, "quoted"\nnext', "2024-01-01T09:30:00.000001", 0.1, '{"a": 1}'],
    ["é", "2024-01-02", None, None],
    [None, None, -1e300, "[]"],
    ["", "9999-12-31T23:59:59.999999", 5e-324, "null"],
]


@pytest.fixture
def strange(store: ResultStore) -> ResultStore:
    store.append([part(ROWS)])
    return store


def streamed(store: ResultStore, format: str, table: str = "bars", **how: Any) -> tuple[str, bytes]:
    kind, pieces = stream(store.select(table, **how), format)
    return kind, b"".join(pieces)


def test_parquet_and_arrow_give_back_the_very_table(strange: ResultStore) -> None:
    expected = datasets.from_rows(BARS, ROWS)
    kind, content = streamed(strange, "parquet", raw=True, columns=list(BARS.names))
    assert kind == "application/vnd.apache.parquet"
    assert pq.read_table(io.BytesIO(content)).equals(expected)
    kind, content = streamed(strange, "arrow", raw=True, columns=list(BARS.names))
    assert kind == "application/vnd.apache.arrow.stream"
    assert pa.ipc.open_stream(content).read_all().equals(expected)


def test_csv_has_a_head_line_and_quotes(strange: ResultStore) -> None:
    kind, content = streamed(strange, "csv", raw=True, columns=list(BARS.names))
    assert kind == "text/csv; charset=utf-8"
    lines = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert lines[0] == list(BARS.names)
    assert [line[0] for line in lines[1:]] == [ROWS[0][0], "é", "", ""]
    assert float(lines[1][2]) == 0.1
    frame = pd.read_csv(io.BytesIO(content), parse_dates=["day"])
    assert frame["day"][0] == pd.Timestamp("2024-01-01T09:30:00.000001")


def test_json_is_an_array_of_objects_that_any_parser_takes(strange: ResultStore) -> None:
    kind, content = streamed(strange, "json", raw=True, columns=list(BARS.names))
    assert kind == "application/json"
    rows = json.loads(content, parse_constant=pytest.fail)
    assert rows[0] == dict(zip(BARS.names, ROWS[0], strict=True))
    assert rows[1] == {"symbol": "é", "day": "2024-01-02T00:00:00", "close": None, "extra": None}
    assert rows[2]["day"] is None


def test_json_has_null_for_what_json_cannot_say(store: ResultStore) -> None:
    table = pa.table({"symbol": list("abc"), "close": [float("nan"), float("inf"), float("-inf")]})
    dataset = Dataset("odd", (Column("symbol", "string"), Column("close", "float64")), ("symbol",))
    lined = datasets.with_lineage(table, run=1, start=0, allocation=1, node="n", saved_at=MORNING)
    store.append([Part(dataset, lined, [(1, 0, 1, 1, SHA256, 3)])])
    _, content = streamed(store, "json", "odd", columns=["close"])
    assert json.loads(content) == [{"close": None}] * 3


@pytest.mark.parametrize("format", ["parquet", "arrow", "csv", "json"])
def test_no_rows_are_still_a_whole_file(strange: ResultStore, format: str) -> None:
    _, content = streamed(strange, format, where={"symbol": "none"})
    if format == "parquet":
        assert pq.read_table(io.BytesIO(content)).column_names == list(BARS.names)
    elif format == "arrow":
        assert pa.ipc.open_stream(content).read_all().num_rows == 0
    elif format == "csv":
        assert content.decode().split() == ['"symbol","day","close","extra"']
    else:
        assert json.loads(content) == []


@pytest.mark.parametrize("format", ["parquet", "arrow", "csv", "json"])
def test_many_batches_are_one_file_in_pieces(store: ResultStore, format: str) -> None:
    count = 2 * BATCH_ROWS + 1
    lined = datasets.with_lineage(
        pa.table({"item": [str(number) for number in range(count)]}),
        run=1,
        start=0,
        allocation=1,
        node="n",
        saved_at=MORNING,
    )
    store.append([Part(PLAIN, lined, [(1, 0, 1, 1, SHA256, count)])])
    _, iterator = stream(store.select("plain"), format)
    pieces = list(iterator)
    assert len(pieces) >= 3
    content = b"".join(pieces)
    if format == "parquet":
        items = pq.read_table(io.BytesIO(content)).column("item").to_pylist()
    elif format == "arrow":
        items = pa.ipc.open_stream(content).read_all().column("item").to_pylist()
    elif format == "csv":
        items = [row[0] for row in csv.reader(content.decode().splitlines())][1:]
    else:
        items = [row["item"] for row in json.loads(content)]
    assert sorted(map(int, items)) == list(range(count))


def test_an_unknown_format_is_named(strange: ResultStore) -> None:
    with pytest.raises(FieldError, match="'xml' is not one of: parquet, arrow, csv, json"):
        stream(strange.select("bars"), "xml")


# Ownership and crashes


CHILD = """
import sys, datetime as dt
from contextlib import contextmanager
from pathlib import Path
from dispatch.results import datasets
from dispatch.results.store import Part, ResultStore
from nodes.executors.base import Column, Dataset

PLAIN = Dataset("plain", (Column("item", "string"),), ())

def part(start, count=3):
    table = datasets.with_lineage(datasets.from_rows(PLAIN, [[f"{start}:{n}"] for n in range(count)]),
        run=1, start=start, allocation=start, node="n", saved_at=dt.datetime(2026, 11, 21))
    return Part(PLAIN, table, [(1, start, start + 1, start, "ab" * 32, count)])

class Store(ResultStore):
    pause = False
    @contextmanager
    def _transaction(self):
        with super()._transaction() as connection:
            yield connection
            if self.pause:
                print("written", flush=True)
                sys.stdin.read()

store = Store(Path(sys.argv[1]))
store.open()
store.ensure(PLAIN)
"""


def child(path: Path, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def killed(process: subprocess.Popen[str]) -> list[str]:
    """Its lines, the first of which is waited for before it is killed."""
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=30)
    return [first.strip(), *rest.split()]


def saved(path: Path) -> tuple[list[Entry], list[str]]:
    with ResultStore(path) as store, store.reader() as connection:
        entries = connection.execute(
            "SELECT run, start, stop, allocation, sha256, rows FROM ledger ORDER BY ALL"
        ).fetchall()
        items = connection.execute("SELECT item FROM plain_rows ORDER BY item").fetchall()
    return entries, [item for (item,) in items]


def test_what_append_returned_for_outlives_a_kill(path: Path) -> None:
    process = child(path, "store.append([part(0), part(1)])\nprint('saved', flush=True)\nsys.stdin.read()\n")
    assert killed(process) == ["saved"]
    for _ in range(2):
        entries, items = saved(path)
        assert [(start, rows) for _, start, _, _, _, rows in entries] == [(0, 3), (1, 3)]
        assert items == ["0:0", "0:1", "0:2", "1:0", "1:1", "1:2"]


def test_a_kill_before_the_commit_leaves_neither_rows_nor_entries(path: Path) -> None:
    process = child(path, "store.append([part(0)])\nstore.pause = True\nstore.append([part(1), part(2)])\n")
    assert killed(process) == ["written"]
    entries, items = saved(path)
    assert [start for _, start, _, _, _, _ in entries] == [0]
    assert items == ["0:0", "0:1", "0:2"]
    with ResultStore(path) as store:
        assert store.recorded([(1, 0, 1), (1, 1, 2), (1, 2, 3)]) == {(1, 0, 1): 0}


def test_a_kill_at_any_moment_leaves_rows_and_entries_equal(path: Path) -> None:
    script = (
        "first = int(sys.stdin.readline())\n"
        "for start in range(first, first + 100000):\n"
        "    store.append([part(start)])\n"
        "    if start % 7 == 0:\n"
        "        store.checkpoint()\n"
        "    print(start, flush=True)\n"
    )
    chance = random.Random(7)
    acknowledged: set[int] = set()
    for round in range(3):
        process = child(path, script)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{round * 100_000}\n")
        process.stdin.flush()
        for _ in range(chance.randrange(5, 40)):
            acknowledged.add(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=30)
        # A number that was cut off by the kill is no acknowledgement.
        acknowledged |= {int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")}
    entries, items = saved(path)
    starts = [start for _, start, _, _, _, _ in entries]
    assert acknowledged <= set(starts)
    assert len(starts) - len(acknowledged) <= 3
    assert sorted(items) == sorted(f"{start}:{number}" for start in starts for number in range(3))


def test_a_disk_without_room_is_507_loses_nothing_and_heals(path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    script = (
        "import os, resource, signal\n"
        "from nodes.protocol import StorageFull\n"
        "def room(size):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "def large(start):\n"
        "    rows = [[os.urandom(500).hex()] for _ in range(1000)]\n"
        "    table = datasets.with_lineage(datasets.from_rows(PLAIN, rows),\n"
        "        run=1, start=start, allocation=start, node='n', saved_at=dt.datetime(2026, 11, 21))\n"
        "    return Part(PLAIN, table, [(1, start, start + 1, start, 'ab' * 32, 1000)])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "done, refused = [], 0\n"
        "room(3_000_000)\n"
        "for start in range(20):\n"
        "    try:\n"
        "        store.append([large(start)])\n"
        "        done.append(start)\n"
        "        store.checkpoint()\n"
        "    except StorageFull as error:\n"
        "        assert error.status == 507\n"
        "        refused += 1\n"
        "        if refused == 3:\n"
        "            room(resource.RLIM_INFINITY)\n"
        "assert refused == 3, refused\n"
        "assert len(done) >= 17\n"
        "known = store.recorded([(1, start, start + 1) for start in range(20)])\n"
        "assert {start for _, start, _ in known} >= set(done)\n"
        "print(len(known))\n"
    )
    process = child(path, script)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    entries, items = saved(path)
    assert len(entries) == int(output)
    assert len(items) == 1000 * len(entries)


def test_after_a_checkpoint_everything_is_in_the_file(store: ResultStore, path: Path, tmp_path: Path) -> None:
    """Without its log, which a crash of the machine may tear; also while somebody reads slowly."""
    store.append([part([bar("B", 1, 1.0)], start=1)])
    slow = store.select("bars", raw=True)
    store.append([part([bar("A", 1, 1.0)])])
    store.checkpoint()
    assert len(slow.read_all()) == 1
    copy = tmp_path / "copy.duckdb"
    # By another process: closing the file in this one would drop DuckDB's lock on it.
    subprocess.run(["cp", path, copy], check=True)
    with ResultStore(copy) as other:
        assert other.recorded([(1, 0, 1)]) == {(1, 0, 1): 1}
        assert len(read(other)) == 2


def test_a_second_process_is_told_who_holds_the_store(path: Path) -> None:
    process = child(path, "print('open', flush=True)\nsys.stdin.read()\n")
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(StoreBusy, match=rf"process {process.pid} on .* since 20") as caught:
            ResultStore(path).open()
        assert caught.value.status == 503
    finally:
        process.kill()
        process.communicate(timeout=30)
    with ResultStore(path) as store:
        assert store.tables()[0]["name"] == "plain"


def test_a_second_store_in_this_process_is_refused_and_the_first_keeps_its_lock(store: ResultStore, path: Path) -> None:
    with pytest.raises(StoreBusy, match="this process already"):
        ResultStore(path).open()
    with pytest.raises(StoreBusy, match="this process already"):
        store.open()
    process = child(path, "")
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_somebody_elses_open_database_is_said_so_at_once(path: Path) -> None:
    duckdb.connect(str(path)).close()
    script = (
        "import duckdb, sys\n"
        "connection = duckdb.connect(sys.argv[1], read_only=True)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(StoreBusy, match="another program has it open"):
            ResultStore(path).open()
    finally:
        process.kill()
        process.communicate(timeout=30)
    with ResultStore(path) as store:
        assert store.tables() == []


def test_a_closed_store_can_be_opened_again_and_says_so_meanwhile(path: Path) -> None:
    store = ResultStore(path)
    with pytest.raises(StoreBusy, match="not open"):
        store.tables()
    with store:
        store.append([part([bar("A", 1, 1.0)])])
        held = store.select("bars")
    with pytest.raises(StoreBusy, match="not open"):
        store.append([part([bar("A", 2, 1.0)])])
    with pytest.raises(Exception, match=r"(?i)interrupt|clos"):
        held.read_all()
    with store:
        assert len(read(store)) == 1
    assert not Path(f"{path}.wal").exists()


def test_an_open_store_that_nobody_used_has_not_loaded_duckdb(path: Path) -> None:
    """An idle parent's memory: DuckDB is a third of it."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dispatch.results.store import ResultStore\n"
        "ResultStore(Path(sys.argv[1])).open()\n"
        "assert not {'duckdb', 'pyarrow', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
    assert os.path.exists(f"{path}.lock")

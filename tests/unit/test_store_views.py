"""Views over a dataset's JSON, values each once, what shards read, and reductions: other ways to ask the store."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatch.results import datasets
from dispatch.results.store import Part, ResultStore
from nodes.executors.base import Column, Dataset, Reading
from nodes.protocol import FieldError, NotFound, Unprocessable

TRADES = "SELECT symbol, unnest(from_json(trades, '[\"DOUBLE\"]')) AS profit FROM {table}"
TESTS = Dataset(
    "tests",
    (Column("symbol", "string"), Column("day", "timestamp"), Column("trades", "json")),
    ("symbol", "day"),
    (("tests_trades", TRADES),),
)
MORNING = dt.datetime(2026, 11, 21, 8)
FIRST, SECOND = dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultStore]:
    with ResultStore(tmp_path / "results.duckdb") as made:
        append(made, [["A", FIRST, "[1, 2]"], ["B", FIRST, "[]"], ["B", SECOND, "[5]"]])
        yield made


def append(store: ResultStore, rows: list[list[Any]], number: int = 1, dataset: Dataset = TESTS) -> None:
    table = datasets.with_lineage(
        datasets.from_rows(dataset, rows), run=number, start=0, allocation=number, node="n", saved_at=MORNING
    )
    store.append([Part(dataset, table, [(number, 0, 1, number, "ab" * 32, len(rows))])])


def read(store: ResultStore, table: str, **how: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in store.select(table, **how).read_all().to_pylist()]


def test_a_view_shows_what_hangs_on_the_newest_rows(store: ResultStore) -> None:
    assert sorted(read(store, "tests_trades")) == [("A", 1.0), ("A", 2.0), ("B", 5.0)]
    append(store, [["A", FIRST, "[7]"]], 2)
    assert sorted(read(store, "tests_trades")) == [("A", 7.0), ("B", 5.0)]


def test_a_view_is_read_like_a_table_with_filters_order_and_pages(store: ResultStore) -> None:
    assert read(store, "tests_trades", where={"symbol": "A"}, order=["-profit"], limit=1) == [("A", 2.0)]
    assert read(store, "tests_trades", columns=["profit"], where={"profit": "5"}) == [(5.0,)]
    with pytest.raises(FieldError, match="no column"):
        store.select("tests_trades", columns=["trades"])


def test_a_view_has_no_runs_and_no_lineage(store: ResultStore) -> None:
    for how in ({"run": 1}, {"raw": True}):
        with pytest.raises(FieldError, match="view"):
            store.select("tests_trades", **how)


def test_views_are_listed_with_the_table_they_are_of(store: ResultStore) -> None:
    listed = {each["name"]: each for each in store.tables()}
    assert listed["tests_trades"]["of"] == "tests"
    assert listed["tests_trades"]["rows"] == 3
    assert listed["tests_trades"]["columns"] == [
        {"name": "symbol", "type": "string"},
        {"name": "profit", "type": "float64"},
    ]
    assert "of" not in listed["tests"]


def test_a_newer_version_of_a_dataset_brings_its_views_and_takes_old_ones_away(tmp_path: Path) -> None:
    path = tmp_path / "results.duckdb"
    with ResultStore(path) as older:
        append(older, [["A", FIRST, "[1]"]])
    newer = dataclasses.replace(TESTS, views=(("tests_days", "SELECT DISTINCT day FROM {table}"),))
    with ResultStore(path) as store:
        store.ensure(newer)
        assert read(store, "tests_days") == [(FIRST,)]
        with pytest.raises(NotFound):
            store.select("tests_trades")


@pytest.mark.parametrize("name", ["tests", "other_trades", "ledger", "tests_Trades", 'tests_"; DROP TABLE ledger; --'])
def test_a_view_is_named_after_its_table(store: ResultStore, name: str) -> None:
    with pytest.raises(FieldError, match="views"):
        store.ensure(dataclasses.replace(TESTS, views=((name, "SELECT 1"),)))


def test_each_value_comes_once(store: ResultStore) -> None:
    assert read(store, "tests", columns=["symbol"], distinct=True, order=["symbol"]) == [("A",), ("B",)]
    assert read(store, "tests", columns=["symbol"], distinct=True, order=["-symbol"], limit=1) == [("B",)]


def asked(**other: Any) -> Reading:
    plain: dict[str, Any] = {"table": "tests", "columns": ("symbol", "day"), "where": {}, "column": "symbol"}
    return Reading(**{**plain, "values": ("A", "B"), "order": ("symbol", "day"), "time_column": "day", **other})


@pytest.mark.parametrize(
    ("reading", "rows"),
    [
        (asked(), [("A", FIRST), ("B", FIRST), ("B", SECOND)]),
        (asked(values=("B", "C")), [("B", FIRST), ("B", SECOND)]),
        (asked(values=()), []),
        (asked(since="2024-01-02"), [("B", SECOND)]),
        (asked(until="2024-01-02"), [("A", FIRST), ("B", FIRST)]),
        (asked(where={"trades": "[5]"}), [("B", SECOND)]),
        (asked(values=("' OR 1=1 --",)), []),
    ],
)
def test_a_shard_reads_the_newest_rows_it_names(store: ResultStore, reading: Reading, rows: list[Any]) -> None:
    append(store, [["A", FIRST, "[9]"]], 2)  # a repeated fact is read once
    with store.read(reading) as found:
        assert [tuple(row.values()) for row in found.read_all().to_pylist()] == rows


@pytest.mark.parametrize("wrong", [{"columns": ("nothing",)}, {"column": "nothing"}, {"time_column": "nothing"}])
def test_reading_what_is_not_there_names_it(store: ResultStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match="nothing"):
        store.read(asked(**wrong))


def test_a_reduction_is_over_the_newest_rows_of_its_run(store: ResultStore) -> None:
    append(store, [["A", FIRST, "[9]"], ["A", FIRST, "[8]"]], 2)
    sql = "SELECT symbol, trades FROM rows ORDER BY symbol"
    assert store.reduce(TESTS, sql, 2, 10) == [{"symbol": "A", "trades": "[8]"}]
    assert len(store.reduce(TESTS, sql, 1, 10)) == 3
    assert len(store.reduce(TESTS, sql, 1, 2)) == 2
    assert store.reduce(TESTS, sql, 99, 10) == []


@pytest.mark.parametrize("sql", ["SELECT nothing FROM rows", "not SQL", "SELECT 'x'::INTEGER", "DELETE FROM rows"])
def test_a_reduction_that_fails_says_why(store: ResultStore, sql: str) -> None:
    with pytest.raises(Unprocessable):
        store.reduce(TESTS, sql, 1, 10)

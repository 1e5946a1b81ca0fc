"""Real market data through a whole tree: what was imported is what the source has, bar for bar."""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import QUICK, until

SYMBOLS = ["AAPL", "FB", "GOOG", "IBM", "MSFT"]
NUMBERS = ("open", "high", "low", "close", "volume")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [
        Child("puller", 2, carrier="pull"),
        Child("pusher", 2, [{"task_type": "data_import", "slots": 2}], carrier="push"),
        Child("either", 2, [{"task_type": "data_import", "item": "AAPL", "slots": 1}], carrier="auto"),
    ]
    with LocalTree(tmp_path_factory.mktemp("import"), children=children, env=QUICK) as tree:
        yield tree


@pytest.fixture(scope="module")
def source() -> dict[tuple[str, str], tuple[float, ...]]:
    """(symbol, date) -> numbers, from the package's own file, read without any of our code."""
    bars = {}
    file = files("bokeh_sampledata") / "_data" / "stocks.csv.gz"
    with gzip.open(str(file), "rt") as lines:
        for row in csv.DictReader(lines):
            bars[row["Ticker"], row["Date"]] = tuple(float(row[name.capitalize()]) for name in NUMBERS)
    assert len(bars) == 12_154
    return bars


@pytest.fixture(scope="module")
def imported(tree: LocalTree) -> dict[str, Any]:
    """The progress of a run over the whole sample, split by year."""
    run = tree.submit("data_import", SYMBOLS, params={"source": "sample"}, split="year")
    return tree.wait(run)


def kline(tree: LocalTree, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tree.json("GET", "/api/v1/tables/kline/rows", params=params)
    return found


def by_bar(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, ...]]:
    return {(row["symbol"], row["datetime"][:10]): tuple(row[name] for name in NUMBERS) for row in rows}


def test_what_was_imported_equals_the_source_bar_for_bar(tree, imported, source):
    assert imported["state"] == "completed"
    assert imported["count"] > len(SYMBOLS)  # it was split
    assert imported["rows"] == len(source)
    rows = kline(tree, run=imported["run"])
    assert len(rows) == len(source)
    assert by_bar(rows) == source
    assert {(row["freq"], row["data_source"]) for row in rows} == {("D", "sample")}


def test_counts_and_sums_per_symbol_equal_the_sources(tree, imported, source):
    def sums(bars: dict[tuple[str, str], tuple[float, ...]]) -> dict[str, tuple[int, list[float]]]:
        by_symbol = defaultdict(list)
        for (symbol, _), numbers in bars.items():
            by_symbol[symbol].append(numbers)
        return {
            symbol: (len(numbers), [math.fsum(column) for column in zip(*numbers, strict=True)])
            for symbol, numbers in by_symbol.items()
        }

    assert sums(by_bar(kline(tree, run=imported["run"]))) == sums(source)


def test_each_saved_row_says_where_it_came_from(tree, imported):
    rows = kline(tree, raw="true", run=imported["run"])
    assert {row["_node"] for row in rows} <= {"puller", "pusher", "either"}
    shares = tree.json("GET", f"/api/v1/runs/{imported['run']}/nodes")
    assert sum(share["rows"] for share in shares) == len(rows)
    assert dict(Counter(row["_node"] for row in rows)) == {share["node"]: share["rows"] for share in shares}


def test_work_came_by_the_carriers_that_were_asked_for(tree, imported):
    carriers = {name: node["carrier"] for name, node in tree.nodes().items()}
    assert carriers["puller"] == "pull"
    assert carriers["pusher"] == "push"
    assert until(lambda: tree.nodes()["either"]["carrier"] == "push")


def test_the_same_run_again_leaves_each_bar_once(tree, imported, source):
    run = tree.submit("data_import", SYMBOLS, params={"source": "sample"}, split="year")
    again = tree.wait(run)
    assert (again["state"], again["rows"]) == ("completed", len(source))
    assert by_bar(kline(tree)) == source
    assert len(kline(tree)) == len(source)
    # Both runs' rows are kept; the view shows the newest of each bar.
    assert len(kline(tree, raw="true", run=imported["run"])) == len(source)
    assert len(kline(tree, raw="true", run=run)) == len(source)


def test_an_unknown_symbol_costs_that_item_and_is_named_with_the_reason(tree, source):
    run = tree.submit("data_import", ["IBM", "NOPE", "FB"], params={"source": "sample"}, split="year")
    ended = tree.wait(run)
    assert (ended["state"], ended["failed"]) == ("partial", 1)
    assert ended["rows"] == sum(symbol in ("IBM", "FB") for symbol, _ in source)
    (failed,) = tree.json("GET", f"/api/v1/runs/{run}/items")["results"]
    assert failed["item"] == "NOPE"
    assert "'NOPE' is not in the sample" in failed["error"]


def test_a_range_of_dates_is_imported_and_nothing_else(tree, source):
    params = {"source": "sample", "start_date": "2005-06-01", "end_date": "2006-05-31"}
    run = tree.submit("data_import", ["MSFT"], params=params, split="year")
    ended = tree.wait(run)
    wanted = {bar for bar in source if bar[0] == "MSFT" and "2005-06-01" <= bar[1] <= "2006-05-31"}
    assert (ended["state"], ended["count"], ended["rows"]) == ("completed", 2, len(wanted))
    assert set(by_bar(kline(tree, run=run))) == wanted


def test_an_unreadable_file_costs_that_item_and_bad_rows_are_kept_out_and_named(tree, tmp_path):
    lines = [
        "date,open,high,low,close,volume",
        "2024-01-02,1,2,0.5,1.5,10",
        "2024-01-03,1,0.5,2,1.5,10",
        "2024-01-04,1,2,0.5,1.5,-1",
    ]
    (tmp_path / "GOOD.csv").write_text("\n".join(lines))
    (tmp_path / "BAD.csv").write_bytes(b"\x00\x01\x02 no table")
    run = tree.submit("data_import", ["GOOD", "BAD", "NONE"], params={"source": "files", "path": str(tmp_path)})
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["failed"], ended["rows"]) == ("partial", 1, 2, 1)
    failed = tree.json("GET", f"/api/v1/runs/{run}/items")["results"]
    assert {each["item"] for each in failed} == {"BAD", "NONE"}
    assert all(each["item"] in each["error"] for each in failed)
    logs = [
        tree.json("GET", f"/api/v1/allocations/{each['id']}")["log"]
        for each in tree.json("GET", "/api/v1/allocations", params={"run": run})["results"]
    ]
    text = "\n".join(logs)
    assert "GOOD: kept out 1 with high below low: 2024-01-03" in text
    assert "GOOD: kept out 1 with negative volume: 2024-01-04" in text

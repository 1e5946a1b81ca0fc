"""``sample``: the bars of the package's own file, all of them and unchanged."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from nodes import providers
from nodes.executors.base import ItemFailed
from nodes.executors.data_import import DataImport
from nodes.providers import sample
from nodes.providers.sample import Sample

COUNTS = {"AAPL": 3270, "FB": 196, "GOOG": 2148, "IBM": 3270, "MSFT": 3270}


@pytest.fixture(scope="module")
def package():
    """The package's file by symbol, read here on its own: (date, open, high, low, close, volume)."""
    import bokeh_sampledata

    file = Path(bokeh_sampledata.__file__).parent / "_data" / "stocks.csv.gz"
    bars = defaultdict(list)
    with gzip.open(file, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            numbers = [float(row[name]) for name in ("Open", "High", "Low", "Close", "Volume")]
            bars[row["Ticker"]].append((dt.datetime.fromisoformat(row["Date"]), *numbers))
    return dict(bars)


def tuples(frame):
    return [
        (row.datetime.to_pydatetime(), row.open, row.high, row.low, row.close, row.volume)
        for row in frame.itertuples(index=False)
    ]


def test_it_is_registered():
    assert providers.get("sample") is Sample


def test_the_package_has_the_bars_that_are_promised(package):
    assert {symbol: len(bars) for symbol, bars in package.items()} == COUNTS
    assert sum(COUNTS.values()) == 12_154


@pytest.mark.parametrize("symbol", sorted(COUNTS))
def test_every_bar_is_the_file_s_own(package, symbol):
    assert tuples(Sample({}).bars(symbol, "D", None, None)) == package[symbol]


@pytest.mark.parametrize("split", ["", "year", "month"])
def test_what_is_imported_equals_the_file_bar_for_bar_whole_or_split(package, split, capsys):
    params = DataImport.check({"source": "sample"})
    executor = DataImport(params)
    items = DataImport.expand(sorted(COUNTS), params, split) if split else sorted(COUNTS)
    imported: dict[str, list] = defaultdict(list)
    for item in items:
        rows = executor.run(item)
        if rows is not None:
            assert set(rows["freq"]) == {"D"}
            assert set(rows["data_source"]) == {"sample"}
            (symbol,) = set(rows["symbol"])
            imported[symbol] += tuples(rows)
    assert imported == package
    for symbol, bars in package.items():
        assert sum(bar[5] for bar in imported[symbol]) == sum(bar[5] for bar in bars)
    assert "kept out" not in capsys.readouterr().out


def test_types_are_those_the_dataset_has():
    frame = Sample({}).bars("FB", "D", None, None)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "datetime": "datetime64[us]",
        **dict.fromkeys(("open", "high", "low", "close", "volume"), "float64"),
    }


def test_both_ends_of_a_range_are_inclusive(package):
    dates = [bar[0].date() for bar in package["FB"]]
    frame = Sample({}).bars("FB", "D", dates[3], dates[7])
    assert tuples(frame) == package["FB"][3:8]


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [
        (dt.date.min, dt.date.max, 196),
        (dt.date(1990, 1, 1), dt.date(1999, 12, 31), 0),
        (dt.date(2014, 1, 1), None, 0),
        (None, dt.date(2012, 5, 18), 1),
    ],
)
def test_a_range_may_be_open_or_beyond_the_history(start, end, count):
    assert len(Sample({}).bars("FB", "D", start, end)) == count


def test_symbols_and_spans_are_known_without_pandas(package):
    provider = Sample({})
    assert provider.symbols() == sorted(package)
    for symbol, bars in package.items():
        assert provider.span(symbol) == (bars[0][0].date(), bars[-1][0].date())
    assert provider.span("NOPE") is None
    code = """
import sys
from nodes.executors import get
get("data_import").expand(["AAPL"], {"source": "sample"}, "year")
print([name for name in ("bokeh_sampledata", "django", "numpy", "pandas", "pyarrow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


def test_an_unknown_symbol_fails_for_good_and_the_known_ones_are_named():
    with pytest.raises(
        ItemFailed, match="'NOPE' is not in the sample, which has: AAPL, FB, GOOG, IBM, MSFT"
    ) as failure:
        Sample({}).bars("NOPE", "D", None, None)
    assert not failure.value.retry


@pytest.fixture
def _no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh_sampledata", None)  # Python's own way to make a module missing
    sample._spans.cache_clear()
    sample._tables.cache_clear()
    yield
    sample._spans.cache_clear()


@pytest.mark.usefixtures("_no_package")
def test_a_missing_package_is_named_with_the_command_and_another_node_may_have_it():
    with pytest.raises(ItemFailed, match="pip install bokeh-sampledata") as failure:
        Sample({}).bars("AAPL", "D", None, None)
    assert failure.value.retry
    assert Sample({}).symbols() == []
    assert Sample({}).span("AAPL") is None

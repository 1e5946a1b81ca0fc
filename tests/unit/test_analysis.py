"""``analysis``: which rows come out and with what in them, signals, the summary, and what is made of them in SQL."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dispatch.results import datasets
from dispatch.results.store import Part, ResultStore
from nodes import executors, providers
from nodes.agent import runner
from nodes.executors.analysis import Analysis
from nodes.indicators import engines
from nodes.indicators.engines import named
from nodes.indicators.signals import MEANINGS
from nodes.indicators.standard import LIMITS, NUMBERS, PERIODS, STANDARD
from nodes.indicators.table import TABLE
from nodes.protocol import FieldError

SAMPLE = {"source": "sample"}
NAMES = Analysis.dataset.names
COLUMNS = ("open", "high", "low", "close", "volume")


def run(*items, **params):
    """Rows as objects, and messages of items that failed, of one shard as a worker runs it."""
    shard = {"allocation": 1, "type": "analysis", "params": Analysis.check(SAMPLE | params), "start": 0}
    with TemporaryDirectory() as outbox:
        (entry,) = runner.run([shard | {"items": list(items)}], outbox)
        assert "failure" not in entry, entry
        rows = [dict(zip(NAMES, row, strict=True)) for row in entry.get("rows", [])]
        if "segment" in entry:
            rows = pa.ipc.open_file(pa.OSFile(f"{outbox}/{entry['segment']}.arrow")).read_all().to_pylist()
            for row in rows:
                row["datetime"] = row["datetime"].isoformat()
    return rows, [(number, message) for number, message, _ in entry["errors"]]


def rows_of(symbol, **params):
    rows, errors = run(symbol, **params)
    assert errors == []
    return rows


def sample(symbol):
    bars = providers.get("sample")({}).bars(symbol, "D", None, None)
    return {name: bars[name].to_numpy() for name in COLUMNS}


@pytest.fixture
def files(tmp_path):
    """Writes a CSV of bars and gives the params that read it."""

    def write(close, *, wide=0.0, volume=None, symbol="X", start="2020-01-01"):
        close = np.asarray(close, dtype="float64")
        table = pd.DataFrame({"date": pd.date_range(start, periods=len(close)).strftime("%Y-%m-%d")})
        table["open"] = table["close"] = close
        table["high"], table["low"] = close + wide, close - wide
        table["volume"] = 1000.0 if volume is None else volume
        table[["date", "open", "high", "low", "close", "volume"]].to_csv(tmp_path / f"{symbol}.csv", index=False)
        return {"source": "files", "path": str(tmp_path)}

    return write


# What it is


def test_it_is_registered_with_its_table():
    assert executors.get("analysis") is Analysis
    assert Analysis.dataset.table == "analysis"
    assert Analysis.dataset.key == ("symbol", "freq", "datetime")
    assert len(set(NAMES)) == len(NAMES)


def test_every_param_says_what_it_is():
    assert all(param.help for param in Analysis.params)
    assert len({param.name for param in Analysis.params}) == len(Analysis.params)
    for indicator in TABLE:
        assert indicator in next(param.help for param in Analysis.params if param.name == "extra")


@pytest.mark.parametrize(
    ("params", "field", "message"),
    [
        ({"sma_fast": 0}, "params.sma_fast", "0 is below the least allowed, 1"),
        ({"rsi_period": 1}, "params.rsi_period", "1 is below the least allowed, 2"),
        ({"sma_slow": 5001}, "params.sma_slow", "5001 is above the most allowed, 5000"),
        ({"sma_fast": 50}, "params.sma_fast", "50 is not below sma_slow, which is 50"),
        ({"macd_fast": 30}, "params.macd_fast", "30 is not below macd_slow, which is 26"),
        ({"rsi_low": 80}, "params.rsi_low", "80.0 is not below rsi_high, which is 70.0"),
        ({"engine": "numpy"}, "params.engine", "'numpy' is not one of: auto, talib, pandas"),
        ({"rows": "some"}, "params.rows", "'some' is not one of: all, signals, latest"),
        ({"last": 0}, "params.last", "0 is below the least allowed, 1"),
        ({"extra": ["smaa"]}, "params.extra", "'smaa' is not an indicator; known are: sma"),
        ({"extra": "trix_15,rsi_1"}, "params.extra", "'rsi_1': period: 1 is below the least allowed, 2"),
        ({"extra": [f"sma_{n}" for n in range(1, 60)]}, "params.extra", "names 59 indicators; at most 50"),
        ({"extra": [["sma"]]}, "params.extra", "is not a text"),
        ({"boll_deviations": "wide"}, "params.boll_deviations", "'wide' is not a finite number"),
    ],
)
def test_bad_params_are_refused_by_name(params, field, message):
    with pytest.raises(FieldError) as refusal:
        Analysis.check(SAMPLE | params)
    assert refusal.value.field == field
    assert message in refusal.value.message


def test_settings_of_the_type_are_checked_as_far_as_they_go():
    assert Analysis.check_settings({"sma_fast": 5, "extra": "sar"}) == {"sma_fast": 5, "extra": ["sar"]}
    with pytest.raises(FieldError, match="'nope' is not an indicator"):
        Analysis.check_settings({"extra": "nope"})


def test_checked_params_check_again():
    checked = Analysis.check(SAMPLE | {"extra": "sar"})
    assert Analysis.check(checked) == checked


# Rows


@pytest.mark.parametrize("engine", ["talib", "pandas"])
def test_each_bar_is_a_row_with_the_indicators_of_its_params(engine):
    rows = rows_of("IBM", engine=engine, sma_fast=7, kdj_d=4)
    bars = sample("IBM")
    assert len(rows) == len(bars["close"]) == 3270
    assert {row["symbol"] for row in rows} == {"IBM"}
    assert {row["freq"] for row in rows} == {"D"}
    assert [row["close"] for row in rows] == bars["close"].tolist()
    given = Analysis.check(SAMPLE | {"sma_fast": 7, "kdj_d": 4})
    for standard in STANDARD:
        outputs = named(standard.indicator, bars, *(given[name] for name, _ in standard.params), engine=engine)
        for column, expected in zip(standard.columns, outputs, strict=True):
            found = np.array([np.nan if row[column] is None else row[column] for row in rows])
            np.testing.assert_array_equal(found, expected, err_msg=column)


def test_both_engines_make_the_same_rows():
    for symbol in ("AAPL", "FB", "MSFT"):
        theirs, ours = (rows_of(symbol, engine=engine) for engine in ("talib", "pandas"))
        for name in NAMES:
            if name in NUMBERS:
                one, other = (np.array([row[name] for row in rows], dtype="float64") for rows in (theirs, ours))
                np.testing.assert_allclose(other, one, rtol=1e-8, atol=1e-8, err_msg=name)
            elif name != "summary":
                assert [row[name] for row in theirs] == [row[name] for row in ours], name
        one, other = (json.loads(rows[-1]["summary"]) for rows in (theirs, ours))
        assert (one.pop("engine"), other.pop("engine")) == ("talib", "pandas")
        assert one["votes"] == other["votes"]
        assert one["score"] == other["score"]


def test_the_columns_beside_the_indicators(files):
    params = files([10, 11, 22, 11], wide=1, volume=[4, 2, 9, 0])
    rows = rows_of("X", **params, sma_fast=1, sma_slow=2, channel_period=2, volume_period=2)
    assert [row["change"] for row in rows] == [None, pytest.approx(10), pytest.approx(100), pytest.approx(-50)]
    assert [row["channel_high"] for row in rows] == [None, None, 12, 23]
    assert [row["channel_low"] for row in rows] == [None, None, 9, 10]
    assert [row["volume_ratio"] for row in rows] == [None, None, 3, 0]
    assert [row["volume"] for row in rows] == [4, 2, 9, 0]


def test_a_range_bounds_the_rows_and_changes_no_number():
    whole = {row["datetime"]: row for row in rows_of("AAPL")}
    rows = rows_of("AAPL", start_date="2012-01-03", end_date="2012-02-29")
    assert rows[0]["datetime"] == "2012-01-03T00:00:00"
    assert rows[-1]["datetime"] == "2012-02-29T00:00:00"
    for row in rows:
        assert row["sma_slow"] is not None
        for name in NUMBERS:
            # Not bit by bit: numpy's convolutions and pandas' loops may take other paths for another length.
            assert row[name] == pytest.approx(whole[row["datetime"]][name], rel=1e-12), name
        assert row["signals"] == whole[row["datetime"]]["signals"]


def test_an_item_may_have_its_own_range():
    rows, errors = run({"symbol": "AAPL", "start_date": "2012-01-03", "end_date": "2012-01-05"}, "IBM", rows="latest")
    assert errors == []
    assert [(row["symbol"], row["datetime"][:10]) for row in rows] == [("AAPL", "2012-01-05"), ("IBM", "2013-03-01")]


def test_only_the_last_bars():
    whole = rows_of("FB")
    assert rows_of("FB", last=3) == whole[-3:]
    assert rows_of("FB", last=1000) == whole
    assert len(rows_of("FB", start_date="2013-02-27", last=1000)) == 3
    assert rows_of("FB", last=1) == rows_of("FB", rows="latest") == whole[-1:]


def test_only_bars_with_signals_and_the_last():
    whole = rows_of("IBM")
    assert whole[-1]["signals"] is None
    wanted = [row for row in whole if row["signals"]] + whole[-1:]
    assert rows_of("IBM", rows="signals") == wanted
    few = rows_of("IBM", rows="signals", last=20)
    assert few == [row for row in whole[-20:] if row["signals"]] + whole[-1:]


def test_further_indicators_are_in_a_column_of_their_own():
    rows = rows_of("AAPL", extra=["trix_15", "sar", "aroon_20", "sar"], last=40)
    bars = sample("AAPL")
    down, up = named("aroon", bars, 20)
    expected = {
        "trix_15": named("trix", bars, 15)[0],
        "sar": named("sar", bars)[0],
        "aroon_20_down": down,
        "aroon_20_up": up,
    }
    for back, row in enumerate(reversed(rows), 1):
        found = json.loads(row["extra"])
        assert list(found) == list(expected)
        assert found == {name: values[-back] for name, values in expected.items()}


def test_a_further_indicator_without_a_value_is_null(files):
    rows = rows_of("X", **files([1, 2, 3, 4]), sma_fast=1, sma_slow=2, extra="sma_3")
    assert [json.loads(row["extra"])["sma_3"] for row in rows] == [None, None, 2, 3]
    assert rows_of("FB", last=2)[0]["extra"] is None


def test_rows_do_not_know_the_future():
    """Whatever comes after a bar, its row is the same."""
    whole = rows_of("AAPL")
    for end in ("2001-03-30", "2008-10-10", "2013-02-01"):
        part = rows_of("AAPL", end_date=end, last=60)
        then = [row for row in whole if row["datetime"][:10] <= end][-60:]
        assert [row["signals"] for row in part] == [row["signals"] for row in then]
        for now, before in zip(part, then, strict=True):
            for name in NUMBERS:
                assert now[name] == pytest.approx(before[name], rel=1e-12), name


def test_numbers_too_large_for_a_float_are_no_values(files):
    rows = rows_of("X", **files(np.full(80, 1e308)), sma_fast=5)
    assert rows[-1]["close"] == 1e308
    assert all(value is None or np.isfinite(value) for row in rows for value in (row[name] for name in NUMBERS))
    json.loads(rows[-1]["summary"], parse_constant=lambda name: pytest.fail(name))


# Signals


def naive_signals(row, before, params):
    """The signals of a bar by their meaning, for rows without exact ties."""
    now = set()

    def crossed(up, down, above, below):
        then_above, then_below, above, below = (
            before.get(above),
            before.get(below, below),
            row[above],
            row.get(below, below),
        )
        if None in (then_above, then_below, above, below):
            return
        if then_above < then_below and above > below:
            now.add(up)
        if then_above > then_below and above < below:
            now.add(down)

    crossed("sma_golden_cross", "sma_death_cross", "sma_fast", "sma_slow")
    crossed("ema_cross_up", "ema_cross_down", "ema_fast", "ema_slow")
    crossed("macd_cross_up", "macd_cross_down", "macd", "macd_signal")
    crossed("kdj_cross_up", "kdj_cross_down", "kdj_k", "kdj_d")
    crossed("di_cross_up", "di_cross_down", "plus_di", "minus_di")
    crossed("rsi_overbought", "rsi_overbought_left", "rsi", params["rsi_high"])
    crossed("rsi_oversold_left", "rsi_oversold", "rsi", params["rsi_low"])
    crossed("boll_break_up", "", "close", "boll_upper")
    crossed("", "boll_break_down", "close", "boll_lower")
    crossed("channel_break_up", "", "close", "channel_high")
    crossed("", "channel_break_down", "close", "channel_low")
    if row["volume_ratio"] is not None and row["volume_ratio"] > params["volume_spike"]:
        now.add("volume_spike")
    return now - {""}


def test_signals_are_what_they_say_on_real_bars():
    params = Analysis.check(SAMPLE)
    seen = set()
    for symbol in ("AAPL", "IBM", "MSFT"):
        different = 0
        for before, row in pairwise(rows_of(symbol)):
            found = set(json.loads(row["signals"] or "[]"))
            seen |= found
            different += found != naive_signals(row, before, params)
        # A bar on which a line only touches the other: the naive reading forgets from where it came.
        assert different <= 6
    assert seen == set(MEANINGS)


def signals_by_day(rows, *names):
    wanted = set(names or MEANINGS)
    found = [(number, name) for number, row in enumerate(rows) for name in json.loads(row["signals"] or "[]")]
    return [(number, name) for number, name in found if name in wanted]


def test_a_golden_and_a_death_cross(files):
    params = files([10] * 5 + [9, 8, 9, 12, 13, 13, 9, 6], wide=1)
    rows = rows_of("X", **params, sma_fast=1, sma_slow=3)
    assert signals_by_day(rows, "sma_golden_cross", "sma_death_cross") == [
        (7, "sma_golden_cross"),
        (11, "sma_death_cross"),
    ]


def test_a_line_that_only_touches_another_has_not_crossed_it(files):
    # Above, equal, above again; then below, equal, below again; only the fall between is a cross.
    params = files([10, 12, 12, 13, 9, 8, 8, 7], wide=1)
    rows = rows_of("X", **params, sma_fast=1, sma_slow=2)
    assert signals_by_day(rows, "sma_golden_cross", "sma_death_cross") == [(4, "sma_death_cross")]


def test_a_line_that_crosses_by_way_of_another_has_crossed_it(files):
    rows = rows_of("X", **files([11, 10, 9, 9, 10, 10, 9], wide=1), sma_fast=1, sma_slow=2)
    assert signals_by_day(rows, "sma_golden_cross", "sma_death_cross") == [
        (4, "sma_golden_cross"),
        (6, "sma_death_cross"),
    ]


def test_lines_that_differ_by_rounding_do_not_cross(files):
    """On a straight line MACD and its signal become one number, each with its own last digit."""
    for engine in ("talib", "pandas"):
        rows = rows_of("X", **files(10 + np.arange(1500) * 0.37, wide=0.1), engine=engine)
        assert rows[-1]["macd_hist"] != 0
        assert [name for number, name in signals_by_day(rows) if number > 100] == []


def test_the_rsi_enters_and_leaves_its_zones(files):
    close = [10, 9, 10, 9, 12, 14, 16, 13, 9, 5, 2, 4, 8]
    rows = rows_of("X", **files(close, wide=0.5), rsi_period=2, sma_fast=1, sma_slow=2)
    zone = ["over" if row["rsi"] > 70 else "under" if row["rsi"] < 30 else "" for row in rows[2:]]
    expected = []
    for number, (then, now) in enumerate(pairwise(zone), 3):
        if then != now:
            expected += [(number, "rsi_overbought")] if now == "over" else []
            expected += [(number, "rsi_overbought_left")] if then == "over" else []
            expected += [(number, "rsi_oversold")] if now == "under" else []
            expected += [(number, "rsi_oversold_left")] if then == "under" else []
    assert len(expected) >= 4
    names = {name for _, name in expected}
    assert {"rsi_overbought", "rsi_overbought_left", "rsi_oversold", "rsi_oversold_left"} == names
    assert sorted(signals_by_day(rows, *names)) == sorted(expected)


def test_a_break_out_is_told_once_and_not_on_its_first_bar(files):
    close = [10, 11, 10, 11, 15, 16, 17, 12, 10, 5]
    rows = rows_of("X", **files(close, wide=1), channel_period=3, sma_fast=1, sma_slow=2)
    assert signals_by_day(rows, "channel_break_up", "channel_break_down") == [
        (4, "channel_break_up"),
        (7, "channel_break_down"),
    ]
    assert rows[4]["channel_high"] == 12
    # Prices that rise from the first bar on are above the channel when it begins: nothing broke out.
    rows = rows_of("X", **files(range(10, 30)), channel_period=3, sma_fast=1, sma_slow=2)
    assert signals_by_day(rows, "channel_break_up") == []


def test_a_spike_of_volume(files):
    volume = [100] * 5 + [200, 201, 100, 0, 0, 0, 0, 0, 50]
    params = files([10] * 14, volume=volume)
    rows = rows_of("X", **params, volume_period=4, volume_spike=1.6, sma_fast=1, sma_slow=2)
    assert signals_by_day(rows, "volume_spike") == [(5, "volume_spike"), (6, "volume_spike")]
    assert rows[13]["volume_ratio"] is None  # nothing was traded before: no ratio


def test_flat_prices_have_no_signals_and_no_direction(files):
    params = files(np.full(300, 100.1), volume=np.zeros(300))
    for engine in ("talib", "pandas"):
        rows = rows_of("X", **params, engine=engine)
        assert signals_by_day(rows) == []
        summary = json.loads(rows[-1]["summary"])
        assert summary["trend"] == "sideways"
        assert summary["position"] is None
        directed = ("price", "sma", "ema", "macd", "roc", "obv")
        assert {summary["readings"][name] for name in directed} == {"level"}


# Summary


def test_only_the_last_row_has_a_summary():
    rows = rows_of("AAPL", last=30)
    assert [row["summary"] is None for row in rows] == [True] * 29 + [False]


def test_the_summary_says_how_its_score_comes_about():
    for symbol in ("AAPL", "FB", "GOOG", "IBM", "MSFT"):
        (row,) = rows_of(symbol, rows="latest")
        told = json.loads(row["summary"])
        assert told["votes"].keys() == told["readings"].keys()
        assert len(told["votes"]) == 13
        assert told["score"] == round(100 * sum(told["votes"].values()) / 13)
        assert told["votes"]["sma"] == (1 if row["sma_fast"] > row["sma_slow"] else -1)
        assert told["votes"]["macd"] == (1 if row["macd_hist"] > 0 else -1)
        assert told["votes"]["rsi"] == (-1 if row["rsi"] > 70 else 1 if row["rsi"] < 30 else 0)
        assert told["readings"]["rsi"] == ["neutral", "over-sold", "over-bought"][told["votes"]["rsi"]]
        assert told["votes"]["adx"] == (0 if row["adx"] < 25 else 1 if row["plus_di"] > row["minus_di"] else -1)
        bars = sample(symbol)
        assert told["high"] == bars["high"][-250:].max()
        assert told["low"] == bars["low"][-250:].min()
        assert told["position"] == pytest.approx(100 * (row["close"] - told["low"]) / (told["high"] - told["low"]))
        assert told["volatility"] == pytest.approx(100 * row["atr"] / row["close"])
        assert told["change"] == row["change"]
        assert told["bars"] == len(bars["close"])


def test_its_signals_are_when_each_was_last():
    rows = rows_of("IBM")
    last = {name: number for number, name in signals_by_day(rows)}
    told = json.loads(rows[-1]["summary"])["signals"]
    assert told == {name: rows[number]["datetime"][:10] for name, number in last.items() if number >= 3270 - 250}
    assert list(told.values()) == sorted(told.values(), reverse=True)


def test_rising_and_falling_prices(files):
    for step, trend, vote in ((1, "up", 1), (-1, "down", -1)):
        close = 1000.0 + step * np.arange(200)
        (row,) = rows_of("X", **files(close, wide=0.25), rows="latest")
        told = json.loads(row["summary"])
        assert told["trend"] == trend
        assert {told["votes"][name] for name in ("price", "sma", "ema", "roc", "obv", "adx")} == {vote}
        # What has only ever risen is over-bought as well, which is why the score is not 100.
        assert {told["votes"][name] for name in ("rsi", "kdj", "williams_r", "mfi")} == {-vote}


def test_few_bars_have_few_votes(files):
    (row,) = rows_of("X", **files([10, 11, 12, 11, 12], wide=1), rows="latest", ema_fast=3)
    told = json.loads(row["summary"])
    assert told["trend"] is None
    assert "rsi" not in told["readings"]
    assert row["ema_fast"] is not None
    assert row["rsi"] is None


# What cannot be done


def test_items_that_cannot_be_done_are_named(files):
    rows, errors = run("AAPL", "NOPE", {"symbol": "FB", "start_date": "2014-01-01"}, "IBM", rows="latest")
    assert [row["symbol"] for row in rows] == ["AAPL", "IBM"]
    assert errors[0][0] == 1
    assert "'NOPE' is not in the sample" in errors[0][1]
    assert errors[1] == (2, "FB: no bars from 2014-01-01 to the last; its last one is of 2013-03-01")
    assert run("X", **files([1, 2]))[1] == [(0, "X: 2 bars are too few for any indicator")]
    assert "no bars from the first to 1990-01-01" in run("AAPL", end_date="1990-01-01")[1][0][1]


def test_the_store_needs_bars_of_a_parent():
    assert "need" in run("AAPL", source="store")[1][0][1]


def test_asking_for_talib_where_it_is_missing_fails_the_item_for_another_node(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "talib", None)
    engines._talib.cache_clear()
    try:
        shard = {"allocation": 1, "type": "analysis", "start": 0, "items": ["IBM"]}
        (entry,) = runner.run([shard | {"params": Analysis.check(SAMPLE | {"engine": "talib"})}], str(tmp_path))
        ((_, message, retry),) = entry["errors"]
        assert "IBM: TA-Lib is not installed here: pip install TA-Lib" in message
        assert retry
        (row,) = rows_of("IBM", rows="latest")
        assert json.loads(row["summary"])["engine"] == "pandas"
    finally:
        monkeypatch.undo()
        engines._talib.cache_clear()


# In SQL


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A result store with the rows of two runs: an early one of AAPL, then one of three symbols."""
    dataset = Analysis.dataset
    with ResultStore(tmp_path_factory.mktemp("store") / "results.duckdb") as store:
        for number, (symbols, end) in enumerate(((["AAPL"], "2012-06-29"), (["AAPL", "FB", "IBM"], "2013-03-01")), 1):
            rows = [row for symbol in symbols for row in rows_of(symbol, end_date=end, last=50)]
            table = datasets.with_lineage(
                datasets.from_rows(dataset, [list(row.values()) for row in rows]),
                run=number,
                start=0,
                allocation=number,
                node="n1",
                saved_at=dt.datetime(2026, 1, number),
            )
            store.append([Part(dataset, table, [(number, 0, len(symbols), number, "ab" * 32, len(rows))])])
        yield store


def asked(store, sql):
    with store.reader() as connection:
        return connection.execute(sql).fetchall()


def test_the_view_of_summaries_has_the_newest_of_each_symbol(stored):
    found = asked(stored, "SELECT symbol, datetime, trend, score, position FROM analysis_summary ORDER BY symbol")
    assert [row[:2] for row in found] == [(symbol, dt.datetime(2013, 3, 1)) for symbol in ("AAPL", "FB", "IBM")]
    for symbol, _, trend, score, position in found:
        told = json.loads(rows_of(symbol, rows="latest")[0]["summary"])
        assert (trend, score, position) == (told["trend"], told["score"], told["position"])


def test_the_view_of_signals_has_a_row_for_each(stored):
    found = asked(stored, "SELECT symbol, CAST(datetime AS DATE), signal FROM analysis_signals")
    for symbol in ("FB", "IBM"):
        rows = rows_of(symbol, last=50)
        expected = [(rows[number]["datetime"][:10], name) for number, name in signals_by_day(rows)]
        assert sorted(expected) == sorted((str(day), name) for at, day, name in found if at == symbol)
        assert expected


def test_a_runs_ranking_is_by_score(stored):
    ranking = stored.reduce(Analysis.dataset, Analysis.reductions["ranking"], 2, 1000)
    scores = [row["score"] for row in ranking]
    assert scores == sorted(scores, reverse=True)
    assert {row["symbol"] for row in ranking} == {"AAPL", "FB", "IBM"}
    assert {row["datetime"] for row in ranking} == {dt.datetime(2013, 3, 1)}
    assert ranking[0]["rsi"] == pytest.approx(rows_of(ranking[0]["symbol"], rows="latest")[0]["rsi"])


def test_a_runs_signals_are_counted(stored):
    counted = stored.reduce(Analysis.dataset, Analysis.reductions["signals"], 2, 1000)
    expected: dict[str, list] = {}
    for symbol in ("AAPL", "FB", "IBM"):
        rows = rows_of(symbol, last=50)
        for number, name in signals_by_day(rows):
            expected.setdefault(name, []).append((symbol, rows[number]["datetime"]))
    assert {row["signal"]: (row["bars"], row["symbols"], row["latest"].isoformat()) for row in counted} == {
        name: (len(found), len({symbol for symbol, _ in found}), max(at for _, at in found))
        for name, found in expected.items()
    }


# From the parent's table


def test_bars_of_the_store_come_with_the_shard(tmp_path):
    table = providers.get("sample")({}).bars("IBM", "D", None, None)
    bars = pa.Table.from_pandas(table.assign(symbol="IBM"), preserve_index=False)
    with pa.ipc.new_file(str(tmp_path / "input.arrow"), bars.schema) as file:
        file.write_table(bars)
    params = Analysis.check({"rows": "latest"})
    assert params["source"] == "store"
    reading = Analysis.reads(["IBM", {"symbol": "AAPL", "start_date": "2012-01-01"}], params)
    assert reading is not None
    assert (reading.table, reading.values, reading.since) == ("kline", ("IBM", "AAPL"), None)
    shard = {"allocation": 1, "type": "analysis", "params": params, "start": 0, "items": ["IBM", "AAPL"]}
    (entry,) = runner.run([shard | {"input": str(tmp_path / "input.arrow")}], str(tmp_path))
    assert [dict(zip(NAMES, row, strict=True)) for row in entry["rows"]] == rows_of("IBM", rows="latest")
    assert entry["errors"] == [[1, "AAPL: the parent's table kline has no bars of it with freq D", False]]


# What the documentation says


def test_the_documentation_names_everything():
    text = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
    words = set(re.findall(r"`([a-z0-9_]+)`", text))
    for kind, names in {
        "columns": NAMES,
        "params": [param.name for param in Analysis.params],
        "signals": MEANINGS,
        "indicators": [indicator.usage() for indicator in TABLE.values() if "." not in indicator.usage()],
        "views": [name for name, _ in Analysis.dataset.views],
        "reductions": Analysis.reductions,
    }.items():
        assert set(names) <= words, f"{kind}: {set(names) - words}"
    for param in (*PERIODS, *LIMITS):
        assert re.search(rf"`{param.name}` \| {param.default:g} \|", text), param.name

"""The task type ``backtest``: what may be asked, the rows of real bars, and what is read of them in SQL."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import numpy as np
import pytest

from dispatch.results import datasets
from dispatch.results.store import Part, ResultStore
from nodes import backtesting, executors, surroundings
from nodes.agent import runner
from nodes.executors.backtest import Backtest
from nodes.executors.base import Item, item_key
from nodes.executors.rows import to_table
from nodes.protocol import FieldError
from nodes.providers.sample import Sample
from nodes.surroundings import Surroundings

CROSS = {"strategy": "ma_cross", "source": "sample"}
NAMES = Backtest.dataset.names


def ran(items, tmp_path, **params):
    """Rows, as objects, and errors by number of the item, of a shard as a worker runs it."""
    checked = Backtest.check(CROSS | params)
    begun = Backtest.begin(items, checked)
    shard = {"allocation": 1, "type": "backtest", "params": checked, "start": 0, "items": begun}
    (entry,) = runner.run([shard], str(tmp_path))
    assert "failure" not in entry, entry
    if "segment" in entry:
        import pyarrow as pa

        with pa.OSFile(str(next(tmp_path.rglob(f"*{entry['segment']}*")))) as file:
            rows = [list(row.values()) for row in pa.ipc.open_file(file).read_all().to_pylist()]
    else:
        rows = entry.get("rows", [])
    found = [dict(zip(NAMES, row, strict=True)) for row in rows]
    for row in found:
        for name in ("first_bar", "last_bar"):  # as text where rows are few enough to travel as JSON
            row[name] = dt.datetime.fromisoformat(str(row[name]))
    return found, {at: (message, retry) for at, message, retry in entry.get("errors", [])}


def bars_of(symbol):
    return Sample({}).bars(symbol, "D", None, None).reset_index(drop=True)


@pytest.fixture
def allowed():
    before = surroundings.current()
    yield lambda *paths: surroundings.settle(Surroundings(custom={str(at): path for at, path in enumerate(paths)}))
    surroundings.settle(before)


# What may be asked


def test_it_is_registered_with_its_table():
    assert executors.get("backtest") is Backtest
    assert set(backtesting.METRICS) <= set(NAMES)
    assert set(Backtest.dataset.key) <= set(NAMES)


def test_checked_params_have_all_defaults_and_stay_as_they_are():
    checked = Backtest.check(CROSS | {"strategy_params": '{"fast": 5}', "commission": "0.1"})
    assert checked["strategy_params"] == {"fast": 5, "slow": 30, "kind": "sma"}
    assert checked["commission"] == 0.1
    assert checked["fill"] == "next_open"
    assert Backtest.check(checked) == checked


@pytest.mark.parametrize(
    ("params", "field", "message"),
    [
        ({"source": "sample"}, "params.strategy", "is required"),
        (CROSS | {"strategy": "magic"}, "params.strategy", "'magic' is not a strategy; known are: breakout"),
        (CROSS | {"strategy": "os:system"}, "params.strategy", "setting custom"),
        (CROSS | {"strategy_params": {"fast": 0}}, "params.strategy_params.fast", "below the least allowed, 1"),
        (CROSS | {"strategy_params": {"fast": 30}}, "params.strategy_params.fast", "30 is not less than slow, 30"),
        (CROSS | {"strategy_params": {"n": 1}}, "params.strategy_params.n", "known are: fast, kind, slow"),
        (CROSS | {"strategy_params": "fast"}, "params.strategy_params", "is not an object"),
        (CROSS | {"commission": -1}, "params.commission", "below the least allowed"),
        (CROSS | {"slippage": 11}, "params.slippage", "above the most allowed, 10"),
        (CROSS | {"cash": 0}, "params.cash", "below the least allowed"),
        (CROSS | {"cash": "inf"}, "params.cash", "is not a finite number"),
        (CROSS | {"fill": "close"}, "params.fill", "is not one of: next_open, next_close"),
        (CROSS | {"sizing": "kelly"}, "params.sizing", "is not one of: all_in, percent, fixed, volatility"),
        (CROSS | {"freq": "5min"}, "params.freq", "not offered by sample"),
        (CROSS | {"start_date": "2010-01-02", "end_date": "2010-01-01"}, "params.end_date", "before start_date"),
        (CROSS | {"leverage": 2}, "params.leverage", "is not a parameter"),
    ],
)
def test_bad_params_are_refused_by_name(params, field, message):
    with pytest.raises(FieldError) as refused:
        Backtest.check(params)
    assert refused.value.field == field
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"symbol": "IBM", "fast": 3}, "is not a symbol"),
        ({"params": {"fast": 3}}, "is not a symbol"),
        ({"symbol": "IBM", "params": [3]}, r"params of IBM: \[3\] is not an object"),
        ({"symbol": "IBM", "key": ""}, "key of IBM: '' is not a text of 1 to 200"),
        ({"symbol": "IBM", "key": 5}, "key of IBM: 5"),
        ({"symbol": "IBM", "start_date": "soon"}, "start_date of IBM"),
        (7, "7 is not a symbol"),
    ],
)
def test_bad_items_are_refused(item, message):
    with pytest.raises(ValueError, match=message):
        Backtest.check_item(item)


def test_an_item_s_own_parameters_are_checked_on_submission_and_name_it():
    checked = Backtest.check(CROSS)
    items: list[Item] = [
        "IBM",
        {"symbol": "IBM", "params": {"fast": 5}},
        {"key": "mine", "symbol": "IBM", "params": {"slow": 50}},
    ]
    for item in items:
        Backtest.check_item(item)
    begun = Backtest.begin(items, checked)
    assert [item_key(item) for item in begun] == ["IBM", "IBM fast=5", "mine"]
    with pytest.raises(FieldError, match="31 is not less than slow, 30") as refused:
        Backtest.begin(["IBM", {"symbol": "IBM", "params": {"fast": 31}}], checked)
    assert refused.value.field == "items[1].params.fast"
    long = Backtest.begin([{"symbol": "IBM", "params": {"kind": "ema", "slow": 40}}] * 2, checked)
    assert long[0] == long[1]


def test_bars_of_the_parent_s_table_are_asked_for_by_symbol():
    checked = Backtest.check({"strategy": "buy_and_hold"})
    asked = Backtest.reads(["A", {"symbol": "B", "params": {}, "key": "x"}, {"symbol": "A", "key": "y"}], checked)
    assert asked is not None
    assert asked.values == ("A", "B")
    assert asked.table == "kline"


def test_settings_for_one_strategy_say_nothing_to_another():
    settings = {"strategy": "ma_cross", "strategy_params": {"fast": 3}, "source": "sample", "commission": 0.2}
    merged = Backtest.merged(settings, {"strategy": "breakout"})
    assert Backtest.check(merged)["strategy_params"] == {"entry": 20, "exit": 10}
    assert merged["commission"] == 0.2
    assert Backtest.check(Backtest.merged(settings, {}))["strategy_params"]["fast"] == 3


# Rows of real bars


def test_a_row_is_what_the_engine_says(tmp_path):
    (row,), errors = ran(["IBM"], tmp_path, commission=0.1, strategy_params={"fast": 20, "slow": 100})
    assert errors == {}
    bars = bars_of("IBM")
    chosen = backtesting.strategy("ma_cross")
    positions = chosen.positions(bars, chosen.check({"fast": 20, "slow": 100}))
    expected = backtesting.run(bars, positions, costs=backtesting.Costs(0.1))
    assert {name: row[name] for name in backtesting.METRICS} == pytest.approx(expected.metrics)
    assert (row["symbol"], row["freq"], row["strategy"], row["data_source"]) == ("IBM", "D", "ma_cross", "sample")
    assert (row["start_date"], row["end_date"]) == ("", "")
    assert (row["first_bar"], row["last_bar"]) == (dt.datetime(2000, 3, 1), dt.datetime(2013, 3, 1))
    assert row["bars"] == len(bars) == 3270
    assert json.loads(row["params"])["strategy_params"] == {"fast": 20, "slow": 100, "kind": "sma"}
    assert json.loads(row["params"])["commission"] == 0.1
    # Without the digits that rounding left.
    assert json.loads(row["trade_list"]) == [
        {name: float(f"{value:.12g}") if isinstance(value, float) else value for name, value in trade.items()}
        for trade in expected.trades
    ]
    curve = json.loads(row["equity_curve"])
    assert len(curve["dates"]) == len(curve["values"]) == 2000
    assert (curve["dates"][0], curve["values"][0]) == ("2000-03-01", 100_000)
    assert curve["dates"][-1] == "2013-03-01"
    assert curve["values"][-1] == pytest.approx(row["final_equity"])


def test_the_curve_is_thinned_evenly_and_can_be_left_out(tmp_path):
    (row,), _ = ran(["IBM"], tmp_path, equity_points=5)
    curve = json.loads(row["equity_curve"])
    assert len(curve["dates"]) == 5
    steps = np.diff([dt.date.fromisoformat(date).toordinal() for date in curve["dates"]])
    assert steps.max() - steps.min() < 10
    (row,), _ = ran(["IBM"], tmp_path, equity_points=1, keep_trades=False)
    assert json.loads(row["equity_curve"])["dates"] == ["2013-03-01"]
    assert row["trade_list"] is None
    assert row["trades"] > 50
    (row,), _ = ran(["IBM"], tmp_path, equity_points=0)
    assert row["equity_curve"] is None


def test_bars_before_the_first_date_warm_up_the_indicators(tmp_path):
    (row,), _ = ran(["IBM"], tmp_path, start_date="2010-01-04", end_date="2010-12-31", strategy_params={"slow": 200})
    assert (row["start_date"], row["end_date"]) == ("2010-01-04", "2010-12-31")
    assert row["bars"] == 252
    # IBM was above its average at the end of 2009: the first order fills on the first day.
    assert json.loads(row["trade_list"])[0]["entry_date"] == "2010-01-04"
    assert json.loads(row["equity_curve"])["dates"][0] == "2009-12-31"


def test_variants_of_a_symbol_are_rows_of_their_own(tmp_path):
    items = ["IBM", {"symbol": "IBM", "params": {"fast": 5}}, {"symbol": "IBM", "params": {"fast": 10}}]
    rows, errors = ran(items, tmp_path)
    assert errors == {}
    # The run's own parameters are fast 10: the third is the first, asked for in another way.
    assert rows[0]["variant"] == rows[2]["variant"] != rows[1]["variant"]
    assert rows[0]["final_equity"] == rows[2]["final_equity"] != rows[1]["final_equity"]
    (dearer,), _ = ran(["IBM"], tmp_path, commission=0.1)
    assert dearer["variant"] != rows[0]["variant"]


def test_an_item_has_its_own_dates(tmp_path):
    rows, _ = ran(["IBM", {"symbol": "IBM", "start_date": "2012-01-03"}], tmp_path, end_date="2012-12-31")
    assert [row["last_bar"] for row in rows] == [dt.datetime(2012, 12, 31)] * 2
    assert rows[1]["first_bar"] == dt.datetime(2012, 1, 3)
    assert (rows[1]["start_date"], rows[1]["end_date"]) == ("2012-01-03", "2012-12-31")


def test_what_cannot_be_tested_says_why_and_the_others_go_on(tmp_path):
    items = [
        "NOPE",
        "IBM",
        {"symbol": "FB", "end_date": "2012-06-01"},
        {"symbol": "FB", "end_date": "2011-06-01"},
        {"symbol": "FB", "start_date": "2014-01-01"},
        {"symbol": "IBM", "start_date": "2012-01-01", "params": {"slow": 2000}},
    ]
    rows, errors = ran(items, tmp_path, strategy_params={"slow": 60})
    assert [row["symbol"] for row in rows] == ["IBM", "IBM"]
    assert errors == {
        0: ("'NOPE' is not in the sample, which has: AAPL, FB, GOOG, IBM, MSFT", False),
        2: ("FB: 10 bars; ma_cross with fast=10, slow=60, kind=sma needs 61 at least", False),
        3: ("FB: no bars from the first to 2011-06-01", False),
        4: ("FB: no bars in the range; there are 196 before it", False),
    }


def test_too_few_bars_to_judge_the_volatility_say_so(tmp_path):
    _, errors = ran(
        ["FB"], tmp_path, strategy="buy_and_hold", sizing="volatility", sizing_window=50, end_date="2012-07-01"
    )
    assert errors[0][0] == "FB: 30 bars; buy_and_hold with any parameters needs 52 at least"


def test_prices_that_no_position_can_have_cost_their_item_only(tmp_path):
    folder = tmp_path / "bars"
    folder.mkdir()
    header = "date,open,high,low,close,volume\n"
    (folder / "OIL.csv").write_text(header + "2020-04-17,18,19,17,18,1\n2020-04-20,18,18,-40,-37.63,1\n")
    (folder / "GAS.csv").write_text(header + "2020-04-17,18,19,17,18,1\n2020-04-20,18,18,17,17,1\n")
    (row,), errors = ran(["OIL", "GAS"], tmp_path, strategy="buy_and_hold", source="files", path=str(folder))
    assert row["symbol"] == "GAS"
    assert row["final_equity"] == pytest.approx(100_000 / 18 * 17)
    assert errors == {0: ("OIL: a price is -37.63; positions need prices above 0", False)}


# A strategy of one's own


def half(bars, params):
    """For these tests."""
    return np.full(len(bars), params.get("exposure", 0.5))


def too_much(bars, params):
    return np.full(len(bars), 2.0)


def broken(bars, params):
    raise ZeroDivisionError("no luck")


def test_a_strategy_of_one_s_own_is_run_where_it_is_allowed(allowed, tmp_path):
    path = f"{__name__}:half"
    allowed(path)
    (row,), _ = ran(["IBM"], tmp_path, strategy=path, strategy_params={"exposure": 0.25}, fill="next_close")
    close = bars_of("IBM")["close"]
    assert row["strategy"] == path
    assert row["final_equity"] == pytest.approx(75_000 + 25_000 * close.iloc[-1] / close[1])


def test_a_node_that_does_not_allow_it_leaves_it_to_another(allowed, tmp_path):
    path = f"{__name__}:half"
    allowed(path)
    checked = Backtest.check(CROSS | {"strategy": path})
    allowed()
    shard = {"allocation": 1, "type": "backtest", "params": checked, "start": 0, "items": ["IBM"]}
    (entry,) = runner.run([shard], str(tmp_path))
    ((at, message, retry),) = entry["errors"]
    assert at == 0
    assert "IBM" in message
    assert "not among the callables that the setting custom allows on this node" in message
    assert retry


def test_one_that_fails_costs_its_items_only(allowed, tmp_path):
    allowed(f"{__name__}:too_much", f"{__name__}:broken", f"{__name__}:gone")
    assert ran(["IBM"], tmp_path, strategy=f"{__name__}:too_much")[1] == {
        0: ("IBM: an exposure is not a number from -1 to 1", False)
    }
    assert "no luck" in ran(["IBM"], tmp_path, strategy=f"{__name__}:broken")[1][0][0]
    message, retry = ran(["IBM"], tmp_path, strategy=f"{__name__}:gone")[1][0]
    assert "has no gone" in message
    assert retry


# Read in SQL


@pytest.fixture
def store(tmp_path):
    with ResultStore(tmp_path / "results.duckdb", memory="200MB") as store:
        yield store


def saved(store, rows):
    dataset = Backtest.dataset
    table = datasets.with_lineage(
        to_table(dataset, [tuple(row.values()) for row in rows]),
        run=1,
        start=0,
        allocation=1,
        node="n1",
        saved_at=dt.datetime(2026, 11, 21),
    )
    digest = hashlib.sha256(b"").hexdigest()
    store.append([Part(dataset, table, [(1, 0, len(rows), 1, digest, len(rows))])])


def asked(store, sql):
    with store.reader() as connection:
        found = connection.execute(sql)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_curves_and_trades_are_tables_of_their_own(store, tmp_path):
    rows, _ = ran(["IBM", "AAPL"], tmp_path, long_short=True, equity_points=4000)
    quiet, _ = ran([{"symbol": "FB", "params": {"fast": 100, "slow": 150}}], tmp_path, equity_points=0)
    saved(store, [*rows, *quiet])

    points = asked(store, "SELECT * FROM backtest_equity WHERE symbol = 'IBM' ORDER BY datetime")
    curve = json.loads(rows[0]["equity_curve"])
    assert [point["equity"] for point in points] == curve["values"]
    assert points[0]["datetime"] == dt.datetime(2000, 3, 1)
    assert points[0]["variant"] == rows[0]["variant"]
    assert points[0]["drawdown"] == min(point["drawdown"] for point in points) == 0
    deepest = asked(store, "SELECT symbol, max(drawdown) AS fall FROM backtest_equity GROUP BY ALL ORDER BY ALL")
    assert [each["symbol"] for each in deepest] == ["AAPL", "IBM"]
    assert [each["fall"] for each in deepest] == pytest.approx([rows[1]["max_drawdown"], rows[0]["max_drawdown"]])

    trades = asked(store, "SELECT * FROM backtest_trades WHERE symbol = 'IBM' ORDER BY number")
    listed = json.loads(rows[0]["trade_list"])
    assert [trade["profit"] for trade in trades] == [trade["profit"] for trade in listed]
    assert [trade["number"] for trade in trades] == list(range(1, len(listed) + 1))
    assert trades[0]["entry_date"] == dt.datetime.fromisoformat(listed[0]["entry_date"])
    assert trades[0]["return"] == listed[0]["return"]
    assert {trade["side"] for trade in trades} == {"long", "short"}
    assert trades[-1]["open"] is True
    assert trades[-1]["exit_date"] is None
    counted = asked(store, "SELECT symbol, count(*) AS trades FROM backtest_trades GROUP BY ALL ORDER BY ALL")
    assert [each["trades"] for each in counted] == [row["trades"] for row in (rows[1], *quiet, rows[0])]


def test_a_backtest_done_again_is_one_row(store, tmp_path):
    first, _ = ran(["IBM"], tmp_path)
    saved(store, first)
    assert asked(store, "SELECT count(*) AS n FROM backtest") == [{"n": 1}]
    again = [first[0] | {"total_return": 7.0}]
    table = datasets.with_lineage(
        to_table(Backtest.dataset, [tuple(again[0].values())]),
        run=2,
        start=0,
        allocation=2,
        node="n1",
        saved_at=dt.datetime(2026, 11, 22),
    )
    store.append([Part(Backtest.dataset, table, [(2, 0, 1, 2, "0" * 64, 1)])])
    assert asked(store, "SELECT total_return FROM backtest") == [{"total_return": 7.0}]
    points = asked(store, "SELECT count(*) AS n FROM backtest_equity")[0]["n"]
    assert points == len(json.loads(first[0]["equity_curve"])["dates"])


def test_a_run_s_reductions_name_its_best_and_its_means(store, tmp_path):
    rows, _ = ran(["IBM", "AAPL", "MSFT", "GOOG"], tmp_path)
    never, _ = ran(["FB"], tmp_path, sizing="fixed", sizing_amount=0.01, lot=1)
    assert never[0]["sharpe"] is None
    saved(store, [*never, *rows])
    best = store.reduce(Backtest.dataset, Backtest.reductions["best"], 1, 1000)
    by_sharpe = sorted(rows, key=lambda row: -row["sharpe"])
    assert [row["symbol"] for row in best] == [*(row["symbol"] for row in by_sharpe), "FB"]
    assert best[0]["sharpe"] == by_sharpe[0]["sharpe"]
    assert json.loads(best[0]["strategy_params"]) == {"fast": 10, "slow": 30, "kind": "sma"}
    (summary,) = store.reduce(Backtest.dataset, Backtest.reductions["summary"], 1, 1000)
    assert (summary["strategy"], summary["backtests"]) == ("ma_cross", 5)
    returns = [row["total_return"] for row in rows]
    assert summary["mean_total_return"] == pytest.approx(sum(returns) / 5)
    assert summary["profitable"] == sum(value > 0 for value in returns) / 5
    assert summary["mean_sharpe"] == pytest.approx(sum(row["sharpe"] for row in rows) / 4)
    assert summary["largest_max_drawdown"] == max(row["max_drawdown"] for row in rows)
    assert summary["trades"] == sum(row["trades"] for row in rows)


def test_of_many_the_best_are_twenty(store, tmp_path):
    (row,), _ = ran(["IBM"], tmp_path, equity_points=0, keep_trades=False)
    saved(store, [row | {"symbol": f"S{number:02}", "sharpe": number / 10} for number in range(30)])
    best = store.reduce(Backtest.dataset, Backtest.reductions["best"], 1, 1000)
    assert [each["symbol"] for each in best] == [f"S{number:02}" for number in range(29, 9, -1)]

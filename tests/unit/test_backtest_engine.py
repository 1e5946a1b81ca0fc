"""The engine, against numbers worked out by hand: what is bought at which price, what it costs, what is left."""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes import backtesting
from nodes.backtesting import Costs, Sizing
from nodes.protocol import FieldError
from nodes.providers.sample import Sample


def bars_of(closes, opens=None, first="2024-01-01"):
    """Daily bars whose highs and lows are just wide enough."""
    closes = np.array(closes, dtype=float)
    opens = closes if opens is None else np.array(opens, dtype=float)
    return pd.DataFrame(
        {
            "datetime": pd.date_range(first, periods=len(closes), unit="us"),
            "open": opens,
            "high": np.maximum(opens, closes),
            "low": np.minimum(opens, closes),
            "close": closes,
            "volume": 1000.0,
        }
    )


def traded(closes, positions, opens=None, **how):
    usual: dict[str, Any] = {"cash": 1000.0, "fill": "next_close", "short": True}
    return backtesting.run(bars_of(closes, opens), np.array(positions, dtype=float), **(usual | how))


def cents(value):
    return round(value, 2)


# When and at which price


def test_a_decision_is_traded_at_the_next_bar_s_open():
    result = traded([10, 11, 12, 9], [1, 1, 1, 1], opens=[10, 10.5, 11.5, 12], fill="next_open")
    # 1000 / 10.5 shares from the second bar on.
    assert result.equity.tolist() == pytest.approx([1000, 1000 / 10.5 * 11, 1000 / 10.5 * 12, 1000 / 10.5 * 9])
    assert result.trades[0]["entry_date"] == "2024-01-02"
    assert result.trades[0]["entry_price"] == 10.5


def test_or_at_its_close():
    result = traded([10, 11, 12, 9], [1, 1, 1, 1], opens=[10, 10.5, 11.5, 12])
    assert result.equity.tolist() == pytest.approx([1000, 1000, 1000 / 11 * 12, 1000 / 11 * 9])
    assert list(result.equity.index) == list(pd.date_range("2024-01-01", periods=4))


def test_what_the_last_bar_decides_is_never_traded():
    result = traded([10, 11, 12], [0, 0, 1])
    assert result.trades == []
    assert result.metrics["final_equity"] == 1000


def test_what_the_bar_before_the_range_decided_is_traded_on_the_first_of_it():
    whole = bars_of([50, 10, 11, 12, 99])
    result = backtesting.run(whole, np.ones(5), cash=1000.0, fill="next_open", start=2, stop=4)
    assert result.trades[0]["entry_date"] == "2024-01-03"
    # The curve begins with the cash at the bar before, and ends before the 99.
    assert result.equity.tolist() == pytest.approx([1000, 1000, 1000 / 11 * 12])
    assert str(result.equity.index[0].date()) == "2024-01-02"


def test_a_window_of_dates_is_inclusive_at_both_ends():
    whole = bars_of([1, 2, 3, 4, 5])
    day = dt.date(2024, 1, 2), dt.date(2024, 1, 4)
    assert backtesting.window(whole, *day) == (1, 4)
    assert backtesting.window(whole, None, None) == (0, 5)
    assert backtesting.window(whole, dt.date(2025, 1, 1), None) == (5, 5)
    hours = whole.assign(datetime=pd.date_range("2024-01-01 09:30", periods=5, freq="12h", unit="us"))
    assert backtesting.window(hours, dt.date(2024, 1, 2), dt.date(2024, 1, 2)) == (2, 4)


def test_minutes_are_told_with_their_time():
    minutes = bars_of([10, 11, 12]).assign(datetime=pd.date_range("2024-01-02 10:30", periods=3, freq="h", unit="us"))
    result = backtesting.run(minutes, np.ones(3), fill="next_open")
    assert result.trades[0]["entry_date"] == "2024-01-02T11:30:00"


def test_a_year_has_as_many_bars_as_the_freq_says_or_its_user():
    assert backtesting.options({"freq": "D"})["bars_a_year"] == 252
    assert backtesting.options({"freq": "60min"})["bars_a_year"] == 1638
    assert backtesting.options({"freq": "60min", "bars_a_year": 960.0})["bars_a_year"] == 960
    with pytest.raises(FieldError, match="is required with freq '3s'") as refused:
        backtesting.options({"freq": "3s"})
    assert refused.value.field == "params.bars_a_year"
    # Twice the bars in a year, the root of two times the volatility.
    closes, exposures = [10, 12, 11, 13], [1, 1, 1, 1]
    once, twice = (traded(closes, exposures, bars_a_year=bars).metrics["volatility"] for bars in (100, 200))
    assert twice == pytest.approx(once * 2**0.5)


# Buy and hold, to the cent


def test_buy_and_hold_of_real_bars_is_what_the_prices_say():
    bars = Sample({}).bars("AAPL", "D", None, None).reset_index(drop=True)
    positions = backtesting.strategy("buy_and_hold").positions(bars, {})
    # Bought at the open of 2000-03-02, 127.00; worth the close of 2013-03-01, 430.47.
    assert bars["open"][1] == 127.0
    assert bars["close"].iloc[-1] == 430.47
    free = backtesting.run(bars, positions, cash=100_000.0)
    assert cents(free.metrics["final_equity"]) == 338952.76
    # 0.1 per cent commission on what is bought, at prices 0.05 per cent worse: 100000 / (127 * 1.0005 * 1.001).
    dear = backtesting.run(bars, positions, cash=100_000.0, costs=Costs(commission=0.1, slippage=0.05))
    shares = Decimal(100_000) / (Decimal(127) * Decimal("1.0005") * Decimal("1.001"))
    assert cents(dear.metrics["final_equity"]) == float(round(shares * Decimal("430.47"), 2)) == 338444.92
    # Whole hundreds of shares: 700 for 127 each, and the rest stays cash.
    lots = backtesting.run(bars, positions, cash=100_000.0, sizing=Sizing(lot=100))
    assert cents(lots.metrics["final_equity"]) == 100_000 + 700 * (430.47 - 127) == 312429.0


# Costs


def test_a_round_trip_pays_commission_and_slippage_twice():
    result = traded([10, 10, 12, 12], [1, 1, 0, 0], costs=Costs(commission=1, slippage=2))
    # Bought at 10.20 with 1 % on top: 1000 / (10.2 * 1.01) shares. The decision of bar 2 is filled on bar 3.
    shares = 1000 / (10.2 * 1.01)
    proceeds = shares * 12 * 0.98 * 0.99
    assert result.metrics["final_equity"] == pytest.approx(proceeds)
    trade = result.trades[0]
    assert trade["entry_price"] == pytest.approx(10.2)
    assert trade["exit_price"] == pytest.approx(11.76)
    assert trade["size"] == pytest.approx(shares)
    assert trade["profit"] == pytest.approx(proceeds - 1000)
    assert trade["return"] == pytest.approx((proceeds - 1000) / (shares * 10.2))
    commission = shares * 10.2 * 0.01 + shares * 11.76 * 0.01
    assert trade["costs"] == pytest.approx(commission + shares * 0.2 + shares * 0.24)
    assert result.metrics["costs"] == pytest.approx(trade["costs"])
    assert trade["bars"] == 2


def test_an_order_pays_the_least_commission_at_least():
    result = traded([10, 10, 12, 12], [1, 1, 0, 0], costs=Costs(commission=0.1, commission_min=50))
    # (1000 - 50) / 10 shares, and 50 again at the sale.
    assert result.metrics["final_equity"] == pytest.approx(95 * 12 - 50)
    assert result.metrics["costs"] == 100


def test_the_least_commission_takes_no_more_than_there_is():
    result = traded([10, 10, 1, 1], [1, 1, 0, 0], costs=Costs(commission_min=400))
    # 60 shares bought with 600; worth 60 at the sale, which would cost 400.
    assert result.equity.tolist() == pytest.approx([1000, 600, 60, 0])
    assert result.trades[0]["profit"] == -1000
    assert traded([10, 10, 10], [1, 1, 1], costs=Costs(commission_min=1000)).trades == []


def test_a_short_pays_its_costs_too():
    result = traded([10, 10, 8, 8], [-1, -1, 0, 0], costs=Costs(commission=1, slippage=2))
    # Sold at 9.80; the position is worth what is left of the equity: w * 10 = 1000 - w * 10 * (0.02 + 0.0098).
    shares = 1000 / (10 * 1.0298)
    left = 1000 + shares * 9.8 * 0.99 - shares * 8.16 * 1.01
    assert result.metrics["final_equity"] == pytest.approx(left)
    assert result.trades[0]["side"] == "short"
    assert result.trades[0]["profit"] == pytest.approx(left - 1000)


def test_a_position_of_all_the_equity_leaves_no_cash_and_no_debt():
    closes = [10, 10, 10, 10]
    for costs in (Costs(0.3, 0, 0.2), Costs(0.3, 40, 0.2), Costs(0, 40, 0.2), Costs(10, 0, 10)):
        result = traded(closes, [1, 1, 1, 1], costs=costs)
        assert result.equity.iloc[-1] == pytest.approx(result.trades[0]["size"] * 10)


# Long and short


def test_a_short_gains_what_a_long_loses():
    closes, flat = [10, 10, 8, 8], [0, 0]
    assert traded(closes, [1, 1, *flat]).trades[0]["profit"] == pytest.approx(-200)
    assert traded(closes, [-1, -1, *flat]).trades[0]["profit"] == pytest.approx(200)
    assert traded(closes, [-0.5, -0.5, *flat]).trades[0]["profit"] == pytest.approx(100)


def test_without_short_a_short_is_no_position():
    result = traded([10, 10, 8, 8], [-1, -1, 1, 1], short=False)
    assert [trade["side"] for trade in result.trades] == ["long"]
    assert result.metrics["exposure"] == pytest.approx(1 / 3)


def test_turning_round_is_one_order_and_two_trades():
    result = traded([10, 10, 12, 12, 9], [1, 1, -1, -1, -1], costs=Costs(commission_min=10))
    long, short = result.trades
    # 990 bought at 10 are 99 shares, 1188 at 12; 1178 are left after the order, all of it short: 98.1667 shares.
    assert long["size"] == 99
    assert long["exit_price"] == short["entry_price"] == 12
    assert long["exit_date"] == short["entry_date"] == "2024-01-04"
    assert short["size"] == pytest.approx(1178 / 12)
    assert result.metrics["costs"] == 20
    # The order's commission is shared by shares: 99 of 197.1667 belong to the long.
    assert long["costs"] == pytest.approx(10 + 10 * 99 / (99 + 1178 / 12))
    assert result.metrics["final_equity"] == pytest.approx(1178 + 1178 / 12 * 3)
    assert short["open"]
    assert short["exit_date"] is None
    assert long["profit"] + short["profit"] == pytest.approx(result.metrics["final_equity"] - 1000)


def test_a_position_that_grows_and_shrinks_is_one_trade():
    result = traded([10, 10, 20, 20, 40, 40], [0.5, 1, 1, 0.25, 0, 0], fill="next_close")
    # 50 shares at 10; all in at 20 with equity 1500: 75 shares. At 40 a quarter of 3000: 18.75, then none.
    (trade,) = result.trades
    assert trade["size"] == pytest.approx(75)
    assert trade["entry_price"] == pytest.approx((50 * 10 + 25 * 20) / 75)
    assert trade["exit_price"] == 40
    assert trade["bars"] == 4
    assert result.metrics["final_equity"] == pytest.approx(3000)
    assert result.metrics["trades"] == 1


def test_a_position_is_kept_while_the_exposure_stays():
    result = traded([10, 10, 20, 40], [0.5, 0.5, 0.5, 0.5])
    assert result.metrics["final_equity"] == 500 + 50 * 40
    assert len(result.trades) == 1


def test_a_short_that_loses_everything_ends_there():
    result = traded([10, 10, 19, 20, 5, 5], [-1] * 6)
    assert result.equity.tolist() == [1000, 1000, 100, 0, 0, 0]
    (trade,) = result.trades
    assert trade["exit_date"] == "2024-01-04"
    assert trade["exit_price"] == 20
    assert trade["profit"] == -1000
    assert result.metrics["exposure"] == 2 / 5
    assert result.metrics["total_return"] == -1
    assert result.metrics["cagr"] == -1
    assert result.metrics["max_drawdown"] == 1


def test_it_loses_no_more_than_everything_when_prices_jump():
    result = traded([10, 10, 35, 5, 5], [-1, -1, 0, 1, 1])
    assert result.equity.tolist() == [1000, 1000, 0, 0, 0]
    assert [trade["profit"] for trade in result.trades] == [-1000]
    # At an open, too, although the close would have left something.
    result = traded([10, 10, 12, 12, 12], [-1, -1, 0, 1, 1], opens=[10, 10, 12, 25, 12], fill="next_open")
    assert result.equity.tolist() == [1000, 1000, 800, 0, 0]
    assert [trade["profit"] for trade in result.trades] == [-1000]
    # Nor is there anything to begin again with, whatever the order would have been.
    result = traded([10, 10, 12, 80, 80], [-1, -1, -0.5, -0.5, 1], opens=[10, 10, 12, 25, 80], fill="next_open")
    assert result.equity.tolist() == [1000, 1000, 800, 0, 0]


# How large positions are


def test_per_cent_of_the_equity():
    result = traded([10, 10, 20], [1, 1, 1], sizing=Sizing("percent", percent=25))
    assert result.metrics["final_equity"] == 750 + 25 * 20


def test_a_fixed_amount_of_money_as_far_as_the_equity_goes():
    result = traded([10, 10, 20], [1, 1, 1], sizing=Sizing("fixed", amount=400))
    assert result.metrics["final_equity"] == 600 + 40 * 20
    result = traded([10, 10, 20], [-0.5, -0.5, -0.5], sizing=Sizing("fixed", amount=400))
    assert result.metrics["final_equity"] == 1200 - 20 * 20
    result = traded([10, 10, 20], [1, 1, 1], sizing=Sizing("fixed", amount=4000), costs=Costs(1))
    assert result.trades[0]["size"] == pytest.approx(1000 / 10.1)


def test_a_share_of_the_equity_that_fluctuates_as_wanted():
    closes = [100, 110, 99, 108.9, 98.01, 98.01]
    sizing = Sizing("volatility", volatility=5, window=4)
    result = traded(closes, [1] * 6, sizing=sizing, bars_a_year=4)
    # Four returns of +-10 %: deviation 0.11547, a year 0.23094, so 0.05 / 0.23094 = 0.216506 of the equity.
    # They are known at bar 4, so the order is filled on bar 5.
    assert result.trades[0]["entry_date"] == "2024-01-06"
    assert result.trades[0]["size"] * 98.01 == pytest.approx(216.506, abs=0.001)
    calm = traded([100] * 6, [1] * 6, sizing=sizing)
    assert calm.trades[0]["size"] == 10  # all of it, not more
    assert traded([100, 101, 102], [1] * 3, sizing=sizing).trades == []


def test_whole_lots_are_rounded_towards_none():
    assert traded([7, 7, 7], [1, 1, 1], sizing=Sizing(lot=1)).trades[0]["size"] == 142
    assert traded([7, 7, 7], [-1, -1, -1], sizing=Sizing(lot=100)).trades[0]["size"] == 100
    assert traded([7, 7, 7], [1, 1, 1], sizing=Sizing(lot=1000)).trades == []
    # 0.3 / 0.1 is a little less than 3, and 3 lots are meant.
    assert traded([1, 1, 1], [1, 1, 1], cash=0.3, sizing=Sizing(lot=0.1)).trades[0]["size"] == pytest.approx(0.3)


# What cannot be


def test_a_run_without_a_trade_has_no_ratios():
    metrics = traded([10, 11, 12], [0, 0, 0]).metrics
    assert metrics["final_equity"] == 1000
    assert metrics["total_return"] == metrics["cagr"] == metrics["max_drawdown"] == metrics["trades"] == 0
    assert metrics["exposure"] == metrics["volatility"] == metrics["max_drawdown_bars"] == 0
    for name in ("sharpe", "sortino", "calmar", "win_rate", "profit_factor"):
        assert metrics[name] is None, name


def test_one_bar_is_no_time_at_all():
    metrics = traded([10], [1]).metrics
    assert metrics["final_equity"] == 1000
    assert metrics["cagr"] is metrics["volatility"] is metrics["exposure"] is metrics["sharpe"] is None


def test_constant_prices_bring_nothing_and_have_no_sharpe():
    metrics = traded([10.1] * 50, [1] * 50).metrics
    assert metrics["total_return"] == pytest.approx(0)
    assert metrics["sharpe"] is metrics["sortino"] is metrics["win_rate"] is None


def test_what_grows_beyond_any_number_is_refused():
    with pytest.raises(ValueError, match="more than a number can hold"):
        traded([1e-300, 1e-300, 1e300], [1, 1, 1])
    with pytest.raises(ValueError, match="more shares than a number can hold"):
        traded([1e-300, 1e-300, 1], [1, 1, 1], cash=1e15, sizing=Sizing(lot=1))


def test_a_day_s_gain_that_no_year_could_hold_has_no_cagr():
    metrics = traded([1, 1, 1e5], [1, 1, 1]).metrics
    assert metrics["total_return"] == pytest.approx(99_999)
    assert metrics["cagr"] is metrics["calmar"] is None


@pytest.mark.parametrize(
    ("positions", "message"),
    [([1, 1], "2 exposures for 3 bars"), ([0, 0, 2], "from -1 to 1"), ([0, float("nan"), 0], "from -1 to 1")],
)
def test_positions_that_are_none_are_refused(positions, message):
    with pytest.raises(ValueError, match=message):
        traded([10, 11, 12], positions)


@pytest.mark.parametrize("price", [0.0, -37.63, float("nan"), float("inf")])
def test_prices_that_no_position_can_have_are_refused(price):
    with pytest.raises(ValueError, match="prices above 0"):
        traded([10, price, 12], [1, 1, 1])


def test_a_range_without_a_bar_is_refused():
    with pytest.raises(ValueError, match="no bars"):
        backtesting.run(bars_of([1, 2]), np.ones(2), start=2)


def test_metrics_alone_are_the_same_metrics():
    how: dict[str, Any] = {"costs": Costs(0.1, 1, 0.1), "short": True}
    bars, positions = bars_of([10, 12, 9, 11, 13, 8]), np.array([1, -1, 0, 1, 1, 1.0])
    whole, lean = backtesting.run(bars, positions, **how), backtesting.run(bars, positions, detail=False, **how)
    assert lean.metrics == whole.metrics
    assert list(whole.metrics) == list(backtesting.METRICS)
    assert lean.trades == []
    assert lean.equity.empty


def test_thousands_of_backtests_are_affordable():
    """3,270 bars and 118 trades take about half a millisecond; ten times that would be felt by an optimization."""
    bars = Sample({}).bars("AAPL", "D", None, None).reset_index(drop=True)
    crossing = backtesting.strategy("ma_cross")
    took = []
    for _ in range(20):
        began = time.perf_counter()
        positions = crossing.positions(bars, {"fast": 10, "slow": 30, "kind": "sma"})
        backtesting.run(bars, positions, short=True, costs=Costs(0.1), detail=False)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.010


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    wild=st.sampled_from([0.01, 0.3, 1.0]),
    steps=st.sampled_from([(-1.0, 0.0, 1.0), (-1.0, -0.3, 0.0, 0.4, 1.0), (0.0, 1.0)]),
    fill=st.sampled_from(["next_open", "next_close"]),
    costs=st.builds(
        Costs, st.sampled_from([0.0, 0.1, 10.0]), st.sampled_from([0.0, 30.0]), st.sampled_from([0.0, 10.0])
    ),
    sizing=st.builds(
        Sizing,
        st.sampled_from(["all_in", "percent", "fixed", "volatility"]),
        percent=st.just(60.0),
        amount=st.just(700.0),
        window=st.just(3),
        lot=st.sampled_from([0.0, 1.0]),
    ),
    start=st.integers(0, 10),
)
def test_whatever_happens_the_books_balance(seed, wild, steps, fill, costs, sizing, start):
    """Prices may fall to a hundredth and rise a hundredfold in a day, and orders may cost more than there is."""
    random = np.random.default_rng(seed)
    closes = 50 * np.exp(np.cumsum(random.normal(0, wild, 60)))
    bars = bars_of(closes, closes * np.exp(random.normal(0, wild, 60)))
    positions = random.choice(steps, 60)
    how: dict[str, Any] = {
        "costs": costs,
        "sizing": sizing,
        "cash": 1000.0,
        "fill": fill,
        "short": True,
        "start": start,
    }
    result = backtesting.run(bars, positions, **how)
    equity, final = result.equity, result.metrics["final_equity"]
    assert final is not None
    assert (equity >= 0).all()
    assert equity.iloc[0] == 1000
    assert equity.iloc[-1] == final
    # Every cent gained or lost is some trade's, and every cent of costs.
    largest = max(1000.0, *(trade["size"] * trade["entry_price"] for trade in result.trades), equity.max())
    assert sum(trade["profit"] for trade in result.trades) == pytest.approx(final - 1000, abs=1e-7 * largest)
    assert sum(trade["costs"] for trade in result.trades) == pytest.approx(result.metrics["costs"])
    for before, after in pairwise(result.trades):
        assert before["exit_date"] is not None
        assert before["exit_date"] <= after["entry_date"]
    assert all(value is None or math.isfinite(value) for value in result.metrics.values())
    json.dumps(result.trades, allow_nan=False)

"""The strategies: which exposures they give for which prices, and which parameters they take."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nodes import backtesting, surroundings
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings

HERE = __name__


def bars_of(closes, highs=None, lows=None):
    closes = np.array(closes, dtype=float)
    return pd.DataFrame(
        {
            "datetime": pd.date_range("2024-01-01", periods=len(closes), unit="us"),
            "open": closes,
            "high": closes if highs is None else np.array(highs, dtype=float),
            "low": closes if lows is None else np.array(lows, dtype=float),
            "close": closes,
            "volume": 1.0,
        }
    )


def positions(name, bars, **params):
    chosen = backtesting.strategy(name)
    return chosen.positions(bars, chosen.check(params)).tolist()


def refusal(name, **params):
    with pytest.raises(FieldError) as refused:
        backtesting.strategy(name).check(params)
    return refused.value


@pytest.fixture
def allowed():
    """Sets the allow-list of this process, and puts back what it was."""
    before = surroundings.current()
    yield lambda *paths: surroundings.settle(Surroundings(custom={str(at): path for at, path in enumerate(paths)}))
    surroundings.settle(before)


# What they compute


def test_buy_and_hold_is_always_long():
    assert positions("buy_and_hold", bars_of([3, 2, 1])) == [1, 1, 1]


def test_a_crossing_of_averages_is_long_above_and_short_below():
    closes = [10, 10, 10, 13, 13, 7, 7, 10]
    # Means of 2: 10 10 11.5 13 10 7 8.5; of 3: 10 11 12 11 9 8, each at the last of its bars.
    assert positions("ma_cross", bars_of(closes), fast=2, slow=3) == [0, 0, 0, 1, 1, -1, -1, 1]
    # Exponential: seeded by the mean, then 2/3 and 1/2 of the way.
    assert positions("ma_cross", bars_of(closes), fast=2, slow=3, kind="ema") == [0, 0, 0, 1, 1, -1, -1, 1]
    assert positions("ma_cross", bars_of([10, 10, 16, 12, 11]), fast=1, slow=3) == [0, 0, 1, -1, -1]


def test_averages_that_differ_by_rounding_alone_do_not_cross():
    assert set(positions("ma_cross", bars_of([10.1] * 300), fast=7, slow=30)) == {0}
    assert set(positions("ma_cross", bars_of([0.1] * 300), fast=7, slow=30, kind="ema")) == {0}
    # A stock that stands still after it moved: what the running sums keep of the move is no signal either.
    moved = bars_of([1e6, 3.3, 7e5, 0.7, *[10.1] * 300])
    assert set(positions("ma_cross", moved, fast=7, slow=30)[40:]) == {0}


def test_the_rsi_turns_at_its_bounds_and_stays():
    closes = [10, 9, 8, 9, 8.5, 9.5, 11, 13, 12, 9]
    # RSI of 2 bars by Wilder: ups and downs of the first two moves are 0 and 1, then each the mean of it and the next:
    # ups   0 .5  .25 .625 1.0625 1.53125 .765625 .3828125
    # downs 1 .5  .5  .25  .125   .0625   .53125  1.765625
    # RSI   0 50 33.3 71.4 89.5   96.1    59.0    17.8
    found = positions("rsi_reversion", bars_of(closes), period=2, lower=20, upper=80)
    assert found == [0, 0, 1, 1, 1, 1, -1, -1, -1, 1]
    found = positions("rsi_reversion", bars_of(closes), period=2, lower=10, upper=90)
    assert found == [0, 0, 1, 1, 1, 1, 1, -1, -1, -1]


def test_prices_that_never_moved_are_not_oversold():
    assert set(positions("rsi_reversion", bars_of([10] * 50), period=14)) == {0}


def test_a_breakout_is_of_the_bars_before():
    closes = [5, 6, 5, 6, 8, 7, 5, 3, 4, 6]
    highs = [6, 7, 6, 7, 9, 8, 6, 4, 5, 7]
    lows = [4, 5, 4, 5, 7, 6, 4, 2, 3, 5]
    # Three bars open and two close. Bar 4: 8 > max(7, 6, 7). Bar 6: 5 < min(7, 6) ends it, and is not below 5, 7, 6 …
    # min(5, 7, 6) = 5. Bar 7: 3 < min(7, 6, 4). Bar 9: 6 > max(4, 5) ends it, and is not above max(6, 4, 5) = 6.
    found = positions("breakout", bars_of(closes, highs, lows), entry=3, exit=2)
    assert found == [0, 0, 0, 0, 1, 1, 0, -1, -1, 0]


@pytest.mark.parametrize("name", backtesting.strategies())
@pytest.mark.parametrize("count", [1, 2, 3, 30, 31, 32])
def test_few_bars_are_no_position(name, count):
    chosen = backtesting.strategy(name)
    params = chosen.check({})
    found = chosen.positions(bars_of(np.linspace(10, 20, count)), params)
    assert len(found) == count
    assert np.isin(found, (-1, 0, 1)).all()
    if count < chosen.least_bars(params):
        assert not found[:-1].any()  # the last one cannot be traded


# Which parameters they take


def test_their_parameters_have_defaults_and_bounds():
    assert backtesting.strategies() == ["breakout", "buy_and_hold", "ma_cross", "rsi_reversion"]
    assert backtesting.strategy("ma_cross").check({"fast": "5"}) == {"fast": 5, "slow": 30, "kind": "sma"}
    for name in backtesting.strategies():
        for param in backtesting.strategy(name).params:
            assert param.kind not in ("integer", "number") or (param.minimum is not None and param.maximum is not None)
            assert param.help


@pytest.mark.parametrize(
    ("name", "params", "field", "message"),
    [
        ("ma_cross", {"fast": 0}, "fast", "0 is below the least allowed, 1"),
        ("ma_cross", {"fast": 50, "slow": 50}, "fast", "50 is not less than slow, 50"),
        ("ma_cross", {"kind": "wma"}, "kind", "'wma' is not one of: sma, ema"),
        ("ma_cross", {"period": 3}, "period", "is not a parameter; known are: fast, kind, slow"),
        ("buy_and_hold", {"fast": 3}, "fast", "known are: none"),
        ("rsi_reversion", {"lower": 70, "upper": 30}, "lower", "70.0 is not less than upper, 30.0"),
        ("rsi_reversion", {"upper": "many"}, "upper", "'many' is not a finite number"),
        ("breakout", {"entry": 10, "exit": 11}, "exit", "11 is not at most entry, 10"),
        ("breakout", {"entry": 2001}, "entry", "above the most allowed, 2000"),
    ],
)
def test_bad_parameters_are_refused_by_name(name, params, field, message):
    refused = refusal(name, **params)
    assert refused.field == f"params.strategy_params.{field}"
    assert message in refused.message


def test_channels_may_be_of_the_same_length():
    assert backtesting.strategy("breakout").check({"entry": 10, "exit": 10})["exit"] == 10


def test_parameters_that_are_no_object_are_refused():
    params: Any = [5]
    with pytest.raises(FieldError, match="is not an object") as refused:
        backtesting.strategy("ma_cross").check(params)
    assert refused.value.field == "params.strategy_params"


def test_an_unknown_strategy_is_refused():
    with pytest.raises(FieldError, match="'ma_crss' is not a strategy; known are: breakout, buy_and_hold") as refused:
        backtesting.strategy("ma_crss")
    assert refused.value.field == "params.strategy"


# Those of one's own


def half(bars, params):
    """For these tests: half of everything, or what the params say."""
    bars["close"] = 1e9  # must not reach the engine
    return np.full(len(bars), params.get("exposure", 0.5))


def short_by_one(bars, params):
    return np.zeros(len(bars) - 1)


def test_a_dotted_path_is_refused_unless_it_is_on_the_allow_list(allowed):
    allowed()
    with pytest.raises(FieldError, match="is not among the callables that the setting custom allows") as refused:
        backtesting.strategy(f"{HERE}:half")
    assert refused.value.field == "params.strategy"
    # Neither a part of what is allowed nor its name on the list.
    allowed(f"{HERE}:half")
    for other in (f"{HERE}:short_by_one", f"{HERE}:", "0", "os:system"):
        with pytest.raises(FieldError):
            backtesting.strategy(other)


def test_one_on_the_allow_list_is_run_with_any_params(allowed):
    allowed(f"{HERE}:half")
    bars = bars_of([10, 10, 20])
    chosen = backtesting.strategy(f"{HERE}:half")
    assert chosen.params == ()
    found = chosen.positions(bars, chosen.check({"exposure": 0.25}))
    assert found.tolist() == [0.25] * 3
    assert bars["close"].tolist() == [10, 10, 20]


def test_one_that_gives_too_few_or_is_not_there_says_so(allowed):
    allowed(f"{HERE}:short_by_one", f"{HERE}:gone", "no.such.module:rule")
    with pytest.raises(ValueError, match=r"gave \(2,\) exposures for 3 bars"):
        positions(f"{HERE}:short_by_one", bars_of([1, 2, 3]))
    with pytest.raises(ImportError, match="has no gone"):
        positions(f"{HERE}:gone", bars_of([1, 2, 3]))
    with pytest.raises(ImportError, match="no"):
        positions("no.such.module:rule", bars_of([1, 2, 3]))


def test_checking_needs_no_library_of_numbers():
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from nodes import executors\n"
            "backtest = executors.get('backtest')\n"
            "params = backtest.check({'strategy': 'ma_cross', 'source': 'store', 'strategy_params': {'fast': 3}})\n"
            "backtest.begin(['A', {'symbol': 'B', 'params': {'fast': 4}}], params)\n"
            "print(sorted({'numpy', 'pandas', 'pyarrow', 'talib', 'duckdb', 'django'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"

"""No look-ahead: what happened up to a bar is the same whatever comes after it.

Everything after bar t is replaced by other bars. Exposures, equity, and what was traded up to t must not notice. The
same test is given strategies and an engine that cheat, so that it is known to find them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes import backtesting, surroundings
from nodes.backtesting import Costs, Sizing
from nodes.surroundings import Surroundings

COUNT = 160
COLUMNS = ["open", "high", "low", "close", "volume"]
STRATEGIES: dict[str, dict[str, Any]] = {
    "buy_and_hold": {},
    "ma_cross": {"fast": 3, "slow": 9},
    "ma_cross ema": {"fast": 4, "slow": 11, "kind": "ema"},
    "rsi_reversion": {"period": 5, "lower": 40, "upper": 60},
    "breakout": {"entry": 8, "exit": 4},
}


def walk(seed, count=COUNT):
    """Bars of a random walk with gaps."""
    random = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.03, count)))
    opening = close * np.exp(random.normal(0, 0.01, count))
    wide = np.exp(np.abs(random.normal(0, 0.01, count)))
    return pd.DataFrame(
        {
            "datetime": pd.date_range("2020-01-01", periods=count, unit="us"),
            "open": opening,
            "high": np.maximum(opening, close) * wide,
            "low": np.minimum(opening, close) / wide,
            "close": close,
            "volume": random.integers(1, 1000, count).astype(float),
        }
    )


def with_another_future(bars, at, seed, how):
    """``bars``, those after number ``at`` shuffled, or others, or of another magnitude."""
    future = slice(at + 1, None)
    other = bars.copy()
    if how == "shuffled":
        order = np.random.default_rng(seed).permutation(len(bars) - at - 1)
        other.loc[at + 1 :, COLUMNS] = bars[COLUMNS].to_numpy()[future][order]
    else:
        scale = 1.0 if how == "replaced" else 40.0
        other.loc[at + 1 :, COLUMNS] = walk(seed + 1)[COLUMNS].to_numpy()[future] * scale
    return other


def told(positions_of, bars, at, engine, **options):
    """What is known of exposures, equity and trades at the close of bar ``at``."""
    positions = positions_of(bars)
    result = engine(bars, positions, **options)
    last = _day(bars, at)
    entries = [(trade["side"], trade["entry_date"]) for trade in result.trades if trade["entry_date"] <= last]
    closed = [trade for trade in result.trades if not trade["open"] and trade["exit_date"] <= last]
    return positions[: at + 1].tolist(), result.equity[: at + 1].tolist(), entries, closed


def assert_no_look_ahead(positions_of, at, seed, how="replaced", engine=backtesting.run, **options):
    options = {"short": True, "cash": 1e6} | options
    bars = walk(seed)
    known = told(positions_of, bars, at, engine, **options)
    assert known == told(positions_of, with_another_future(bars, at, seed, how), at, engine, **options)
    if options.get("fill") != "next_close":
        # What is bought at the open of bar at + 1 was decided before it: nothing else of that bar may matter to it.
        opened = with_another_future(bars, at, seed, how)
        opened.loc[at + 1, "open"] = bars["open"][at + 1]
        opened.loc[at + 1, "high"] = max(opened["open"][at + 1], opened["close"][at + 1])
        opened.loc[at + 1, "low"] = min(opened["open"][at + 1], opened["close"][at + 1])
        assert _begun(positions_of, bars, at + 1, engine, **options) == _begun(
            positions_of, opened, at + 1, engine, **options
        )


def _begun(positions_of, bars, at, engine, **options):
    """The trades that began by the open of bar ``at``."""
    trades = engine(bars, positions_of(bars), **options).trades
    last = _day(bars, at)
    return [(trade["side"], trade["entry_date"]) for trade in trades if trade["entry_date"] <= last]


def _day(bars, at):
    return bars["datetime"].iloc[at].isoformat().removesuffix("T00:00:00")


def rule(name):
    """(bars) -> exposures by a strategy of STRATEGIES."""
    chosen = backtesting.strategy(name.split()[0])
    params = chosen.check(STRATEGIES[name])
    return lambda bars: chosen.positions(bars, params)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(STRATEGIES)),
    at=st.integers(0, COUNT - 2),
    seed=st.integers(0, 2**31),
    how=st.sampled_from(["shuffled", "replaced", "enlarged"]),
    fill=st.sampled_from(["next_open", "next_close"]),
    short=st.booleans(),
    sizing=st.sampled_from(
        [Sizing(), Sizing("percent", percent=40), Sizing("fixed", amount=3e5), Sizing("volatility", window=6, lot=1)]
    ),
    costs=st.sampled_from([Costs(), Costs(0.1, 5, 0.05)]),
)
def test_the_future_changes_nothing_that_was(name, at, seed, how, **options):
    assert_no_look_ahead(rule(name), at, seed, how, **options)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_nor_along_the_whole_history(name):
    _everywhere(rule(name), costs=Costs(0.1))


def _everywhere(positions_of, **options):
    for at in range(0, COUNT - 1, 3):
        assert_no_look_ahead(positions_of, at, seed=7, **options)


# The test itself: these cheat, and it finds them


def tomorrow(bars, params):
    """For these tests: a strategy that knows the next close."""
    close = bars["close"].to_numpy()
    return np.append(np.sign(close[1:] - close[:-1]), 0.0)


def above_its_mean(bars, params):
    """The mean of all bars, those to come among them: the fault that backtests have most often."""
    close = bars["close"].to_numpy()
    return np.where(close > close.mean(), 1.0, -1.0)


def scaled(bars, params):
    """Scaled by the largest move there will be."""
    moves = np.diff(np.log(bars["close"].to_numpy()), prepend=0.0)
    moves[0] = 0.0
    return moves / np.abs(moves).max()


@pytest.mark.parametrize("cheat", [tomorrow, above_its_mean, scaled])
def test_a_strategy_that_cheats_is_found(cheat):
    path = f"{__name__}:{cheat.__name__}"
    before = surroundings.current()
    surroundings.settle(Surroundings(custom={"cheat": path}))
    try:
        chosen = backtesting.strategy(path)
        with pytest.raises(AssertionError):
            _everywhere(lambda bars: chosen.positions(bars, {}))
    finally:
        surroundings.settle(before)


def test_an_engine_that_trades_on_the_bar_of_the_decision_is_found():
    def hasty(bars, positions, **options):
        """Buys at the open of the bar whose close it goes by."""
        return backtesting.run(bars, np.append(positions[1:], 0.0), **options)

    with pytest.raises(AssertionError):
        _everywhere(rule("ma_cross"), engine=hasty, fill="next_open")

"""What the strategies compute: (bars, checked params) -> target exposures, 1 long, -1 short, 0 neither.

Each value is made of its bar and those before it, never of a later one. Where an indicator has too few bars yet, the
exposure is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nodes.indicators import engines
from nodes.indicators.windows import highest, lowest, padded

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ROUNDING = 1e-10
"""Averages that differ by less, relatively, are equal: running sums of constant prices must not cross each other."""


def buy_and_hold(bars: pd.DataFrame, params: Mapping[str, Any]) -> Floats:
    return np.ones(len(bars))


def ma_cross(bars: pd.DataFrame, params: Mapping[str, Any]) -> Floats:
    """Sign of the fast average less the slow one."""
    fast, slow = (_of(bars, params["kind"], params[name]) for name in ("fast", "slow"))
    gap = fast - slow
    gap[np.abs(gap) <= ROUNDING * np.abs(slow)] = 0.0
    return np.nan_to_num(np.sign(gap))


def rsi_reversion(bars: pd.DataFrame, params: Mapping[str, Any]) -> Floats:
    """The last of: long below ``lower``, short above ``upper``."""
    rsi = _of(bars, "rsi", params["period"])
    close = bars["close"].to_numpy(np.float64)
    # Prices that never moved have no strength, but an RSI of 0.
    moved = np.logical_or.accumulate(close != close[0])
    return _latest({1.0: moved & (rsi < params["lower"]), -1.0: moved & (rsi > params["upper"])})


def breakout(bars: pd.DataFrame, params: Mapping[str, Any]) -> Floats:
    """Donchian channels of the bars before: the close leaves one upwards or downwards."""
    high, low, close = (bars[name].to_numpy(np.float64) for name in ("high", "low", "close"))
    entry, out, size = params["entry"], params["exit"], len(close)
    long = _latest({1.0: close > _before(highest(high, entry), size), 0.0: close < _before(lowest(low, out), size)})
    short = _latest({1.0: close < _before(lowest(low, entry), size), 0.0: close > _before(highest(high, out), size)})
    return long - short


def _of(bars: pd.DataFrame, indicator: str, period: int) -> Floats:
    """The ``indicator`` of the close; NaN while it has too few bars."""
    # Never by TA-Lib: nodes with and without it differ in the last digits, and so might cross on different days.
    return engines.named(indicator, {"close": bars["close"].to_numpy(np.float64)}, period, engine="pandas")[0]


def _latest(marks: Mapping[float, NDArray[np.bool_]]) -> Floats:
    """At each bar the value whose mark was set last; 0 before the first one."""
    values = np.zeros(len(next(iter(marks.values()))))
    marked = np.zeros(len(values), dtype=bool)
    for value, mark in marks.items():
        values[mark] = value
        marked |= mark
    last = np.maximum.accumulate(np.where(marked, np.arange(len(values)), -1))
    return np.where(last >= 0, values[last], 0.0)


def _before(channel: Floats, size: int) -> Floats:
    """``channel``, a value for each window of bars, at the bar after its window; NaN where there is none."""
    return padded(channel, size + 1)[:-1]

"""Backtests: strategies that turn bars into target exposures, and an engine that trades these and measures the result.

    chosen = backtesting.strategy("ma_cross")
    params = chosen.check({"fast": 10, "slow": 50})
    positions = chosen.positions(bars, params)
    result = backtesting.run(bars, positions, costs=Costs(commission=0.1), short=True)
    result.metrics["sharpe"], result.equity, result.trades

A position at bar t is made of bars up to and including t, and is traded on bar t + 1 at the earliest. Nothing numeric
is imported here, because parents check params by this; numpy and pandas come with the first positions and first run.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from nodes.backtesting.catalogue import Strategy, strategies, strategy, variants
from nodes.backtesting.terms import BARS_A_YEAR, METRICS, PARAMS, SMALLER_IS_BETTER, Costs, Sizing, options

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from nodes.backtesting.engine import Result

__all__ = [
    "BARS_A_YEAR",
    "METRICS",
    "PARAMS",
    "SMALLER_IS_BETTER",
    "Costs",
    "Sizing",
    "Strategy",
    "options",
    "run",
    "strategies",
    "strategy",
    "variants",
    "window",
]

FREE = Costs()
ALL_IN = Sizing()


def run(
    bars: pd.DataFrame,
    positions: NDArray[np.float64],
    *,
    costs: Costs = FREE,
    sizing: Sizing = ALL_IN,
    cash: float = 100_000.0,
    fill: str = "next_open",
    short: bool = False,
    start: int = 0,
    stop: int | None = None,
    bars_a_year: float = 252.0,
    risk_free: float = 0.0,
    detail: bool = True,
) -> Result:
    """Trades ``positions`` over ``bars[start:stop]``, beginning with ``cash`` and without a position.

    ``bars``: columns datetime, open, high, low, close, volume, oldest first. ``positions``: one for each bar, in
    [-1, 1]; with ``short`` false those below 0 are 0. ``fill``: at which price of the following bar, next_open or
    next_close. ``start``, ``stop``: numbers of bars; what was decided on the bar before ``start`` is traded on it.
    ``risk_free``: per cent a year. ``detail`` false: metrics alone, ``equity`` and ``trades`` stay empty.
    Raises ValueError for positions that are not numbers in [-1, 1], one for each bar; for prices that are not above 0;
    where there is no bar.
    """
    from nodes.backtesting import engine

    return engine.run(
        bars,
        positions,
        costs=costs,
        sizing=sizing,
        cash=cash,
        fill=fill,
        short=short,
        start=start,
        stop=stop,
        bars_a_year=bars_a_year,
        risk_free=risk_free,
        detail=detail,
    )


def window(bars: pd.DataFrame, start: dt.date | None, end: dt.date | None) -> tuple[int, int]:
    """Numbers ``(start, stop)`` of the bars with start <= date <= end (None: open), for ``run``."""
    from nodes.backtesting import engine

    return engine.window(bars, start, end)

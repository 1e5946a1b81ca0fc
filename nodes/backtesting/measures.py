"""The metrics of a curve of equity, as fractions, None where one has no value. Imports numpy: for workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nodes.backtesting.terms import METRICS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

YEAR_SECONDS = 365.25 * 86_400
ROUNDING = 1e-12
"""Deviations of returns below this are none: those of constant growth differ by rounding alone."""


def measure(
    equity: Floats,
    *,
    years: float,
    held: NDArray[np.bool_],
    profits: Sequence[float],
    trades: int,
    costs: float,
    bars_a_year: float,
    risk_free: float,
) -> dict[str, float | None]:
    """All METRICS.

    ``equity`` at each close, never below 0, the first one being the cash at the beginning, ``held`` whether there was a
    position then; ``years`` from the first to the last; ``profits`` of closed trades; ``risk_free`` a year, as a
    fraction.
    """
    with np.errstate(all="ignore"):  # what is beyond all numbers is None in the end
        found = _found(equity, years, held, profits, bars_a_year, risk_free)
    found |= {"trades": float(trades), "costs": float(costs)}
    return {name: value if (value := found[name]) is not None and abs(value) < np.inf else None for name in METRICS}


def _found(
    equity: Floats,
    years: float,
    held: NDArray[np.bool_],
    profits: Sequence[float],
    bars_a_year: float,
    risk_free: float,
) -> dict[str, float | None]:
    first, last = float(equity[0]), float(equity[-1])
    returns = _returns(equity)
    excess = returns - ((1 + risk_free) ** (1 / bars_a_year) - 1)
    fall, length = _drawdown(equity)
    cagr = _growth(last / first, years)
    won = [profit for profit in profits if profit > 0]
    lost = -sum(profit for profit in profits if profit < 0)
    deviation = float(returns.std(ddof=1)) if len(returns) > 1 else None
    return {
        "total_return": last / first - 1,
        "cagr": cagr,
        "volatility": None if deviation is None else deviation * bars_a_year**0.5,
        "sharpe": _ratio(excess, deviation, bars_a_year),
        "sortino": _ratio(excess, _downside(excess), bars_a_year),
        "calmar": cagr / fall if cagr is not None and fall else None,
        "max_drawdown": fall,
        "max_drawdown_bars": float(length),
        "win_rate": len(won) / len(profits) if profits else None,
        "profit_factor": sum(won) / lost if lost else None,
        "exposure": float(held[1:].mean()) if len(held) > 1 else None,
        "final_equity": last,
    }


def _returns(equity: Floats) -> Floats:
    """Simple returns from close to close; 0 where nothing is left to lose."""
    before = equity[:-1]
    left = before > 0
    returns: Floats = np.divide(equity[1:], before, out=np.ones(len(before)), where=left) - 1
    return returns


def _growth(factor: float, years: float) -> float | None:
    """Compound annual growth rate: ``factor ** (1 / years) - 1``, by years of 365.25 days."""
    if years <= 0:
        return None
    try:
        return float(factor ** (1 / years) - 1)
    except OverflowError:  # a good day, continued for a year
        return None


def _ratio(excess: Floats, deviation: float | None, bars_a_year: float) -> float | None:
    """Mean excess return over a deviation, annualised by the root of time.

    With the standard deviation (ddof = 1) of the returns: the Sharpe ratio (W. F. Sharpe, The Sharpe Ratio, Journal of
    Portfolio Management 21, 1994). With the downside deviation: the Sortino ratio (F. A. Sortino, L. N. Price,
    Performance Measurement in a Downside Risk Framework, Journal of Investing 3, 1994).
    """
    if deviation is None or deviation <= ROUNDING:
        return None
    return float(excess.mean()) / deviation * float(bars_a_year**0.5)


def _downside(excess: Floats) -> float | None:
    """Root of the mean square of the returns below the target, those above it counting as 0 (Sortino and Price)."""
    return float(np.sqrt(np.square(np.minimum(excess, 0.0)).mean())) if len(excess) > 1 else None


def _drawdown(equity: Floats) -> tuple[float, int]:
    """The largest fall from a highest point so far, as a share of that; and bars from there until it was back."""
    highest = np.maximum.accumulate(equity)
    falls = 1 - equity / highest
    deepest = int(falls.argmax())
    if not falls[deepest] > 0:
        return 0.0, 0
    high = highest[deepest]
    peak = int((equity[: deepest + 1] == high).argmax())
    after = np.flatnonzero(equity[deepest:] >= high)
    end = deepest + int(after[0]) if len(after) else len(equity) - 1
    return float(falls[deepest]), end - peak

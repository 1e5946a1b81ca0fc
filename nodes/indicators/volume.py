"""Volume, prices in one number, and straight lines through prices, as TA-Lib has them."""

from __future__ import annotations

import numpy as np

from nodes.indicators.windows import Array, means, padded, ratio, smoothed, totals, weighted


def obv(close: Array, volume: Array) -> Array:
    """Granville's on-balance volume, which begins with the first bar's volume."""
    signed = volume.copy()
    signed[1:] *= np.sign(np.diff(close))
    return np.add.accumulate(signed)


def _flow(high: Array, low: Array, close: Array, volume: Array) -> Array:
    """Chaikin's money flow volume: by where in its range the bar closed; 0 for a bar without a range."""
    width = high - low
    return np.where(width > 0, ratio((close - low) - (high - close), width) * volume, 0.0)


def ad(high: Array, low: Array, close: Array, volume: Array) -> Array:
    """Chaikin's accumulation/distribution line."""
    return np.add.accumulate(_flow(high, low, close, volume))


def adosc(high: Array, low: Array, close: Array, volume: Array, fast: int, slow: int) -> Array:
    """Chaikin's oscillator: EMA(fast) - EMA(slow) of that line, both seeded by its first value."""
    if len(close) < max(fast, slow):
        return np.full(len(close), np.nan)
    line = ad(high, low, close, volume)
    averages = [smoothed(float(line[0]), line[1:], 2 / (n + 1)) for n in (fast, slow)]
    return padded((averages[0] - averages[1])[max(fast, slow) - 1 :], len(close))


def cmf(high: Array, low: Array, close: Array, volume: Array, n: int) -> Array:
    """Chaikin's money flow: that of n bars by their volume."""
    return padded(ratio(totals(_flow(high, low, close, volume), n), totals(volume, n)), len(close))


def avgprice(opening: Array, high: Array, low: Array, close: Array) -> Array:
    return (high + low + close + opening) / 4


def medprice(high: Array, low: Array) -> Array:
    return (high + low) / 2


def typprice(high: Array, low: Array, close: Array) -> Array:
    return (high + low + close) / 3


def wclprice(high: Array, low: Array, close: Array) -> Array:
    return (high + low + close * 2) / 4


def _line(values: Array, n: int) -> tuple[Array, Array]:
    """Slope and first value of the straight line with the least squares through each window."""
    places = np.arange(n, dtype=np.float64)
    slope = weighted(values, places - places.mean()) / float(((places - places.mean()) ** 2).sum())
    return slope, means(values, n) - slope * (n - 1) / 2


def linearreg(values: Array, n: int) -> Array:
    slope, first = _line(values, n)
    return padded(first + slope * (n - 1), len(values))


def linearreg_slope(values: Array, n: int) -> Array:
    return padded(_line(values, n)[0], len(values))


def linearreg_angle(values: Array, n: int) -> Array:
    return padded(np.degrees(np.arctan(_line(values, n)[0])), len(values))


def linearreg_intercept(values: Array, n: int) -> Array:
    return padded(_line(values, n)[1], len(values))


def tsf(values: Array, n: int) -> Array:
    """The line's value one bar ahead."""
    slope, first = _line(values, n)
    return padded(first + slope * n, len(values))

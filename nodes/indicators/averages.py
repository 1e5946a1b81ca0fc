"""Moving averages and bands around them, as TA-Lib has them: arrays in, arrays of the same length out."""

from __future__ import annotations

from math import isqrt

import numpy as np

from nodes.indicators.windows import (
    Array,
    exponential,
    highest,
    lowest,
    means,
    padded,
    ratio,
    sums,
    totals,
    true_range,
    weighted,
    wilder,
)

Three = tuple[Array, Array, Array]


def sma(values: Array, n: int) -> Array:
    return padded(means(values, n), len(values))


def ema(values: Array, n: int) -> Array:
    return padded(exponential(values, n), len(values))


def rma(values: Array, n: int) -> Array:
    return padded(wilder(values, n), len(values))


def wma(values: Array, n: int) -> Array:
    return padded(_linear(values, n), len(values))


def _linear(values: Array, n: int) -> Array:
    """Weights 1 to n, the newest value's is n."""
    return weighted(values, np.arange(1.0, n + 1)) / (n * (n + 1) / 2)


def dema(values: Array, n: int) -> Array:
    """Mulloy, Stocks & Commodities, January 1994: 2 EMA - EMA of EMA."""
    once = exponential(values, n)
    twice = exponential(once, n)
    return padded(2 * once[len(once) - len(twice) :] - twice, len(values))


def tema(values: Array, n: int) -> Array:
    """Mulloy, 1994: 3 EMA - 3 EMA of EMA + EMA of EMA of EMA."""
    once = exponential(values, n)
    twice = exponential(once, n)
    thrice = exponential(twice, n)
    size = len(thrice)
    return padded(3 * once[len(once) - size :] - 3 * twice[len(twice) - size :] + thrice, len(values))


def trima(values: Array, n: int) -> Array:
    """A simple average of a simple average: weights rise to the middle and fall again."""
    first, second = ((n + 1) // 2, (n + 1) // 2) if n % 2 else (n // 2, n // 2 + 1)
    return padded(means(means(values, first), second), len(values))


def t3(values: Array, n: int, factor: float) -> Array:
    """Tillson, Stocks & Commodities, January 1998."""
    stages = [values]
    for _ in range(6):
        stages.append(exponential(stages[-1], n))
    size = len(stages[6])
    e3, e4, e5, e6 = (stage[len(stage) - size :] for stage in stages[3:])
    square, cube = factor * factor, factor**3
    c3 = -6 * square - 3 * (factor + cube)
    c4 = 1 + 3 * factor + cube + 3 * square
    return padded(-cube * e6 + 3 * (square + cube) * e5 + c3 * e4 + c4 * e3, len(values))


def kama(values: Array, n: int) -> Array:
    """Kaufman's adaptive average, Smarter Trading (1995): between EMAs of 2 and of 30, by how straight the way was."""
    if len(values) <= n:
        return np.full(len(values), np.nan)
    way = sums(np.abs(np.diff(values)), n)
    distance = values[n:] - values[:-n]
    straight = np.where((way <= distance) | (way == 0), 1.0, np.abs(ratio(distance, way)))
    shares = (straight * (2 / 3 - 2 / 31) + 2 / 31) ** 2
    average = float(values[n - 1])
    found = []
    for value, share in zip(values[n:].tolist(), shares.tolist(), strict=True):
        average += (value - average) * share
        found.append(average)
    return padded(np.array(found), len(values))


def hma(values: Array, n: int) -> Array:
    """Hull, 2005: a weighted average over root n of 2 WMA(n / 2) - WMA(n)."""
    slow = _linear(values, n)
    fast = _linear(values, max(n // 2, 1))
    return padded(_linear(2 * fast[len(fast) - len(slow) :] - slow, isqrt(n)), len(values))


def vwma(values: Array, volume: Array, n: int) -> Array:
    """Mean of n prices, each by its volume; NaN where nothing was traded."""
    return padded(ratio(totals(values * volume, n), totals(volume, n), np.nan), len(values))


def midpoint(values: Array, n: int) -> Array:
    return padded((highest(values, n) + lowest(values, n)) / 2, len(values))


def midprice(high: Array, low: Array, n: int) -> Array:
    return padded((highest(high, n) + lowest(low, n)) / 2, len(high))


def bbands(values: Array, n: int, above: float, below: float) -> Three:
    """Bollinger: the mean and so many standard deviations (of the population) above and below it."""
    middle = means(values, n)
    wide = deviation(values, n)
    return tuple(padded(band, len(values)) for band in (middle + above * wide, middle, middle - below * wide))  # type: ignore[return-value]


def deviation(values: Array, n: int) -> Array:
    """Standard deviation of the population in each window."""
    return np.sqrt(variance(values, n))


def variance(values: Array, n: int) -> Array:
    """Mean square of the distances from the mean: the mean of squares less the square of the mean loses digits."""
    middle = means(values, n)
    total = np.zeros(len(middle))
    for at in range(n if len(middle) else 0):
        distance = values[at : at + len(middle)] - middle
        total += distance * distance
    return total / n


def stddev(values: Array, n: int) -> Array:
    return padded(deviation(values, n), len(values))


def var(values: Array, n: int) -> Array:
    return padded(variance(values, n), len(values))


def donchian(high: Array, low: Array, n: int) -> Three:
    """Donchian: highest high and lowest low of n bars, this one among them, and the middle."""
    top, bottom = highest(high, n), lowest(low, n)
    return tuple(padded(band, len(high)) for band in (top, (top + bottom) / 2, bottom))  # type: ignore[return-value]


def keltner(high: Array, low: Array, close: Array, n: int, range_n: int, factor: float) -> Three:
    """Keltner's channel as Raschke has it: an EMA of typical prices, and so many average true ranges above and below.

    Both averages have their first value on the same bar, as those of ``momentum.macd``.
    """
    first = max(n - 1, range_n)
    if len(close) <= first:
        return tuple(np.full(len(close), np.nan) for _ in range(3))  # type: ignore[return-value]
    middle = exponential(((high + low + close) / 3)[first - n + 1 :], n)
    before = first - range_n
    wide = wilder(true_range(high[before:], low[before:], close[before:]), range_n) * factor
    return tuple(padded(band, len(close)) for band in (middle + wide, middle, middle - wide))  # type: ignore[return-value]


def sar(high: Array, low: Array, acceleration: float, maximum: float) -> Array:
    """Wilder's parabolic stop and reverse (1978). It begins long unless the first step down is the longer one."""
    size = len(high)
    if size < 2:
        return np.full(size, np.nan)
    acceleration = min(acceleration, maximum)
    highs, lows = high.tolist(), low.tolist()
    down, up = lows[0] - lows[1], highs[1] - highs[0]
    long = not (down > 0 and up < down)
    best, stop = (highs[1], lows[0]) if long else (lows[1], highs[0])
    factor = acceleration
    found = [float("nan")]
    last_high, last_low = highs[1], lows[1]
    for high_now, low_now in zip(highs[1:], lows[1:], strict=True):
        if (low_now <= stop) if long else (high_now >= stop):
            # Turned: the stop is the best price so far, yet not inside the last two bars.
            long = not long
            stop = min(best, last_low, low_now) if long else max(best, last_high, high_now)
            found.append(stop)
            factor = acceleration
            best = high_now if long else low_now
        else:
            found.append(stop)
            if (high_now > best) if long else (low_now < best):
                best = high_now if long else low_now
                factor = min(factor + acceleration, maximum)
        stop += factor * (best - stop)
        stop = min(stop, last_low, low_now) if long else max(stop, last_high, high_now)
        last_high, last_low = high_now, low_now
    return np.array(found)

"""What the indicators are made of: windows of n values that move along an array, and exponential smoothing.

Every function takes an array without NaN and returns the part that has a value: from a window of n values on,
``len(values) - n + 1`` of them, none where there are fewer than n. ``padded`` puts NaN before them again.

Sums are taken in the order in which TA-Lib takes them (one value comes in, the oldest one goes out), so that what is
left of rounding is the same too: a standard deviation of equal prices is the root of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ZERO = 1e-14
"""A difference that is no larger than this share of what it is a difference of is left of rounding: TA-Lib 0.8
(TA_IS_ZERO_SCALED in ta_utility.h)."""


def padded(values: Array, size: int) -> Array:
    """``values`` at the end of an array of ``size``, NaN before them."""
    result = np.full(size, np.nan)
    if len(values):
        result[size - len(values) :] = values
    return result


def ratio(above: Array, below: Array, otherwise: float = 0.0, *, scale: Array | None = None) -> Array:
    """``above / below``, ``otherwise`` where ``below`` is 0, or nothing beside ``scale``."""
    there = below != 0 if scale is None else np.abs(below) > ZERO * scale
    quotient: Array = np.divide(above, below, out=np.full(len(below), otherwise), where=there)
    return quotient


def sums(values: Array, n: int) -> Array:
    """Sum of each window."""
    count = len(values) - n + 1
    if count < 1:
        return values[:0]
    # One running total: in, out, in, out. Adding +new and -old in one pass keeps the order of TA-Lib's loop.
    steps = np.empty(n + 2 * (count - 1))
    steps[:n] = values[:n]
    steps[n::2] = -values[: count - 1]
    steps[n + 1 :: 2] = values[n:]
    return np.add.accumulate(steps)[n - 1 :: 2]


def totals(values: Array, n: int) -> Array:
    """Sum of each window, each added up anew: exactly 0 where all its values are, whatever came before.

    For volumes, which may be fractions of a unit on one day and millions on another.
    """
    if len(values) < n:
        return values[:0]
    found, width, block = np.zeros(len(values) - n + 1), 0, values
    step = 1
    while True:
        if n & step:
            found = found + block[width : width + len(found)]
            width += step
        if width == n:
            return found
        block = block[:-step] + block[step:]
        step *= 2


def means(values: Array, n: int) -> Array:
    """Mean of each window: the simple moving average."""
    return sums(values, n) / n


def weighted(values: Array, weights: Array) -> Array:
    """Each window's sum of value times weight; the last weight is the newest value's."""
    if len(values) < len(weights):
        return values[:0]
    return np.convolve(values, weights[::-1], "valid")


def highest(values: Array, n: int) -> Array:
    """Maximum of each window."""
    return _extreme(np.maximum, values, n)


def lowest(values: Array, n: int) -> Array:
    """Minimum of each window."""
    return _extreme(np.minimum, values, n)


def _extreme(pick: Any, values: Array, n: int) -> Array:
    """By windows of 1, 2, 4, … values: log2(n) passes over the array instead of n."""
    if len(values) < n:
        return values[:0]
    width, found = 1, values
    while 2 * width <= n:
        found = pick(found[:-width], found[width:])
        width *= 2
    rest = n - width
    return pick(found[: len(found) - rest], found[rest:]) if rest else found


def bars_since(pick: Any, values: Array, n: int) -> NDArray[np.int64]:
    """By how many values the extreme of each window of n lies back (``pick``: numpy.argmax or argmin); of equal ones
    the newest."""
    if len(values) < n:
        return np.empty(0, dtype=np.int64)
    newest_first = np.lib.stride_tricks.sliding_window_view(values, n)[:, ::-1]
    return np.asarray(pick(newest_first, axis=1), dtype=np.int64)


def smoothed(seed: float, values: Array, share: float) -> Array:
    """``seed``, and after it for each value ``before + share * (value - before)``."""
    import pandas as pd

    series = np.empty(len(values) + 1)
    series[0] = seed
    series[1:] = values
    return np.asarray(pd.Series(series).ewm(alpha=share, adjust=False).mean(), dtype=np.float64)


def exponential(values: Array, n: int) -> Array:
    """EMA as TA-Lib seeds it: by the mean of the first n values; share 2 / (n + 1)."""
    return _from_mean(values, n, 2.0 / (n + 1))


def wilder(values: Array, n: int) -> Array:
    """Wilder's smoothing, New Concepts in Technical Trading Systems (1978): share 1 / n, seeded as ``exponential``."""
    return _from_mean(values, n, 1.0 / n)


def _from_mean(values: Array, n: int, share: float) -> Array:
    if len(values) < n:
        return values[:0]
    return smoothed(float(np.add.accumulate(values[:n])[-1]) / n, values[n:], share)


def true_range(high: Array, low: Array, close: Array) -> Array:
    """Wilder's true range of every bar but the first, which has no close before it."""
    before = close[:-1]
    return np.maximum(high[1:], before) - np.minimum(low[1:], before)

"""Wilder's directional movement and ranges (New Concepts in Technical Trading Systems, 1978), as TA-Lib has them.

Sums of true range and of movements are smoothed as Wilder did by hand: each bar takes a part 1/n of the sum away and
adds its own value. The first sum has n - 1 bars, as TA-Lib's has.
"""

from __future__ import annotations

import numpy as np

from nodes.indicators.windows import Array, padded, ratio, smoothed, true_range, wilder

Two = tuple[Array, Array]


def trange(high: Array, low: Array, close: Array) -> Array:
    return padded(true_range(high, low, close), len(close))


def atr(high: Array, low: Array, close: Array, n: int) -> Array:
    """Average true range: its first value is the mean of the true ranges of bars 1 to n."""
    return padded(wilder(true_range(high, low, close), n), len(close))


def natr(high: Array, low: Array, close: Array, n: int) -> Array:
    """ATR in per cent of the close."""
    average = wilder(true_range(high, low, close), n)
    return padded(100 * ratio(average, close[len(close) - len(average) :]), len(close))


def moves(high: Array, low: Array) -> Two:
    """Movement up and down of every bar but the first: the larger one counts, if it is one at all."""
    up, down = np.diff(high), -np.diff(low)
    return np.where((up > 0) & (up > down), up, 0.0), np.where((down > 0) & (down > up), down, 0.0)


def _sums(values: Array, n: int) -> Array:
    """From bar n - 1 on: the sum of bars 1 to n - 1, then smoothed."""
    if len(values) < n - 1 or n < 2:
        return values if n < 2 else values[:0]
    seed = float(np.add.accumulate(values[: n - 1])[-1])
    return n * smoothed(seed / n, values[n - 1 :], 1 / n)


def plus_dm(high: Array, low: Array, n: int) -> Array:
    return padded(_sums(moves(high, low)[0], n), len(high))


def minus_dm(high: Array, low: Array, n: int) -> Array:
    return padded(_sums(moves(high, low)[1], n), len(high))


def _indicators(high: Array, low: Array, close: Array, n: int) -> Two:
    """+DI and -DI from bar n on; 0 where nothing moved."""
    width = _sums(true_range(high, low, close), n)
    plus, minus = (100 * ratio(_sums(move, n), width) for move in moves(high, low))
    first = 1 if n > 1 else 0
    return plus[first:], minus[first:]


def plus_di(high: Array, low: Array, close: Array, n: int) -> Array:
    return padded(_indicators(high, low, close, n)[0], len(close))


def minus_di(high: Array, low: Array, close: Array, n: int) -> Array:
    return padded(_indicators(high, low, close, n)[1], len(close))


def _index(high: Array, low: Array, close: Array, n: int) -> Array:
    """DX from bar n on, NaN where neither direction moved."""
    plus, minus = _indicators(high, low, close, n)
    both = plus + minus
    return 100 * ratio(np.abs(minus - plus), both, np.nan)


def dx(high: Array, low: Array, close: Array, n: int) -> Array:
    """Where neither direction moved, the value before holds; 0 before the first."""
    return padded(_held(_index(high, low, close, n), 0.0), len(close))


def _held(values: Array, first: float) -> Array:
    gone = np.isnan(values)
    if not gone.any():
        return values
    last = np.maximum.accumulate(np.where(gone, -1, np.arange(len(values))))
    return np.where(last < 0, first, values[last])


def _average(high: Array, low: Array, close: Array, n: int) -> Array:
    """ADX from bar 2n - 1 on. A bar on which neither direction moved leaves it as it was."""
    index = _index(high, low, close, n)
    if len(index) < n:
        return index[:0]
    seed = float(np.nansum(index[:n])) / n
    rest = index[n:]
    there = ~np.isnan(rest)
    found = np.full(len(rest) + 1, np.nan)
    found[np.concatenate(([True], there))] = smoothed(seed, rest[there], 1 / n)
    return _held(found, seed)


def adx(high: Array, low: Array, close: Array, n: int) -> Array:
    return padded(_average(high, low, close, n), len(close))


def adxr(high: Array, low: Array, close: Array, n: int) -> Array:
    """Mean of the ADX and that of n - 1 bars before."""
    average = _average(high, low, close, n)
    return padded((average[n - 1 :] + average[: max(len(average) - n + 1, 0)]) / 2, len(close))

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
    """From bar n - 1 on: the sum of bars 1 to n - 1, then smoothed. ``n`` is 2 at least."""
    if len(values) < n - 1:
        return values[:0]
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
    return plus[1:], minus[1:]


def plus_di(high: Array, low: Array, close: Array, n: int) -> Array:
    return padded(_indicators(high, low, close, n)[0], len(close))


def minus_di(high: Array, low: Array, close: Array, n: int) -> Array:
    return padded(_indicators(high, low, close, n)[1], len(close))


def _index(high: Array, low: Array, close: Array, n: int) -> Array:
    """DX from bar n on; 0 before the first movement in either direction."""
    plus, minus = _indicators(high, low, close, n)
    return 100 * ratio(np.abs(minus - plus), plus + minus)


def dx(high: Array, low: Array, close: Array, n: int) -> Array:
    return padded(_index(high, low, close, n), len(close))


def _average(high: Array, low: Array, close: Array, n: int) -> Array:
    """ADX from bar 2n - 1 on."""
    return wilder(_index(high, low, close, n), n)


def adx(high: Array, low: Array, close: Array, n: int) -> Array:
    return padded(_average(high, low, close, n), len(close))


def adxr(high: Array, low: Array, close: Array, n: int) -> Array:
    """Mean of the ADX and that of n - 1 bars before."""
    average = _average(high, low, close, n)
    return padded((average[n - 1 :] + average[: max(len(average) - n + 1, 0)]) / 2, len(close))

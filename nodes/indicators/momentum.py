"""Oscillators: how fast and how far prices went, as TA-Lib has them. Arrays in, arrays of the same length out."""

from __future__ import annotations

import numpy as np

from nodes.indicators.averages import ema
from nodes.indicators.windows import (
    ZERO,
    Array,
    bars_since,
    exponential,
    highest,
    lowest,
    means,
    padded,
    ratio,
    smoothed,
    sums,
    true_range,
    wilder,
)

Two = tuple[Array, Array]
Three = tuple[Array, Array, Array]


def rsi(values: Array, n: int) -> Array:
    """Wilder (1978): of all ups and downs, smoothed, the ups' share in per cent. 0 where nothing moved."""
    ups, downs = _moves(values, n)
    return padded(100 * ratio(ups, ups + downs), len(values))


def cmo(values: Array, n: int) -> Array:
    """Chande's momentum oscillator with Wilder's smoothing: ups less downs, in per cent of both."""
    ups, downs = _moves(values, n)
    return padded(100 * ratio(ups - downs, ups + downs), len(values))


def _moves(values: Array, n: int) -> Two:
    change = np.diff(values)
    return wilder(np.maximum(change, 0.0), n), wilder(np.maximum(-change, 0.0), n)


def macd(values: Array, fast: int, slow: int, signal: int) -> Three:
    """Appel: EMA(fast) - EMA(slow), an EMA of it, and the difference. All three begin where the signal does.

    Both averages have their first value on the same bar: the fast one is seeded by the values that end there.
    """
    fast, slow = min(fast, slow), max(fast, slow)
    line = _gap(values, fast, slow)
    smooth = exponential(line, signal)
    line = line[len(line) - len(smooth) :]
    return padded(line, len(values)), padded(smooth, len(values)), padded(line - smooth, len(values))


def _gap(values: Array, fast: int, slow: int) -> Array:
    if len(values) < slow:
        return values[:0]
    return exponential(values[slow - fast :], fast) - exponential(values, slow)


def apo(values: Array, fast: int, slow: int) -> Array:
    fast, slow = min(fast, slow), max(fast, slow)
    averages = exponential(values, fast), exponential(values, slow)
    size = len(averages[1])
    return padded(averages[0][len(averages[0]) - size :] - averages[1], len(values))


def ppo(values: Array, fast: int, slow: int) -> Array:
    return 100 * ratio(apo(values, fast, slow), ema(values, max(fast, slow)))


def mom(values: Array, n: int) -> Array:
    return padded(values[n:] - values[:-n], len(values))


def roc(values: Array, n: int) -> Array:
    return padded(_rate(values, n), len(values))


def _rate(values: Array, n: int) -> Array:
    before = values[:-n]
    return np.where(before != 0, (ratio(values[n:], before) - 1) * 100, 0.0)


def rocr(values: Array, n: int) -> Array:
    return padded(ratio(values[n:], values[:-n]), len(values))


def trix(values: Array, n: int) -> Array:
    """Hutson: rate of change of an EMA of an EMA of an EMA, in per cent from bar to bar."""
    thrice = exponential(exponential(exponential(values, n), n), n)
    return padded(_rate(thrice, 1), len(values))


def _place(high: Array, low: Array, close: Array, n: int) -> Array:
    """Where the close lies between the lowest low (0) and the highest high (100) of n bars; 0 where they are one."""
    top, bottom = highest(high, n), lowest(low, n)
    return 100 * ratio(close[n - 1 :] - bottom, top - bottom, scale=np.abs(top) + np.abs(bottom))


def stochf(high: Array, low: Array, close: Array, n: int, smooth: int) -> Two:
    """Lane's fast stochastic: %K and its simple average %D. Both begin where %D does."""
    k = _place(high, low, close, n)
    d = means(k, smooth)
    return padded(k[len(k) - len(d) :], len(close)), padded(d, len(close))


def stoch(high: Array, low: Array, close: Array, n: int, smooth_k: int, smooth_d: int) -> Two:
    """Lane's slow stochastic: %K is the fast one's simple average, %D that of %K."""
    k = means(_place(high, low, close, n), smooth_k)
    d = means(k, smooth_d)
    return padded(k[len(k) - len(d) :], len(close)), padded(d, len(close))


def stochrsi(values: Array, n: int, window: int, smooth: int) -> Two:
    """Chande and Kroll, The New Technical Trader (1994): the fast stochastic of the RSI."""
    strength = rsi(values, n)[n:]
    k, d = stochf(strength, strength, strength, window, smooth)
    return padded(k, len(values)), padded(d, len(values))


def kdj(high: Array, low: Array, close: Array, n: int, smooth_k: int, smooth_d: int) -> Three:
    """The stochastic as Chinese programs show it: K = K' * 2/3 + RSV / 3, D = D' * 2/3 + K / 3, J = 3 K - 2 D.

    RSV is the place of the close in the range of n bars; K' and D' are the day before's, 50 before the first.
    """
    place = _place(high, low, close, n)
    k = smoothed(50.0, place, 1 / smooth_k)[1:]
    d = smoothed(50.0, k, 1 / smooth_d)[1:]
    return padded(k, len(close)), padded(d, len(close)), padded(3 * k - 2 * d, len(close))


def cci(high: Array, low: Array, close: Array, n: int) -> Array:
    """Lambert, Commodities, October 1980: distance of the typical price from its mean, in 0.015 mean deviations."""
    typical = (high + low + close) / 3
    count = len(typical) - n + 1
    if count < 1:
        return np.full(len(close), np.nan)
    total = np.zeros(count)
    for at in range(n):
        total += typical[at : at + count]
    middle = total / n
    apart = np.zeros(count)
    for at in range(n):
        apart += np.abs(typical[at : at + count] - middle)
    distance = typical[n - 1 :] - middle
    still = np.abs(distance) <= ZERO * np.abs(middle)
    return padded(np.where(still, 0.0, ratio(distance, 0.015 * (apart / n))), len(close))


def willr(high: Array, low: Array, close: Array, n: int) -> Array:
    """Williams' %R: 0 at the highest high of n bars, -100 at the lowest low; 0 where they are one."""
    top, bottom = highest(high, n), lowest(low, n)
    place = ratio(top - close[n - 1 :], top - bottom, scale=np.abs(top) + np.abs(bottom))
    return padded(-100 * place, len(close))


def mfi(high: Array, low: Array, close: Array, volume: Array, n: int) -> Array:
    """Quong and Soudack, 1989: of the money that flowed in n bars, the share in bars whose typical price rose."""
    typical = (high + low + close) / 3
    change = np.diff(typical)
    # Typical prices are thirds: equal ones may differ in their last digit.
    moved = np.abs(change) > ZERO * (np.abs(typical[1:]) + np.abs(typical[:-1]))
    money = np.where(moved, (typical * volume)[1:], 0.0)
    flows_in = sums(np.where(change >= 0, money, 0.0), n)
    both = flows_in + sums(np.where(change < 0, money, 0.0), n)
    # What running sums leave of fractions is no flow.
    any_flow = sums((money != 0).astype(np.float64), n) > 0
    share = np.where(any_flow & (both > 0), ratio(np.clip(flows_in, 0.0, both), both), 0.0)
    return padded(100 * share, len(close))


def bop(opening: Array, high: Array, low: Array, close: Array) -> Array:
    """Livshin's balance of power: body of the bar by its range."""
    return ratio(close - opening, high - low, scale=np.abs(high) + np.abs(low))


def ultosc(high: Array, low: Array, close: Array, first: int, second: int, third: int) -> Array:
    """Williams' ultimate oscillator, Stocks & Commodities, April 1985."""
    periods = sorted((first, second, third))
    longest = periods[-1]
    if len(close) <= longest:
        return np.full(len(close), np.nan)
    pressure = close[1:] - np.minimum(low[1:], close[:-1])
    width = true_range(high, low, close)
    size = len(close) - longest
    result = np.zeros(size)
    for n, weight in zip(periods, (4, 2, 1), strict=True):
        above, below = sums(pressure, n)[-size:], sums(width, n)[-size:]
        result += weight * ratio(above, below)
    return padded(100 * result / 7, len(close))


def aroon(high: Array, low: Array, n: int) -> Two:
    """Chande, 1995: how long ago the lowest low and the highest high of n bars back were; 100 is now, 0 n bars ago."""
    down, up = _ages(high, low, n)
    return padded(down, len(high)), padded(up, len(high))


def aroonosc(high: Array, low: Array, n: int) -> Array:
    down, up = _ages(high, low, n)
    return padded(up - down, len(high))


def _ages(high: Array, low: Array, n: int) -> Two:
    down, up = (
        np.asarray(100.0 / n * (n - bars_since(pick, values, n + 1)), dtype=np.float64)
        for pick, values in ((np.argmin, low), (np.argmax, high))
    )
    return down, up

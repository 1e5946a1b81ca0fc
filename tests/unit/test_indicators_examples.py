"""Indicators against numbers that others published, and against ones worked out by hand."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from nodes.indicators.engines import named
from nodes.indicators.windows import wilder

NAN = float("nan")
ENGINES = ["pandas", *(["talib"] if find_spec("talib") else [])]

# StockCharts ChartSchool, "Relative Strength Index (RSI)", worksheet cs-rsi.xls: QQQQ closes from 2009-12-14 on.
RSI_CLOSES = [
    44.3389, 44.0902, 44.1497, 43.6124, 44.3278, 44.8264, 45.0955, 45.4245, 45.8433, 46.0826, 45.8931, 46.0328, 45.6140,
    46.2820, 46.2820, 46.0028, 46.0328, 46.4116, 46.2222, 45.6439, 46.2122, 46.2521, 45.7137, 46.4515, 45.7835, 45.3548,
    44.0288, 44.1783, 44.2181, 44.5672, 43.4205, 42.6628, 43.1314,
]  # fmt: skip
RSI_14 = [
    70.53, 66.32, 66.55, 69.41, 66.36, 57.97, 62.93, 63.26, 56.06, 62.38, 54.71, 50.42, 39.99, 41.46, 41.87, 45.46,
    37.30, 33.08, 37.77,
]  # fmt: skip
# ChartSchool, "Moving Averages - Simple and Exponential", worksheet cs-movavg.xls: INTC closes from 2010-03-24 on.
AVERAGE_CLOSES = [
    22.2734, 22.1940, 22.0847, 22.1741, 22.1840, 22.1344, 22.2337, 22.4323, 22.2436, 22.2933, 22.1542, 22.3926, 22.3816,
    22.6109, 23.3558, 24.0519, 23.7530, 23.8324, 23.9516, 23.6338, 23.8225, 23.8722, 23.6537, 23.1870, 23.0976, 23.3260,
    22.6805, 23.0976, 22.4025, 22.1725,
]  # fmt: skip
SMA_10 = [
    22.22, 22.21, 22.23, 22.26, 22.31, 22.42, 22.61, 22.77, 22.91, 23.08, 23.21, 23.38, 23.53, 23.65, 23.71, 23.69,
    23.61, 23.51, 23.43, 23.28, 23.13,
]  # fmt: skip
EMA_10 = [
    22.22, 22.21, 22.24, 22.27, 22.33, 22.52, 22.80, 22.97, 23.13, 23.28, 23.34, 23.43, 23.51, 23.54, 23.47, 23.40,
    23.39, 23.26, 23.23, 23.08, 22.92,
]  # fmt: skip
# ChartSchool, "Average True Range (ATR)", worksheet cs-atr.xls: QQQQ from 2010-04-01 on.
ATR_HIGH = [
    48.70, 48.72, 48.90, 48.87, 48.82, 49.05, 49.20, 49.35, 49.92, 50.19, 50.12, 49.66, 49.88, 50.19, 50.36, 50.57,
    50.65, 50.43, 49.63, 50.33,
]  # fmt: skip
ATR_LOW = [
    47.79, 48.14, 48.39, 48.37, 48.24, 48.64, 48.94, 48.86, 49.50, 49.87, 49.20, 48.90, 49.43, 49.73, 49.26, 50.09,
    50.30, 49.21, 48.98, 49.61,
]  # fmt: skip
ATR_CLOSE = [
    48.16, 48.61, 48.75, 48.63, 48.74, 49.03, 49.07, 49.32, 49.91, 50.13, 49.53, 49.50, 49.75, 50.03, 50.31, 50.52,
    50.41, 49.34, 49.37, 50.23,
]  # fmt: skip
TRUE_RANGES = [
    0.58, 0.51, 0.50, 0.58, 0.41, 0.26, 0.49, 0.60, 0.32, 0.93, 0.76, 0.45, 0.46, 1.10, 0.48, 0.35, 1.22, 0.65, 0.96,
]  # fmt: skip
ATR_14 = [0.56, 0.59, 0.59, 0.57, 0.62, 0.62, 0.64]


def bars(**columns):
    return {name: np.array(values, dtype="float64") for name, values in columns.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_rsi_is_as_published(engine):
    (rsi,) = named("rsi", bars(close=RSI_CLOSES), 14, engine=engine)
    assert np.isnan(rsi[:14]).all()
    np.testing.assert_allclose(rsi[14:], RSI_14, atol=0.006)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "published"), [("sma", SMA_10), ("ema", EMA_10)])
def test_averages_are_as_published(engine, name, published):
    (average,) = named(name, bars(close=AVERAGE_CLOSES), 10, engine=engine)
    assert np.isnan(average[:9]).all()
    np.testing.assert_allclose(average[9:], published, atol=0.0061)


@pytest.mark.parametrize("engine", ENGINES)
def test_true_range_is_as_published(engine):
    (true_range,) = named("trange", bars(high=ATR_HIGH, low=ATR_LOW, close=ATR_CLOSE), engine=engine)
    np.testing.assert_allclose(true_range[1:], TRUE_RANGES, atol=0.011)  # the worksheet has more digits than it shows


def test_wilders_smoothing_is_as_published():
    """The worksheet takes the first bar's high - low for its true range, which Wilder, and so TA-Lib, does not."""
    np.testing.assert_allclose(wilder(np.array([0.91, *TRUE_RANGES]), 14), ATR_14, atol=0.011)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "values", "columns", "outputs"),
    [
        ("sma", (3,), {"close": [1, 2, 3, 7]}, [[NAN, NAN, 2, 4]]),
        ("wma", (3,), {"close": [1, 2, 4, 8]}, [[NAN, NAN, (1 + 4 + 12) / 6, (2 + 8 + 24) / 6]]),
        ("ema", (3,), {"close": [1, 2, 3, 6, 6]}, [[NAN, NAN, 2, 4, 5]]),
        ("rma", (2,), {"close": [1, 3, 4, 7]}, [[NAN, 2, 3, 5]]),
        ("dema", (2,), {"close": [1, 3, 5, 5]}, [[NAN, NAN, 5, 2 * (14 / 3) - (3 + 2 * 14 / 3) / 3]]),
        ("midpoint", (3,), {"close": [1, 5, 3, 2]}, [[NAN, NAN, 3, 3.5]]),
        ("bbands", (4, 2.0, 1.0), {"close": [2, 4, 4, 6]}, [[NAN] * 3 + [x] for x in (4 + 2 * 2**0.5, 4, 4 - 2**0.5)]),
        ("mom", (2,), {"close": [1, 2, 4, 8]}, [[NAN, NAN, 3, 6]]),
        ("roc", (1,), {"close": [100, 110, 99]}, [[NAN, 10, -10]]),
        ("rsi", (2,), {"close": [10, 11, 10, 12, 12]}, [[NAN, NAN, 50, 100 * 1.25 / 1.5, 100 * 0.625 / 0.75]]),
        (
            "macd",
            (2, 3, 1),
            {"close": [1, 2, 3, 9]},
            [[NAN, NAN, 0.5, 6.833333333333333 - 5.5]] * 2 + [[NAN, NAN, 0, 0]],
        ),
        ("obv", (), {"close": [10, 11, 11, 9], "volume": [5, 3, 2, 4]}, [[5, 8, 8, 4]]),
        ("donchian", (2,), {"high": [3, 5, 4], "low": [1, 2, 3]}, [[NAN, 5, 5], [NAN, 3, 3.5], [NAN, 1, 2]]),
        ("trange", (), {"high": [5, 6, 4], "low": [4, 5, 3], "close": [4, 6, 3]}, [[NAN, 2, 3]]),
        ("atr", (2,), {"high": [5, 6, 4, 4], "low": [4, 5, 3, 3], "close": [4, 6, 3, 3]}, [[NAN, NAN, 2.5, 1.75]]),
        ("willr", (2,), {"high": [4, 5], "low": [1, 3], "close": [2, 4]}, [[NAN, -25]]),
        ("stochf", (2, 1), {"high": [4, 5], "low": [1, 3], "close": [2, 4]}, [[NAN, 75], [NAN, 75]]),
        ("stoch", (1, 1, 2), {"high": [4, 5], "low": [0, 1], "close": [1, 5]}, [[NAN, 100], [NAN, 62.5]]),
        (
            "kdj",
            (1, 3, 3),
            {"high": [10, 10], "low": [0, 0], "close": [8, 2]},
            [[60, 40 + 20 / 3], [100 / 3 + 20, (2 * 160 / 3 + 140 / 3) / 3], [180 - 320 / 3, 140 - 2 * 460 / 9]],
        ),
        # Typical prices 1, 2, 6: mean 3, mean deviation 2.
        ("cci", (3,), {"high": [1, 2, 6], "low": [1, 2, 6], "close": [1, 2, 6]}, [[NAN, NAN, 3 / (0.015 * 2)]]),
        (
            "mfi",
            (2,),
            {"high": [1, 2, 1], "low": [1, 2, 1], "close": [1, 2, 1], "volume": [9, 10, 5]},
            [[NAN, NAN, 100 * 20 / 25]],
        ),
        ("ad", (), {"high": [4, 4], "low": [0, 0], "close": [3, 1], "volume": [10, 4]}, [[5, 3]]),
        ("aroon", (2,), {"high": [1, 3, 2, 2], "low": [1, 2, 3, 3]}, [[NAN, NAN, 0, 0], [NAN, NAN, 50, 0]]),
        ("linearreg_slope", (3,), {"close": [1, 3, 5, 4]}, [[NAN, NAN, 2, 0.5]]),
        ("tsf", (3,), {"close": [1, 3, 5]}, [[NAN, NAN, 7]]),
        ("var", (2,), {"close": [1, 3]}, [[NAN, 1]]),
        ("vwma", (2,), {"close": [1, 4], "volume": [2, 1]}, [[NAN, 2]]),
        ("typprice", (), {"high": [6], "low": [1], "close": [2]}, [[3]]),
        # Every bar 1 higher than the last and 2 wide: +DM 1, -DM 0, true range 2.
        (
            "plus_di",
            (2,),
            {"high": [2, 3, 4, 5], "low": [0, 1, 2, 3], "close": [1, 2, 3, 4]},
            [[NAN, NAN, 50, 50]],
        ),
        ("adx", (2,), {"high": [2, 3, 4, 5], "low": [0, 1, 2, 3], "close": [1, 2, 3, 4]}, [[NAN, NAN, NAN, 100]]),
    ],
)
def test_numbers_worked_out_by_hand(engine, name, values, columns, outputs):
    found = named(name, bars(**columns), *values, engine=engine)
    assert len(found) == len(outputs)
    for output, expected in zip(found, outputs, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)


def test_kdj_begins_at_50_and_forgets_it():
    chance = np.random.default_rng(5)
    close = 100 * np.exp(np.cumsum(chance.normal(0, 0.02, 120)))
    given_bars = bars(high=close * 1.01, low=close * 0.99, close=close)
    k = d = 50.0
    expected = []
    for at in range(8, 120):
        top, bottom = given_bars["high"][at - 8 : at + 1].max(), given_bars["low"][at - 8 : at + 1].min()
        k = 2 / 3 * k + (close[at] - bottom) / (top - bottom) * 100 / 3
        d = 2 / 3 * d + k / 3
        expected.append((k, d, 3 * k - 2 * d))
    found = named("kdj", given_bars)
    np.testing.assert_allclose(np.transpose(found)[8:], expected, rtol=1e-10)
    assert np.isnan(np.transpose(found)[:8]).all()
    talib = pytest.importorskip("talib", reason="TA-Lib is not installed")
    if not hasattr(talib, "KDJ"):
        pytest.skip("this TA-Lib has no KDJ")
    theirs = talib.KDJ(given_bars["high"], given_bars["low"], close)
    np.testing.assert_allclose(np.transpose(theirs)[-20:], np.transpose(found)[-20:], rtol=1e-8)

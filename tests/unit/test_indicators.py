"""Indicators: both engines give the same numbers, on any bars and any length, and none fails on odd ones.

The same: NaN on the same bars, and elsewhere no further apart than 1e-8 of the number, or 1e-10 of the largest of the
prices and of the indicator's numbers.
"""

from __future__ import annotations

import datetime as dt
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes import providers
from nodes.indicators import engines, windows
from nodes.indicators.engines import NoTalib, compute, named, resolved
from nodes.indicators.table import LONGEST, TABLE, read

talib = pytest.importorskip("talib", reason="TA-Lib is not installed: there is nothing to compare the fallback with")

BY_TALIB = [name for name, indicator in TABLE.items() if indicator.talib]
KINDS = (
    "walk",
    "cents",
    "jumpy",
    "steps",
    "rising",
    "falling",
    "flat",
    "flat end",
    "flat start",
    "untraded",
    "thin",
    "huge",
    "tiny",
)


def bars(kind: str, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Bars of one nature: open, high, low, close, volume."""
    chance = np.random.default_rng(seed)
    moved = np.arange(size) < size // 2
    close = {
        "steps": lambda: np.round(50 + np.cumsum(chance.integers(-1, 2, size)) * 0.1, 1),
        "rising": lambda: 10 + np.arange(size) * 0.37,
        "falling": lambda: 5000 - np.arange(size) * 0.7,
        "flat": lambda: np.full(size, 100.1),
        "flat end": lambda: 100 * np.exp(np.cumsum(np.where(moved, chance.normal(0, 0.02, size), 0.0))),
        "flat start": lambda: 100 * np.exp(np.cumsum(np.where(moved, 0.0, chance.normal(0, 0.02, size)))),
        "jumpy": lambda: 100 * np.exp(np.cumsum(chance.standard_t(2, size).clip(-9, 9) * 0.03)),
        "huge": lambda: 1e6 * np.exp(np.cumsum(chance.normal(0, 0.03, size))),
        "tiny": lambda: 1e-5 * np.exp(np.cumsum(chance.normal(0, 0.03, size))),
    }.get(kind, lambda: 100 * np.exp(np.cumsum(chance.normal(0, 0.02, size))))()
    wide = np.full(size, 0.0 if kind == "flat" else 0.01)
    if kind in ("flat end", "flat start"):
        wide[moved == (kind == "flat start")] = 0.0
    high = close * (1 + wide * chance.random(size))
    low = close * (1 - wide * chance.random(size))
    opening = low + (high - low) * chance.random(size)
    if kind == "cents":
        opening, high, low, close = (np.round(prices / 5, 2) for prices in (opening, high, low, close))
    volume = chance.integers(0, 1_000_000, size).astype("float64")
    if kind == "thin":
        volume *= np.where(chance.random(size) < 0.8, 0.0, 1e-9)
    if kind in ("flat", "untraded"):
        volume[:] = 0.0
    return {
        "open": opening,
        "high": high,
        "low": low,
        "close": close,
        "volume": volume,
    }


def assert_same(name: str, given_bars: dict[str, np.ndarray], values: tuple = ()) -> None:
    indicator = TABLE[name]
    values = (*values, *(param.default for param in indicator.params[len(values) :]))
    theirs = compute(indicator, given_bars, values, "talib")
    ours = compute(indicator, given_bars, values, "pandas")
    assert len(theirs) == len(ours) == len(indicator.outputs)
    prices = max(np.abs(given_bars[column]).max(initial=0) for column in indicator.inputs if column != "volume")
    for label, one, other in zip(indicator.names(), theirs, ours, strict=True):
        assert other.dtype == np.float64
        assert one.shape == other.shape == given_bars["close"].shape
        assert np.array_equal(np.isnan(one), np.isnan(other)), (label, values, np.isnan(one).sum())
        there = ~np.isnan(one)
        scale = max(prices, np.abs(one[there]).max(initial=0))
        np.testing.assert_allclose(other[there], one[there], rtol=1e-8, atol=1e-10 * scale, err_msg=f"{label} {values}")


# Both engines


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 14, 15, 28, 29, 34, 400])
def test_both_engines_agree_with_default_params(kind, size):
    given_bars = bars(kind, size, seed=size)
    for name in BY_TALIB:
        assert_same(name, given_bars)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.integers(1, 130), st.integers(0, 2**32), st.data())
def test_both_engines_agree_with_any_params(kind, size, seed, data):
    given_bars = bars(kind, size, seed)
    for name in BY_TALIB:
        values = tuple(
            data.draw(st.integers(int(param.minimum or 0), 25) if param.kind == "integer" else st.floats(0.1, 1.0))
            for param in TABLE[name].params
        )
        assert_same(name, given_bars, values)


@pytest.mark.parametrize("name", BY_TALIB)
def test_both_engines_agree_with_the_least_params_and_the_next(name):
    for more in (0, 1):
        values = tuple(
            int(param.minimum or 0) + more if param.kind == "integer" else 0.5 for param in TABLE[name].params
        )
        for size in (1, 2, 3, 50):
            assert_same(name, bars("walk", size), values)


@pytest.mark.parametrize("symbol", ["AAPL", "FB", "GOOG", "IBM", "MSFT"])
def test_both_engines_agree_on_real_bars(symbol):
    table = providers.get("sample")({}).bars(symbol, "D", None, None)
    given_bars = {name: table[name].to_numpy() for name in ("open", "high", "low", "close", "volume")}
    for name in BY_TALIB:
        assert_same(name, given_bars)


def test_a_window_of_thousands_of_bars_agrees_too():
    given_bars = bars("walk", 6000)
    for name in ("sma", "ema", "wma", "bbands", "donchian", "willr", "rsi", "adx", "linearreg", "mfi"):
        assert_same(name, given_bars, (LONGEST // 2,))


def test_what_is_left_of_rounding_is_no_distance():
    """One price a little off, some bars ago: the mean is off by less than can be told from rounding, and CCI is 0."""
    close = np.full(30, 100.1)
    close[20] *= 1 + 1e-13
    for engine in ("talib", "pandas"):
        (cci,) = named("cci", {"high": close, "low": close, "close": close}, 14, engine=engine)
        assert cci[20] > 400
        assert cci[21:].tolist() == [0.0] * 9


@pytest.mark.parametrize("engine", ["talib", "pandas"])
def test_fewer_bars_than_the_period_are_all_without_a_value(engine):
    for name, indicator in TABLE.items():
        if [param.name for param in indicator.params][:1] == ["period"]:
            values = (30, *(param.default for param in indicator.params[1:]))
            for size in (0, 1, 29):
                for output in compute(indicator, bars("walk", size), values, engine):
                    assert len(output) == size
                    assert np.isnan(output).all(), name


@pytest.mark.parametrize("engine", ["talib", "pandas"])
def test_nothing_warns_or_changes_the_bars(engine, recwarn):
    for kind in ("flat", "untraded", "walk"):
        given_bars = bars(kind, 60)
        for column in given_bars.values():
            column.flags.writeable = False
        before = {name: column.copy() for name, column in given_bars.items()}
        for indicator in TABLE.values():
            compute(indicator, given_bars, tuple(param.default for param in indicator.params), engine)
        assert all(np.array_equal(given_bars[name], before[name]) for name in before)
    assert not recwarn.list


def test_no_value_depends_on_a_later_bar():
    whole = bars("walk", 200)
    part = {name: column[:120] for name, column in whole.items()}
    for indicator in TABLE.values():
        values = tuple(param.default for param in indicator.params)
        for now, then in zip(
            compute(indicator, whole, values, "pandas"), compute(indicator, part, values, "pandas"), strict=True
        ):
            np.testing.assert_allclose(then, now[:120], rtol=1e-12, atol=1e-9)


# Which engine


def test_auto_is_talib_where_it_is_installed():
    assert resolved("auto") == resolved("talib") == "talib"
    assert resolved("pandas") == "pandas"


def test_without_talib_auto_is_pandas_and_asking_for_talib_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "talib", None)
    engines._talib.cache_clear()
    try:
        assert resolved("auto") == "pandas"
        with pytest.raises(NoTalib, match="pip install TA-Lib"):
            resolved("talib")
        assert not np.isnan(named("rsi", bars("walk", 30))[0][-1])
    finally:
        monkeypatch.undo()
        engines._talib.cache_clear()


def test_what_an_older_talib_lacks_or_refuses_comes_from_the_fallback(monkeypatch):
    def refuses(*_, **__):
        raise Exception("Bad Parameter (TA_BAD_PARAM)")

    monkeypatch.setattr(engines, "_talib", lambda: SimpleNamespace(SMA=refuses))
    given_bars = bars("walk", 40)
    for name in ("sma", "hma"):
        (value,) = compute(TABLE[name], given_bars, (5,), "talib")
        np.testing.assert_array_equal(value, compute(TABLE[name], given_bars, (5,), "pandas")[0])


def test_talib_is_really_asked(monkeypatch):
    monkeypatch.setattr(engines, "_talib", lambda: SimpleNamespace(SMA=lambda close, timeperiod: close * timeperiod))
    assert compute(TABLE["sma"], {"close": np.array([1.0, 2.0])}, (7,), "talib")[0].tolist() == [7.0, 14.0]


# The table


def test_every_entry_is_whole():
    names = [label for indicator in TABLE.values() for label in indicator.names()]
    assert len(names) == len(set(names))
    for name, indicator in TABLE.items():
        assert callable(engines._function(indicator.function)), name
        assert indicator.title
        assert set(indicator.inputs) <= {"open", "high", "low", "close", "volume"}
        assert len(indicator.keywords) == len(indicator.params) or not indicator.talib
        assert all(param.help and param.minimum is not None and param.maximum is not None for param in indicator.params)
        assert not indicator.talib or hasattr(talib, indicator.talib)


def test_usage_reads_back_as_the_defaults():
    for name, indicator in TABLE.items():
        defaults = tuple(param.default for param in indicator.params)
        assert read(name) == read(indicator.usage()) == (indicator, defaults)


def test_params_are_read_in_their_order():
    assert read("macd_5_35")[1] == (5, 35, 9)
    assert read("sar_0.01_0.1")[1] == (0.01, 0.1)
    assert read("linearreg_slope_20") == (TABLE["linearreg_slope"], (20,))
    assert TABLE["macd"].names("macd_5_35") == ("macd_5_35", "macd_5_35_signal", "macd_5_35_hist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smaa", "'smaa' is not an indicator; known are: sma, ema"),
        ("", "is not an indicator"),
        ("sma_", "is not an indicator"),
        ("sma_x", "is not an indicator"),
        ("_5", "is not an indicator"),
        ("SMA_5", "is not an indicator"),
        (5, "5 is not an indicator"),
        (None, "None is not an indicator"),
        ("sma_0", "'sma_0': period: 0 is below the least allowed, 1"),
        ("rsi_1", "1 is below the least allowed, 2"),
        ("sma_5001", "5001 is above the most allowed, 5000"),
        ("sma_2.5", "period: '2.5' is not a whole number"),
        ("sma_" + "9" * 400, "is above the most allowed"),
        ("sma_5_5", "'sma_5_5' has more params than sma, which is sma_30"),
        ("obv_5", "more params than obv, which is obv"),
        ("sar_2", "2.0 is above the most allowed, 1.0"),
        ("sma_-5", "is not an indicator"),
        ("a" * 5000, "is not an indicator"),
    ],
)
def test_what_is_no_indicator_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=r"is not|period|params|most allowed") as refusal:
        read(text)
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 1200


def test_a_long_history_is_quick():
    given_bars = bars("walk", 100_000)
    began = dt.datetime.now()
    for name in ("sma", "ema", "rsi", "bbands", "adx", "kdj", "donchian", "mfi", "cci"):
        named(name, given_bars, engine="pandas")
    assert dt.datetime.now() - began < dt.timedelta(seconds=10)


# Windows


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 13, 31, 32, 33])
def test_windows_are_what_a_loop_over_them_finds(n):
    values = np.random.default_rng(n).normal(0, 1, 80)
    values[20:60:3] = values[19:59:3]  # ties
    each = [values[at : at + n] for at in range(80 - n + 1)]
    np.testing.assert_array_equal(windows.highest(values, n), [max(window) for window in each])
    np.testing.assert_array_equal(windows.lowest(values, n), [min(window) for window in each])
    np.testing.assert_allclose(windows.sums(values, n), [sum(window) for window in each], atol=1e-12)
    np.testing.assert_allclose(windows.totals(values, n), [sum(window) for window in each], atol=1e-12)
    for function in (windows.highest, windows.lowest, windows.sums, windows.totals):
        assert len(function(values[: n - 1], n)) == 0


def test_volume_that_is_gone_leaves_nothing_behind():
    """0.1 + 0.2 - 0.1 - 0.2 is not 0 in floats: a mean weighed by that would be any number."""
    volume = np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.5, 0.1])
    close = np.array([10.0, 11, 12, 13, 14, 15, 16, 17])
    for engine in ("talib", "pandas"):
        (mean,) = named("vwma", {"close": close, "volume": volume}, 2, engine=engine)
        np.testing.assert_array_equal(np.isnan(mean), [True, False, False, False, True, True, False, False])
        np.testing.assert_allclose(mean[[3, 6]], [12, 16])

"""The indicators there are: one entry each, from which come params, help, both engines and
the tests of one by the other.

To add one: write its function (arrays in, arrays of the same length out) in a file beside this one, and its entry here.
Light to import: a parent and an agent check params by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nodes.executors.base import Param, shown
from nodes.protocol import FieldError

LONGEST = 5_000
"""Most bars that a window may have."""


@dataclass(frozen=True)
class Indicator:
    """``function`` is ``file:function`` beside this file; it is called with the columns ``inputs``, then the params in
    their order, and returns one array, or one for each of ``outputs`` (the ends of their names).

    ``talib``: TA-Lib's function with the same numbers, its ``keywords`` for the params in the same order, and what else
    it is called with. Without one, both engines use ``function``.
    """

    name: str
    title: str
    function: str
    inputs: tuple[str, ...]
    params: tuple[Param, ...] = ()
    talib: str = ""
    keywords: tuple[str, ...] = ("timeperiod",)
    fixed: tuple[tuple[str, Any], ...] = ()
    outputs: tuple[str, ...] = ("",)

    def names(self, called: str = "") -> tuple[str, ...]:
        """What its outputs are called where it is called ``called``."""
        return tuple(f"{called or self.name}_{end}" if end else called or self.name for end in self.outputs)

    def usage(self) -> str:
        """How ``read`` reads it, with the defaults."""
        return "_".join([self.name, *(f"{param.default:g}" for param in self.params)])


def whole(name: str, default: int, told: str, least: int = 2) -> Param:
    return Param(name, "integer", default, told, minimum=least, maximum=LONGEST)


def factor(name: str, default: float, told: str, least: float = 0.0, most: float = 100.0) -> Param:
    return Param(name, "number", default, told, minimum=least, maximum=most)


def _bars(default: int, least: int = 2) -> tuple[Param, ...]:
    return (whole("period", default, "Bars.", least),)


CLOSE = ("close",)
HL = ("high", "low")
HLC = ("high", "low", "close")
HLCV = (*HLC, "volume")
FAST_SLOW = (whole("fast", 12, "Bars of the fast average."), whole("slow", 26, "Bars of the slow average."))
FAST_SLOW_WORDS = ("fastperiod", "slowperiod")
EXPONENTIAL = (("matype", 1),)
BANDS = ("upper", "middle", "lower")


def _average(name: str, title: str, default: int = 30, talib: str | None = None) -> Indicator:
    return Indicator(
        name, title, f"averages:{name}", CLOSE, _bars(default, 1), name.upper() if talib is None else talib
    )


TABLE: Mapping[str, Indicator] = {
    entry.name: entry
    for entry in (
        # Averages
        _average("sma", "Simple moving average"),
        _average("ema", "Exponential moving average"),
        _average("rma", "Wilder's moving average"),
        _average("wma", "Linearly weighted moving average"),
        _average("dema", "Double exponential moving average"),
        _average("tema", "Triple exponential moving average"),
        _average("trima", "Triangular moving average"),
        Indicator("kama", "Kaufman's adaptive moving average", "averages:kama", CLOSE, _bars(30), "KAMA"),
        Indicator(
            "t3",
            "Tillson's T3",
            "averages:t3",
            CLOSE,
            (whole("period", 5, "Bars."), factor("factor", 0.7, "Volume factor.", most=1.0)),
            "T3",
            ("timeperiod", "vfactor"),
        ),
        Indicator("hma", "Hull moving average", "averages:hma", CLOSE, _bars(20), "HMA"),
        # TA-Lib (since 0.8) adds and takes away volumes in turn: what is left of fractions weighs prices that are gone.
        Indicator("vwma", "Moving average by volume", "averages:vwma", ("close", "volume"), _bars(30)),
        Indicator("midpoint", "Middle of highest and lowest close", "averages:midpoint", CLOSE, _bars(14), "MIDPOINT"),
        Indicator("midprice", "Middle of highest high and lowest low", "averages:midprice", HL, _bars(14), "MIDPRICE"),
        # Bands and stops
        Indicator(
            "bbands",
            "Bollinger bands",
            "averages:bbands",
            CLOSE,
            (
                whole("period", 20, "Bars."),
                factor("above", 2.0, "Standard deviations of the upper band."),
                factor("below", 2.0, "Standard deviations of the lower band."),
            ),
            "BBANDS",
            ("timeperiod", "nbdevup", "nbdevdn"),
            outputs=BANDS,
        ),
        Indicator("donchian", "Donchian channel", "averages:donchian", HL, _bars(20), "DONCHIAN", outputs=BANDS),
        Indicator(
            "keltner",
            "Keltner channel",
            "averages:keltner",
            HLC,
            (
                whole("period", 20, "Bars of the average."),
                whole("range", 10, "Bars of the average true range."),
                factor("factor", 2.0, "Average true ranges from the middle to a band."),
            ),
            "KC",
            ("timeperiod", "atrperiod", "nbdev"),
            outputs=BANDS,
        ),
        Indicator(
            "sar",
            "Parabolic stop and reverse",
            "averages:sar",
            HL,
            (
                factor("acceleration", 0.02, "Step of the acceleration factor.", 0.001, 1.0),
                factor("maximum", 0.2, "Most of it.", 0.001, 1.0),
            ),
            "SAR",
            ("acceleration", "maximum"),
        ),
        # Oscillators
        Indicator("rsi", "Relative strength index", "momentum:rsi", CLOSE, _bars(14), "RSI"),
        Indicator("cmo", "Chande momentum oscillator", "momentum:cmo", CLOSE, _bars(14), "CMO"),
        Indicator(
            "macd",
            "Moving average convergence and divergence",
            "momentum:macd",
            CLOSE,
            (*FAST_SLOW, whole("signal", 9, "Bars of the signal line.", 1)),
            "MACD",
            (*FAST_SLOW_WORDS, "signalperiod"),
            outputs=("", "signal", "hist"),
        ),
        Indicator(
            "apo",
            "Absolute price oscillator, of EMAs",
            "momentum:apo",
            CLOSE,
            FAST_SLOW,
            "APO",
            FAST_SLOW_WORDS,
            EXPONENTIAL,
        ),
        Indicator(
            "ppo",
            "Percentage price oscillator, of EMAs",
            "momentum:ppo",
            CLOSE,
            FAST_SLOW,
            "PPO",
            FAST_SLOW_WORDS,
            EXPONENTIAL,
        ),
        Indicator("mom", "Momentum: change over n bars", "momentum:mom", CLOSE, _bars(10, 1), "MOM"),
        Indicator("roc", "Rate of change over n bars, per cent", "momentum:roc", CLOSE, _bars(10, 1), "ROC"),
        Indicator("rocr", "Close by the close n bars before", "momentum:rocr", CLOSE, _bars(10, 1), "ROCR"),
        Indicator("trix", "Rate of change of a triple EMA, per cent", "momentum:trix", CLOSE, _bars(30, 1), "TRIX"),
        Indicator(
            "stoch",
            "Stochastic, slow",
            "momentum:stoch",
            HLC,
            (
                whole("period", 5, "Bars.", 1),
                whole("smooth_k", 3, "Bars of the average %K.", 1),
                whole("smooth_d", 3, "Bars of the average %D.", 1),
            ),
            "STOCH",
            ("fastk_period", "slowk_period", "slowd_period"),
            outputs=("k", "d"),
        ),
        Indicator(
            "stochf",
            "Stochastic, fast",
            "momentum:stochf",
            HLC,
            (whole("period", 5, "Bars.", 1), whole("smooth_d", 3, "Bars of the average %D.", 1)),
            "STOCHF",
            ("fastk_period", "fastd_period"),
            outputs=("k", "d"),
        ),
        Indicator(
            "stochrsi",
            "Fast stochastic of the relative strength index",
            "momentum:stochrsi",
            CLOSE,
            (
                whole("period", 14, "Bars of the RSI."),
                whole("window", 5, "Bars of the stochastic.", 1),
                whole("smooth_d", 3, "Bars of the average %D.", 1),
            ),
            "STOCHRSI",
            ("timeperiod", "fastk_period", "fastd_period"),
            outputs=("k", "d"),
        ),
        # TA-Lib's KDJ (since 0.8) seeds K and D by a mean instead of 50.
        Indicator(
            "kdj",
            "Stochastic with J, as Chinese programs show it",
            "momentum:kdj",
            HLC,
            (
                whole("period", 9, "Bars.", 1),
                whole("smooth_k", 3, "Of K, a new value counts 1 in so many.", 1),
                whole("smooth_d", 3, "Of D, a new value counts 1 in so many.", 1),
            ),
            outputs=("k", "d", "j"),
        ),
        Indicator("cci", "Commodity channel index", "momentum:cci", HLC, _bars(14), "CCI"),
        Indicator("willr", "Williams %R", "momentum:willr", HLC, _bars(14), "WILLR"),
        Indicator("mfi", "Money flow index", "momentum:mfi", HLCV, _bars(14), "MFI"),
        Indicator("bop", "Balance of power", "momentum:bop", ("open", *HLC), (), "BOP", ()),
        Indicator(
            "ultosc",
            "Ultimate oscillator",
            "momentum:ultosc",
            HLC,
            tuple(whole(f"period{at}", bars, "Bars.", 1) for at, bars in ((1, 7), (2, 14), (3, 28))),
            "ULTOSC",
            ("timeperiod1", "timeperiod2", "timeperiod3"),
        ),
        Indicator("aroon", "Aroon", "momentum:aroon", HL, _bars(14), "AROON", outputs=("down", "up")),
        Indicator("aroonosc", "Aroon up less Aroon down", "momentum:aroonosc", HL, _bars(14), "AROONOSC"),
        # Direction and ranges
        Indicator("adx", "Average directional movement index", "direction:adx", HLC, _bars(14), "ADX"),
        Indicator("adxr", "Mean of the ADX now and n bars ago", "direction:adxr", HLC, _bars(14), "ADXR"),
        Indicator("dx", "Directional movement index", "direction:dx", HLC, _bars(14), "DX"),
        Indicator("plus_di", "Positive directional indicator", "direction:plus_di", HLC, _bars(14), "PLUS_DI"),
        Indicator("minus_di", "Negative directional indicator", "direction:minus_di", HLC, _bars(14), "MINUS_DI"),
        Indicator("plus_dm", "Movement up, smoothed", "direction:plus_dm", HL, _bars(14), "PLUS_DM"),
        Indicator("minus_dm", "Movement down, smoothed", "direction:minus_dm", HL, _bars(14), "MINUS_DM"),
        Indicator("trange", "True range", "direction:trange", HLC, (), "TRANGE", ()),
        Indicator("atr", "Average true range", "direction:atr", HLC, _bars(14, 1), "ATR"),
        Indicator("natr", "Average true range in per cent of the close", "direction:natr", HLC, _bars(14), "NATR"),
        # Volume
        Indicator("obv", "On-balance volume", "volume:obv", ("close", "volume"), (), "OBV", ()),
        Indicator("ad", "Accumulation/distribution line", "volume:ad", HLCV, (), "AD", ()),
        Indicator(
            "adosc",
            "Chaikin oscillator",
            "volume:adosc",
            HLCV,
            (whole("fast", 3, "Bars of the fast average."), whole("slow", 10, "Bars of the slow average.")),
            "ADOSC",
            FAST_SLOW_WORDS,
        ),
        Indicator("cmf", "Chaikin money flow", "volume:cmf", HLCV, _bars(20)),
        # Prices and statistics
        Indicator("avgprice", "Mean of a bar's four prices", "volume:avgprice", ("open", *HLC), (), "AVGPRICE", ()),
        Indicator("medprice", "Middle of high and low", "volume:medprice", HL, (), "MEDPRICE", ()),
        Indicator("typprice", "Typical price: high, low and close", "volume:typprice", HLC, (), "TYPPRICE", ()),
        Indicator("wclprice", "Typical price, the close twice", "volume:wclprice", HLC, (), "WCLPRICE", ()),
        Indicator("stddev", "Standard deviation of the close", "averages:stddev", CLOSE, _bars(5), "STDDEV"),
        Indicator("var", "Variance of the close", "averages:var", CLOSE, _bars(5), "VAR"),
        *(
            Indicator(name, title, f"volume:{name}", CLOSE, _bars(14), name.upper())
            for name, title in (
                ("linearreg", "Linear regression: its last value"),
                ("linearreg_slope", "Linear regression: its slope"),
                ("linearreg_angle", "Linear regression: its angle, degrees"),
                ("linearreg_intercept", "Linear regression: its first value"),
                ("tsf", "Linear regression: its value one bar ahead"),
            )
        ),
    )
}


def read(text: Any) -> tuple[Indicator, tuple[Any, ...]]:
    """An indicator and its params by ``name`` or ``name_1_2``: trix_15, macd_5_35_5; params left out are the defaults.

    Raises ValueError saying what is wrong.
    """
    match = (
        re.fullmatch(r"([a-z][a-z0-9]*?(?:_[a-z]+)*)((?:_[0-9]+(?:\.[0-9]+)?)*)", text)
        if isinstance(text, str)
        else None
    )
    indicator = TABLE.get(match[1]) if match else None
    if match is None or indicator is None:
        raise ValueError(f"{shown(text)} is not an indicator; known are: {', '.join(TABLE)}")
    given = match[2].split("_")[1:]
    if len(given) > len(indicator.params):
        raise ValueError(f"{shown(text)} has more params than {indicator.name}, which is {indicator.usage()}")
    try:
        values = [param.check(value) for param, value in zip(indicator.params, given, strict=False)]
    except FieldError as error:
        raise ValueError(f"{shown(text)}: {error.field.removeprefix('params.')}: {error.message}") from None
    return indicator, (*values, *(param.default for param in indicator.params[len(values) :]))

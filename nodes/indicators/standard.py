"""What every row of an analysis has: its indicators with their params, and the limits that signals and readings know.

Light to import, as ``table``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nodes.executors.base import Param
from nodes.indicators.table import TABLE, whole


@dataclass(frozen=True)
class Standard:
    """An indicator that every row has: its columns, and for each of its params ours, with our default."""

    indicator: str
    columns: tuple[str, ...]
    params: tuple[tuple[str, float], ...] = ()

    def declared(self) -> Iterator[Param]:
        entry = TABLE[self.indicator]
        for (name, default), param in zip(self.params, entry.params, strict=True):
            told = _TOLD.get(name, f"{entry.title}: {param.help[0].lower()}{param.help[1:]}")
            yield replace(param, name=name, default=default, help=told)


_TOLD = {
    "sma_fast": "Fast simple moving average: bars.",
    "sma_slow": "Slow simple moving average: bars.",
    "ema_fast": "Fast exponential moving average: bars.",
    "ema_slow": "Slow exponential moving average: bars.",
    "boll_deviations": "Bollinger bands: standard deviations from the middle to each band.",
    "adx_period": "ADX, +DI and -DI: bars.",
}
"""Where the indicator's own words do not say enough."""
_ADX = (("adx_period", 14),)
_DEVIATIONS = ("boll_deviations", 2.0)
STANDARD = (
    Standard("sma", ("sma_fast",), (("sma_fast", 20),)),
    Standard("sma", ("sma_slow",), (("sma_slow", 50),)),
    Standard("ema", ("ema_fast",), (("ema_fast", 12),)),
    Standard("ema", ("ema_slow",), (("ema_slow", 26),)),
    Standard("macd", ("macd", "macd_signal", "macd_hist"), (("macd_fast", 12), ("macd_slow", 26), ("macd_signal", 9))),
    Standard("rsi", ("rsi",), (("rsi_period", 14),)),
    Standard("bbands", ("boll_upper", "boll_middle", "boll_lower"), (("boll_period", 20), _DEVIATIONS, _DEVIATIONS)),
    Standard("atr", ("atr",), (("atr_period", 14),)),
    Standard("kdj", ("kdj_k", "kdj_d", "kdj_j"), (("kdj_period", 9), ("kdj_k", 3), ("kdj_d", 3))),
    Standard("obv", ("obv",)),
    Standard("adx", ("adx",), _ADX),
    Standard("plus_di", ("plus_di",), _ADX),
    Standard("minus_di", ("minus_di",), _ADX),
    Standard("cci", ("cci",), (("cci_period", 14),)),
    Standard("willr", ("williams_r",), (("williams_period", 14),)),
    Standard("mfi", ("mfi",), (("mfi_period", 14),)),
    Standard("roc", ("roc",), (("roc_period", 10),)),
)
PERIODS = tuple({param.name: param for standard in STANDARD for param in standard.declared()}.values())
LIMITS = (
    Param("rsi_low", "number", 30.0, "RSI below it: over-sold.", minimum=0, maximum=100),
    Param("rsi_high", "number", 70.0, "RSI above it: over-bought.", minimum=0, maximum=100),
    Param("kdj_low", "number", 20.0, "K below it: over-sold.", minimum=0, maximum=100),
    Param("kdj_high", "number", 80.0, "K above it: over-bought.", minimum=0, maximum=100),
    Param("cci_low", "number", -100.0, "CCI below it: over-sold.", minimum=-1000, maximum=1000),
    Param("cci_high", "number", 100.0, "CCI above it: over-bought.", minimum=-1000, maximum=1000),
    Param("williams_low", "number", -80.0, "Williams %R below it: over-sold.", minimum=-100, maximum=0),
    Param("williams_high", "number", -20.0, "Williams %R above it: over-bought.", minimum=-100, maximum=0),
    Param("mfi_low", "number", 20.0, "MFI below it: over-sold.", minimum=0, maximum=100),
    Param("mfi_high", "number", 80.0, "MFI above it: over-bought.", minimum=0, maximum=100),
    Param("adx_trend", "number", 25.0, "ADX from which on there is a trend.", minimum=0, maximum=100),
    Param(
        "volume_spike", "number", 2.0, "Volume above so many means of the bars before: a spike.", minimum=0, maximum=1e6
    ),
    whole("volume_period", 20, "Bars before, for the mean of volume, and bars of OBV's mean.", 1),
    whole("channel_period", 20, "Bars before, for channel_high and channel_low.", 1),
    whole("range_bars", 250, "Bars for the summary's range and latest signals.", 1),
)
RISING = (
    ("sma_fast", "sma_slow"),
    ("ema_fast", "ema_slow"),
    ("macd_fast", "macd_slow"),
    *((f"{name}_low", f"{name}_high") for name in ("rsi", "kdj", "cci", "williams", "mfi")),
)
"""Pairs of params of which the first has to be the lesser."""
NUMBERS = (
    "close",
    "volume",
    "change",
    *(name for standard in STANDARD for name in standard.columns),
    "channel_high",
    "channel_low",
    "volume_ratio",
)
"""The columns of numbers, in their order."""

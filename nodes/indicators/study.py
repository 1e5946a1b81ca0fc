"""One symbol's bars studied: all columns of an analysis, from arrays of prices. For workers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nodes.indicators import signals, summary
from nodes.indicators.engines import compute
from nodes.indicators.standard import NUMBERS, STANDARD
from nodes.indicators.table import TABLE, Indicator
from nodes.indicators.windows import Array, highest, lowest, padded, ratio, totals

Extra = tuple[str, Indicator, tuple[Any, ...]]
"""As it is called, what it is, its params."""


class Study:
    """``at``: datetime64[us] of each bar, oldest first; ``bars``: its open, high, low, close, volume, float64 without
    NaN; ``params``: those of the type ``analysis``, checked; ``engine``: talib or pandas.

    ``numbers``: NUMBERS by name, NaN where there is no value. ``flags``: signals by name.
    """

    def __init__(
        self,
        at: NDArray[Any],
        bars: Mapping[str, Array],
        params: Mapping[str, Any],
        engine: str,
        extras: Sequence[Extra] = (),
    ) -> None:
        self.at = at
        self.params = params
        self.engine = engine
        self._bars = bars
        self.numbers = self._numbers()
        self.flags = signals.flags(self.numbers, params)
        self.extra = {
            name: values
            for called, indicator, given in extras
            for name, values in zip(indicator.names(called), compute(indicator, bars, given, engine), strict=True)
        }

    def _numbers(self) -> dict[str, Array]:
        bars, params, size = self._bars, self.params, len(self.at)
        close, volume = bars["close"], bars["volume"]
        channel, before = params["channel_period"], params["volume_period"]
        found = {
            "close": close,
            "volume": volume,
            "change": compute(TABLE["roc"], bars, (1,), self.engine)[0],
            "channel_high": padded(highest(bars["high"][:-1], channel), size),
            "channel_low": padded(lowest(bars["low"][:-1], channel), size),
            "volume_ratio": padded(ratio(volume[before:], totals(volume[:-1], before) / before, np.nan), size),
        }
        for standard in STANDARD:
            values = [params[name] for name, _ in standard.params]
            outputs = compute(TABLE[standard.indicator], bars, values, self.engine)
            found.update(zip(standard.columns, outputs, strict=True))
        return {name: _finite(found[name]) for name in NUMBERS}

    @property
    def empty(self) -> bool:
        """Whether the last bar has no value that takes more than the bar before it."""
        soon = ("close", "volume", "change", "obv", "channel_high", "channel_low", "volume_ratio")
        return all(math.isnan(values[-1]) for name, values in self.numbers.items() if name not in soon)

    def chosen(self, first: int, rows: str) -> NDArray[np.int64]:
        """Numbers of the bars from ``first`` on that ``rows`` wants: all, signals or latest; the last is always one."""
        last = len(self.at) - 1
        if rows == "latest":
            return np.array([last])
        if rows == "all":
            return np.arange(first, last + 1)
        wanted = np.logical_or.reduce([flag[first:] for flag in self.flags.values()])
        wanted[-1] = True
        return first + np.flatnonzero(wanted)

    def signals(self, bars: NDArray[np.int64]) -> list[str | None]:
        """The column ``signals`` of these bars: a JSON list, None where there are none."""
        told = signals.by_bar({name: flag[bars] for name, flag in self.flags.items()})
        texts = {names: json.dumps(names) if names else None for names in set(told)}
        return [texts[names] for names in told]

    def extras(self, bars: NDArray[np.int64]) -> list[str | None]:
        """The column ``extra``: a JSON object of what was asked for beyond the standard."""
        if not self.extra:
            return [None] * len(bars)
        columns = [_texts(name, values[bars]) for name, values in self.extra.items()]
        return [f"{{{', '.join(cells)}}}" for cells in zip(*columns, strict=True)]

    def summary(self) -> str:
        """Of the last bar, as JSON."""
        period = self.params["volume_period"]
        row = {name: float(values[-1]) for name, values in self.numbers.items()}
        obv = self.numbers["obv"]
        row["obv_mean"] = float(obv[-period:].mean()) if len(obv) >= period else math.nan
        recent = slice(max(len(self.at) - self.params["range_bars"], 0), None)
        high, low = float(self._bars["high"][recent].max()), float(self._bars["low"][recent].min())
        told = {
            "close": row["close"],
            "change": row["change"],
            **summary.of_row(row, self.params),
            "high": high,
            "low": low,
            "position": 100 * (row["close"] - low) / (high - low) if high > low else math.nan,
            "volatility": 100 * row["atr"] / row["close"] if row["close"] else math.nan,
            "signals": self._latest(recent),
            "bars": len(self.at),
            "since": _time(self.at[0]),
            "engine": self.engine,
        }
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in told.items()
        }
        return json.dumps(plain, allow_nan=False)

    def _latest(self, recent: slice) -> dict[str, str]:
        """When each signal was last, within ``recent``, the newest first."""
        latest = {name: hits[-1] for name, flag in self.flags.items() if len(hits := np.flatnonzero(flag[recent]))}
        newest_first = sorted(latest, key=lambda name: -latest[name])
        return {name: _time(self.at[recent][latest[name]]) for name in newest_first}


def _finite(values: Array) -> Array:
    """Prices near the end of what a float can hold make infinite sums; those are no values."""
    infinite = np.isinf(values)
    return np.where(infinite, np.nan, values) if infinite.any() else values


def _texts(name: str, values: Array) -> list[str]:
    key = json.dumps(name)
    return [f"{key}: {value!r}" if math.isfinite(value) else f"{key}: null" for value in values.tolist()]


def _time(at: Any) -> str:
    return str(np.datetime_as_string(at, "s")).removesuffix("T00:00:00")

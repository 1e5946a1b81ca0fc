"""Signals: what happened on a bar, seen from that bar and the ones before it. For workers.

A line crosses another where it was below it and is above it now; while both are equal, it stays where it was. Equal is
what differs by no more than rounding, so that both engines see the same signals, and flat prices none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nodes.indicators.windows import Array

Flags = NDArray[np.bool_]

OF_PRICE = 1e-9
"""Share of the close below which a difference of prices is none."""
OF_SCALE = 1e-7
"""The same for oscillators, whose scale is some 100."""

MEANINGS: Mapping[str, str] = {
    "sma_golden_cross": "sma_fast rose above sma_slow",
    "sma_death_cross": "sma_fast fell below sma_slow",
    "ema_cross_up": "ema_fast rose above ema_slow",
    "ema_cross_down": "ema_fast fell below ema_slow",
    "macd_cross_up": "macd rose above macd_signal",
    "macd_cross_down": "macd fell below macd_signal",
    "kdj_cross_up": "kdj_k rose above kdj_d",
    "kdj_cross_down": "kdj_k fell below kdj_d",
    "di_cross_up": "plus_di rose above minus_di",
    "di_cross_down": "plus_di fell below minus_di",
    "rsi_overbought": "rsi rose above rsi_high",
    "rsi_overbought_left": "rsi fell below rsi_high",
    "rsi_oversold": "rsi fell below rsi_low",
    "rsi_oversold_left": "rsi rose above rsi_low",
    "boll_break_up": "the close rose above boll_upper",
    "boll_break_down": "the close fell below boll_lower",
    "channel_break_up": "the close rose above channel_high, the highest high of the channel_period bars before",
    "channel_break_down": "the close fell below channel_low, the lowest low of the channel_period bars before",
    "volume_spike": "volume_ratio is above volume_spike",
}


def flags(columns: Mapping[str, Array], limits: Mapping[str, Any]) -> dict[str, Flags]:
    """Each signal of MEANINGS, in that order: on which bars it is. ``limits``: the params rsi_high, rsi_low and
    volume_spike."""
    close = columns["close"]
    price = OF_PRICE * np.abs(close)
    found: dict[str, Flags] = {}

    def cross(up: str, down: str, above: Array, below: Array | float, tolerance: Array | float) -> None:
        risen, fallen = _turns(above - below, tolerance)
        found.update({name: flag for name, flag in ((up, risen), (down, fallen)) if name})

    cross("sma_golden_cross", "sma_death_cross", columns["sma_fast"], columns["sma_slow"], price)
    cross("ema_cross_up", "ema_cross_down", columns["ema_fast"], columns["ema_slow"], price)
    cross("macd_cross_up", "macd_cross_down", columns["macd"], columns["macd_signal"], price)
    cross("kdj_cross_up", "kdj_cross_down", columns["kdj_k"], columns["kdj_d"], OF_SCALE)
    cross("di_cross_up", "di_cross_down", columns["plus_di"], columns["minus_di"], OF_SCALE)
    cross("rsi_overbought", "rsi_overbought_left", columns["rsi"], limits["rsi_high"], OF_SCALE)
    cross("rsi_oversold_left", "rsi_oversold", columns["rsi"], limits["rsi_low"], OF_SCALE)
    cross("boll_break_up", "", close, columns["boll_upper"], price)
    cross("", "boll_break_down", close, columns["boll_lower"], price)
    cross("channel_break_up", "", close, columns["channel_high"], price)
    cross("", "channel_break_down", close, columns["channel_low"], price)
    found["volume_spike"] = columns["volume_ratio"] > limits["volume_spike"]
    return {name: found[name] for name in MEANINGS}


def _turns(difference: Array, tolerance: Array | float) -> tuple[Flags, Flags]:
    """Where ``difference`` became positive, having been negative, and the other way round; NaN is neither."""
    side = np.sign(difference)
    side[~(np.abs(difference) > tolerance)] = 0.0
    last = np.maximum.accumulate(np.where(side != 0, np.arange(len(side)), 0))
    side = side[last]
    step = np.zeros(len(side))
    step[1:] = side[1:] - side[:-1]
    return step == 2.0, step == -2.0


def by_bar(found: Mapping[str, Flags]) -> list[tuple[str, ...]]:
    """The names of the signals on each bar."""
    names = list(found)
    # A bit for each signal: there are few different bars among thousands.
    codes = np.bitwise_or.reduce([flag.astype(np.int64) << place for place, flag in enumerate(found.values())])
    distinct, which = np.unique(codes, return_inverse=True)
    told = [tuple(name for place, name in enumerate(names) if code >> place & 1) for code in distinct.tolist()]
    return [told[at] for at in which.tolist()]

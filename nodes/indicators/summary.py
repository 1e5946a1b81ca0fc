"""A symbol in a few words and one number, as its last bar has it: readings of the indicators, and what they add up to.

The score is the mean of all votes, -100 to 100: an average above another, a rising line, votes 1 (-1 below, falling);
an oscillator votes against where prices are: 1 when over-sold, -1 when over-bought, otherwise 0. All votes weigh the
same, and what has no value yet has none. It is a way to sort symbols, and no forecast. For workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from nodes.indicators.signals import OF_PRICE, OF_SCALE

Row = Mapping[str, float]
Vote = tuple[str, str, int]
"""Name, reading, vote."""


def of_row(row: Row, params: Mapping[str, Any]) -> dict[str, Any]:
    """``row``: the numeric columns of one bar, NaN where there is no value, and ``obv_mean``, OBV's mean of
    volume_period bars."""
    votes = list(_votes(row, params))
    return {
        "trend": _trend(row),
        "score": round(100 * sum(vote for _, _, vote in votes) / len(votes)) if votes else None,
        "readings": {name: reading for name, reading, _ in votes},
        "votes": {name: vote for name, _, vote in votes},
    }


def _votes(row: Row, params: Mapping[str, Any]) -> Iterator[Vote]:
    yield from _sides("price", row["close"] - row["sma_slow"], _rounding(row), "above", "below")
    yield from _sides("sma", row["sma_fast"] - row["sma_slow"], _rounding(row), "above", "below")
    yield from _sides("ema", row["ema_fast"] - row["ema_slow"], _rounding(row), "above", "below")
    yield from _sides("macd", row["macd_hist"], _rounding(row), "above", "below")
    yield from _sides("roc", row["roc"], OF_SCALE, "rising", "falling")
    yield from _sides("obv", row["obv"] - row["obv_mean"], OF_PRICE * abs(row["obv"]), "rising", "falling")
    if row["adx"] < params["adx_trend"]:
        yield "adx", "no trend", 0
    elif not math.isnan(row["adx"]):
        yield from _sides("adx", row["plus_di"] - row["minus_di"], OF_SCALE, "up", "down")
    yield from _zones("rsi", row["rsi"], params["rsi_low"], params["rsi_high"])
    yield from _zones("kdj", row["kdj_k"], params["kdj_low"], params["kdj_high"])
    yield from _zones("cci", row["cci"], params["cci_low"], params["cci_high"])
    yield from _zones("williams_r", row["williams_r"], params["williams_low"], params["williams_high"])
    yield from _zones("mfi", row["mfi"], params["mfi_low"], params["mfi_high"])
    yield from _zones("boll", row["close"], row["boll_lower"], row["boll_upper"], _rounding(row))


def _rounding(row: Row) -> float:
    return OF_PRICE * abs(row["close"])


def _sides(name: str, value: float, tolerance: float, above: str, below: str) -> Iterator[Vote]:
    if not math.isnan(value):
        vote = 0 if abs(value) <= tolerance else 1 if value > 0 else -1
        yield name, (below, "level", above)[vote + 1], vote


def _zones(name: str, value: float, low: float, high: float, tolerance: float = OF_SCALE) -> Iterator[Vote]:
    if not math.isnan(value + low + high):
        vote = -1 if value > high + tolerance else 1 if value < low - tolerance else 0
        yield name, ("over-bought", "neutral", "over-sold")[vote + 1], vote


def _trend(row: Row) -> str | None:
    """up: the close above sma_slow, and sma_fast too; down: both below it; None before sma_slow has a value."""
    price, average = row["close"] - row["sma_slow"], row["sma_fast"] - row["sma_slow"]
    if math.isnan(price + average):
        return None
    least = min(abs(price), abs(average))
    if least <= _rounding(row) or (price > 0) != (average > 0):
        return "sideways"
    return "up" if price > 0 else "down"

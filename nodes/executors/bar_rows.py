"""Rows that claim to be bars: what cannot be one is kept out, repetitions come once. Imports numpy: for workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nodes.executors.base import ItemFailed

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PRICES = ("open", "high", "low", "close")


def valid(symbol: str, bars: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``bars`` that can be bars; the others are counted and named in the log.

    Comparisons are exact: a bar is wrong by a rounding error only if its source says so.
    Raises ItemFailed where none is left.
    """
    kinds = {"datetime": "datetime64[us]"} | dict.fromkeys((*PRICES, "volume"), "float64")
    # A conversion that has nothing to convert takes as long as everything below.
    others = {name: kind for name, kind in kinds.items() if bars[name].dtype != kind}
    bars = bars.astype(others) if others else bars
    dates = bars["datetime"].to_numpy()
    first, last = np.datetime64("0001-01-01"), np.datetime64("9999-12-31T23:59:59.999999")
    opening, high, low, close = (bars[name].to_numpy() for name in PRICES)
    volume = bars["volume"].to_numpy()
    faults: dict[str, NDArray[Any]] = {
        "no date": np.isnat(dates),
        "a year outside 1 to 9999": (dates < first) | (dates > last),
        "a price that is missing or not finite": ~np.logical_and.reduce(np.isfinite([opening, high, low, close])),
        "high below low": high < low,
        "open outside low to high": (opening < low) | (opening > high),
        "close outside low to high": (close < low) | (close > high),
        "a volume that is missing or not finite": ~np.isfinite(volume),
        "negative volume": volume < 0,
    }
    good = np.ones(len(bars), dtype=bool)
    reasons = []
    for fault, rows in faults.items():
        hit = rows & good  # each row is counted once, under its first fault
        good &= ~rows
        if hit.any():
            reasons.append(f"{hit.sum()} with {fault}{_some(dates[hit], ': ')}")
    if not good.any():
        raise ItemFailed(f"{symbol}: none of {len(bars)} rows is a bar: {'; '.join(reasons)}")
    for reason in reasons:
        print(f"{symbol}: kept out {reason}")
    return bars[good]


def ordered(symbol: str, bars: pd.DataFrame) -> pd.DataFrame:
    """``bars`` oldest first, one for each datetime: the last of those with the same."""
    repeated = bars["datetime"].duplicated(keep="last").to_numpy()
    if repeated.any():
        print(
            f"{symbol}: {repeated.sum()} rows replaced by a later one with the same datetime: "
            f"{_some(bars['datetime'].to_numpy()[repeated])}"
        )
        bars = bars[~repeated]
    return bars if bars["datetime"].is_monotonic_increasing else bars.sort_values("datetime")


def _some(dates: NDArray[Any], lead: str = "") -> str:
    """The first three of ``dates``, without a midnight's zeros; nothing where they are no dates."""
    dates = dates[~np.isnat(dates)]
    if not len(dates):
        return ""
    texts = (str(text).removesuffix("T00:00:00").replace("T", " ") for text in np.datetime_as_string(dates[:3], "s"))
    return f"{lead}{', '.join(texts)}{', …' if len(dates) > 3 else ''}"

"""Shorter bars made longer, for sources that have no others: days to weeks and months, minutes to more minutes.

Imports pandas: for worker processes.
"""

from __future__ import annotations

import datetime as dt

import pandas as pd

from nodes.executors.bar_rows import ordered, valid

HOW = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
# Continuous trading of the Chinese exchanges, in minutes of the day.
MORNING_OPEN, MORNING_END, AFTERNOON_OPEN = 9 * 60 + 30, 11 * 60 + 30, 13 * 60


def of_days(symbol: str, bars: pd.DataFrame, freq: str) -> pd.DataFrame:
    """Daily ``bars`` as those of ``freq``, W or M, dated by the Monday or the first of the month.

    So an unfinished week has the date that it will keep, and is replaced when it is imported again.
    Raises ItemFailed where no row is a bar.
    """
    bars = ordered(symbol, valid(symbol, bars)) if len(bars) else bars
    days = bars["datetime"].dt.normalize()
    if freq == "W":
        begins = days - pd.to_timedelta(days.dt.day_of_week, unit="D")
    else:
        begins = days - pd.to_timedelta(days.dt.day - 1, unit="D")
    return _grouped(bars, begins)


def of_minutes(symbol: str, bars: pd.DataFrame, minutes: int) -> pd.DataFrame:
    """Bars of minutes that are named by their end, in Chinese trading hours, as those of ``minutes``, named alike.

    Each session is cut from its own beginning: an hour ends at 10:30, 11:30, 14:00 and 15:00.
    Raises ItemFailed where no row is a bar.
    """
    bars = ordered(symbol, valid(symbol, bars)) if len(bars) else bars
    days = bars["datetime"].dt.normalize()
    ends = bars["datetime"].dt.hour * 60 + bars["datetime"].dt.minute
    # Some versions of the terminal call the morning's last bar 13:00.
    in_morning = ends <= AFTERNOON_OPEN
    opens = in_morning.map({True: MORNING_OPEN, False: AFTERNOON_OPEN})
    since = (ends.where(~in_morning, ends.clip(upper=MORNING_END)) - opens).clip(lower=1)
    grouped = opens + (since + minutes - 1) // minutes * minutes
    return _grouped(bars, days + pd.to_timedelta(grouped, unit="min"))


def asked(freq: str, start: dt.date | None, end: dt.date | None) -> tuple[dt.date | None, dt.date | None]:
    """First and last day of what bars of ``freq`` that begin in [start, end] are made of."""
    if end is None or freq not in ("W", "M"):
        return start, end
    if freq == "W":
        return start, end + dt.timedelta(days=min(6 - end.weekday(), (dt.date.max - end).days))
    begins_next = dt.date(end.year + end.month // 12, end.month % 12 + 1, 1) if end < dt.date(9999, 12, 1) else None
    return start, dt.date.max if begins_next is None else begins_next - dt.timedelta(days=1)


def _grouped(bars: pd.DataFrame, by: pd.Series[pd.Timestamp]) -> pd.DataFrame:
    grouped = bars.assign(datetime=by.astype("datetime64[us]")).groupby("datetime", sort=True)
    return grouped.agg(HOW).reset_index()

"""Cron expressions: what is one, and when it fires. Pure: the time is given, nothing is read.

Five fields: minute, hour, day of month, month, day of week (0 to 7, 0 and 7 are Sunday). Each is ``*``, a number or a
name, a range ``a-b``, any of these with a step ``/n``, or several with commas. Where both days are given, either may
match; where one of them starts with ``*``, both must, as in Debian's cron.

When clocks change: a schedule that names hours follows the wall clock. What falls into the skipped hour fires at its
end, once; what falls into the repeated hour fires the first time. A schedule of every hour follows elapsed time:
it fires in each hour that really passes.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from nodes.executors.base import shown
from nodes.protocol import FieldError

LENGTH = 100
ALLOWED = (
    "five fields are allowed: minute hour day-of-month month day-of-week, each of *, numbers, names (jan, mon), "
    "ranges a-b, lists a,b and steps */n"
)
NAMES = ("minute", "hour", "day-of-month", "month", "day-of-week")
BOUNDS = ("0-59", "0-23", "1-31", "1-12 or jan-dec", "0-7 or sun-sat")

_VALUE = r"(?:\d{1,2}|[A-Za-z]{3})"
_TERM = rf"(?:\*|{_VALUE}(?:-{_VALUE})?)(?:/\d{{1,2}})?"
_FIELD = re.compile(rf"{_TERM}(?:,{_TERM})*")
_ALL_HOURS = frozenset(range(24))


def check(cron: Any, field: str = "cron") -> str:
    """``cron`` with single spaces between its fields. Raises FieldError, also for one that never fires."""
    if not isinstance(cron, str):
        raise FieldError(field, f"{shown(cron)} is not a text; {ALLOWED}")
    if len(cron) > LENGTH:
        raise FieldError(field, f"has {len(cron)} characters; at most {LENGTH} are allowed")
    parts = cron.split()
    if len(parts) != 5:
        raise FieldError(field, f"{shown(cron)} has {len(parts)} fields; {ALLOWED}")
    for part, name, bounds in zip(parts, NAMES, BOUNDS, strict=True):
        if not part.isascii() or not _FIELD.fullmatch(part):
            raise FieldError(field, f"{shown(cron)}: {shown(part)} is no {name}; {ALLOWED}")
        try:
            # Beside stars only this field can be wrong.
            CronSim(" ".join(part if each == name else "*" for each in NAMES), dt.datetime(2024, 1, 1))
        except CronSimError:
            raise FieldError(
                field, f"{shown(cron)}: {shown(part)} is no {name}; from {bounds}, the smaller first, is allowed"
            ) from None
    made = " ".join(parts)
    try:
        next(iter(CronSim(made, dt.datetime(2024, 1, 1))))
    except (CronSimError, StopIteration):
        raise FieldError(field, f"{shown(cron)} never fires: no such month has such a day") from None
    return made


def zone(name: Any, default: str = "UTC", field: str = "time_zone") -> ZoneInfo:
    """The time zone called ``name`` in the IANA database, or ``default`` where it is empty. Raises FieldError."""
    if not isinstance(name, str):
        raise FieldError(field, f"{shown(name)} is not a text")
    try:
        return ZoneInfo(name or default)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder's name, or one that leaves the folder
        raise FieldError(field, f"{shown(name)} is not a time zone, like 'UTC' or 'Europe/Berlin'") from None


def next_fires(cron: str, zone: ZoneInfo, after: dt.datetime, n: int) -> list[dt.datetime]:
    """The first ``n`` fire times (UTC) later than ``after``, in order; fewer only at the end of the calendar."""
    found: list[dt.datetime] = []
    for at in _fires(cron, zone, after):
        if len(found) == n:
            break
        found.append(at)
    return found


def last_fires(
    cron: str, zone: ZoneInfo, first: dt.datetime, until: dt.datetime, most: int
) -> tuple[list[dt.datetime], bool]:
    """The newest ``most`` of the fire times in [first, until], in order, and whether there were more.

    Looks back in growing steps: years of minutes are not gone through for the last few of them.
    """
    before = first - dt.timedelta(seconds=1)
    back = dt.timedelta(hours=1)
    while True:
        start = max(before, until - back)
        found: list[dt.datetime] = []
        for at in _fires(cron, zone, start):
            if at > until:
                break
            found.append(at)
        if start == before or len(found) > most:
            return found[-most:], len(found) > most
        back = min(back * 24, until - before)


def _fires(cron: str, zone: ZoneInfo, after: dt.datetime) -> Iterator[dt.datetime]:
    last = after.astimezone(dt.UTC)
    simulated = CronSim(_by_clock(cron), after.astimezone(zone))
    while True:
        try:
            at = next(simulated).astimezone(dt.UTC)
        except (StopIteration, OverflowError, ValueError):
            return  # the calendar ends in the year 9999
        # From the middle of the repeated hour, the simulation also tells what fired in the first one.
        if at > last:
            last = at
            yield at


def _by_clock(cron: str) -> str:
    """``cron`` so that CronSim treats all of its hours and minutes alike: it looks for a leading star only."""
    minute, hour, *days = cron.split()
    hours = CronSim(f"0 {hour} * * *", dt.datetime(2024, 1, 1)).hours
    if hours == _ALL_HOURS:
        return " ".join((minute, "*", *days))
    return " ".join((_spelled(minute, "0-59"), _spelled(hour, "0-23"), *days))


def _spelled(field: str, all_of_it: str) -> str:
    return ",".join(term.replace("*", all_of_it, 1) if term.startswith("*") else term for term in field.split(","))

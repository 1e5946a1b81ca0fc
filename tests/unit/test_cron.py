"""Cron expressions: what is one, and when it fires; across every change of the clocks."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch import cron
from nodes.protocol import FieldError

BERLIN, NEW_YORK, UTC = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("UTC")


def fires(expression: str, zone: ZoneInfo, after: str, n: int = 3) -> list[str]:
    """Local times with their offsets."""
    found = cron.next_fires(expression, zone, dt.datetime.fromisoformat(after).replace(tzinfo=zone), n)
    return [at.astimezone(zone).isoformat(timespec="minutes") for at in found]


# What is an expression


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * *",
        "*/15 9-17 * * 1-5",
        "0 0 1,15 jan-jun sun",
        "5/10 * * * *",
        "0 0 29 2 *",
        "0 0 31 * 7",
        "0 0 30 2 1",
    ],
)
def test_five_fields_with_names_ranges_lists_and_steps(expression: str) -> None:
    assert cron.check(f"  {expression.replace(' ', '   ')} ") == expression


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("0 * * * * *", "6 fields"),
        ("@daily", "1 fields"),
        ("60 * * * *", "'60' is no minute; from 0-59"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day-of-month"),
        ("* * * 13 *", "'13' is no month"),
        ("* * * * 8", "'8' is no day-of-week"),
        ("* * * foo *", "'foo' is no month"),
        ("*/0 * * * *", "'*/0' is no minute"),
        ("30-10 * * * *", "'30-10' is no minute"),
        ("* * L * *", "'L' is no day-of-month"),
        ("* * * * 1#2", "'1#2' is no day-of-week"),
        ("１ * * * *", "is no minute"),
        (", * * * *", "is no minute"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        (None, "is not a text"),
        (["*"] * 5, "is not a text"),
        ("* " * 60, "at most 100"),
    ],
)
def test_anything_else_is_refused_with_its_value_and_what_is_allowed(expression: object, said: str) -> None:
    with pytest.raises(FieldError) as refused:
        cron.check(expression)
    assert refused.value.field == "cron"
    assert said in refused.value.message
    assert "allowed" in refused.value.message or "never" in refused.value.message or "not a text" in said


@pytest.mark.parametrize("name", ["Europe", "Europe/Nowhere", "../etc/passwd", "/etc/passwd", "a\0b", 5, None])
def test_a_time_zone_nobody_knows_is_refused(name: object) -> None:
    with pytest.raises(FieldError, match="time_zone"):
        cron.zone(name)


def test_no_time_zone_is_the_servers() -> None:
    assert cron.zone("", "Asia/Tokyo") == ZoneInfo("Asia/Tokyo")
    assert cron.zone("Europe/Berlin", "Asia/Tokyo") == BERLIN


# When it fires


def test_leap_days_and_ends_of_months() -> None:
    assert fires("0 0 29 2 *", UTC, "2026-01-01T00:00", 2) == ["2028-02-29T00:00+00:00", "2032-02-29T00:00+00:00"]
    assert fires("0 12 31 * *", UTC, "2026-01-31T12:00", 3) == [
        "2026-03-31T12:00+00:00",
        "2026-05-31T12:00+00:00",
        "2026-07-31T12:00+00:00",
    ]
    # 2100 is no leap year.
    assert fires("0 0 29 2 *", UTC, "2096-03-01T00:00", 1) == ["2104-02-29T00:00+00:00"]


def test_a_fire_time_is_later_than_the_moment_asked_about() -> None:
    assert fires("30 6 * * *", BERLIN, "2026-11-21T06:30", 1) == ["2026-11-22T06:30+01:00"]
    assert fires("30 6 * * *", BERLIN, "2026-11-21T06:29:59.999999", 1) == ["2026-11-21T06:30+01:00"]


@pytest.mark.parametrize(
    ("zone", "spring", "winter", "summer"),
    [(BERLIN, "2026-03-29", "+01:00", "+02:00"), (NEW_YORK, "2026-03-08", "-05:00", "-04:00")],
)
def test_what_falls_into_the_skipped_hour_fires_at_its_end_once(
    zone: ZoneInfo, spring: str, winter: str, summer: str
) -> None:
    day = f"{spring}T"
    after = dt.date.fromisoformat(spring) + dt.timedelta(days=1)
    assert fires("30 2 * * *", zone, f"{day}00:00", 2) == [f"{day}03:00{summer}", f"{after}T02:30{summer}"]
    assert fires("*/20 2 * * *", zone, f"{day}00:00", 2) == [f"{day}03:00{summer}", f"{after}T02:00{summer}"]
    assert fires("0 2,3 * * *", zone, f"{day}00:00", 2) == [f"{day}03:00{summer}", f"{after}T02:00{summer}"]
    # Every hour is every hour that passes.
    assert fires("30 * * * *", zone, f"{day}00:45", 2) == [f"{day}01:30{winter}", f"{day}03:30{summer}"]


@pytest.mark.parametrize(
    ("zone", "autumn", "hour", "summer", "winter"),
    [(BERLIN, "2026-10-25", "02", "+02:00", "+01:00"), (NEW_YORK, "2026-11-01", "01", "-04:00", "-05:00")],
)
def test_what_falls_into_the_repeated_hour_fires_once_and_every_hour_fires_in_both(
    zone: ZoneInfo, autumn: str, hour: str, summer: str, winter: str
) -> None:
    day, number = f"{autumn}T", int(hour)
    after = dt.date.fromisoformat(autumn) + dt.timedelta(days=1)
    assert fires(f"30 {number} * * *", zone, f"{day}00:00", 2) == [
        f"{day}{hour}:30{summer}",
        f"{after}T{hour}:30{winter}",
    ]
    assert fires(f"*/30 {number} * * *", zone, f"{day}00:00", 3) == [
        f"{day}{hour}:00{summer}",
        f"{day}{hour}:30{summer}",
        f"{after}T{hour}:00{winter}",
    ]
    assert fires("15 * * * *", zone, f"{day}{hour}:00", 2) == [f"{day}{hour}:15{summer}", f"{day}{hour}:15{winter}"]


def test_asked_from_within_the_repeated_hour_nothing_fires_again() -> None:
    second = dt.datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1)
    (at,) = cron.next_fires("30 2 * * *", BERLIN, second, 1)
    assert at.astimezone(BERLIN).isoformat() == "2026-10-26T02:30:00+01:00"


# The definition, gone through minute by minute


def by_definition(expression: str, zone: ZoneInfo, start: dt.datetime, days: int) -> list[dt.datetime]:
    """Every minute is looked at; only for numbers, lists and steps."""
    sets = []
    for part, (low, high) in zip(expression.split(), [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)], strict=True):
        values: set[int] = set()
        for term in part.split(","):
            body, _, step = term.partition("/")
            values |= set(range(low, high + 1, int(step or 1))) if body == "*" else {int(body)}
        sets.append(values)
    minutes, hours, month_days, months, week_days = sets

    def matches(local: dt.datetime) -> bool:
        return (
            local.minute in minutes
            and local.hour in hours
            and local.day in month_days
            and local.month in months
            and local.isoweekday() % 7 in week_days
        )

    every_hour = len(hours) == 24
    found: set[dt.datetime] = set()
    for number in range(-24 * 60, days * 24 * 60):
        at = start + dt.timedelta(minutes=number)
        if every_hour:
            if matches(at.astimezone(zone)):
                found.add(at)
            continue
        wall = (start + dt.timedelta(minutes=number)).replace(tzinfo=None)
        if matches(wall):
            while (real := wall.replace(tzinfo=zone).astimezone(dt.UTC)).astimezone(zone).replace(tzinfo=None) != wall:
                wall += dt.timedelta(minutes=1)  # to the end of what is skipped
            found.add(real)
    return sorted(at for at in found if start < at)


@given(
    minute=st.sampled_from(["*", "0", "30", "59", "*/7", "*/20", "0,15,45"]),
    hour=st.sampled_from(["*", "*/1", "0", "1", "2", "3", "*/2", "*/3", "1,2,3", "0,23"]),
    days=st.sampled_from(["* * *", "* * 0", "* 3,10,11 *", "8,25,29 * *"]),
    change=st.sampled_from(
        [(BERLIN, (2026, 3, 28)), (BERLIN, (2026, 10, 24)), (NEW_YORK, (2026, 3, 7)), (NEW_YORK, (2026, 10, 31))]
    ),
    offset=st.integers(0, 48 * 60),
)
def test_no_fire_time_is_lost_or_comes_twice(
    minute: str, hour: str, days: str, change: tuple[ZoneInfo, tuple[int, int, int]], offset: int
) -> None:
    zone, date = change
    expression = f"{minute} {hour} {days}"
    start = dt.datetime(*date, tzinfo=dt.UTC) + dt.timedelta(minutes=offset)
    expected = [at for at in by_definition(expression, zone, start, 4) if at < start + dt.timedelta(days=3)]
    found = cron.next_fires(expression, zone, start, len(expected) + 1)
    assert found[: len(expected)] == expected
    assert found[len(expected) :] == [] or found[-1] >= start + dt.timedelta(days=3)
    # One after the other, as a dispatcher asks, brings the same.
    at, one_by_one = start, []
    for _ in expected[:20]:
        (at,) = cron.next_fires(expression, zone, at, 1)
        one_by_one.append(at)
    assert one_by_one == expected[:20]


# What was missed


def test_the_newest_of_years_of_minutes_are_found_without_going_through_them() -> None:
    first, until = dt.datetime(1990, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    found, more = cron.last_fires("* * * * *", BERLIN, first, until, 3)
    assert found == [until - dt.timedelta(minutes=back) for back in (2, 1, 0)]
    assert more


def test_both_ends_of_what_was_missed_count() -> None:
    first, until = dt.datetime(2026, 1, 1, 6, tzinfo=dt.UTC), dt.datetime(2026, 1, 4, 6, tzinfo=dt.UTC)
    found, more = cron.last_fires("0 6 * * *", UTC, first, until, 10)
    assert [at.day for at in found] == [1, 2, 3, 4]
    assert not more
    assert cron.last_fires("0 6 * * *", UTC, first, until, 4) == (found, False)
    assert cron.last_fires("0 6 * * *", UTC, first, until, 2) == (found[2:], True)

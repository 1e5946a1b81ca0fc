"""Arithmetic on ranges of items [start, stop): cutting a run, and checking what a report says it covers. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Range = tuple[int, int]


EXCHANGE_SECONDS = 0.02
"""A few exchanges between parent and child; a shard that runs shorter is mostly travel."""
MOST_ITEMS = 5000
"""Items of one shard at most, so that an offer stays below a WebSocket message's limit."""


def size_for(
    remaining: int,
    slots: float,
    *,
    fixed: int,
    seconds_per_item: float | None,
    target_seconds: float,
    fair_parts: int = 2,
    exchange_seconds: float = EXCHANGE_SECONDS,
) -> int:
    """How many items the next shard gets, of ``remaining`` that ``slots`` as fast as its own share.

    ``fixed`` > 0 decides alone. Otherwise target_seconds worth of items by the measured speed (one item as a probe
    while it is unknown), but never more than one of ``fair_parts`` of a fair part of what is left, so that the tail is
    fine-grained (guided self-scheduling: Polychronopoulos and Kuck, 1987), nor less than is worth an exchange.
    """
    if fixed:
        return min(fixed, remaining)
    if seconds_per_item is None:
        return min(1, remaining)
    wanted = int(target_seconds / max(seconds_per_item, 1e-7))
    guided = math.ceil(remaining / (fair_parts * max(slots, 1)))
    worthwhile = int(exchange_seconds / max(seconds_per_item, 1e-7))
    return max(1, min(wanted, max(guided, worthwhile), remaining, MOST_ITEMS))


def covers(start: int, stop: int, done: Sequence[Range], failed: Sequence[int]) -> bool:
    """Whether ``done`` ranges and ``failed`` indexes, each ascending, name every item of [start, stop) exactly once."""
    if not failed and len(done) == 1:
        return done[0] == (start, stop)
    if list(done) != sorted(done) or list(failed) != sorted(failed):
        return False
    at = start
    for first, last in sorted([*done, *((index, index + 1) for index in failed)]):
        if first != at or last <= first:
            return False
        at = last
    return at == stop


def halves(start: int, stop: int) -> tuple[Range, Range]:
    """[start, stop) cut in the middle; needs at least two items."""
    middle = (start + stop) // 2
    return (start, middle), (middle, stop)


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same items as the fewest ranges, ascending."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def grouped(indexes: Sequence[int]) -> list[Range]:
    """Ascending indexes as the fewest ranges."""
    found: list[Range] = []
    for index in indexes:
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return found

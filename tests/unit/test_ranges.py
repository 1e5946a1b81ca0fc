"""Ranges: what a report covers against a model that counts item by item, and the sizes of shards."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.ranges import EXCHANGE_SECONDS, MOST_ITEMS, covers, grouped, halves, size_for

SMALL = st.integers(0, 7)
ANY_RANGES = st.lists(st.tuples(SMALL, SMALL), max_size=4)
ANY_INDEXES = st.lists(st.integers(0, 8), max_size=4)


def named_once_in_order(start: int, stop: int, done: list[tuple[int, int]], failed: list[int]) -> bool:
    """Item by item: each list goes upwards, and both together name each item of [start, stop) once, and no other."""
    if any(first >= last for first, last in done):
        return False
    items = [item for first, last in done for item in range(first, last)]
    in_order = items == sorted(items) and failed == sorted(failed)
    return in_order and sorted(items + failed) == list(range(start, stop))


@given(SMALL, st.integers(1, 5), ANY_RANGES, ANY_INDEXES)
def test_a_report_covers_its_shard_exactly_when_each_item_is_named_once(
    start: int, length: int, done: list[tuple[int, int]], failed: list[int]
) -> None:
    stop = start + length
    assert covers(start, stop, done, failed) == named_once_in_order(start, stop, done, failed)


@st.composite
def reports(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]], list[int]]:
    """A report as an honest child makes it."""
    start, length = draw(SMALL), draw(st.integers(1, 12))
    failed = draw(st.sets(st.integers(start, start + length - 1)))
    done = []
    for first, last in grouped([item for item in range(start, start + length) if item not in failed]):
        middle = draw(st.integers(first, last))
        done += [each for each in ((first, middle), (middle, last)) if each[0] < each[1]]
    return start, start + length, done, sorted(failed)


@given(reports())
def test_every_honest_report_covers_its_shard(report: tuple[int, int, list[tuple[int, int]], list[int]]) -> None:
    assert covers(*report)


@given(reports(), st.data())
def test_a_report_that_leaves_one_item_out_or_adds_one_does_not_cover(
    report: tuple[int, int, list[tuple[int, int]], list[int]], data: st.DataObject
) -> None:
    start, stop, done, failed = report
    assert not covers(start, stop + 1, done, failed)
    if start:
        assert not covers(start - 1, stop, done, failed)
    extra = data.draw(st.integers(0, stop + 3))
    assert not covers(start, stop, done, sorted([*failed, extra]))
    assert not covers(start, stop, sorted([*done, (extra, extra + 1)]), failed)
    if failed:
        assert not covers(start, stop, done, failed[1:])


@pytest.mark.parametrize(
    ("done", "failed"),
    [
        ([(0, 2)], [2]),
        ([(0, 2)], [2, 7]),
        ([(0, 2), (9, 10)], []),
        ([(0, 2), (2, 2)], []),
        ([(0, 3)], []),
        ([(0, 1), (0, 2)], []),
        ([(1, 2), (0, 1)], []),
        ([(0, 1)], [1, 1]),
        ([], [1, 0]),
        ([], []),
    ],
)
def test_a_report_about_other_items_is_refused_not_an_error(done: list[tuple[int, int]], failed: list[int]) -> None:
    assert covers(0, 2, done, failed) is False


SPEED = st.none() | st.floats(1e-9, 1e4)


@given(st.integers(1, 10**6), st.integers(0, 5000), st.integers(0, 10**6), SPEED, st.floats(0.01, 3600))
def test_a_shard_has_at_least_one_item_and_no_more_than_are_left(
    remaining: int, slots: int, fixed: int, seconds: float | None, target: float
) -> None:
    size = size_for(remaining, slots, fixed=fixed, seconds_per_item=seconds, target_seconds=target)
    assert 1 <= size <= remaining
    if fixed:
        assert size == min(fixed, remaining)


@given(st.integers(1, 10**6), st.integers(1, 500), st.floats(1e-9, 1e4), st.floats(0.01, 3600))
def test_an_automatic_shard_keeps_to_the_target_and_leaves_the_others_their_part(
    remaining: int, slots: int, seconds: float, target: float
) -> None:
    size = size_for(remaining, slots, fixed=0, seconds_per_item=seconds, target_seconds=target)
    assert size <= MOST_ITEMS
    assert size == 1 or size * seconds <= target * (1 + 1e-9)
    # Half of a fair part, rounded up, but for what would hardly be worth sending.
    assert size == 1 or (size - 1) * 2 * slots < remaining or size * seconds <= EXCHANGE_SECONDS * (1 + 1e-9)
    slower = size_for(remaining, slots, fixed=0, seconds_per_item=2 * seconds, target_seconds=target)
    assert slower <= size


def test_an_unmeasured_type_is_tried_with_one_item() -> None:
    assert size_for(5000, 8, fixed=0, seconds_per_item=None, target_seconds=1.0) == 1


def test_shards_grow_fine_towards_the_end_of_a_run() -> None:
    left, sizes = 1000, []
    while left:
        sizes.append(size_for(left, 4, fixed=0, seconds_per_item=0.005, target_seconds=1.0))
        left -= sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 125
    assert sizes[-1] * 0.005 <= EXCHANGE_SECONDS


def test_items_that_take_no_time_are_not_sent_one_by_one_at_the_end() -> None:
    assert size_for(1000, 4, fixed=0, seconds_per_item=1e-5, target_seconds=1.0) == 1000


@given(st.integers(0, 10**6), st.integers(2, 10**6))
def test_halves_are_two_parts_of_nearly_one_length(start: int, length: int) -> None:
    (first, middle), (again, last) = halves(start, start + length)
    assert (first, last, middle) == (start, start + length, again)
    assert abs((middle - first) - (last - middle)) <= 1


@given(st.sets(st.integers(0, 40)))
def test_grouped_indexes_are_the_fewest_ranges(indexes: set[int]) -> None:
    ranges = grouped(sorted(indexes))
    assert [item for first, last in ranges for item in range(first, last)] == sorted(indexes)
    assert all(one[1] < two[0] for one, two in pairwise(ranges))

"""What becomes of a shard whose attempt came to nothing: counted, cut in half, given up."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.attempts import (
    LONGEST_BACKOFF,
    LOSSES_PER_DEATH,
    Failure,
    Limits,
    Record,
    Verdict,
    after,
    backoff,
)
from dispatch.ranges import halves

LIMITS = Limits(max_attempts=3, backoff=1.0, worker_deaths=3)


class Story:
    """What a shard of ``items`` items goes through when item ``bad`` ends each attempt at it by ``failure``."""

    def __init__(self, items: int, bad: int, failure: Failure, limits: Limits) -> None:
        self.saved: list[int] = []
        self.ended: dict[int, Verdict] = {}
        self.failures = 0
        self.before_first_cut: int | None = None
        waiting = deque([(0, items, Record(items))])
        while waiting:
            start, stop, record = waiting.popleft()
            assert record.items == stop - start
            if not start <= bad < stop:
                self.saved += range(start, stop)
                continue
            self.failures += 1
            outcome = after(failure, record, limits)
            if outcome.verdict is Verdict.AGAIN:
                waiting.append((start, stop, outcome.record))
            elif outcome.verdict is Verdict.SPLIT:
                self.before_first_cut = self.before_first_cut or self.failures
                for first, last in halves(start, stop):
                    waiting.append((first, last, replace(outcome.record, items=last - first)))
            else:
                self.ended.update(dict.fromkeys(range(start, stop), outcome.verdict))


@st.composite
def shards(draw: st.DrawFn) -> tuple[int, int]:
    items = draw(st.integers(1, 300))
    return items, draw(st.integers(0, items - 1))


@given(shards(), st.integers(1, 10))
def test_a_poison_item_is_isolated_and_only_it_is_quarantined(shard: tuple[int, int], deaths: int) -> None:
    items, bad = shard
    story = Story(items, bad, Failure.CRASH, replace(LIMITS, worker_deaths=deaths))
    assert story.ended == {bad: Verdict.QUARANTINED}
    assert sorted(story.saved) == [item for item in range(items) if item != bad]
    assert story.before_first_cut in (deaths, None)
    # Each further cut costs one death more, and the bad item's own end one.
    assert story.failures <= deaths + (items - 1).bit_length()


@given(shards(), st.integers(1, 10))
def test_an_item_that_hangs_is_isolated_and_only_it_fails(shard: tuple[int, int], attempts: int) -> None:
    items, bad = shard
    story = Story(items, bad, Failure.TIMEOUT, replace(LIMITS, max_attempts=attempts))
    assert story.ended == {bad: Verdict.FAILED}
    assert sorted(story.saved) == [item for item in range(items) if item != bad]
    assert story.before_first_cut in (attempts, None)


@given(shards(), st.integers(1, 5))
def test_an_item_that_takes_its_whole_machine_down_is_found_too(shard: tuple[int, int], deaths: int) -> None:
    items, bad = shard
    story = Story(items, bad, Failure.LOST, replace(LIMITS, worker_deaths=deaths))
    assert story.ended == {bad: Verdict.QUARANTINED}
    assert story.before_first_cut in (deaths * LOSSES_PER_DEATH, None)


@given(st.integers(1, 300), st.integers(1, 20))
def test_an_executor_that_cannot_work_fails_the_shard_after_its_attempts(items: int, attempts: int) -> None:
    story = Story(items, 0, Failure.ERROR, replace(LIMITS, max_attempts=attempts))
    assert story.ended == dict.fromkeys(range(items), Verdict.FAILED)
    assert story.failures == attempts


def test_what_was_handed_back_counts_for_nothing() -> None:
    record = Record(5, attempts=2, deaths=2, losses=8)
    outcome = after(Failure.RETURNED, record, LIMITS)
    assert (outcome.verdict, outcome.record, outcome.delay) == (Verdict.AGAIN, record, 0.0)


def test_a_lost_lease_is_neither_a_death_nor_an_attempt() -> None:
    outcome = after(Failure.LOST, Record(5), LIMITS)
    assert outcome.record == Record(5, losses=1)
    assert (outcome.verdict, outcome.delay) == (Verdict.AGAIN, 0.0)


def test_a_dead_worker_is_no_attempt_and_costs_no_wait() -> None:
    outcome = after(Failure.CRASH, Record(5, attempts=2), LIMITS)
    assert outcome.record == Record(5, attempts=2, deaths=1)
    assert (outcome.verdict, outcome.delay) == (Verdict.AGAIN, 0.0)


@pytest.mark.parametrize("failure", [Failure.ERROR, Failure.TIMEOUT])
def test_failed_attempts_wait_longer_each_time(failure: Failure) -> None:
    record, delays = Record(1), []
    for _ in range(4):
        outcome = after(failure, record, replace(LIMITS, max_attempts=5, backoff=0.5))
        record = outcome.record
        delays.append(outcome.delay)
    assert delays == [0.5, 1.0, 2.0, 4.0]


@given(st.integers(1, 100), st.floats(0, 86_400))
def test_the_back_off_doubles_up_to_an_hour(attempts: int, seconds: float) -> None:
    limits = replace(LIMITS, backoff=seconds)
    now, later = backoff(limits, attempts), backoff(limits, attempts + 1)
    assert 0 <= now <= later <= LONGEST_BACKOFF
    assert later == min(2 * now, LONGEST_BACKOFF) or attempts > 30
    assert backoff(limits, 1) == min(seconds, LONGEST_BACKOFF)

"""Retry: opens exactly what failed, with all attempts anew, and touches nothing that is saved."""

from __future__ import annotations

import pytest

from dispatch import lifecycle
from dispatch.models import Run, Shard
from dispatch.states import RunState, ShardState
from nodes.protocol import Conflict, NotFound
from tests.integration.factory import (
    Child,
    assert_partition,
    at_once,
    child,
    done,
    failure,
    fresh,
    partly,
    save,
    saver,
    shards,
    state,
    stored,
    submit,
)

pytestmark = pytest.mark.django_db


def partial(a: Child) -> Run:
    """Six items: 1 failed, 4 quarantined, the others reported."""
    run = submit(6, shard_size=3)
    one, two = a.works()
    a.report(partly(one, 1), partly(two, 4, retry=True))
    while works := a.works():
        for work in works:
            a.report(failure(work, "crash", "boom"))
    return run


def test_exactly_what_failed_is_opened_again(folder: object) -> None:
    a = child(capacity=2)
    run = partial(a)
    with saver() as made:
        save(made)
        assert (state(run), fresh(run).failed, fresh(run).quarantined) == (RunState.PARTIAL, 1, 1)
        assert lifecycle.retry(run.pk) == 2
        again = fresh(run)
        assert (again.state, again.failed, again.quarantined, again.saved) == (RunState.RUNNING, 0, 0, 4)
        assert again.ended_at is None
        assert [each[:2] for each in shards(run) if each[2] == ShardState.PENDING] == [(1, 2), (4, 5)]
        assert_partition(run)
        works = a.works()
        assert [(work.start, work.attempt) for work in works] == [(1, 1), (4, 1)]
        a.report(*[done(work) for work in works])
        save(made)
        assert stored(made).items == {f"i{number}": 1 for number in range(6)}
    assert (state(run), fresh(run).saved) == (RunState.COMPLETED, 6)
    assert_partition(run)


def test_all_attempts_and_reasons_are_anew() -> None:
    a = child(capacity=1)
    run = submit(1, max_attempts=2)
    for _ in range(2):
        (work,) = a.works()
        a.report(failure(work, "error", "no"))
    assert state(run) == RunState.FAILED
    lifecycle.retry(run.pk)
    shard = Shard.objects.get()
    assert (shard.attempts, shard.deaths, shard.losses, shard.not_before, shard.error) == (0, 0, 0, None, "")
    (work,) = a.works()
    a.report(failure(work, "error", "no"))
    assert state(run) == RunState.RUNNING
    assert_partition(run)


def test_what_fails_again_ends_the_run_again_and_may_be_retried_again() -> None:
    a = child(capacity=2)
    run = submit(2, shard_size=2)
    for round_ in range(3):
        for work in a.works():
            a.report(partly(work, *range(work.start, work.stop)))
        assert (state(run), fresh(run).failed) == (RunState.FAILED, 2), round_
        assert_partition(run)
        assert lifecycle.retry(run.pk) == 2
        assert_partition(run)


def test_a_running_run_is_not_retried() -> None:
    a = child(capacity=1)
    run = submit(4, shard_size=2)
    (work,) = a.works()
    a.report(partly(work, 0))
    before = shards(run)
    with pytest.raises(Conflict, match="still running"):
        lifecycle.retry(run.pk)
    assert shards(run) == before
    assert_partition(run)


def test_a_completed_or_cancelled_run_has_nothing_to_retry(folder: object) -> None:
    a = child(capacity=2)
    completed = submit(1)
    (work,) = a.works()
    a.report(done(work))
    with saver() as made:
        save(made)
    cancelled = submit(4, shard_size=2)
    a.report(partly(a.works()[0], 0, 1))
    lifecycle.cancel(cancelled.pk)
    for run, end in ((completed, RunState.COMPLETED), (cancelled, RunState.CANCELLED)):
        with pytest.raises(Conflict, match=end):
            lifecycle.retry(run.pk)
        assert state(run) == end
        assert_partition(run)
    with pytest.raises(NotFound):
        lifecycle.retry(cancelled.pk + 1)


@pytest.mark.django_db(transaction=True)
def test_retries_that_race_open_the_run_once() -> None:
    a = child(capacity=1)
    run = submit(1)
    for _ in range(8):
        (work,) = a.works()
        a.report(partly(work, 0))
        opened = at_once(*[lambda: lifecycle.retry(run.pk)] * 4)
        assert sorted(map(str, opened))[0] == "1"
        assert sum(isinstance(each, Conflict) for each in opened) == 3
        assert_partition(run)


def failed(a: Child, count: int) -> Run:
    """A run whose items have all failed, each alone."""
    run = submit(count, shard_size=count)
    for work in a.works():
        a.report(partly(work, *range(count)))
    assert state(run) == RunState.FAILED
    return run


def test_only_what_was_chosen_is_opened_again() -> None:
    a = child(capacity=1)
    run = failed(a, 6)
    assert lifecycle.retry(run.pk, [(4, 6), (1, 2), (5, 6)]) == 3
    again = fresh(run)
    assert (again.state, again.failed, again.quarantined, again.ended_at) == (RunState.RUNNING, 3, 0, None)
    assert sorted(each[0] for each in shards(run) if each[2] == ShardState.PENDING) == [1, 4, 5]
    assert_partition(run)
    for number in (0, 3):
        lost = Shard.objects.get(run=run, start=number)
        assert (lost.state, lost.attempts > 0, bool(lost.error)) == (ShardState.FAILED, True, True)


def test_shards_are_tried_again_whole(folder: object) -> None:
    a = child(capacity=1)
    run = submit(4, shard_size=4, max_attempts=1)
    (work,) = a.works()
    a.report(failure(work, "error", "no"))
    whole = [each[:2] for each in shards(run) if each[2] == ShardState.FAILED]
    assert lifecycle.retry(run.pk, [(2, 3)]) == sum(stop - start for start, stop in whole if start <= 2 < stop)
    assert_partition(run)


@pytest.mark.parametrize("ranges", [[], [(0, 1)], [(1, 2)], [(3, 3)], [(7, 10**9)]])
def test_choosing_nothing_that_failed_opens_nothing(folder: object, ranges: list[tuple[int, int]]) -> None:
    a = child(capacity=1)
    run = submit(3, shard_size=3)
    (work,) = a.works()
    a.report(partly(work, 2))
    with saver() as made:
        save(made)
        before = shards(run)
        assert state(run) == RunState.PARTIAL
        with pytest.raises(Conflict, match="of the items that were asked for"):
            lifecycle.retry(run.pk, ranges)
    assert (shards(run), state(run), fresh(run).failed) == (before, RunState.PARTIAL, 1)


def test_two_thousand_chosen_ones_are_opened_at_once() -> None:
    a = child(capacity=1)
    run = failed(a, 2_000)
    assert lifecycle.retry(run.pk, [(index, index + 1) for index in range(0, 2_000, 2)]) == 1_000
    assert fresh(run).failed == 1_000
    assert_partition(run)

"""Cancel: stops what is not finished, keeps what was reported, and gives each item one end."""

from __future__ import annotations

from functools import partial

import pytest

from dispatch import lifecycle
from dispatch.models import Allocation
from dispatch.states import AllocationState, RunState, ShardState
from nodes.protocol import Conflict, NotFound
from tests.integration.factory import (
    assert_partition,
    at_once,
    child,
    dispatch,
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


def test_everything_that_is_not_reported_is_cancelled_wherever_it_stands() -> None:
    a = child(capacity=3)
    run = submit(6)
    one, two, _ = a.works()
    a.release(one.allocation)
    dispatch()
    assert lifecycle.cancel(run.pk).state == RunState.CANCELLED
    assert {each for *_, each in shards(run)} == {ShardState.CANCELLED}
    ended = fresh(run)
    assert (ended.cancelled, ended.cut) == (6, 6)
    assert ended.ended_at is not None
    assert a.live() == 0
    assert a.claim() == []
    assert a.beat(held=[two.allocation])["cancel"] == [two.allocation]
    assert_partition(run)


def test_a_run_of_which_nothing_was_given_out_ends_at_once() -> None:
    run = submit(5)
    assert lifecycle.cancel(run.pk).state == RunState.CANCELLED
    assert shards(run) == [(0, 5, ShardState.CANCELLED)]
    assert_partition(run)


def test_what_was_reported_before_is_saved_and_then_the_run_ends(folder: object) -> None:
    a = child(capacity=2)
    run = submit(4)
    one, two = a.works()
    a.report(done(one))
    assert lifecycle.cancel(run.pk).state == RunState.RUNNING
    assert a.statuses(done(two)) == [409]
    assert_partition(run)
    with saver() as made:
        save(made)
        assert stored(made).items == {"i0": 1}
    ended = fresh(run)
    assert (ended.state, ended.saved, ended.cancelled) == (RunState.CANCELLED, 1, 3)
    assert_partition(run)


def test_a_cancel_that_comes_when_all_is_reported_takes_nothing_away(folder: object) -> None:
    a = child(capacity=2)
    run = submit(2)
    a.report(*[done(work) for work in a.works()])
    lifecycle.cancel(run.pk)
    with saver() as made:
        save(made)
    assert (state(run), fresh(run).saved) == (RunState.COMPLETED, 2)
    assert_partition(run)


def test_what_failed_before_stays_failed() -> None:
    a = child(capacity=1)
    run = submit(6, shard_size=3)
    (work,) = a.works()
    a.report(partly(work, 0, 1, 2))
    lifecycle.cancel(run.pk)
    ended = fresh(run)
    assert (ended.state, ended.failed, ended.cancelled) == (RunState.CANCELLED, 3, 3)
    assert_partition(run)


def test_a_shard_that_waits_for_its_back_off_is_cancelled_too() -> None:
    a = child(capacity=1)
    run = submit(1, backoff=3600.0)
    (work,) = a.works()
    a.report(failure(work, "error"))
    assert lifecycle.cancel(run.pk).state == RunState.CANCELLED
    assert_partition(run)


def test_other_runs_go_on() -> None:
    a = child(capacity=4)
    run, other = submit(2), submit(2)
    a.works()
    lifecycle.cancel(run.pk)
    assert a.live() == 2
    assert set(Allocation.objects.filter(run=other).values_list("state", flat=True)) == {AllocationState.EXECUTING}
    assert_partition(run)
    assert_partition(other)


def test_the_slots_of_a_cancelled_run_are_free_at_once() -> None:
    a = child(capacity=2)
    run = submit(2)
    a.works()
    other = submit(2)
    lifecycle.cancel(run.pk)
    assert {work.run for work in a.works()} == {other.pk}


def test_a_run_that_has_ended_is_not_cancelled() -> None:
    run = submit(1)
    lifecycle.cancel(run.pk)
    with pytest.raises(Conflict, match="cancelled"):
        lifecycle.cancel(run.pk)
    with pytest.raises(NotFound):
        lifecycle.cancel(run.pk + 1)
    assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_cancels_that_race_count_each_item_once() -> None:
    a = child(capacity=3)
    for _ in range(10):
        run = submit(6)
        a.works()
        ends = at_once(*[partial(lifecycle.cancel, run.pk)] * 4)
        assert sum(isinstance(end, Conflict) for end in ends) == 3
        assert (state(run), fresh(run).cancelled) == (RunState.CANCELLED, 6)
        assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_a_cancel_that_races_with_a_pass_of_the_dispatcher_leaves_nobody_at_work() -> None:
    a = child(capacity=3)
    for _ in range(15):
        run = submit(6)
        at_once(dispatch, partial(lifecycle.cancel, run.pk), a.claim)
        assert state(run) == RunState.CANCELLED
        assert a.live() == 0
        assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_a_cancel_that_races_with_a_failure_gives_each_item_one_end() -> None:
    a = child(capacity=2)
    for _ in range(15):
        run = submit(4, shard_size=2, max_attempts=1)
        works = a.works()
        statuses, _ = at_once(
            partial(a.statuses, failure(works[0], "error"), partly(works[1], works[1].start)),
            partial(lifecycle.cancel, run.pk),
        )
        assert len(set(statuses)) == 1
        assert fresh(run).failed == (3 if statuses[0] == 200 else 0)
        assert_partition(run)


def test_progress_adds_up_although_a_result_was_saved_after_the_run_was_read(folder) -> None:
    a = child(capacity=4)
    run = submit(4)
    works = a.works()
    a.report(*[done(work) for work in works[:2]])
    stale = fresh(run)
    with saver() as made:
        save(made)
    told = lifecycle.progress(stale)
    assert (told["saved"], told["spooled"], told["in_flight"]) == (2, 0, 2)

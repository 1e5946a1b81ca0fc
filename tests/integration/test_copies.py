"""Second copies of late shards: the first valid report counts, once; while one copy lives, the other's loss is none."""

from __future__ import annotations

import pytest
from django.conf import settings
from django.utils import timezone

from dispatch import ending, lifecycle
from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE, AllocationState, RunState
from nodes import registry
from nodes.models import Node
from tests.integration.factory import (
    Child,
    Clock,
    Work,
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

ITEMS = 4


def measured(name: str, seconds: float, run: Run, capacity: int = 1) -> Child:
    """A child whose seconds per item of ``run`` are known."""
    made = child(name, capacity)
    Node.objects.filter(pk=made.id).update(speeds={f"echo@{run.pk}": seconds})
    return made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was asked to end a shard early is given no time for it."""
    monkeypatch.setattr(ending, "PATIENCE_SECONDS", 0.0)
    ending._asked.clear()


def even_out() -> frozenset[int]:
    """The first look asks the slow node to end its shard early; the second makes copies."""
    ending.even_out_now()
    return ending.even_out_now()


@pytest.fixture
def pair(clock: Clock) -> tuple[Run, Child, Work, Child, Work]:
    """A run of one shard on a slow node, and its copy on a quick one that came later."""
    run = submit(ITEMS, shard_size=ITEMS)
    slow = measured("slow", 10.0, run)
    (first,) = slow.works()
    quick = measured("quick", 0.1, run)
    assert dispatch() == set()
    assert even_out() == {quick.id}
    (second,) = quick.claim()
    return run, slow, first, quick, second


def allocation(work: Work) -> Allocation:
    return Allocation.objects.get(pk=work.allocation)


def test_a_copy_has_the_same_items_another_id_and_a_reason(pair) -> None:
    run, _, first, quick, second = pair
    assert (second.start, second.stop, second.items) == (first.start, first.stop, first.items)
    assert second.allocation != first.allocation
    assert allocation(second).reason.startswith("second copy: slow is thought to need")
    assert quick.live() == 1
    assert_partition(run)


def test_a_third_copy_is_not_made(pair) -> None:
    run, *_ = pair
    measured("third", 0.1, run)
    assert even_out() == set()
    assert Allocation.objects.filter(run=run, state__in=LIVE).count() == 2


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_report_counts_and_the_other_comes_too_late(folder, pair, winner: int) -> None:
    run, slow, first, quick, second = pair
    sides = [(slow, first), (quick, second)]
    (one, won), (other, lost) = sides[winner], sides[1 - winner]
    assert one.statuses(done(won)) == [200]
    assert allocation(lost).state == AllocationState.SUPERSEDED
    assert other.beat(held=[lost.allocation])["cancel"] == [lost.allocation]
    assert other.statuses(done(lost)) == [409]
    assert one.report(done(won))[0]["repeated"] is True
    with saver() as made:
        save(made)
        assert sum(count for (_, _, of, *_), count in stored(made).rows.items() if of == run.pk) == ITEMS
        assert sum(count for (of, *_), count in stored(made).ledger.items() if of == run.pk) == 1
    assert state(run) == RunState.COMPLETED
    assert fresh(run).rows == ITEMS
    assert_partition(run)


def test_both_reports_at_once_count_once(pair, transactional_db: None) -> None:
    run, slow, first, quick, second = pair
    answers = at_once(lambda: slow.statuses(done(first)), lambda: quick.statuses(done(second)))
    assert sorted(answers) == [[200], [409]]
    assert_partition(run)


@pytest.mark.parametrize("kind", ["crash", "timeout", "error"])
def test_the_failure_of_one_copy_costs_nothing_while_the_other_lives(pair, kind: str) -> None:
    run, slow, first, quick, second = pair
    assert slow.statuses(failure(first, kind)) == [200]
    (shard,) = Shard.objects.filter(run=run)
    assert (shard.attempts, shard.deaths, shard.losses) == (0, 0, 0)
    assert quick.statuses(done(second)) == [200]
    assert [each[2] for each in shards(run)] == ["spooled"]


def test_when_both_copies_fail_the_shard_is_tried_again(pair) -> None:
    run, slow, first, quick, second = pair
    slow.report(failure(first))
    quick.report(failure(second))
    assert [each[2] for each in shards(run)] == ["pending"]
    assert_partition(run)


def test_a_shard_that_nobody_can_do_is_not_copied_for_ever(pair) -> None:
    run, slow, first, quick, second = pair
    quick.report(failure(second, "timeout", "took too long"))
    assert even_out() == frozenset()
    slow.report(failure(first, "timeout", "took too long"))
    assert Shard.objects.get(run=run).attempts == 1


def test_the_next_attempt_may_be_copied_again(pair) -> None:
    run, slow, first, quick, second = pair
    quick.report(failure(second, "timeout", "took too long"))
    slow.report(failure(first, "timeout", "took too long"))
    Node.objects.filter(pk=slow.id).update(speeds={f"echo@{run.pk}": 10.0})
    registry.drain(quick.id)
    assert dispatch() == {slow.id}
    slow.claim()
    registry.resume(quick.id)
    assert even_out() == {quick.id}


def test_a_lost_lease_of_one_copy_costs_nothing_while_the_other_lives(pair, clock: Clock) -> None:
    run, _, first, quick, second = pair
    clock.forward(settings.CASCADE.lease_seconds - 1)
    quick.beat(held=[second.allocation])
    clock.forward(2)
    assert lifecycle.expire(timezone.now()) == 1
    assert allocation(first).state == AllocationState.EXPIRED
    assert quick.statuses(done(second)) == [200]
    assert [each[2] for each in shards(run)] == ["spooled"]


def test_leases_of_both_lost_together_bring_the_shard_back_once(pair, clock: Clock) -> None:
    run, *_ = pair
    clock.forward(2 * settings.CASCADE.lease_seconds + 1)  # all are silent, which has its own grace
    assert lifecycle.expire(timezone.now()) == 2
    (shard,) = Shard.objects.filter(run=run)
    assert (shard.state, shard.losses) == ("pending", 1)
    assert_partition(run)


def test_items_that_fail_in_the_first_report_are_tried_again_alone(pair) -> None:
    run, slow, first, quick, second = pair
    assert quick.statuses(partly(second, 1, retry=True)) == [200]
    assert allocation(first).state == AllocationState.SUPERSEDED
    assert slow.statuses(done(first)) == [409]
    assert shards(run) == [(0, 1, "spooled"), (1, 2, "pending"), (2, ITEMS, "spooled")]
    assert_partition(run)


def test_a_cancel_ends_both_copies(pair) -> None:
    run, slow, first, quick, second = pair
    lifecycle.cancel(run.pk)
    assert slow.live() == quick.live() == 0
    assert slow.statuses(done(first)) == quick.statuses(done(second)) == [409]
    assert_partition(run)


def test_a_release_of_one_copy_leaves_the_other(pair) -> None:
    run, slow, first, quick, second = pair
    assert slow.release(first.allocation) == [first.allocation]
    assert quick.statuses(done(second)) == [200]
    assert_partition(run)


def test_there_are_no_copies_where_the_setting_is_off(settings) -> None:
    run = submit(ITEMS, shard_size=ITEMS)
    measured("slow", 10.0, run).works()
    measured("quick", 0.1, run)
    settings.CASCADE = settings.CASCADE.model_copy(update={"second_copies": False})
    assert even_out() == set()


def test_there_are_no_copies_of_rated_work() -> None:
    run = submit(ITEMS, shard_size=ITEMS)
    Run.objects.filter(pk=run.pk).update(rate_key="somebody")
    measured("slow", 10.0, run).works()
    measured("quick", 0.1, run)
    assert even_out() == set()


def test_there_are_no_copies_while_there_is_something_left_to_cut() -> None:
    run = submit(ITEMS + 1, shard_size=ITEMS)
    measured("slow", 10.0, run).works()
    measured("quick", 0.1, run)
    assert fresh(run).cut < fresh(run).count
    assert even_out() == set()


def test_what_is_queued_behind_a_slow_shard_is_taken_back_for_an_idle_node() -> None:
    run = submit(2 * ITEMS, shard_size=ITEMS)
    slow = measured("slow", 10.0, run, capacity=2)
    first, queued = slow.works()
    # Its capacity is lowered: the second shard waits there now.
    Node.objects.filter(pk=slow.id).update(capacity=1)
    Allocation.objects.filter(pk=queued.allocation).update(state=AllocationState.PENDING, started_at=None)
    Shard.objects.filter(run=run, start=queued.start).update(state="allocated")
    quick = measured("quick", 0.1, run)
    even_out()
    assert allocation(queued).state == AllocationState.CANCELLED
    assert slow.beat(held=[first.allocation, queued.allocation])["cancel"] == [queued.allocation]
    assert [work.start for work in quick.works()] == [queued.start]
    assert_partition(run)

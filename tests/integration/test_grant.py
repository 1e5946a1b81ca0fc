"""Grant: one pass of the dispatcher, from runs and nodes in the database to allocations."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

import pytest
from django.utils import timezone

from dispatch import lifecycle, queue
from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE, AllocationState, ShardState
from nodes import registry
from nodes.models import Node
from tests.integration import factory
from tests.integration.factory import Child, assert_partition, at_once, child, dispatch, done, fresh, partly, submit

pytestmark = pytest.mark.django_db


def granted(made: Child) -> list[str]:
    """What was granted to this child, oldest first."""
    return [
        f"{each.start}-{each.stop}"
        for each in Allocation.objects.filter(node_id=made.id, state__in=LIVE).order_by("pk")
    ]


def test_shards_are_cut_when_they_are_granted_and_the_rest_stays_in_one_piece() -> None:
    a = child(capacity=2)
    run = submit(10, shard_size=3)
    assert dispatch() == {a.id}
    assert granted(a) == ["0-3", "3-6"]
    assert (fresh(run).cut, Shard.objects.count()) == (6, 2)
    assert_partition(run)


def test_a_full_node_gets_nothing_more_and_a_second_pass_changes_nothing() -> None:
    a = child(capacity=2)
    submit(10)
    dispatch()
    assert dispatch() == set()
    assert a.live() == 2


def test_every_allocation_keeps_its_reason_its_offer_time_and_its_attempt() -> None:
    child("a", 1, "echo=1")
    child("b", 1)
    submit(2)
    before = timezone.now()
    dispatch()
    first, second = Allocation.objects.order_by("pk")
    assert first.reason == "quota 1 of 1 for echo"
    assert second.reason.startswith("free capacity: 1 of 1 slots free")
    for each in (first, second):
        assert (each.state, each.delivered, each.attempt) == (AllocationState.PENDING, False, 1)
        assert dt.timedelta(seconds=14) < each.deadline - before < dt.timedelta(seconds=16)


def test_only_nodes_that_are_there_and_may_have_it_are_given_work(clock: factory.Clock) -> None:
    silent = child("silent")
    registry.add_node("never-seen", capacity=4)
    clock.forward(60)
    draining, inactive = child("draining"), child("inactive")
    others = child("others", 4, types=["data_import"])
    here, there = child("here", labels={"zone": "eu"}), child("there", labels={"zone": "us"})
    registry.drain(draining.id)
    registry.update_node(inactive.id, active=False)
    submit(50, labels={"zone": "eu"})
    assert dispatch() == {here.id}
    codes = {Node.objects.get(pk=refusal.node).name: refusal.code for refusal in queue.explain().refusals}
    assert codes["silent"] == codes["inactive"] == codes["never-seen"] == "offline"
    assert (codes["draining"], codes["others"], codes["there"]) == ("draining", "type", "label")
    assert codes["here"] == "slots"
    assert {silent.live(), others.live(), there.live()} == {0}


def test_a_node_that_says_good_bye_gets_nothing_more() -> None:
    a = child()
    a.beat(leaving=True)
    submit(3)
    assert dispatch() == set()


def test_runs_are_served_by_priority_and_equals_share() -> None:
    child(capacity=6)
    low, one, two = submit(9, priority=1), submit(9, priority=5), submit(9, priority=5)
    dispatch()
    served = Counter(Allocation.objects.values_list("run_id", flat=True))
    assert served == {one.pk: 3, two.pk: 3}
    assert low.pk not in served


def test_what_a_run_has_now_counts_in_its_share() -> None:
    a = child(capacity=4)
    one = submit(9)
    works = a.works()
    two = submit(9)
    a.report(*[done(work) for work in works[:2]])
    dispatch()
    served = Counter(Allocation.objects.filter(state__in=LIVE).values_list("run_id", flat=True))
    assert served == {one.pk: 2, two.pk: 2}


def test_quotas_are_filled_before_free_capacity() -> None:
    child("a", 8)
    b = child("b", 3, "echo=2")
    submit(2)
    assert dispatch() == {b.id}


def test_a_limit_is_never_exceeded_whatever_is_free() -> None:
    a = child("a", 8, "echo=1/2")
    run = submit(20)
    for _ in range(3):
        works = a.works()
        assert a.live() == 2
        a.report(*[done(work) for work in works])
    assert_partition(run)


def test_an_item_with_its_own_limit_is_a_shard_of_its_own_and_waits_beside_the_others() -> None:
    a = child("a", 4, "echo[x]=1/1")
    run = submit(["m", "x", "n", "x", "o", "p", "q"], shard_size=3)
    dispatch()
    assert granted(a) == ["0-1", "1-2", "2-3", "4-7"]
    assert factory.shards(run)[3] == (3, 4, ShardState.PENDING)
    assert_partition(run)
    assert [refusal.reason for refusal in queue.explain().refusals] == ["quota limit 1 of 1 for echo[x]"]
    works = {work.start: work for work in a.claim()}
    a.report(done(works[0]))
    assert dispatch() == set()
    a.report(done(works[1]))
    assert dispatch() == {a.id}
    assert granted(a)[-1] == "3-4"
    assert_partition(run)


def test_an_items_own_quota_takes_it_to_its_node() -> None:
    child("big", 8)
    home = child("home", 2, "echo[x]=1")
    submit(["m", "x", "n"])
    dispatch()
    assert granted(home) == ["1-2"]
    assert Allocation.objects.get(node_id=home.id).item == "x"


def test_what_came_back_is_given_before_the_uncut_rest_with_the_next_attempt() -> None:
    a = child(capacity=1)
    run = submit(9, shard_size=3)
    (work,) = a.works()
    a.report(partly(work, 1, retry=True))
    (again,) = a.works()
    assert (again.start, again.stop, again.attempt) == (1, 2, 2)
    assert_partition(run)


def test_a_shard_that_waits_for_its_back_off_is_given_no_earlier(clock: factory.Clock) -> None:
    a = child(capacity=1)
    run = submit(1, backoff=20.0)
    (work,) = a.works()
    a.report(factory.failure(work, "error", "cannot begin"))
    assert dispatch() == set()
    clock.forward(19)
    assert dispatch() == set()
    clock.forward(2)
    assert dispatch() == {a.id}
    assert_partition(run)


def test_measured_speed_sizes_the_next_shard_and_the_tail_is_fine(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"lookahead_limit": 0})
    a = child(capacity=1)
    run = submit(1000, shard_size=0)
    (probe,) = a.works()
    assert probe.stop - probe.start == 1
    a.report({**done(probe), "seconds": 0.1})
    sizes = []
    while works := a.works():
        (work,) = works
        sizes.append(work.stop - work.start)
        a.report({**done(work), "seconds": 0.1 * sizes[-1]})
    # A second's worth, while there is plenty.
    assert sizes[0] == 10
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 1
    assert sum(sizes) == 999
    assert_partition(run)


def test_short_shards_are_granted_ahead_and_executing_stays_within_the_capacity(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"lookahead_seconds": 0.1, "lookahead_limit": 20})
    a = child(capacity=2)
    run = submit(200)
    for _ in range(4):
        a.report(*[{**done(work), "seconds": 0.005} for work in a.works()])
    works = a.works()
    assert a.live() == len(works) == 22
    assert a.executing() == 2
    assert Counter(Allocation.objects.filter(state__in=LIVE).values_list("state", flat=True))["pending"] == 20
    assert "look-ahead" in Allocation.objects.order_by("pk").last().reason  # type: ignore[union-attr]
    assert_partition(run)


def test_pending_work_that_nobody_can_take_does_not_hide_that_of_others() -> None:
    martian = child("martian", 2100, labels={"zone": "mars"})
    submit(2100, labels={"zone": "mars"})
    dispatch()
    registry.drain(martian.id)
    while works := martian.claim(2100):
        martian.release(*[work.allocation for work in works])
    a = child("a", 1)
    run = submit(1)
    (work,) = a.works()
    a.report(factory.failure(work))
    assert dispatch() == {a.id}
    assert_partition(run)


def test_a_cancelled_run_is_given_to_nobody() -> None:
    child()
    run = submit(3)
    lifecycle.cancel(run.pk)
    assert dispatch() == set()
    assert_partition(run)


def nodes_in_turn(balancer: str, runs: int) -> list[str]:
    """Which of three idle nodes gets each of these runs of one item, one after the other."""
    children = {name: child(name, 1) for name in "abc"}
    order = []
    for _ in range(runs):
        submit(1, balancer=balancer)
        dispatch()
        ((name, works),) = [(name, works) for name, made in children.items() if (works := made.claim())]
        order.append(name)
        children[name].report(*[done(work) for work in works])
    return order


def test_round_robin_goes_round_when_nodes_are_idle_in_between() -> None:
    assert nodes_in_turn("round_robin", 6) == ["a", "b", "c", "a", "b", "c"]


def test_random_spreads_when_nodes_are_idle_in_between() -> None:
    # By chance alone, one of three would be left out of thirty less than once in a hundred thousand times.
    assert set(nodes_in_turn("random", 30)) == {"a", "b", "c"}


def test_explaining_changes_nothing() -> None:
    child(capacity=1)
    run = submit(3)
    plan = queue.explain(run.pk)
    assert (len(plan.grants), [refusal.code for refusal in plan.refusals]) == (1, ["slots"])
    assert (fresh(run).cut, Allocation.objects.count()) == (0, 0)


def broken(*_: object) -> float:
    raise RuntimeError("no idea")


def nowhere(*_: object) -> float:
    return float("nan")


@pytest.mark.parametrize("name", ["broken", "nowhere"])
def test_a_run_with_a_faulty_balancer_holds_up_nobody(settings: Any, name: str) -> None:
    path = f"{__name__}.{name}"
    settings.CASCADE = settings.CASCADE.model_copy(update={"balancers": [path]})
    child(capacity=4)
    runs = [submit(2, balancer=path, priority=9), submit(2)]
    dispatch()
    assert Counter(Allocation.objects.values_list("run_id", flat=True)) == {run.pk: 2 for run in runs}


@pytest.mark.django_db(transaction=True)
def test_dispatchers_that_pass_at_once_grant_each_slot_and_each_item_once() -> None:
    children = [child(name, 3, "echo=1/2") for name in "ab"]
    run = submit(12)
    for _ in range(3):
        at_once(*[dispatch] * 4)
        for each in children:
            assert each.live() == 2
            works = each.claim()
            each.report(*[done(work) for work in works])
        assert_partition(run)
    assert Run.objects.get(pk=run.pk).cut == 12


def test_ten_thousand_shards_are_granted_and_reported_in_whole_batches(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"lookahead_limit": 0})
    a = child(capacity=2500)
    run = submit(5000)
    given = 0
    while works := a.works(slots=2500):
        given += len(works)
        assert set(a.statuses(*[done(work) for work in works])) == {200}
    assert given == 5000
    assert_partition(run)

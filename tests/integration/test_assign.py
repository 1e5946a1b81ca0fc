"""Assign: an operator gives a run's next piece to a node of his choice, within what the node may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dispatch import buckets, lifecycle, queue
from dispatch.models import Allocation, RateBucket, Run
from dispatch.states import LIVE
from nodes import registry
from nodes.protocol import Conflict, NotFound
from tests.integration.factory import Child, assert_partition, at_once, child, dispatch, done, submit

pytestmark = pytest.mark.django_db


def test_the_next_piece_goes_to_this_node_and_no_other() -> None:
    child("big", 9)
    small = child("small", 2)
    run = submit(5)
    given = queue.assign(run.pk, small.id)
    made = Allocation.objects.get()
    assert (made.pk, made.node_id, made.start, made.stop) == (given, small.id, 0, 1)
    assert made.reason == "assigned by an operator"
    assert_partition(run)
    (work,) = small.claim()
    assert work.allocation == given
    assert small.statuses(done(work)) == [200]


def test_what_came_back_is_assigned_first() -> None:
    a, b = child("a", 1), child("b", 1)
    run = submit(5)
    (work,) = [*a.works(), *b.works()][:1]
    registry.drain(b.id)
    a.release(work.allocation)
    made = Allocation.objects.get(pk=queue.assign(run.pk, a.id))
    assert (made.start, made.attempt) == (work.start, 1)
    assert_partition(run)


def full(a: Child, run: Run) -> None:
    dispatch()


def draining(a: Child, run: Run) -> None:
    registry.drain(a.id)


def offline(a: Child, run: Run) -> None:
    a.beat(leaving=True)


def inactive(a: Child, run: Run) -> None:
    registry.update_node(a.id, active=False)


def overloaded(a: Child, run: Run) -> None:
    registry.update_node(a.id, max_cpu=50)
    a.beat(cpu=80)


def limited(a: Child, run: Run) -> None:
    registry.update_node(a.id, quotas=[registry.QuotaSpec("echo", 0, "", 0)])


def cancelled(a: Child, run: Run) -> None:
    lifecycle.cancel(run.pk)


def rated(a: Child, run: Run) -> None:
    buckets.set_limit("feeds", 0.1)
    Run.objects.filter(pk=run.pk).update(rate_key="feeds")
    queue.assign(run.pk, a.id)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (full, "a: no free slot: 2 in use, capacity 2"),
        (draining, "a: draining"),
        (offline, "a: offline"),
        (inactive, "is not active"),
        (overloaded, "a: CPU 80 % is above its limit, 50 %"),
        (limited, "a: quota limit 0 of 0 for echo"),
        (cancelled, "is cancelled"),
        (rated, "a: rate feeds: next token in "),
    ],
)
def test_a_node_that_cannot_take_it_is_a_conflict_that_says_why(state: Callable[..., None], words: str) -> None:
    a = child("a", 2)
    run = submit(9)
    state(a, run)
    before = Allocation.objects.count()
    with pytest.raises(Conflict) as raised:
        queue.assign(run.pk, a.id)
    assert words in str(raised.value)
    assert Allocation.objects.count() == before


def test_a_run_of_which_nothing_is_left_is_a_conflict() -> None:
    a = child("a", 9)
    run = submit(3)
    dispatch()
    with pytest.raises(Conflict, match="has nothing left to assign"):
        queue.assign(run.pk, a.id)


def test_runs_and_nodes_that_are_not_there_are_told() -> None:
    a, run = child(), submit(1)
    with pytest.raises(NotFound, match="no run"):
        queue.assign(run.pk + 1, a.id)
    with pytest.raises(NotFound, match="no node"):
        queue.assign(run.pk, a.id + 1)


def test_an_assignment_takes_its_token() -> None:
    a = child("a", 9)
    buckets.set_limit("feeds", 0.001, 2)
    run = submit(9, rate_key="feeds")
    queue.assign(run.pk, a.id)
    assert RateBucket.objects.get().tokens == pytest.approx(1.0, abs=0.01)
    dispatch()
    assert a.live() == 2


def test_pieces_set_aside_on_the_way_are_kept() -> None:
    a = child("a", 3, "echo[x]=1/1")
    run = submit(["x", "x", "y"])
    queue.assign(run.pk, a.id)
    made = Allocation.objects.get(pk=queue.assign(run.pk, a.id))
    assert (made.start, made.stop) == (2, 3)
    assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_operators_and_the_dispatcher_at_once_fill_no_slot_twice() -> None:
    a = child("a", 3)
    run = submit(12)

    def wish() -> Any:
        return queue.assign(run.pk, a.id)

    answers = at_once(wish, wish, dispatch, wish, wish)
    assert all(isinstance(each, int | set | Conflict) for each in answers), answers
    assert Allocation.objects.filter(node_id=a.id, state__in=LIVE).count() == 3
    assert_partition(run)

"""Release: a child hands back what it will not finish; it goes to somebody else, and nothing is counted against it."""

from __future__ import annotations

from functools import partial

import pytest

from dispatch.models import Allocation, Shard
from dispatch.states import AllocationState, ShardState
from nodes import keys, registry
from nodes.protocol import Unauthenticated
from tests.integration.agents import NO_ROW
from tests.integration.factory import assert_partition, at_once, child, dispatch, done, shards, state, submit

pytestmark = pytest.mark.django_db


def test_what_is_handed_back_goes_to_another_node_at_once_as_the_same_attempt() -> None:
    a = child("a", 2)
    run = submit(2)
    one, two = a.works()
    b = child("b", 2)
    registry.drain(a.id)
    assert a.release(one.allocation, detail="the node stops") == [one.allocation]
    ended = Allocation.objects.get(pk=one.allocation)
    assert (ended.state, ended.error) == (AllocationState.CANCELLED, "released by the node: the node stops")
    assert shards(run) == [(0, 1, ShardState.PENDING), (1, 2, ShardState.EXECUTING)]
    assert_partition(run)
    (again,) = b.works()
    assert (again.start, again.attempt) == (one.start, 1)
    shard = Shard.objects.get(start=0)
    assert (shard.attempts, shard.deaths, shard.losses) == (0, 0, 0)
    assert a.statuses(done(one)) == [409]
    assert b.statuses(done(again)) == a.statuses(done(two)) == [200]
    assert_partition(run)


def test_handing_back_any_number_of_times_uses_up_no_attempt() -> None:
    a = child(capacity=1)
    run = submit(1, max_attempts=1)
    for _ in range(20):
        (work,) = a.works()
        assert work.attempt == 1
        a.release(work.allocation)
    (work,) = a.works()
    assert a.statuses(done(work)) == [200]
    assert_partition(run)


def test_an_offer_can_be_declined() -> None:
    a = child(capacity=2)
    run = submit(2)
    dispatch()
    one, two = a.offered()
    assert a.release(one) == [one]
    assert a.offered() == [two]
    assert_partition(run)


def test_only_ones_own_live_work_can_be_handed_back() -> None:
    a, b = child("a", 2), child("b", 2)
    run = submit(4)
    mine = a.works()
    other = b.claim()
    a.report(done(mine[0]))
    asked = [mine[0].allocation, mine[1].allocation, other[0].allocation, NO_ROW]
    assert a.release(*asked) == [mine[1].allocation]
    assert a.release(*asked) == []
    assert (a.live(), b.live()) == (0, 2)
    assert state(run) == "running"
    assert_partition(run)


def test_a_revoked_key_hands_nothing_back() -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    keys.revoke_all(a.id)
    with pytest.raises(Unauthenticated):
        a.release(work.allocation)
    assert a.live() == 1
    assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_a_release_that_races_with_a_report_ends_one_way() -> None:
    a = child(capacity=2)
    for _ in range(15):
        run = submit(2)
        works = a.works()
        ids = [work.allocation for work in works]
        statuses, released = at_once(partial(a.statuses, *[done(work) for work in works]), partial(a.release, *ids))
        assert (statuses, sorted(released)) in (([200, 200], []), ([409, 409], ids))
        assert_partition(run)
        a.report(*[done(work) for work in a.works()])
        assert_partition(run)

"""Offer and accept: the push carrier's way to fetch; an offer is live when the child accepts it."""

from __future__ import annotations

import datetime as dt
from functools import partial

import pytest
from django.utils import timezone

from dispatch import lifecycle
from dispatch.models import Allocation
from dispatch.states import AllocationState
from nodes import keys
from nodes.protocol import Unauthenticated
from tests.integration import factory
from tests.integration.agents import NO_ROW
from tests.integration.factory import assert_partition, at_once, child, dispatch, done, submit

pytestmark = pytest.mark.django_db


def test_an_offer_is_made_once_per_socket_and_changes_nothing_until_it_is_accepted() -> None:
    a = child(capacity=3)
    run = submit(3)
    dispatch()
    ids = a.offered()
    assert len(ids) == 3
    assert a.offered(after=ids[1]) == ids[2:]
    assert a.offered() == ids
    assert set(Allocation.objects.values_list("state", "delivered")) == {(AllocationState.PENDING, False)}
    assert_partition(run)


def test_an_accepted_offer_has_a_lease_and_runs() -> None:
    a = child(capacity=2)
    run = submit(2)
    dispatch()
    before = timezone.now()
    assert a.accept(*a.offered()) == []
    for each in Allocation.objects.all():
        assert (each.state, each.delivered) == (AllocationState.EXECUTING, True)
        assert dt.timedelta(seconds=29) < each.deadline - before < dt.timedelta(seconds=31)
    assert a.offered() == []
    assert a.claim() == []
    assert_partition(run)


def test_accepting_again_changes_nothing(clock: factory.Clock) -> None:
    a = child(capacity=1)
    submit(1)
    dispatch()
    (offer,) = a.offered()
    a.accept(offer)
    deadline = Allocation.objects.get(pk=offer).deadline
    clock.forward(5)
    assert a.accept(offer) == []
    assert Allocation.objects.get(pk=offer).deadline == deadline


def test_what_was_taken_back_or_is_another_childs_is_gone() -> None:
    a, b = child("a", 2), child("b", 2)
    submit(4)
    dispatch()
    old = a.offered()
    lifecycle.expire(timezone.now() + dt.timedelta(seconds=16))
    dispatch()
    mine, other = a.offered(), b.offered()
    assert (len(mine), len(other)) == (2, 2)
    assert a.accept(*old, *other, *mine, NO_ROW) == [*old, *other, NO_ROW]
    assert set(Allocation.objects.filter(delivered=True).values_list("pk", flat=True)) == set(mine)
    assert b.accept(*other) == []


def test_what_was_offered_on_a_socket_may_be_claimed_and_reported_over_rest() -> None:
    a = child(capacity=1)
    run = submit(1)
    dispatch()
    (offer,) = a.offered()
    (work,) = a.claim()
    assert work.allocation == offer
    # The accept was on its way when the socket broke; it comes after all.
    assert a.accept(offer) == []
    assert a.statuses(done(work)) == [200]
    assert_partition(run)


def test_no_more_run_than_there_are_slots_however_many_are_accepted() -> None:
    a = child(capacity=2)
    run = submit(200)
    a.report(*[{**done(work), "seconds": 0.001} for work in a.works()])
    dispatch()
    offers = a.offered()
    assert len(offers) > 10
    assert a.accept(*offers) == []
    assert (a.executing(), a.live()) == (2, len(offers))
    assert_partition(run)


def test_a_revoked_key_accepts_nothing() -> None:
    a = child()
    submit(2)
    dispatch()
    offers = a.offered()
    keys.revoke_all(a.id)
    with pytest.raises(Unauthenticated):
        a.accept(*offers)
    assert not Allocation.objects.filter(delivered=True).exists()


@pytest.mark.django_db(transaction=True)
def test_an_accept_that_races_with_the_end_of_its_offer_is_live_or_gone_never_both() -> None:
    a = child(capacity=4)
    run = submit(60)
    for _ in range(15):
        dispatch()
        offers = a.offered()
        late = timezone.now() + dt.timedelta(seconds=16)
        gone, expired = at_once(partial(a.accept, *offers), partial(lifecycle.expire, late))
        # SQLite does one after the other; on PostgreSQL each may get some of them.
        assert expired == len(gone)
        live = set(Allocation.objects.filter(state="executing").values_list("pk", flat=True))
        assert live | set(gone) == set(offers)
        assert not live & set(gone)
        assert_partition(run)
        a.release(*live)

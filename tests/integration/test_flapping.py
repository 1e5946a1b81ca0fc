"""Nodes that are there, and no use: one that goes on and off, and one that beats for ever over work that hangs."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from dispatch import lifecycle, queue
from dispatch.models import Allocation, Shard
from nodes.cooling import cool_until, losses_after
from nodes.models import Node
from tests.integration import factory
from tests.integration.factory import Child, assert_partition, child, done, submit

pytestmark = pytest.mark.django_db

LEASE = 30


def _reboot(flapping: Child) -> None:
    """It comes back, and has nothing of what it had."""
    flapping.beat(hello=True, boot="another", held=[])


def test_a_node_that_loses_its_work_again_and_again_cools_down_and_the_others_get_it(clock: factory.Clock) -> None:
    flapping = child("a", 1)
    run = submit(6)
    assert flapping.works()
    _reboot(flapping)
    assert flapping.works(), "the first loss is forgiven"
    _reboot(flapping)
    assert flapping.works() == []
    other = child("b", 1)
    (work,) = other.works()
    assert other.statuses(done(work)) == [200]
    clock.forward(LEASE / 6 + 1)
    flapping.beat()
    (again,) = flapping.works()
    assert flapping.statuses(done(again)) == [200]
    assert_partition(run)


def test_a_lease_that_ends_is_a_loss_and_an_offer_that_nobody_fetched_is_none(clock: factory.Clock) -> None:
    a = child("a", 2)
    submit(2)
    factory.dispatch()
    clock.forward(16)
    a.beat()
    lifecycle.expire(timezone.now())
    assert Node.objects.get(pk=a.id).losses == 0
    assert a.works()
    clock.forward(LEASE + 1)
    child("b")
    lifecycle.expire(timezone.now())
    assert Node.objects.get(pk=a.id).losses == 1


def test_why_it_gets_nothing_can_be_asked_for(clock: factory.Clock) -> None:
    a = child("a", 1)
    run = submit(2)
    for _ in range(2):
        assert a.works()
        _reboot(a)
    reasons = [refusal.reason for refusal in queue.explain(run.pk).refusals]
    assert reasons == ["cooling down for 5 s more: it lost its work 2 times in a row"]


def test_losses_double_the_pause_up_to_ten_leases_and_are_forgotten_after_ten() -> None:
    now = timezone.now()
    pauses = [cool_until(losses, now, LEASE) for losses in (0, 1, 2, 3, 4, 40)]
    assert [pause and (pause - now).total_seconds() for pause in pauses] == [None, None, 5, 10, 20, 300]
    assert losses_after(3, now - dt.timedelta(seconds=299), now, LEASE) == 4
    assert losses_after(3, now - dt.timedelta(seconds=300), now, LEASE) == 1


def test_work_that_hangs_under_a_node_that_beats_goes_to_others_and_its_late_report_is_refused(
    clock: factory.Clock,
) -> None:
    a, timeout = child("a", 1), 20.0
    run = submit(1, timeout=timeout)
    (work,) = a.works()
    for _ in range(8):
        clock.forward(10)
        a.beat(held=[work.allocation], running=[work.allocation])
    assert lifecycle.unstick(timezone.now()) == 0, "its own time-outs come first"
    clock.forward(11)
    assert a.beat(held=[work.allocation])["cancel"] == []
    assert lifecycle.unstick(timezone.now()) == 1
    assert Allocation.objects.get(pk=work.allocation).state == "expired"
    assert Shard.objects.get(run=run).attempts == 1
    assert a.beat(held=[work.allocation])["cancel"] == [work.allocation]
    assert a.statuses(done(work)) == [409]
    assert_partition(run)


def test_work_that_ran_while_the_parent_was_away_does_not_hang(clock: factory.Clock) -> None:
    a = child("a", 1)
    submit(1, timeout=20.0)
    (work,) = a.works()
    clock.forward(3600)
    lifecycle.forgive(timezone.now())
    clock.forward(LEASE - 1)
    a.beat(held=[work.allocation])
    clock.forward(LEASE - 1)
    assert lifecycle.unstick(timezone.now()) == 0
    assert a.statuses(done(work)) == [200]

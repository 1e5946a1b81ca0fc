"""Expire: work of a silent child goes to others; an offer nobody fetched goes back uncounted; a parent that was away
blames nobody."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
from django.db import connection
from django.utils import timezone

from dispatch import lifecycle
from dispatch.dispatcher import Dispatcher
from dispatch.lifecycle.leases import renew
from dispatch.models import Allocation, Shard
from dispatch.states import AllocationState, ShardState
from nodes import registry
from nodes.models import Node
from nodes.transactions import write
from tests.integration import factory
from tests.integration.factory import (
    assert_partition,
    at_once,
    child,
    dispatch,
    done,
    fresh,
    save,
    saver,
    shards,
    state,
    stored,
    submit,
)

pytestmark = pytest.mark.django_db

LEASE = 30
OFFER = 15


def expire() -> int:
    return lifecycle.expire(timezone.now())


def test_the_work_of_a_killed_child_is_finished_by_another_and_its_rows_are_saved_once(
    clock: factory.Clock, folder: object
) -> None:
    a = child("a", 2)
    run = submit(4)
    killed = a.works()
    b = child("b", 4)
    clock.forward(LEASE + 1)
    b.beat()
    assert expire() == 2
    assert shards(run) == [(0, 1, ShardState.PENDING), (1, 2, ShardState.PENDING)]
    assert_partition(run)
    registry.drain(a.id)
    while works := b.works():
        b.report(*[done(work) for work in works])
    # Its machine comes back from a sleep and brings what it has.
    assert a.statuses(*[done(work) for work in killed]) == [409, 409]
    with saver() as made:
        save(made)
        assert stored(made).items == dict.fromkeys(("i0", "i1", "i2", "i3"), 1)
        assert {node for *_, node in stored(made).rows} == {"b"}
    assert state(run) == "completed"
    assert_partition(run)


def test_a_lost_lease_is_counted_and_said(clock: factory.Clock) -> None:
    a = child(capacity=1)
    run = submit(1)
    a.works()
    clock.forward(LEASE + 1)
    assert expire() == 1
    shard, allocation = Shard.objects.get(), Allocation.objects.get()
    assert (shard.losses, shard.attempts, shard.deaths) == (1, 0, 0)
    assert (allocation.state, "lease expired" in allocation.error) == (AllocationState.EXPIRED, True)
    assert allocation.finished_at is not None
    a.beat()
    (again,) = a.works()
    assert again.attempt == 2
    assert_partition(run)


def test_nothing_expires_before_its_time(clock: factory.Clock) -> None:
    a = child(capacity=2)
    run = submit(2)
    a.works()
    clock.forward(LEASE - 1)
    assert expire() == 0
    assert a.executing() == 2
    assert_partition(run)


def test_an_offer_that_is_not_fetched_goes_back_without_an_attempt(clock: factory.Clock) -> None:
    a = child("a", 1)
    run = submit(1)
    dispatch()
    (offer,) = a.offered()
    clock.forward(OFFER + 1)
    assert expire() == 1
    shard = Shard.objects.get()
    assert (shard.state, shard.losses, shard.attempts, shard.deaths) == (ShardState.PENDING, 0, 0, 0)
    ended = Allocation.objects.get(pk=offer)
    assert (ended.state, ended.error) == (AllocationState.EXPIRED, "not fetched in time")
    assert a.claim() == []
    (again,) = a.works()
    assert again.attempt == 1
    assert_partition(run)


def test_a_fetched_lease_outlives_the_offers_time(clock: factory.Clock) -> None:
    a = child(capacity=2)
    run = submit(2)
    dispatch()
    one, two = a.offered()
    a.accept(one)
    clock.forward(OFFER + 1)
    assert expire() == 1
    assert Allocation.objects.get(pk=one).state == AllocationState.EXECUTING
    assert Allocation.objects.get(pk=two).state == AllocationState.EXPIRED
    assert_partition(run)


def test_an_item_that_takes_its_machine_down_each_time_is_cut_out(clock: factory.Clock) -> None:
    a = child(capacity=4)
    run = submit(4, shard_size=4)
    lost = 0
    while works := a.works():
        for work in works:
            if work.start <= 1 < work.stop:
                lost += 1
            else:
                a.report(done(work))
        clock.forward(LEASE + 1)
        expire()
        clock.forward(10 * LEASE)  # a node that loses its work again and again cools down
        a.beat()
        assert_partition(run)
    assert [each for each in shards(run) if each[2] != ShardState.SPOOLED] == [(1, 2, ShardState.QUARANTINED)]
    assert lost == 9 + 2
    assert fresh(run).quarantined == 1


def test_the_leases_of_a_removed_node_run_out(clock: factory.Clock) -> None:
    a = child("a", 2)
    run = submit(2)
    a.works()
    registry.remove_node(a.id, force=True)
    assert_partition(run)
    clock.forward(LEASE + 1)
    assert expire() == 2
    b = child("b", 2)
    assert len(b.works()) == 2
    assert_partition(run)


def test_the_end_of_a_run_can_be_a_lease(clock: factory.Clock) -> None:
    """The last item's last chance is lost with its machine: the run ends, though nobody reports."""
    a = child(capacity=1)
    run = submit(1)
    for _ in range(9):
        clock.forward(10 * LEASE)  # as above
        a.beat()
        assert len(a.works()) == 1
        clock.forward(LEASE + 1)
        assert expire() == 1
    clock.forward(10 * LEASE)
    a.beat()
    assert a.works() == []
    assert state(run) == "failed"
    assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_a_beat_that_races_with_the_end_of_its_lease_keeps_it_or_is_told(clock: factory.Clock) -> None:
    a = child(capacity=2)
    for _ in range(15):
        run = submit(2)
        clock.forward(10 * LEASE)
        a.beat()
        ids = [work.allocation for work in a.works()]
        clock.forward(LEASE + 1)
        reply, expired = at_once(partial(a.beat, held=ids), expire)
        assert (reply["cancel"], expired) in (([], 0), (ids, 2))
        assert a.executing() == 2 - expired
        assert_partition(run)
        lifecycle.cancel(run.pk)


@pytest.mark.django_db(transaction=True)
def test_many_that_look_for_what_has_expired_count_each_loss_once(clock: factory.Clock) -> None:
    a = child(capacity=4)
    run = submit(4)
    a.works()
    clock.forward(LEASE + 1)
    assert sum(at_once(*[expire] * 4)) == 4
    assert set(Shard.objects.values_list("losses", flat=True)) == {1}
    assert_partition(run)


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has one writer at a time, and no locks of rows")
@pytest.mark.django_db(transaction=True)
def test_the_dispatcher_does_not_wait_for_a_row_that_somebody_works_on(clock: factory.Clock) -> None:
    a = child(capacity=2)
    submit(2)
    reported, silent = (work.allocation for work in a.works())
    clock.forward(LEASE + 1)
    locked, ended = threading.Event(), threading.Event()

    def work_on_it() -> None:
        with write():
            Allocation.objects.select_for_update().get(pk=reported)
            locked.set()
            ended.wait(30)
        connection.close()

    thread = threading.Thread(target=work_on_it)
    thread.start()
    try:
        assert locked.wait(30)
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '5s'")
        assert expire() == 1
        assert Allocation.objects.get(pk=silent).state == AllocationState.EXPIRED
    finally:
        ended.set()
        thread.join()
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
    assert expire() == 1


def test_the_dispatchers_pass_takes_back_what_has_expired(
    clock: factory.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = child("a", 2)
    run = submit(2)
    dispatcher = Dispatcher()
    dispatcher.once()
    assert len(a.claim()) == 2
    clock.forward(LEASE + 1)
    b = child("b", 2)
    # The next pass, a second later by both clocks: nobody was away.
    wall, steady = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: wall() + 1)
    monkeypatch.setattr(time, "monotonic", lambda: steady() + 1)
    dispatcher.once()
    assert (a.executing(), len(b.claim())) == (0, 2)
    assert_partition(run)


# The parent itself was away


def test_where_all_nodes_fall_silent_at_once_nothing_expires_for_another_leases_time(clock: factory.Clock) -> None:
    """It is rather the parent that has lost its network."""
    a, b = child("a", 1), child("b", 1)
    run = submit(2)
    held = [work.allocation for each in (a, b) for work in each.works()]
    a.beat(held=held[:1])
    clock.forward(1)
    b.beat(held=held[1:])
    clock.forward(LEASE + 2)
    assert expire() == 0
    # It is there again, and so are both: they go on with what they have.
    assert a.beat(held=held[:1])["cancel"] == []
    assert b.beat(held=held[1:])["cancel"] == []
    assert a.executing() + b.executing() == 2
    # Silent for good they are gone, as anybody would be.
    clock.forward(2 * LEASE + 1)
    assert expire() == 2
    assert_partition(run)


def test_a_node_that_is_heard_of_tells_that_the_silent_ones_are_gone(clock: factory.Clock) -> None:
    a, b, idle = child("a", 1), child("b", 1), child("idle", 1)
    registry.drain(idle.id)
    run = submit(2)
    held = [work.allocation for each in (a, b) for work in each.works()]
    assert len(held) == 2
    clock.forward(LEASE + 1)
    idle.beat()
    assert expire() == 2
    assert_partition(run)


def test_leases_survive_a_restart_of_the_parent(clock: factory.Clock) -> None:
    a = child(capacity=2)
    run = submit(2)
    ids = [work.allocation for work in a.works()]
    clock.forward(3600)
    Dispatcher().once()
    assert expire() == 0
    assert a.beat(held=ids)["cancel"] == []
    assert a.executing() == 2
    # From now on silence counts again.
    clock.forward(LEASE + 1)
    assert expire() == 2
    assert_partition(run)


jumps = pytest.mark.parametrize("jump", [3600.0, -3600.0])


@jumps
def test_a_jump_of_the_parents_clock_expires_nothing(
    clock: factory.Clock, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    a = child(capacity=2)
    run = submit(2)
    dispatcher = Dispatcher()
    dispatcher.once()
    ids = [work.allocation for work in a.claim()]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    clock.forward(jump)
    dispatcher.once()
    assert expire() == 0
    assert a.beat(held=ids)["cancel"] == []
    assert a.executing() == 2
    clock.forward(LEASE + 1)
    assert expire() == 2
    assert_partition(run)


@jumps
def test_nor_does_one_by_which_a_beat_was_just_being_written(
    clock: factory.Clock, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """It has read the time before the jump, and waited for its turn while leases were made to run anew."""
    a = child(capacity=2)
    run = submit(2)
    dispatcher = Dispatcher()
    dispatcher.once()
    ids = [work.allocation for work in a.claim()]
    wall, steady, passed, moved = time.time, time.monotonic, 0.0, 0.0
    monkeypatch.setattr(time, "time", lambda: wall() + moved + passed)
    monkeypatch.setattr(time, "monotonic", lambda: steady() + passed)
    for moved in (jump, 0.0):
        before = timezone.now()
        clock.forward(moved or -jump)
        dispatcher.once()
        renew(Node.objects.get(pk=a.id), ids, before)
        passed += 1
        clock.forward(1)
        dispatcher.once()
        assert a.beat(held=ids)["cancel"] == []
    # Whoever is silent from now on is gone when its lease has ended.
    for _ in range(int(LEASE) + 1):
        passed += 1
        clock.forward(1)
        dispatcher.once()
    assert a.executing() == 0
    assert_partition(run)

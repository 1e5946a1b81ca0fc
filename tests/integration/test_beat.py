"""Beat: renews what it names, starts what runs, and at a hello hands back what is not held."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from dispatch import lifecycle
from dispatch.models import Allocation, Shard
from dispatch.states import AllocationState, ShardState
from nodes import keys, registry
from nodes.models import Heartbeat, Node
from nodes.protocol import FieldError, Unauthenticated
from tests.integration import factory
from tests.integration.factory import assert_partition, child, dispatch, done, submit

pytestmark = pytest.mark.django_db

LEASE = 30


def deadline(allocation: int) -> dt.datetime:
    return Allocation.objects.get(pk=allocation).deadline


def test_a_beat_tells_the_child_its_settings_and_the_parents_time() -> None:
    a = child("a", 7)
    reply = a.beat()
    assert (reply["node"], reply["capacity"], reply["drain"], reply["cancel"]) == ("a", 7, False, [])
    assert (reply["beat_seconds"], reply["lease_seconds"]) == (5, LEASE)
    assert abs(reply["time"] - timezone.now().timestamp()) < 5
    registry.update_node(a.id, capacity=9, draining=True)
    reply = a.beat()
    assert (reply["capacity"], reply["drain"]) == (9, True)


def test_a_beat_keeps_what_the_agent_says_of_itself() -> None:
    a = child()
    a.beat(
        boot="b2", cpu=12.5, memory=33, disk=50, version="1.2", executors=["echo"], carrier="push", held=[], running=[]
    )
    node = a.node
    assert (node.boot, node.cpu, node.memory, node.disk, node.version) == ("b2", 12.5, 33.0, 50.0, "1.2")
    assert (node.executors, node.carrier) == (["echo"], "push")
    a.beat(boot="b2", carrier="push")
    assert a.node.executors == ["echo"]
    assert Heartbeat.objects.filter(node=node).exists()


def test_a_beat_renews_what_it_names_and_nothing_else(clock: factory.Clock) -> None:
    a = child(capacity=3)
    submit(2)
    named, other = [work.allocation for work in a.works()]
    submit(1)
    dispatch()
    (unfetched,) = a.offered()
    before = {each: deadline(each) for each in (named, other, unfetched)}
    clock.forward(10)
    a.beat(held=[named])
    assert deadline(named) - before[named] >= dt.timedelta(seconds=10)
    assert (deadline(other), deadline(unfetched)) == (before[other], before[unfetched])


def test_a_lease_lives_as_long_as_it_is_named_and_no_longer(clock: factory.Clock) -> None:
    a = child(capacity=2)
    run = submit(2)
    kept, lost = a.works()
    for _ in range(4):
        clock.forward(LEASE - 5)
        a.beat(held=[kept.allocation])
        lifecycle.expire(timezone.now())
    assert Allocation.objects.get(pk=kept.allocation).state == AllocationState.EXECUTING
    assert Allocation.objects.get(pk=lost.allocation).state == AllocationState.EXPIRED
    assert_partition(run)


def test_a_lease_that_was_lost_cannot_be_renewed_and_is_named_for_dropping(clock: factory.Clock) -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    clock.forward(LEASE + 1)
    lifecycle.expire(timezone.now())
    assert a.beat(held=[work.allocation])["cancel"] == [work.allocation]
    assert Allocation.objects.get(pk=work.allocation).state == AllocationState.EXPIRED
    assert_partition(run)


def test_a_cancelled_run_reaches_its_child_with_the_beat() -> None:
    a = child(capacity=2)
    run, other = submit(1), submit(1)
    works = {work.run: work.allocation for work in a.works()}
    lifecycle.cancel(run.pk)
    reply = a.beat(held=list(works.values()))
    assert reply["cancel"] == [works[run.pk]]
    assert_partition(other)


def test_nobody_renews_or_starts_another_childs_work(clock: factory.Clock) -> None:
    a, b = child("a", 1), child("b", 1)
    submit(2)
    (mine,) = a.works()
    (other,) = b.claim()
    before = deadline(other.allocation)
    clock.forward(10)
    both = [mine.allocation, other.allocation]
    reply = a.beat(held=both, running=[other.allocation], progress={str(other.allocation): 5})
    assert reply["cancel"] == [other.allocation]
    assert deadline(other.allocation) == before
    assert Allocation.objects.get(pk=other.allocation).progress == 0


def test_a_hello_hands_back_what_is_not_held_at_once() -> None:
    a, b = child("a", 2), child("b", 2)
    run = submit(2, shard_size=1, balancer="least_tasks")
    registry.drain(b.id)
    held, lost = a.works()
    registry.resume(b.id)
    a.beat(hello=True, held=[held.allocation], boot="b2")
    ended = Allocation.objects.get(pk=lost.allocation)
    assert (ended.state, ended.error) == (AllocationState.EXPIRED, "the node came back without it")
    assert Allocation.objects.get(pk=held.allocation).state == AllocationState.EXECUTING
    assert Shard.objects.get(pk=ended.shard_id).state == ShardState.PENDING
    dispatch()
    (again,) = b.claim()
    assert (again.start, again.attempt) == (lost.start, 2)
    assert_partition(run)


def test_a_hello_leaves_what_was_not_fetched_yet_for_the_claim_that_follows() -> None:
    a = child(capacity=2)
    run = submit(2)
    dispatch()
    a.beat(hello=True, held=[], boot="b2")
    assert len(a.claim()) == 2
    assert_partition(run)


def test_a_beat_without_hello_hands_nothing_back() -> None:
    a = child(capacity=2)
    run = submit(2)
    a.works()
    a.beat(held=[])
    assert (a.executing(), a.live()) == (2, 2)
    assert_partition(run)


def test_executing_never_exceeds_the_slots_whatever_a_beat_says_it_runs() -> None:
    a = child(capacity=2)
    run = submit(300)
    a.report(*[{**done(work), "seconds": 0.001} for work in a.works()])
    works = [work.allocation for work in a.works()]
    assert len(works) > 10
    a.beat(held=works, running=works)
    assert (a.executing(), a.live()) == (2, len(works))
    registry.update_node(a.id, capacity=5)
    a.beat(held=works, running=works)
    assert a.executing() == 5
    assert_partition(run)


def test_progress_is_kept_for_what_is_live() -> None:
    a = child(capacity=2)
    run = submit(20, shard_size=10)
    one, two = a.works()
    a.report(done(two))
    a.beat(held=[one.allocation], progress={str(one.allocation): 7, str(two.allocation): 3, "999": 1})
    assert Allocation.objects.get(pk=one.allocation).progress == 7
    assert Allocation.objects.get(pk=two.allocation).progress == 10
    assert_partition(run)


def test_a_progress_beyond_any_column_breaks_nothing() -> None:
    a = child(capacity=1)
    submit(10, shard_size=10)
    (work,) = a.works()
    a.beat(held=[work.allocation], progress={str(work.allocation): 2**63 - 1, "9" * 19: 1})
    assert Allocation.objects.get(pk=work.allocation).progress <= 10


def test_a_good_bye_makes_the_node_offline_at_once_and_a_late_report_does_not_bring_it_back() -> None:
    a = child()
    run = submit(2)
    one, _ = a.works()
    assert registry.is_online(a.node, timezone.now())
    a.beat(leaving=True, held=[one.allocation])
    assert not registry.is_online(a.node, timezone.now())
    assert a.statuses(done(one)) == [200]
    assert not registry.is_online(a.node, timezone.now())
    a.beat(hello=True)
    assert registry.is_online(a.node, timezone.now())
    assert_partition(run)


def test_bad_values_are_refused_and_change_nothing() -> None:
    a = child()
    before = Node.objects.values().get(pk=a.id)
    with pytest.raises(FieldError, match="executors"):
        a.beat(executors=["Not A Type"])
    assert Node.objects.values().get(pk=a.id) == before


def test_a_revoked_key_renews_nothing(clock: factory.Clock) -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    before = deadline(work.allocation)
    seen = a.node.last_beat_at
    clock.forward(10)
    keys.revoke(a.caller.access_key)
    with pytest.raises(Unauthenticated):
        a.beat(held=[work.allocation], running=[work.allocation], cpu=99)
    assert deadline(work.allocation) == before
    assert (a.node.last_beat_at, a.node.cpu) == (seen, None)
    assert_partition(run)

"""Who is given work: load limits, preferred labels, items with a home, and the parent itself as the last resort."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch import queue
from dispatch.models import Allocation
from nodes import registry
from nodes.models import Node
from tests.integration import factory
from tests.integration.factory import Child, assert_partition, child, dispatch, done, submit

pytestmark = pytest.mark.django_db


def local(capacity: int = 2) -> Child:
    """The parent's own worker, as ``cascade.embedded`` has it."""
    made = child("here", capacity, role="standalone")
    assert made.node.embedded
    return made


def codes(run: Any) -> dict[str, str]:
    names = dict(Node.objects.values_list("pk", "name"))
    return {names[refusal.node]: refusal.reason for refusal in queue.explain(run.pk).refusals}


@pytest.mark.parametrize(("load", "limit"), [("cpu", "max_cpu"), ("memory", "max_memory")])
def test_a_node_over_its_limit_gets_no_new_work_until_it_is_below(load: str, limit: str) -> None:
    a = child("a", 4)
    fields: dict[str, Any] = {limit: 80}
    registry.update_node(a.id, **fields)
    run = submit(2)
    a.beat(**{load: 81})
    assert dispatch() == set()
    word = "CPU" if load == "cpu" else load
    assert codes(run) == {"a": f"{word} 81 % is above its limit, 80 %"}
    a.beat(**{load: 80})
    assert dispatch() == {a.id}


def test_the_servers_limit_holds_where_a_node_has_none(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"max_memory": 70})
    a, b = child("a"), child("b", max_memory=95)
    for each in (a, b):
        each.beat(memory=90)
    submit(9)
    assert dispatch() == {b.id}


def test_what_an_overloaded_node_holds_it_keeps() -> None:
    a = child("a", 2, max_cpu=50)
    run = submit(4)
    works = a.works()
    a.beat(cpu=99, held=[work.allocation for work in works])
    assert a.statuses(*[done(work) for work in works]) == [200, 200]
    assert dispatch() == set()
    assert_partition(run)


def test_preferred_nodes_are_filled_first_and_the_others_take_the_rest() -> None:
    child("big", 9)
    eu = child("eu", 2, labels={"region": "eu"})
    run = submit(4, affinity={"region": "eu"})
    dispatch()
    assert eu.live() == 2
    assert Allocation.objects.count() == 4
    assert "preferred: region=eu" in Allocation.objects.get(start=0).reason
    assert_partition(run)


def test_a_feed_with_a_quota_goes_to_its_node_first_and_elsewhere_when_that_is_full() -> None:
    child("big", 9, types=["feed_update"], dialect="cascade")
    home = child("home", 5, "feed_update[mp_id_1]=2", types=["feed_update"], dialect="cascade")
    run = submit(["mp_id_2", "mp_id_1", "mp_id_1", "mp_id_1", "mp_id_3"], type="feed_update")
    dispatch()
    by_item = {each.start: (each.node_id, each.reason) for each in Allocation.objects.all()}
    assert len(by_item) == 5
    assert [by_item[start][0] == home.id for start in (1, 2, 3)] == [True, True, False]
    assert by_item[1][1] == "quota 1 of 2 for feed_update[mp_id_1]"
    assert by_item[3][1].startswith("free capacity")
    assert_partition(run)


@pytest.mark.parametrize("trouble", ["full", "gone", "overloaded"])
def test_a_quota_of_a_node_that_cannot_take_it_strands_nothing(trouble: str) -> None:
    home = child("home", 1, "feed_update[mp_id_1]=1", types=["feed_update"], max_cpu=50, dialect="cascade")
    other = child("other", 1, types=["feed_update"], dialect="cascade")
    if trouble == "full":
        registry.drain(other.id)
        submit(["mp_id_9"], type="feed_update")
        dispatch()
        registry.resume(other.id)
    elif trouble == "gone":
        home.beat(leaving=True)
    else:
        home.beat(cpu=99)
    run = submit(["mp_id_1"], type="feed_update")
    assert dispatch() == {other.id}
    assert_partition(run)


def test_without_a_node_the_parent_runs_it_after_the_grace_time(clock: factory.Clock) -> None:
    here = local()
    run = submit(3)
    assert dispatch() == set()
    assert codes(run) == {"here": "local fallback in 10 s"}
    clock.forward(9)
    assert dispatch() == set()
    clock.forward(1.5)
    here.beat()
    assert dispatch() == {here.id}
    assert here.live() == 2
    assert "local fallback: no other node can run it" in Allocation.objects.all()[0].reason
    assert_partition(run)


def test_with_a_node_that_can_the_parent_leaves_it_to_that_however_long_it_is_busy(clock: factory.Clock) -> None:
    here, a = local(), child("a", 1)
    run = submit(3)
    dispatch()
    clock.forward(25)
    for each in (here, a):
        each.beat(held=[made.pk for made in Allocation.objects.filter(node_id=each.id)])
    assert dispatch() == set()
    assert here.live() == 0
    assert codes(run)["here"] == "left to the nodes that can run it: a"


def test_when_the_last_node_is_lost_in_mid_run_the_parent_goes_on_at_once() -> None:
    here, a = local(), child("a", 1)
    run = submit(3)
    (work,) = a.works()
    a.release(work.allocation)
    a.beat(leaving=True)
    assert dispatch() == {here.id}
    assert here.live() == 2
    assert_partition(run)


def test_when_a_node_comes_back_the_parent_takes_no_more() -> None:
    here, a = local(1), child("a", 1)
    a.beat(leaving=True)
    submit(5, fallback="allowed")
    factory.Run.objects.update(cut=0, created_at=factory.timezone.now() - factory.dt.timedelta(seconds=60))
    (work,) = here.works()
    a.beat(hello=True, executors=["echo"])
    here.report(done(work))
    assert dispatch() == {a.id}
    assert here.live() == 0


def test_a_run_may_ask_for_the_parent_or_refuse_it(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"fallback_seconds": 0})
    here = local(4)
    never, required = submit(1, fallback="never"), submit(1, fallback="required")
    assert dispatch() == {here.id}
    assert list(Allocation.objects.values_list("run_id", flat=True)) == [required.pk]
    assert codes(never) == {"here": "this run must not run here"}
    a = child("a", 4)
    assert codes(submit(9, fallback="required"))["a"] == "this run must run on the parent itself"
    assert dispatch() == {here.id, a.id}
    assert set(Allocation.objects.filter(node_id=a.id).values_list("run_id", flat=True)) == {never.pk}


def test_a_standalone_parent_is_a_node_like_the_others(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"role": "standalone"})
    here = local(4)
    submit(3)
    assert dispatch() == {here.id}
    assert not any("fallback" in each.reason for each in Allocation.objects.all())


@pytest.mark.parametrize("dialect", ["cascade", "distribution"])
def test_nothing_is_queued_ahead_with_a_client_that_polls_rarely(settings: Any, dialect: str) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"lookahead_seconds": 1.0, "lookahead_limit": 50})
    a, quick = child("a", 2), child("quick", 2)
    registry.update_node(a.id, dialect=dialect)
    run = submit(200)
    Node.objects.update(speeds={f"echo@{run.pk}": 0.001})
    dispatch()
    assert (a.live(), quick.live()) == (2, 52)


def test_plain_runs_cost_a_pass_no_query_for_rates_or_fallback(django_assert_max_num_queries: Any) -> None:
    child("a", 4)
    for _ in range(5):
        submit(9)
    dispatch()
    # Is there anything, nodes, quotas, what they hold, runs, slots of runs, what came back; the transaction's two.
    with django_assert_max_num_queries(9):
        dispatch()

"""Runs with a pace of their own: shards of one host take lanes, over all nodes together, which rest afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from dispatch import buckets, lifecycle, queue, rated
from dispatch.models import Allocation, Run, Shard, Source
from dispatch.states import LIVE, RunState
from nodes import executors, registry
from nodes.executors.base import item_key
from nodes.models import Node
from nodes.protocol import FieldError
from tests.integration import factory
from tests.integration.factory import Child, Work, assert_partition, at_once, dispatch, fresh

pytestmark = pytest.mark.django_db

COLUMNS = executors.get("crawl").dataset.names


@pytest.fixture(autouse=True)
def _nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests put off is not awaited here."""
    monkeypatch.setattr(queue, "_wakes", queue.Wakes())


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> factory.Clock:
    """A clock that moves when it is told to only."""
    clock, began = factory.Clock(monkeypatch), timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: began + clock.ahead)
    return clock


def child(name: str, capacity: int = 20) -> Child:
    return factory.child(name, capacity, types=("crawl",))


def crawl(*items: str, per_second: float = 1.0, at_once: int = 1, shard_size: int = 1, **fields: Any) -> Run:
    params = {"per_second": per_second, "at_once": at_once, **fields.pop("params", {})}
    return factory.submit(items, type="crawl", params=params, shard_size=shard_size, **fields)


def on(host: str, count: int) -> list[str]:
    return [f"https://{host}/{number}" for number in range(count)]


def done(work: Work, *found: str) -> dict[str, Any]:
    """All pages of it, the first of which links to ``found``."""
    rows = [[item["url"], 200, *[None] * (len(COLUMNS) - 2)] for item in work.items]
    outcomes = [[work.start, {"found": [{"key": url, "url": url, "depth": 1} for url in found]}]] if found else []
    return {
        "allocation": work.allocation,
        "ranges": [[work.start, work.stop, len(rows)]],
        "rows": rows,
        "outcomes": outcomes,
        "seconds": factory.SLOW * len(rows),
    }


def live() -> int:
    return Allocation.objects.filter(state__in=LIVE).count()


def all_beat() -> None:
    for node in Node.objects.all():
        registry.record_beat(node.pk, at=timezone.now())


def test_one_shard_of_a_host_at_a_time_and_a_rest_after_it(still: factory.Clock) -> None:
    a, b = child("a"), child("b")
    run = crawl(*on("slow.org", 5), per_second=2.0)
    dispatch()
    dispatch()
    (work,) = [*a.claim(), *b.claim()]
    still.forward(3)
    assert not dispatch(), "it is under way, however long it takes"
    node = a if Allocation.objects.get().node_id == a.id else b
    assert node.statuses(done(work)) == [200]
    assert not dispatch(), "the lane rests"
    still.forward(0.49)
    assert not dispatch()
    still.forward(0.02)
    dispatch()
    assert live() == 1
    assert_partition(run)


def test_as_many_at_once_as_the_run_says(still: factory.Clock) -> None:
    a, b = child("a"), child("b")
    crawl(*on("slow.org", 12), per_second=6.0, at_once=3)
    dispatch()
    works = [(a, work) for work in a.claim()] + [(b, work) for work in b.claim()]
    assert len(works) == 3
    assert {node.id for node, _ in works} == {a.id, b.id}, "over all nodes"
    node, work = works[0]
    node.statuses(done(work))
    assert not dispatch()
    still.forward(0.51)  # three lanes that share six a second: half a second each
    dispatch()
    assert live() == 3


def test_a_busy_host_holds_up_no_other(still: factory.Clock) -> None:
    a = child("a", 50)
    mixed = [f"https://{host}/{number}" for number in range(4) for host in ("slow.org", "b.org", "c.org")]
    run = crawl(*mixed)
    for _ in range(60):
        for work in a.works():
            assert len({item["url"].split("/")[2] for item in work.items}) == 1
            assert a.statuses(done(work)) == [200]
        hosts = [url.split("/")[2] for url in _live_urls(run)]
        assert len(hosts) == len(set(hosts))
        still.forward(0.5)
        lifecycle.forgive(timezone.now())
        all_beat()
    assert fresh(run).cut == 12
    assert set(Shard.objects.values_list("state", flat=True)) == {"spooled"}
    assert_partition(run)


def _live_urls(run: Run) -> list[str]:
    starts = Allocation.objects.filter(run=run, state__in=LIVE).values_list("start", flat=True)
    return [item_key(queue.frozen(run.pk).slice(start, start + 1)[0]) for start in starts]


def test_hosts_found_on_the_way_have_lanes_of_their_own(still: factory.Clock) -> None:
    a = child("a")
    run = crawl("https://start.org/", params={"follow": True, "hosts": ["*.org"]})
    (work,) = a.works()
    assert a.statuses(done(work, "https://one.org/", "https://two.org/", "https://one.org/again")) == [200]
    found = a.works()
    assert {work.items[0]["key"] for work in found} == {"https://one.org/", "https://two.org/"}
    assert fresh(run).count == 4
    assert fresh(run).state == RunState.RUNNING
    a.statuses(*[done(work) for work in found])
    still.forward(2)
    (last,) = a.works()
    assert last.items[0]["key"] == "https://one.org/again"
    assert_partition(run)


@pytest.mark.parametrize("end", ["released", "expired"])
def test_a_lane_rests_however_its_shard_ended(settings: Any, still: factory.Clock, end: str) -> None:
    a = child("a")
    crawl(*on("slow.org", 3), per_second=0.1)
    (work,) = a.works()
    if end == "released":
        a.release(work.allocation)
    else:
        still.forward(settings.CASCADE.lease_seconds + 1)
        lifecycle.expire(timezone.now())
    all_beat()
    still.forward(9)
    all_beat()
    assert not dispatch()
    still.forward(1.1)
    all_beat()
    assert dispatch() == {a.id}


def test_an_operators_limit_holds_as_well(still: factory.Clock) -> None:
    buckets.set_limit("host:slow.org", 0.1, 1)
    a = child("a")
    crawl(*on("slow.org", 3), per_second=5.0)
    crawl(*on("slow.org", 3), per_second=5.0)
    dispatch()
    assert live() == 1, "of both runs together"
    (work,) = a.claim()
    a.statuses(done(work))
    still.forward(5)
    assert not dispatch()
    still.forward(5.1)
    assert dispatch()


@pytest.mark.django_db(transaction=True)
def test_dispatchers_that_pass_at_once_give_out_no_lane_twice(still: factory.Clock) -> None:
    nodes = [child("a", 100), child("b", 100)]
    run = crawl(*on("slow.org", 40), per_second=6.0, at_once=3)
    for _ in range(4):
        at_once(*[dispatch] * 4)
        assert live() == 3
        for node in nodes:
            node.statuses(*[done(work) for work in node.claim()])
        at_once(*[dispatch] * 4)
        assert live() == 0, "they rest"
        still.forward(0.51)
    assert_partition(run)


def test_an_address_may_come_from_a_source() -> None:
    Source.objects.create(kind="url", key="docs", address="HTTPS://Docs.org/start#top")
    run = crawl("docs", "https://docs.org/start", "https://other.org/")
    assert [item_key(item) for item in queue.frozen(run.pk).all()] == ["https://docs.org/start", "https://other.org/"]
    with pytest.raises(FieldError, match=r"items\[1\]: 'dogs' is not .* nor is it the key of an active source"):
        crawl("docs", "dogs")


def test_two_runs_have_lanes_of_their_own(still: factory.Clock) -> None:
    child("a")
    crawl(*on("slow.org", 3))
    crawl(*on("slow.org", 3))
    dispatch()
    assert live() == 2


def test_the_rate_key_names_the_host(still: factory.Clock) -> None:
    assert crawl("https://a.org/").rate_key == "host:{host}"
    assert crawl("https://a.org/", rate_key="crawl:{host}").rate_key == "crawl:{host}"
    for key in ("feeds", "item:{item}", "{host}/{item}"):
        with pytest.raises(FieldError, match=r"rate_key: .*: runs of this type are paced by \{host\}"):
            crawl("https://a.org/", rate_key=key)


def test_explain_says_what_is_under_way_and_a_pass_when_the_rest_ends(still: factory.Clock) -> None:
    a = child("a")
    run = crawl(*on("slow.org", 3), per_second=0.5)
    (work,) = a.works()
    assert queue.allocate_now().wake is None, "a report must come first"
    (refusal,) = queue.explain(run.pk).refusals
    assert (refusal.code, refusal.reason) == ("rate", "rate host:slow.org: 1 of 1 at a time under way (0.5 a second)")
    a.statuses(done(work))
    still.forward(0.5)
    assert queue.allocate_now().wake == pytest.approx(1.5)
    (refusal,) = queue.explain(run.pk).refusals
    assert refusal.reason == "rate host:slow.org: 0 of 1 at a time under way, 1 rest (0.5 a second)"


def test_a_shard_has_about_a_second_of_a_lane_at_most(still: factory.Clock) -> None:
    a = child("a")
    crawl(*on("slow.org", 300), per_second=40.0, at_once=4, shard_size=100)
    assert {work.stop - work.start for work in a.works()} == {10}


def test_work_that_began_long_ago_keeps_its_lane(still: factory.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though only the newest allocations of a run are looked at."""
    monkeypatch.setattr(rated, "RECENT", 2)
    a = child("a")
    run = crawl("https://slow.org/0", *[f"https://h{number}.org/" for number in range(6)], "https://slow.org/1")
    works = {work.items[0]["key"]: work for work in a.works()}
    assert len(works) == 7
    still.forward(1.1)
    assert not dispatch(), "it is under way"
    still.forward(1.1)
    a.statuses(done(works["https://slow.org/0"]))
    assert not dispatch(), "its lane rests"
    still.forward(1.1)
    assert dispatch()
    assert fresh(run).cut == 8

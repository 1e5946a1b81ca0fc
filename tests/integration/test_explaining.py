"""Why work waits: every node with its reason, these counted, the exact limit, and the place in line; and who had a
shard, in order, with why and how it ended."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dispatch import buckets, lifecycle, queue
from dispatch.explaining import line, places, waiting
from dispatch.models import Allocation, LeafWork, Receipt, Run, Shard
from nodes import registry
from nodes.models import Node
from nodes.protocol import FieldError, NotFound
from tests.integration.factory import Clock, child, dispatch, done, failure, fresh, partly, submit

pytestmark = pytest.mark.django_db


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that moves when it is told to only."""
    clock, began = Clock(monkeypatch), timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: began + clock.ahead)
    return clock


def of_run(run: Run) -> waiting.Waiting:
    return waiting.of_run(fresh(run))


def texts(run: Run) -> list[str]:
    return [str(group) for group in of_run(run).groups]


def test_reasons_are_counted_and_the_exact_limit_is_named(still: Clock) -> None:
    for name in ("l1", "l2"):
        child(name, 9, "echo=0/1", labels={"region": "eu"})
    child("busy", 2, labels={"region": "eu"})
    for name in ("u1", "u2", "u3"):
        child(name, 2, labels={"region": "us"})
    child("none", 2, types=["data_import"])
    registry.drain(child("drained", 2, labels={"region": "eu"}).id)
    registry.update_node(child("off", 2, labels={"region": "eu"}).id, active=False)
    away = child("away", 2, labels={"region": "eu"})
    Node.objects.filter(pk=away.id).update(last_beat_at=timezone.now() - dt.timedelta(hours=3))
    run = submit(9, labels={"region": "eu"})
    dispatch()
    found = of_run(run)
    assert texts(run) == [
        "no free slot: 2 of 2 in use on 1 node",
        "quota limit 1 of 1 for echo: 2 nodes",
        "label region=eu: 3 nodes",
        "does not offer echo: 1 node",
        "draining: 1 node",
        "offline: 1 node",
        "inactive: 1 node",
    ]
    assert found.headline == "no free slot: 2 of 2 in use on 1 node; quota limit 1 of 1 for echo: 2 nodes"
    told = {each["node"]: (each["code"], each["reason"]) for each in found.told()["refusals"]}
    assert len(told) == Node.objects.count()
    assert told["u1"] == ("label", "label region is 'us', not 'eu'")
    assert told["away"] == ("offline", "offline: last heard of 3 h ago")
    assert told["off"] == ("inactive", "inactive")


def test_a_node_that_is_silent_for_a_lease_is_not_called_offline(still: Clock, settings: object) -> None:
    a = child("a", 2)
    run = submit(1)
    Node.objects.filter(pk=a.id).update(last_beat_at=timezone.now() - dt.timedelta(seconds=35))
    (refusal,) = of_run(run).told()["refusals"]
    assert refusal["code"] == "offline"
    assert refusal["reason"].endswith("last heard of 35 s ago")


def test_where_no_node_may_have_it_that_is_what_it_waits_for(still: Clock) -> None:
    run = submit(1, labels={"region": "eu"})
    assert of_run(run).headline == "there is no node"
    child("a", 2)
    assert of_run(run).headline == "no node can take it: label region=eu: 1 node"


def test_the_place_in_line_is_the_order_in_which_a_pass_serves(still: Clock) -> None:
    full = child("a", 2)
    first = submit(3, name="has two slots")
    dispatch()
    assert full.live() == 2
    older, younger = submit(1, name="older"), submit(1, name="younger")
    urgent, patient = submit(1, priority=9), submit(1, priority=1)
    order = [urgent, older, younger, first, patient]
    for at, run in enumerate(order, 1):
        place = of_run(run).position
        assert place is not None
        assert (place["position"], place["of"]) == (at, 5)
    place = of_run(first).position
    assert place is not None
    assert place["ahead"] == {"priority": 1, "served": 2}
    assert [(each["run"], each["why"]) for each in place["before"]] == [
        (urgent.pk, "priority 9, above 5"),
        (older.pk, "has fewer slots: 0, this one 2"),
        (younger.pk, "has fewer slots: 0, this one 2"),
    ]
    place = of_run(younger).position
    assert place is not None
    assert place["ahead"] == {"priority": 1, "age": 1}
    assert place["before"][1]["why"].startswith("submitted earlier: ")
    # What the pass does when there is room for all, one after the other.
    registry.update_node(full.id, capacity=9)
    since = Allocation.objects.latest("pk").pk
    dispatch()
    assert list(Allocation.objects.filter(pk__gt=since).order_by("pk").values_list("run", flat=True)) == [
        run.pk for run in order
    ]


def test_a_run_that_gives_nothing_now_is_not_in_line(still: Clock) -> None:
    a = child("a", 1)
    run = submit(1, backoff=60.0)
    a.report(failure(a.works()[0], kind="error", message="no luck"))
    found = of_run(run)
    assert found.position is None
    assert found.put_off["shards"] == 1
    assert found.headline.startswith("1 shard waits for the next attempt (back-off); the first until ")
    assert found.told()["put_off"]["until"] == Shard.objects.get(run=run).not_before
    shard = places.of_shard(fresh(run), Shard.objects.get(run=run))
    assert shard["waiting"]["waits_for"] == found.headline
    still.forward(61)
    a.beat()
    assert of_run(run).headline == "the next pass gives out 1 shard of it"


def test_what_waits_for_a_rate_says_when_the_next_token_comes(still: Clock) -> None:
    buckets.set_limit("feeds", 2.0, 1)
    child("a", 9)
    run = submit(3, rate_key="feeds")
    dispatch()
    assert of_run(run).headline == "rate feeds: next token in 0.5 s (2 a second, 1 at once): 1 node"


def test_a_free_slot_that_goes_to_another_run_is_not_promised(still: Clock) -> None:
    child("a", 1)
    other, run = submit(1, priority=9), submit(1)
    found = of_run(run)
    assert found.grants == []
    assert found.headline == "no free slot: 1 of 1 in use on 1 node"
    (made,) = of_run(other).grants
    assert made.run == other.pk


def test_with_too_many_runs_for_that_it_is_said(still: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WHOLE_LIMIT", 1)
    child("a", 1)
    submit(1, priority=9)
    found = of_run(submit(1))
    assert found.alone
    assert found.headline == "the next pass gives out 1 shard of it unless runs before it take the slots"


def test_an_ended_run_waits_for_nothing(still: Clock) -> None:
    run = submit(2)
    child("a", 1)
    lifecycle.cancel(run.pk)
    found = of_run(run)
    assert (found.headline, found.position, list(found.refusals)) == ("the run is cancelled", None, [])


def test_a_shard_tells_who_had_it_in_order_and_how_each_attempt_ended(still: Clock) -> None:
    a, b = child("a", 1), child("b", 1, types=["data_import"])
    run = submit(2, shard_size=2, backoff=0.0)
    (work,) = a.works()
    still.forward(2)
    a.report(failure(work))
    Node.objects.filter(pk=a.id).update(draining=True)
    b.beat(hello=True, executors=["echo"])
    (again,) = b.works()
    still.forward(3)
    b.report(done(again))
    told = places.of_shard(fresh(run), Shard.objects.get(run=run))
    first, second = told["attempts"]
    assert (first["node"], first["attempt"], first["state"], first["by"]) == ("a", 1, "failed", "free")
    assert "the worker died" in first["error"]
    assert (first["ran_by"], first["rows"]) == ([], 0)
    assert (second["node"], second["attempt"], second["state"]) == ("b", 2, "completed")
    assert second["reason"] == Allocation.objects.get(pk=again.allocation).reason
    assert [first["receipt"], second["receipt"]] == list(Receipt.objects.order_by("pk").values_list("pk", flat=True))
    assert (second["ran_by"], second["rows"]) == (["b"], 2)
    assert second["granted_at"] <= second["started_at"] <= second["finished_at"]
    assert told["state"] == "spooled"
    assert told["waiting"] is None


def test_who_ran_it_below_a_relay_is_told(still: Clock) -> None:
    a = child("eu", 1)
    run = submit(1)
    (work,) = a.works()
    a.report(done(work))
    LeafWork.objects.create(run=run, allocation_id=work.allocation, start=0, stop=1, path="eu/paris/3")
    told = places.of_index(fresh(run), 0)
    assert told["attempts"][0]["ran_by"] == ["eu/paris/3"]
    assert told["shard"]["ran_by"] == ["eu/paris/3"]


def test_an_item_is_found_by_its_number_and_by_its_key(still: Clock) -> None:
    a = child("a", 1)
    run = submit(["x", "y", "z", "y"])
    a.works()
    told = places.of_key(fresh(run), "x")
    assert (told["index"], told["indexes"], told["state"], told["shard"]["start"]) == (0, [0], "executing", 0)
    assert told["attempts"][0]["node"] == "a"
    told = places.of_key(fresh(run), "y")
    assert (told["index"], told["indexes"], told["state"], told["shard"]) == (1, [1, 3], "uncut", None)
    assert told["waiting"]["waits_for"] == "no free slot: 1 of 1 in use on 1 node"
    told = places.of_index(fresh(run), 3)
    assert (told["item"], told["ahead"]) == ("y", {"shards": 0, "items": 2})
    with pytest.raises(NotFound, match=r"has no item 'w'"):
        places.of_key(fresh(run), "w")
    with pytest.raises(FieldError, match=r"index: 4 is not one of 0 to 3"):
        places.of_index(fresh(run), 4)


def test_an_item_waits_for_its_own_quota(still: Clock) -> None:
    child("a", 3, "echo[y]=0/0")
    run = submit(["x", "y", "z"])
    dispatch()
    assert places.of_key(fresh(run), "y")["waiting"]["waits_for"] == "quota limit 0 of 0 for echo[y]: 1 node"


def test_a_shard_that_came_back_waits_behind_what_came_back_before(still: Clock) -> None:
    a = child("a", 3)
    run = submit(3, backoff=0.0)
    works = a.works()
    for work in works:
        a.release(work.allocation)
    registry.drain(a.id)
    shards = list(Shard.objects.filter(run=run).order_by("pk"))
    told = places.of_shard(fresh(run), shards[2])
    assert told["ahead"] == {"shards": 2, "items": 0}
    assert told["waiting"]["waits_for"] == "no node can take it: draining: 1 node"
    assert told["attempts"][0]["state"] == "cancelled"


def test_parts_of_what_was_allocated_find_their_attempt(still: Clock) -> None:
    a = child("a", 1)
    run = submit(3, shard_size=3)
    (work,) = a.works()
    a.report(partly(work, 1, retry=True))
    for shard in Shard.objects.filter(run=run):
        assert places.of_shard(fresh(run), shard)["attempts"][0]["allocation"] == work.allocation


def test_the_number_of_queries_does_not_grow_with_nodes_or_runs(still: Clock) -> None:
    def asked(nodes: int, runs: int) -> int:
        for number in range(nodes):
            child(f"{nodes}-{number}", 1)
        made = [submit(3) for _ in range(runs)]
        dispatch()
        with CaptureQueriesContext(connection) as queries:
            of_run(made[-1]).told()
        return len(queries)

    assert asked(2, 2) == asked(12, 12)


def test_the_line_is_what_the_allocator_makes_of_the_same_demands(still: Clock) -> None:
    a = child("a", 3)
    for priority in (5, 3, 5, 7, 5):
        submit(4, priority=priority, backoff=0.0)
    for work in a.works()[:2]:
        a.report(failure(work))
    now = timezone.now()
    nodes = list(Node.objects.all())
    demands = queue.read(queue.load(nodes, now, queue.running()), now).demands
    expected = sorted(demands, key=lambda each: (-each.priority, each.served, each.age, each.run))
    assert [place.run for place in line.standing(now)] == [each.run for each in expected]

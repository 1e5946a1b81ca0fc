"""Rates over a tree: tokens that go down with work, until it was begun there; the pace of a run; limits of a relay."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import pytest
from django.utils import timezone

from dispatch import buckets, lifecycle, queue
from dispatch.models import Allocation, Origin, RateLease, Run, Shard
from dispatch.relay import forwarding, leased, place, taking
from dispatch.states import LIVE, RunState
from nodes import executors, messages
from tests.integration import factory
from tests.integration.factory import Child, assert_partition, child, dispatch, done, failure, submit
from tests.integration.test_relay import PARENT, due, finish, offered

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder")]

KEY = "host:a.org"


@pytest.fixture(autouse=True)
def _nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests put off is not awaited here."""
    monkeypatch.setattr(queue, "_wakes", queue.Wakes())


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> factory.Clock:
    """A clock that moves when it is told to only, so that tokens can be counted."""
    clock, began = factory.Clock(monkeypatch), timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: began + clock.ahead)
    return clock


class Branch:
    """A relay as its parent sees it."""

    def __init__(self, name: str, slots: int = 8, types: tuple[str, ...] = ("echo",)) -> None:
        self.child: Child = child(name, capacity=slots, types=types)
        self._id = hashlib.sha256(name.encode()).hexdigest()[:32]
        self._told = {"slots": slots, "types": dict.fromkeys(types, slots), "branches": [{}]}
        self.held: list[int] = []
        self.beat(hello=True)

    def beat(self, begun: dict[int, int] | None = None, **more: Any) -> dict[str, Any]:
        told = {str(pk): count for pk, count in (begun or {}).items()}
        return self.child.beat(role="relay", id=self._id, held=self.held, begun=told, **self._told, **more)

    def takes(self) -> dict[str, Any]:
        dispatch()
        message = self.child.claimed()
        self.held += [each[0] for each in message["work"]]
        return message


def count(message: dict[str, Any]) -> int:
    return sum(stop - start for _, _, start, stop, _, _ in message["work"])


def given_out() -> int:
    return sum(each.stop - each.start for each in Allocation.objects.all())


# Above


def test_tokens_go_down_with_their_key_and_nobody_gets_others_until_the_items_were_begun(
    still: factory.Clock,
) -> None:
    buckets.set_limit("host:*", 2.0, 4)
    eu, us = Branch("eu"), Branch("us")
    submit([f"https://a.org/{number}" for number in range(40)], rate_key="host:{host}", shard_size=0)
    message = eu.takes()
    us.takes()
    assert given_out() == 4
    assert set(message["rates"].values()) == {KEY}
    still.forward(10.0)
    eu.beat()
    us.beat()
    assert not dispatch(), "all four may still begin at this moment"
    first = eu.held[0]
    begun = next(stop - start for pk, _, start, stop, _, _ in message["work"] if pk == first)
    eu.beat({first: begun})
    assert not dispatch(), "room for tokens, which come from now on"
    still.forward(0.5 * begun)
    dispatch()
    assert given_out() == 4 + begun


def test_however_branches_delay_no_window_has_more_than_burst_and_rate(still: factory.Clock) -> None:
    rate, burst = 3.0, 2
    buckets.set_limit("feeds", rate, burst)
    branches = [Branch("eu"), Branch("us")]
    submit(400, rate_key="feeds", shard_size=0)
    waiting: list[list[tuple[int, int]]] = [[], []]
    begins: list[float] = []
    for step in range(120):
        still.forward(0.25)
        now = still.ahead.total_seconds()
        for number, branch in enumerate(branches):
            for pk, _, start, stop, _, _ in branch.takes()["work"]:
                waiting[number].append((pk, stop - start))
            # One is quick, the other keeps what it has for three seconds and begins all of it at once.
            if number == 0 or step % 12 == 0:
                begins += [now for _, length in waiting[number] for _ in range(length)]
                ended = dict(waiting[number])
                branch.beat(ended)
                branch.held = [pk for pk in branch.held if pk not in ended]
                Allocation.objects.filter(pk__in=ended).update(state="completed")
                waiting[number] = []
            else:
                branch.beat()
    assert len(begins) > 20
    for at, first in enumerate(begins):
        for more, last in enumerate(begins[at:], 1):
            assert more <= burst + rate * (last - first) + 1e-6


def test_what_a_silent_branch_had_comes_back_when_its_lease_has_ended(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 1.0, 3)
    eu = Branch("eu")
    submit(40, rate_key="feeds", shard_size=0)
    assert count(eu.takes()) == 3
    us = Branch("us")
    still.forward(29)
    us.beat()
    assert us.takes()["work"] == []
    still.forward(2)
    us.beat()
    lifecycle.expire(timezone.now())
    assert us.takes()["work"] == [], "its room is there, and fills from now on"
    assert not RateLease.objects.filter(allocation__node=eu.child.id).exists()
    still.forward(2)
    us.beat()
    assert count(us.takes()) == 2


def test_what_is_on_its_way_to_a_relay_keeps_its_tokens_and_what_has_ended_does_not(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 1.0, 3)
    eu = Branch("eu")
    run = submit(40, rate_key="feeds", shard_size=0)
    eu.takes()
    mine, eu.held = eu.held, []
    eu.beat()  # sent before the claim was answered
    assert RateLease.objects.count() == len(mine)
    lifecycle.cancel(run.pk)
    eu.held = mine
    eu.beat()
    assert RateLease.objects.count() == len(mine), "it may begin them until it has heard"
    eu.held = []
    eu.beat()
    assert not RateLease.objects.exists()


def test_one_token_does_not_take_all_slots_of_a_relay(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 0.1)
    Branch("eu", slots=8)
    submit(100, rate_key="feeds")
    dispatch()
    assert list(Allocation.objects.values_list("slots", flat=True)) == [1]


def test_waiting_for_a_relays_word_causes_no_passes(still: factory.Clock) -> None:
    buckets.set_limit("feeds", 50.0)
    eu = Branch("eu")
    run = submit(100, rate_key="feeds")
    eu.takes()
    still.forward(1)
    assert queue.allocate_now().wake is None
    (refusal,) = queue.explain(run.pk).refusals
    assert (refusal.code, "when relays have used the 1 they have" in refusal.reason) == ("rate", True)


def test_what_is_not_begun_yet_is_kept_when_a_limit_changes(still: factory.Clock) -> None:
    limit = buckets.set_limit("feeds", 1.0, 3)
    eu = Branch("eu")
    submit(100, rate_key="feeds")
    eu.takes()
    still.forward(60)
    buckets.change_limit(limit.pk, per_second=2.0)
    assert buckets.forget(timezone.now()) == 0
    eu.beat()
    assert not dispatch()


def test_a_beat_is_read_and_refused_by_name() -> None:
    with pytest.raises(messages.FieldError, match="begun"):
        messages.read_beat({"role": "relay", "id": "a" * 32, "begun": {"x": 1}})
    with pytest.raises(messages.FieldError, match="configs"):
        messages.read_beat({"role": "relay", "id": "a" * 32, "configs": {str(n): 1 for n in range(11)}})


def test_a_lane_goes_to_a_relay_as_one_slot(still: factory.Clock) -> None:
    eu = Branch("eu", types=("crawl",))
    params = {"per_second": 4.0, "at_once": 2}
    items = [f"https://a.org/{number}" for number in range(40)]
    factory.submit(items, type="crawl", params=params, shard_size=0)
    message = eu.takes()
    assert [Allocation.objects.get(pk=each[0]).slots for each in message["work"]] == [1, 1]
    assert message["runs"][message["work"][0][1]]["rate_key"] == "host:{host}"


# Below


def taken(allocation: int = 70, key: str = KEY, **more: Any) -> Run:
    message = {**offered(allocation, **more), "rates": {str(allocation): key}}
    assert taking.take(PARENT, message).held == [allocation]
    return Run.objects.get(origin__allocation=allocation)


@pytest.mark.usefixtures("relay")
def test_items_count_as_begun_when_a_node_has_them_and_are_told() -> None:
    mine = child(capacity=2)
    taken()
    assert leased.begun(PARENT) == {"70": 0}
    dispatch()
    assert leased.begun(PARENT) == {"70": 0}, "granted, and not fetched yet"
    works = mine.claim()
    assert leased.begun(PARENT) == {"70": 4}
    finish(mine, works)
    assert leased.begun(PARENT) == {"70": 4}
    mine.works()
    assert leased.begun(PARENT) == {"70": 8}


@pytest.mark.usefixtures("relay")
def test_nothing_of_it_is_queued_ahead_since_what_a_node_has_counts_as_begun() -> None:
    mine = child(capacity=1)
    warm = taken(allocation=60, key="", count=40, slots=1, shard_size=1)
    for _ in range(3):
        works = mine.works()
        assert set(mine.statuses(*({**done(work), "seconds": 0.001} for work in works))) == {200}
    assert (len(mine.works()), bool(mine.works())) == (1, True), "short work without a rate is queued ahead"
    taking.drop(PARENT, [60])
    assert not warm.allocations.filter(state__in=LIVE).exists()
    taken(count=40, shard_size=1)
    assert (len(mine.works()), bool(mine.works())) == (1, False)


@pytest.mark.usefixtures("relay")
def test_a_relay_below_a_relay_has_the_tokens_until_it_says_so() -> None:
    low = Branch("low")
    taken(count=4, shard_size=0)
    message = low.takes()
    assert set(message["rates"].values()) == {KEY}
    assert leased.begun(PARENT) == {"70": 0}
    low.beat(dict.fromkeys(low.held, 1))
    assert leased.begun(PARENT) == {"70": len(low.held)}


@pytest.mark.usefixtures("relay")
def test_what_is_lost_below_is_not_begun_again_but_handed_back_when_the_rest_is_passed_on() -> None:
    mine = child(capacity=2)
    run = taken(count=4)
    first, second = mine.works()
    finish(mine, [first])
    mine.release(second.allocation)
    dispatch()
    assert mine.live() == 0
    assert leased.stuck(PARENT, timezone.now()) == [], "not before what was done is with the parent"
    for each in due(timezone.now() + dt.timedelta(seconds=2)):
        assert not each.last
        forwarding.settled(each)
    assert leased.stuck(PARENT, timezone.now()) == [70]
    taking.drop(PARENT, [70])
    run.refresh_from_db()
    assert run.state == RunState.CANCELLED
    assert_partition(run)


@pytest.mark.usefixtures("relay")
def test_what_kills_workers_is_told_as_failed_so_that_the_node_above_counts() -> None:
    mine = child(capacity=1)
    run = taken(count=4, shard_size=2)
    (first,) = mine.works()
    assert mine.statuses(failure(first)) == [200]
    (second,) = mine.works()
    assert (second.start, second.stop) == (2, 4)
    finish(mine, [second])
    assert mine.works() == []
    (last,) = due()
    assert last.last
    assert [(index, retry) for index, _, retry in last.entry["errors"]] == [(100, True), (101, True)]
    forwarding.settled(last)
    run.refresh_from_db()
    assert (run.state, taking.held(PARENT)) == (RunState.CANCELLED, [])
    assert_partition(run)


@pytest.mark.usefixtures("relay")
def test_what_finds_no_node_goes_back_after_a_while() -> None:
    taken()
    assert leased.stuck(PARENT, timezone.now()) == []
    assert leased.stuck(PARENT, timezone.now() + dt.timedelta(seconds=leased.IDLE_SECONDS + 1)) == [70]


@pytest.mark.usefixtures("relay")
def test_nothing_is_begun_when_the_tokens_have_lapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    child(capacity=1)
    rated = taken()
    taking.take(PARENT, offered(allocation=71))
    place.here.heard -= place.here.lease
    dispatch()
    assert not Allocation.objects.filter(run=rated).exists()
    assert Allocation.objects.filter(state__in=LIVE).count() == 1, "other work goes on"
    assert {each.code for each in queue.explain(rated.pk).refusals} == {"island"}


@pytest.mark.usefixtures("relay")
def test_limits_of_the_relay_itself_hold_as_well(still: factory.Clock) -> None:
    buckets.set_limit("host:*", 1.0, 1)
    mine = child(capacity=8)
    taken(count=8, shard_size=1)
    dispatch()
    assert mine.live() == 1
    still.forward(2)
    mine.beat()
    place.here.heard += 1
    dispatch()
    assert mine.live() == 2


@pytest.mark.usefixtures("relay")
def test_a_run_without_tokens_has_its_template_so_that_limits_of_the_relay_hold(still: factory.Clock) -> None:
    buckets.set_limit("echo:i100", 0.1, 1)
    mine = child(capacity=8)
    message = offered(count=4, shard_size=1, rate_key="echo:{item}")
    taking.take(PARENT, message)
    taking.take(PARENT, offered(allocation=71, count=4, shard_size=1, rate_key="echo:{item}"))
    dispatch()
    assert mine.live() == 7
    assert Origin.objects.filter(rate="").count() == 2


@pytest.mark.usefixtures("relay")
def test_a_key_with_braces_is_taken_as_it_is() -> None:
    run = taken(key="host:{odd}")
    assert (run.rate_key, run.origin.rate) == ("host:{{odd}}", "host:{odd}")
    assert queue.explain(run.pk).grants == []


@pytest.mark.usefixtures("relay")
def test_a_lane_from_above_is_one_lane_here(still: factory.Clock) -> None:
    mine = child(capacity=8, types=("crawl",))
    items = [{"url": f"https://a.org/{number}", "key": f"https://a.org/{number}", "depth": 0} for number in range(3)]
    params = executors.get("crawl").check({"per_second": 4.0, "at_once": 2})
    about = {"type": "crawl", "params": params, "timeout": 60.0, "priority": 5, "shard_size": 1}
    about |= {"rate_key": "host:{host}"}
    taking.take(PARENT, {"runs": {"9": about}, "work": [[70, 9, 0, 3, 1, items]], "slots": {"70": 1}})
    dispatch()
    assert mine.live() == 1
    assert Shard.objects.filter(state="pending").count() == 0

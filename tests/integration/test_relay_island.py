"""A relay that is cut off: how long it goes on, what it keeps, and what becomes of that when it is heard of again."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.utils import timezone

from dispatch import queue
from dispatch.models import Allocation, Origin, Run, Shard
from dispatch.relay import forwarding, place, taking
from dispatch.states import LIVE, RunState
from nodes.protocol import FieldError
from tests.integration.factory import assert_partition, child, dispatch, done, submit
from tests.integration.native import Api
from tests.integration.test_relay import LATER, PARENT, due, finish, taken

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "relay")]

CUT_OFF = 10.0


def test_a_run_goes_on_for_as_long_as_its_task_says_then_waits_and_nothing_of_it_has_failed() -> None:
    mine = child(capacity=4)
    patient, short = taken(count=4), taken(allocation=71, count=8, island_seconds=60.0)
    works = mine.works()
    assert taking.hold(59.9, CUT_OFF) == 0
    assert taking.hold(60.1, CUT_OFF) == 1
    assert taking.hold(60.2, CUT_OFF) == 0, "once"
    dispatch()
    assert not Allocation.objects.filter(run=short, state__in=LIVE).exists()
    assert Allocation.objects.filter(run=patient, state__in=LIVE).exists()
    (refusal,) = queue.explain(short.pk).refusals
    assert (refusal.code, "island_seconds" in refusal.reason) == ("island", True)
    gone = next(work for work in works if work.run == short.pk)
    assert mine.statuses(done(gone)) == [409]
    short.refresh_from_db()
    assert short.state == RunState.RUNNING
    assert set(short.shards.values_list("state", "attempts", "losses")) == {("pending", 0, 0)}
    assert_partition(short)
    assert taking.held(PARENT) == [70, 71], "still told in beats: it is the parent's to say"


def test_nothing_is_cut_off_between_two_beats_even_where_it_may_not_go_on_at_all() -> None:
    mine = child(capacity=4)
    taken(island_seconds=0.0)
    assert mine.works()
    assert taking.hold(CUT_OFF - 0.1, CUT_OFF) == 0
    assert taking.hold(CUT_OFF, CUT_OFF) == 1
    assert mine.live() == 0


def test_heard_of_again_it_drops_what_is_not_wanted_and_goes_on_with_the_rest() -> None:
    mine = child(capacity=8)
    lost, kept = taken(count=4, island_seconds=0.0), taken(allocation=71, count=4, island_seconds=0.0)
    first = next(work for work in mine.works() if work.run == kept.pk)
    finish(mine, [first])
    taking.hold(CUT_OFF, CUT_OFF)
    assert mine.live() == 0
    taking.drop(PARENT, [70])  # as the answer to its beat says
    assert taking.go_on(PARENT) == 1
    dispatch()
    assert set(Allocation.objects.filter(state__in=LIVE).values_list("run", flat=True)) == {kept.pk}
    lost.refresh_from_db()
    assert lost.state == RunState.CANCELLED
    # What was done before it was cut off is passed on, and counts with the parent.
    sendings = due(timezone.now() + LATER)
    assert {each.entry["allocation"] for each in sendings} == {71}
    finish(mine, mine.claim())
    for each in due():
        forwarding.settled(each)
    kept.refresh_from_db()
    assert kept.state == RunState.COMPLETED
    assert not Shard.objects.filter(run=kept).exclude(state="saved").exists()


def test_held_runs_stay_held_when_the_relay_is_restarted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = child(capacity=4)
    run = taken(island_seconds=0.0)
    taking.hold(CUT_OFF, CUT_OFF)
    monkeypatch.setattr(place, "here", place.Place())
    assert mine.works() == []
    assert Origin.objects.get(pk=run.pk).held_at is not None


def test_silence_is_counted_by_the_monotonic_clock_from_the_last_beat_that_was_answered() -> None:
    here = place.Place(heard=time.monotonic() - 3, beat=2.0)
    assert 3 <= here.silence() < 4
    assert here.cut_off == 4.0


def test_the_relays_own_runs_are_never_stopped() -> None:
    mine = child(capacity=4)
    submit(4, island_seconds=0.0)
    mine.works()
    assert taking.hold(1000.0, CUT_OFF) == 0
    assert mine.live() == 4


@pytest.mark.parametrize("value", [-1, float("nan"), 31 * 86_400, "60", True])
def test_what_cannot_be_a_time_is_refused_by_name(value: Any) -> None:
    with pytest.raises(FieldError, match="island_seconds"):
        submit(1, island_seconds=value)


def test_the_api_takes_it_for_tasks_and_runs(api: Api) -> None:
    task = api.post("tasks", {"name": "t", "type": "echo", "items": ["a"], "island_seconds": 90}).body
    assert task["island_seconds"] == 90
    assert api.post(f"tasks/{task['id']}/run", {}).body["island_seconds"] == 90
    assert api.post(f"tasks/{task['id']}/run", {"island_seconds": None}).body["island_seconds"] is None
    assert Run.objects.count() == 2
    refused = api.patch(f"tasks/{task['id']}", {"island_seconds": -1})
    assert (refused.status, refused.body["field"]) == (400, "island_seconds")

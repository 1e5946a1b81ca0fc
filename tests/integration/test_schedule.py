"""Schedules: fire times become runs, each once, whoever looks and whatever was missed."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
from django.db import connection
from pytest_django import DjangoAssertNumQueries

from dispatch import lifecycle, schedule
from dispatch.dispatcher import Dispatcher
from dispatch.models import Run, Source, Switch, SyncLog, Task
from nodes.protocol import FieldError, NotFound
from tests.integration.factory import Clock, at_once

pytestmark = pytest.mark.django_db

NOON = dt.datetime(2026, 6, 1, 12, 0, tzinfo=dt.UTC)


@pytest.fixture
def at(clock: Clock) -> Any:
    """Sets the parent's clock, and returns its time."""
    from django.utils import timezone

    def move(moment: dt.datetime) -> dt.datetime:
        clock.ahead += moment - timezone.now()
        return moment

    move(NOON)
    return move


def minutes(count: float) -> dt.datetime:
    return NOON + dt.timedelta(minutes=count)


def task(name: str = "feeds", cron: str = "*/10 * * * *", **fields: Any) -> Task:
    made = Task(**{"name": name, "type": "echo", "items": ["a", "b"], "cron": cron, **fields})
    schedule.store(made)
    return made


def fired(of: Task) -> list[int]:
    """Minutes after noon of the fire times that have a run."""
    times = Run.objects.filter(task=of).order_by("fire_time").values_list("fire_time", flat=True)
    return [round((time - NOON).total_seconds() / 60) for time in times if time is not None]


def error_of(of: Task) -> str:
    of.refresh_from_db()
    return str(of.extra.get("schedule_error", {}).get("error", ""))


# One fire time, one run


def test_a_fire_time_makes_a_run_of_the_task_as_it_is(at: Any) -> None:
    made = task(params={"rows": 3}, priority=8, timeout=60.0, max_attempts=7, backoff=2.5, labels={"region": "eu"})
    assert schedule.fire(at(minutes(9.9))) == 0
    assert schedule.fire(at(minutes(10))) == 1
    run = Run.objects.get()
    assert (run.task, run.fire_time, run.name, run.submitted_by) == (made, minutes(10), "feeds", "schedule")
    assert (run.params["rows"], run.priority, run.timeout, run.max_attempts, run.backoff, run.labels, run.count) == (
        *(3, 8, 60.0, 7, 2.5, {"region": "eu"}, 2),
    )
    made.refresh_from_db()
    assert (made.fired_at, made.next_fire_at) == (minutes(10), minutes(20))
    assert schedule.fire(at(minutes(11))) == 0


def test_a_run_begins_though_the_last_one_goes_on(at: Any) -> None:
    made = task()
    schedule.fire(at(minutes(10)))
    schedule.fire(at(minutes(20)))
    assert fired(made) == [10, 20]
    assert set(Run.objects.values_list("state", flat=True)) == {"running"}


@pytest.mark.django_db(transaction=True)
def test_dispatchers_that_fire_at_once_make_one_run_of_one_fire_time(at: Any) -> None:
    tasks = [task(f"feeds {number}", misfire="all") for number in range(3)]
    now = at(minutes(31))
    made = at_once(*[lambda: schedule.fire(now)] * 4)
    assert sum(made) == 9
    assert [fired(each) for each in tasks] == [[10, 20, 30]] * 3


@pytest.mark.django_db(transaction=True)
def test_one_that_read_the_task_before_the_other_fired_makes_no_second_run(
    at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task()
    now = at(minutes(10))
    both = threading.Barrier(2)
    submit = lifecycle.submit_task

    def slow(*args: Any, **given: Any) -> Run:
        both.wait()  # both have decided to fire
        return submit(*args, **given)

    monkeypatch.setattr(lifecycle, "submit_task", slow)
    assert sorted(at_once(*[lambda: schedule.fire(now)] * 2)) == [0, 1]
    assert fired(made) == [10]


def test_one_that_decided_before_another_fired_for_later_leaves_the_schedule_there(
    at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(misfire="one")
    submit = lifecycle.submit_task

    def overtaken(*args: Any, **given: Any) -> Run:
        monkeypatch.setattr(lifecycle, "submit_task", submit)
        assert schedule.fire(minutes(41)) == 1
        return submit(*args, **given)

    monkeypatch.setattr(lifecycle, "submit_task", overtaken)
    assert schedule.fire(minutes(31)) == 0
    made.refresh_from_db()
    assert (fired(made), made.next_fire_at) == ([40], minutes(50))


def test_a_fire_time_that_has_its_run_is_passed_over(at: Any) -> None:
    made = task()
    schedule.fire(at(minutes(10)))
    # As after a clock that was set back, or a database edited by hand.
    Task.objects.update(next_fire_at=minutes(10))
    assert schedule.fire(at(minutes(15))) == 0
    made.refresh_from_db()
    assert (fired(made), made.next_fire_at) == ([10], minutes(20))


def test_nothing_due_costs_one_query(at: Any, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    for number in range(20):
        task(f"feeds {number}")
    with django_assert_num_queries(1) as asked:
        schedule.fire(at(minutes(1)))
    if connection.vendor == "sqlite":  # PostgreSQL reads a small table as a whole, and says it in other words
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {asked.captured_queries[0]['sql']}")
            assert any("next_fire_at<" in str(line) for line in cursor.fetchall())


def test_the_dispatcher_fires_and_the_run_is_there(at: Any) -> None:
    made = task()
    dispatcher = Dispatcher()
    at(minutes(10))
    dispatcher.once()
    assert fired(made) == [10]


# What cannot be run


def test_a_task_that_cannot_be_run_says_why_and_holds_up_no_other(at: Any) -> None:
    broken = task("broken", items=[], source_kind="feed")
    sound = task("sound")
    assert schedule.fire(at(minutes(10))) == 1
    assert (fired(broken), fired(sound)) == ([], [10])
    assert "no active source of kind 'feed'" in error_of(broken)
    assert broken.next_fire_at == minutes(20)
    # A form that was filled in before does not wipe it away.
    broken.extra = {"kept": 1}
    schedule.store(broken)
    assert "no active source" in error_of(broken)
    assert broken.extra["kept"] == 1
    Source.objects.create(kind="feed", key="f1")
    schedule.fire(at(minutes(20)))
    assert fired(broken) == [20]
    assert error_of(broken) == ""


def test_what_went_wrong_is_in_the_sync_log(at: Any) -> None:
    from dispatch import synclog

    synclog.flush(now=True)
    task("broken", items=[], source_kind="feed")
    schedule.fire(at(minutes(10)))
    synclog.flush(now=True)
    noted = SyncLog.objects.filter(operation="schedule", status=SyncLog.Status.FAILED, node=None)
    assert noted.filter(error__contains="no active source").exists()


def test_a_fault_in_one_executor_holds_up_no_other_task(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, sound = task("a broken one"), task("sound")
    submit = lifecycle.submit_task

    def faulty(of: Task, **given: Any) -> Run:
        if of.pk == broken.pk:
            raise RuntimeError("boom")
        return submit(of, **given)

    monkeypatch.setattr(lifecycle, "submit_task", faulty)
    schedule.fire(at(minutes(10)))
    assert fired(sound) == [10]
    assert error_of(broken) == "RuntimeError: boom"
    assert broken.next_fire_at == minutes(20)


def test_a_schedule_written_past_every_check_is_given_up_with_its_error(at: Any) -> None:
    broken, sound = task("broken"), task("sound")
    Task.objects.filter(pk=broken.pk).update(time_zone="Europe/Nowhere")
    schedule.fire(at(minutes(10)))
    assert (fired(broken), fired(sound)) == ([], [10])
    assert "Europe/Nowhere" in error_of(broken)
    assert broken.next_fire_at is None
    schedule.set_schedule(broken.pk, time_zone="Europe/Berlin")
    assert error_of(broken) == ""
    assert Task.objects.get(pk=broken.pk).next_fire_at == minutes(20)


# What was missed


@pytest.mark.parametrize(
    ("misfire", "runs"),
    [("skip", []), ("one", [40]), ("all", [10, 20, 30, 40])],
)
def test_fire_times_missed_while_the_parent_was_down(at: Any, misfire: str, runs: list[int]) -> None:
    made = task(misfire=misfire)
    schedule.fire(at(minutes(45)))
    assert fired(made) == runs
    made.refresh_from_db()
    assert made.next_fire_at == minutes(50)
    # And from then on as ever.
    schedule.fire(at(minutes(50)))
    assert fired(made) == [*runs, 50]


def test_a_fire_time_seen_a_little_late_is_no_misfire(at: Any) -> None:
    made = task(misfire="skip")
    schedule.fire(at(minutes(10.9)))
    assert fired(made) == [10]
    schedule.fire(at(minutes(30.5)))
    assert fired(made) == [10, 30]


def test_of_too_many_missed_ones_the_newest_are_made_up_for_and_it_says_so(
    at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "MOST_MISFIRES", 3)
    made = task(misfire="all")
    assert schedule.fire(at(minutes(600))) == 3
    assert fired(made) == [580, 590, 600]
    assert "more than 3 fire times were missed" in error_of(made)


def test_a_crash_between_two_missed_ones_loses_none(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(misfire="all")
    submit, calls = lifecycle.submit_task, []

    def dying(*args: Any, **given: Any) -> Run:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return submit(*args, **given)

    monkeypatch.setattr(lifecycle, "submit_task", dying)
    with pytest.raises(KeyboardInterrupt):
        schedule.fire(at(minutes(31)))
    assert fired(made) == [10]
    schedule.fire(at(minutes(32)))
    assert fired(made) == [10, 20, 30]


# On and off


@pytest.mark.parametrize(("misfire", "runs"), [("skip", []), ("one", [20]), ("all", [10, 20])])
def test_what_passes_while_stopped_is_a_misfire_at_the_start(at: Any, misfire: str, runs: list[int]) -> None:
    made = task(misfire=misfire)
    assert schedule.stop("anna")
    assert schedule.fire(at(minutes(20))) == 0
    # However short ago the last of them was.
    at(minutes(20.2))
    assert schedule.start("anna")
    schedule.fire(at(minutes(20.3)))
    assert fired(made) == runs
    schedule.fire(at(minutes(30)))
    assert fired(made) == [*runs, 30]


def test_stop_and_start_twice_change_nothing_the_second_time(at: Any) -> None:
    assert [schedule.start(), schedule.stop("anna"), schedule.stop("bert"), schedule.state()["running"]] == [
        *(False, True, False, False),
    ]
    switch = Switch.objects.get()
    assert switch.note == "stopped by anna"
    assert [schedule.start(), schedule.start(), schedule.state()["running"]] == [True, False, True]


def test_a_stop_that_has_committed_holds_for_a_dispatcher_in_the_middle(
    at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task()
    submit = lifecycle.submit_task

    def overtaken(*args: Any, **given: Any) -> Run:
        schedule.stop()
        return submit(*args, **given)

    monkeypatch.setattr(lifecycle, "submit_task", overtaken)
    assert schedule.fire(at(minutes(10))) == 0
    made.refresh_from_db()
    assert (fired(made), made.next_fire_at) == ([], minutes(10))


def test_reload_reckons_anew_and_leaves_what_is_due(at: Any) -> None:
    due, other, off = task("due"), task("other"), task("off", active=False)
    Task.objects.filter(pk=other.pk).update(next_fire_at=minutes(5000))
    at(minutes(10))
    assert schedule.reload() == 1
    times = dict(Task.objects.values_list("name", "next_fire_at"))
    assert times == {due.name: minutes(10), other.name: minutes(20), off.name: None}


# The write door


def test_a_changed_schedule_is_reckoned_from_now_and_an_unchanged_one_stays_due(at: Any) -> None:
    made = task()
    at(minutes(12))
    made.name = "renamed"
    schedule.store(made)
    made.refresh_from_db()
    assert made.next_fire_at == minutes(10)
    schedule.set_schedule(made.pk, cron="0 6 * * *", time_zone="Asia/Tokyo")
    made.refresh_from_db()
    assert made.next_fire_at == dt.datetime(2026, 6, 1, 21, tzinfo=dt.UTC)
    assert schedule.set_schedule(made.pk, active=False).next_fire_at is None
    assert schedule.set_schedule(made.pk, active=True).next_fire_at is not None
    assert schedule.set_schedule(made.pk, cron=" ").next_fire_at is None


def test_a_form_filled_in_before_a_fire_does_not_set_the_schedule_back(at: Any) -> None:
    made = task()
    stale = Task.objects.get()
    schedule.fire(at(minutes(10)))
    stale.priority = 9
    schedule.store(stale)
    made.refresh_from_db()
    assert (made.priority, made.fired_at, made.next_fire_at) == (9, minutes(10), minutes(20))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": 5}, "cron"),
        ({"time_zone": "Nowhere"}, "time_zone"),
        ({"misfire": "often"}, "misfire"),
        ({"active": "yes"}, "active"),
        ({"priority": 1}, "priority"),
    ],
)
def test_a_bad_schedule_changes_nothing(at: Any, given: dict[str, Any], field: str) -> None:
    made = task()
    with pytest.raises(FieldError) as refused:
        schedule.set_schedule(made.pk, **given)
    assert refused.value.field == field
    made.refresh_from_db()
    assert (made.cron, made.next_fire_at) == ("*/10 * * * *", minutes(10))


def test_a_task_that_is_not_there(at: Any) -> None:
    with pytest.raises(NotFound):
        schedule.set_schedule(10**9, cron="* * * * *")


def test_the_server_s_time_zone_is_that_of_a_task_without_one(at: Any, settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"time_zone": "Asia/Tokyo"})
    assert task(cron="0 6 * * *").next_fire_at == dt.datetime(2026, 6, 1, 21, tzinfo=dt.UTC)

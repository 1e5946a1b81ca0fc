"""``manage.py schedule`` and ``manage.py prune``."""

from __future__ import annotations

import datetime as dt
import io
import json
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from dispatch import schedule
from dispatch.models import SyncLog, Task

pytestmark = pytest.mark.django_db


def say(*words: str) -> str:
    out = io.StringIO()
    call_command(*words, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def told(*words: str) -> Any:
    return json.loads(say(*words, "--json"))


@pytest.fixture
def task() -> Task:
    return Task.objects.create(name="feeds", type="echo", items=["a"])


def test_a_schedule_is_set_listed_shown_and_cleared(task: Task) -> None:
    assert "No task has a schedule yet" in say("schedule", "list")
    made = told("schedule", "set", "feeds", "30 6 * * mon-fri", "--time-zone", "Europe/Berlin", "--misfire", "all")
    assert (made["cron"], made["time_zone"], made["misfire"]) == ("30 6 * * mon-fri", "Europe/Berlin", "all")
    task.refresh_from_db()
    assert task.next_fire_at is not None
    assert "30 6 * * mon-fri" in say("schedule", "list")
    assert [each["name"] for each in told("schedule", "list")] == ["feeds"]
    assert len(told("schedule", "show", str(task.pk), "--count", "3")["next"]) == 3
    assert say("schedule", "show", "feeds").count("T06:30:00+0") == 5
    assert told("schedule", "set", "feeds", "--active", "no")["next"] == []
    assert told("schedule", "clear", "feeds")["cron"] == ""
    task.refresh_from_db()
    assert task.next_fire_at is None


def test_an_expression_is_tried_without_a_task() -> None:
    times = told("schedule", "next", "0 0 29 2 *", "--time-zone", "UTC", "--count", "2")
    assert all("-02-29T00:00:00" in at for at in times)
    assert len(times) == 2


def test_the_scheduler_is_stopped_started_and_reloaded(task: Task) -> None:
    say("schedule", "set", "feeds", "30 6 * * *")
    assert told("schedule", "stop")["running"] is False
    assert schedule.fire(timezone.now() + dt.timedelta(days=2)) == 0
    assert told("schedule", "reload")["reloaded"] == 1
    assert told("schedule", "start")["running"] is True
    assert told("schedule", "status")["tasks"] == 1


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("set", "feeds", "61 * * * *"), 2),
        (("set", "feeds", "* * * * *", "--time-zone", "Nowhere"), 2),
        (("set", "feeds"), 2),
        (("set", "nobody", "* * * * *"), 3),
        (("show", "99999999999999999999"), 3),
        (("show", "feeds", "--count", "101"), 2),
        (("next", "@daily"), 2),
    ],
)
def test_what_is_wrong_has_an_exit_status(task: Task, words: tuple[str, ...], status: int) -> None:
    with pytest.raises(CommandError) as refused:
        say("schedule", *words)
    assert refused.value.returncode == status


def test_prune_says_what_it_removed_and_what_it_would() -> None:
    for _ in range(3):
        SyncLog.objects.create(operation="old", direction="pull", started_at=timezone.now() - dt.timedelta(days=2))
    assert "would remove: 3 sync logs" in say("prune", "--days", "1", "--dry-run")
    assert say("prune").strip() == "removed: nothing"
    assert told("prune", "--days", "1")["sync_logs"] == 3
    with pytest.raises(CommandError):
        say("prune", "--days", "-1")

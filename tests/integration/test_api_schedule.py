"""Schedules, the scheduler and webhooks' calls over the native API."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from dispatch import lifecycle, schedule
from dispatch.models import Delivery, Run, Task
from tests.integration.agents import NO_ROW
from tests.integration.native import Api

pytestmark = pytest.mark.django_db

FEEDS = {"name": "feeds", "type": "echo", "items": ["a"], "cron": "30 6 * * *", "time_zone": "Europe/Berlin"}


def moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def test_a_task_keeps_its_schedule_and_shows_when_it_fires(api: Api) -> None:
    created = api.post("tasks", FEEDS | {"misfire": "all", "cron": " 30  6 * * * "})
    assert created.status == 201
    kept = api.get(f"tasks/{created.body['id']}").body
    assert (kept["cron"], kept["time_zone"], kept["misfire"]) == ("30 6 * * *", "Europe/Berlin", "all")
    assert moment(kept["next_fire_at"]) > timezone.now()
    assert kept["fired_at"] is None
    shown = api.get(f"tasks/{created.body['id']}/schedule").body
    assert (shown["task"], shown["running"], shown["error"]) == (created.body["id"], True, None)
    assert len(shown["next"]) == 5
    assert shown["next"][0] == shown["next_fire_at"] == kept["next_fire_at"]
    assert len(api.get(f"tasks/{created.body['id']}/schedule?count=12").body["next"]) == 12
    # An edit of something else leaves it as it is; what was read can be put back.
    assert api.put(f"tasks/{created.body['id']}", kept | {"priority": 9}).body == kept | {"priority": 9}


def test_a_changed_or_cleared_schedule_is_reckoned_anew(api: Api) -> None:
    path = f"tasks/{api.post('tasks', FEEDS).body['id']}"
    before = api.get(path).body["next_fire_at"]
    assert api.patch(path, {"time_zone": "America/New_York"}).body["next_fire_at"] != before
    assert api.patch(path, {"active": False}).body["next_fire_at"] is None
    assert api.patch(path, {"active": True}).body["next_fire_at"] is not None
    assert api.patch(path, {"cron": ""}).body["next_fire_at"] is None
    assert api.get(f"{path}/schedule").body["next"] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "@hourly"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": None}, "cron"),
        ({"time_zone": "Europe"}, "time_zone"),
        ({"misfire": "perhaps"}, "misfire"),
        ({"source_kind": "planet"}, "source_kind"),
        ({"webhook_url": "ftp://a/"}, "webhook_url"),
        ({"webhook_headers": {"Host": "a"}}, "webhook_headers.Host"),
        ({"webhook_template": "{% load x %}"}, "webhook_template"),
        ({"webhook_secret": "x" * 300}, "webhook_secret"),
    ],
)
def test_what_cannot_be_is_refused_naming_the_field(api: Api, change: dict[str, Any], field: str) -> None:
    answer = api.post("tasks", FEEDS | change)
    assert (answer.status, answer.body["field"]) == (400, field)
    path = f"tasks/{api.post('tasks', FEEDS).body['id']}"
    answer = api.patch(path, change)
    assert (answer.status, answer.body["field"]) == (400, field)


@pytest.mark.parametrize("query", ["count=-1", "count=101", "count=x", "cuont=5"])
def test_a_bad_query_is_refused(api: Api, query: str) -> None:
    task = api.post("tasks", FEEDS).body["id"]
    assert api.get(f"tasks/{task}/schedule?{query}").status == 400


def test_why_a_fire_time_brought_no_run_is_shown(api: Api) -> None:
    task = api.post("tasks", FEEDS | {"items": [], "source_kind": "feed"}).body
    schedule.fire(moment(task["next_fire_at"]))
    shown = api.get(f"tasks/{task['id']}/schedule").body
    assert "no active source" in shown["error"]["error"]
    assert moment(shown["error"]["fire_time"]) == moment(task["next_fire_at"])
    assert shown["fired_at"] == task["next_fire_at"]


def test_a_scheduled_run_shows_its_fire_time(api: Api) -> None:
    task = api.post("tasks", FEEDS | {"timeout": 60, "max_attempts": 7, "backoff": 2.5}).body
    schedule.fire(moment(task["next_fire_at"]))
    run = api.get(f"runs/{Run.objects.get().pk}").body
    assert (run["fire_time"], run["timeout"], run["max_attempts"], run["backoff"]) == (
        *(task["next_fire_at"], 60, 7, 2.5),
    )


def test_the_scheduler_is_stopped_started_and_reloaded(api: Api) -> None:
    api.post("tasks", FEEDS)
    state = api.get("scheduler").body
    assert (state["running"], state["tasks"], state["changed_at"]) == (True, 1, None)
    stopped = api.post("scheduler/stop").body
    assert (stopped["running"], stopped["note"]) == (False, "stopped by admin")
    assert api.get(f"tasks/{Task.objects.get().pk}/schedule").body["running"] is False
    Task.objects.update(next_fire_at=timezone.now() + dt.timedelta(days=400))
    reloaded = api.post("scheduler/reload").body
    assert (reloaded["reloaded"], reloaded["running"]) == (1, False)
    assert moment(reloaded["next_fire_at"]) < timezone.now() + dt.timedelta(days=2)
    assert api.post("scheduler/start").body["running"] is True
    assert api.get("scheduler/start").status == 405


def test_a_secret_goes_in_and_never_comes_out(api: Api) -> None:
    hook = {"webhook_url": "http://10.0.0.1/hook", "webhook_secret": " s3cret "}
    created = api.post("tasks", FEEDS | hook)
    path = f"tasks/{created.body['id']}"
    for answer in (created, api.get(path), api.get("tasks"), api.patch(path, {"priority": 2})):
        assert "s3cret" not in answer.response.content.decode()
    assert created.body["webhook_signed"] is True
    # Not given, it stays; and it is kept as it was sent.
    assert Task.objects.get().webhook_secret == " s3cret "
    assert api.patch(path, {"webhook_secret": ""}).body["webhook_signed"] is False


def test_deliveries_are_listed_filtered_and_sent_again(api: Api) -> None:
    ids = []
    for number in range(2):
        body = FEEDS | {"name": f"feeds {number}", "webhook_url": "http://127.0.0.1:9/"}
        ids.append(api.post(f"tasks/{api.post('tasks', body).body['id']}/run").body["id"])
        lifecycle.cancel(ids[-1])
    first = Delivery.objects.get(run_id=ids[0])
    Delivery.objects.filter(pk=first.pk).update(state="failed", attempts=8, error="answered 500", status=500)
    assert [each["run"] for each in api.get("deliveries").body["results"]] == ids[::-1]
    (failed,) = api.get("deliveries?state=failed").body["results"]
    assert (failed["run"], failed["next_at"], failed["status"], failed["error"]) == (ids[0], None, 500, "answered 500")
    (other,) = api.get(f"deliveries?run={ids[1]}").body["results"]
    assert (other["state"], other["next_at"] is not None) == ("waiting", True)
    again = api.post(f"deliveries/{first.pk}/retry")
    assert (again.status, again.body["state"], again.body["attempts"], again.body["error"]) == (200, "waiting", 0, "")
    assert api.post(f"deliveries/{NO_ROW}/retry").status == 404
    assert api.get("deliveries?state=lost").status == 400


def test_all_of_it_is_for_staff(client: Client) -> None:
    anybody = Api(client)
    for path in ("scheduler", "deliveries"):
        assert anybody.get(path).status == 401
    for verb in ("start", "stop", "reload"):
        assert anybody.post(f"scheduler/{verb}").status == 401
    assert schedule.state()["running"]

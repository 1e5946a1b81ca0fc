"""What operators of the ``cascade`` dialect start and look at: dispatches, allocations, log, feeds, scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from dispatch import lifecycle, queue, schedule, synclog
from dispatch.models import Allocation, Run, Switch, SyncLog
from dispatch.results.saver import Saver
from tests.integration.agents import NO_ROW
from tests.integration.factory import Clock, save, saver
from tests.integration.feeds import Child, Speaker, article, begun, feed, message_task
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(admin_client: Client) -> Speaker:
    return Speaker(admin_client)


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Saver]:
    with saver() as made:
        monkeypatch.setattr("dispatch.results.saver._store", made.store)
        yield made


# dispatch-task


def test_a_dispatch_gives_each_node_that_is_there_its_fair_share_in_one_package(operator: Speaker) -> None:
    for name in ("one", "two"):
        Child(name, capacity=20)
    Child("away").node.__class__.objects.filter(name="away").update(draining=True)
    task = message_task("news", *(f"mp_{number}" for number in range(9)))
    assert operator.post("dispatch-task").good() == {
        "online_nodes": 2,
        "task_count": 1,
        "tasks": [{"id": str(task.pk), "name": "news", "mp_count": 9}],
        "allocations_created": 2,
    }
    assert set(Allocation.objects.values_list("node__name", "start", "stop")) == {("one", 0, 5), ("two", 5, 9)}


def test_a_package_has_no_more_feeds_than_the_node_has_capacity(operator: Speaker) -> None:
    Child(capacity=2)
    message_task("news", *"abcdefg")
    assert operator.post("dispatch-task").good()["allocations_created"] == 2
    assert set(Allocation.objects.values_list("start", "stop")) == {(0, 2), (2, 4)}


def test_a_scheduled_run_is_cut_like_that_too_and_while_nobody_is_there(operator: Speaker, clock: Clock) -> None:
    for name in ("one", "two"):
        Child(name, capacity=20)
    clock.forward(100_000)
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    task = message_task("news", *"abcdefg", cron="0 * * * *", next_fire_at=hour)
    assert schedule.fire(timezone.now()) == 1
    assert Run.objects.get(task=task).shard_size == 4
    assert len(Child("three").claim()["feeds"]) == 4


def test_a_shard_size_that_the_task_fixes_stays(operator: Speaker) -> None:
    Child(capacity=20)
    message_task("news", *"abcd", shard_size=1)
    assert operator.post("dispatch-task").good()["allocations_created"] == 4


def test_a_feed_with_a_quota_goes_to_the_node_that_has_it(operator: Speaker) -> None:
    big = operator.post("nodes", {"name": "big", "sync_config": {"max_capacity": 50}}).good()
    small = operator.post("nodes", {"name": "small", "sync_config": {"max_capacity": 5, "feed_quota": {"c": 1}}}).good()
    for made in (big, small):
        key = operator.post(f"nodes/{made['node_id']}/credentials").good()
        Speaker(Client(), f"AK-SK {key['api_key']}:{key['api_secret']}").post("heartbeat").good()
    message_task("news", *"abcde")
    operator.post("dispatch-task").good()
    assert list(Allocation.objects.filter(node__name="small", item="c").values_list("start", "stop")) == [(2, 3)]


def test_all_active_tasks_are_dispatched_or_the_one_that_is_named(operator: Speaker) -> None:
    Child()
    feed("x")
    feed("y", active=False)
    first, second = message_task("first", "a"), message_task("second", source_kind="feed")
    message_task("asleep", "b", active=False)
    message_task("empty")
    assert [each["name"] for each in operator.post("dispatch-task").good()["tasks"]] == ["first", "second"]
    said = operator.post(f"dispatch-task?task_id={second.pk}").good()
    assert said["tasks"] == [{"id": str(second.pk), "name": "second", "mp_count": 1}]
    assert Run.objects.filter(task=first).count() == 1
    assert Run.objects.filter(task=second).count() == 2
    assert {run.submitted_by for run in Run.objects.all()} == {"admin"}


def test_a_task_that_cannot_be_dispatched_says_why(operator: Speaker) -> None:
    assert operator.post(f"dispatch-task?task_id={NO_ROW}").status == 404
    assert operator.post("dispatch-task?task_id=x").status == 404
    asleep, empty = message_task("asleep", "b", active=False), message_task("empty")
    assert operator.post(f"dispatch-task?task_id={asleep.pk}").status == 409
    assert operator.post(f"dispatch-task?task_id={empty.pk}").status == 400
    assert not Run.objects.exists()


def test_with_no_node_there_the_work_waits_for_one(operator: Speaker) -> None:
    message_task("news", "a", "b")
    said = operator.post("dispatch-task").good()
    assert (said["online_nodes"], said["task_count"], said["allocations_created"]) == (0, 1, 0)
    assert Child().claim()["task_name"] == "news"


# allocations


def test_an_allocation_shows_each_key_of_the_contract(operator: Speaker, api: Api) -> None:
    child = Child()
    run = begun("a", "b")
    package = child.claim()
    child.upload(package, article("a")).good()
    listed = operator.get("allocations").good()
    (row,) = listed["list"]
    mine = Allocation.objects.get()
    assert listed["total"] == 1
    assert listed["page"] == {"limit": 50, "offset": 0}
    times = {name: row.pop(name) for name in ("dispatched_at", "claimed_at", "started_at", "completed_at")}
    assert row == {
        "id": str(mine.pk),
        "task_id": package["task_id"],
        "task_name": package["task_name"],
        "node_id": str(child.id),
        "node_name": "kid",
        "feed_ids": ["a", "b"],
        "status": "claimed",
        "error_message": "",
        "article_count": 1,
        "new_article_count": 1,
        "schedule_run_id": str(run.pk),
    }
    assert times["claimed_at"].endswith("Z")
    assert times["started_at"] is times["completed_at"] is None
    child.status(package, "executing").good()
    child.report(package).good()
    (row,) = operator.get("allocations").good()["list"]
    assert (row["status"], row["article_count"]) == ("completed", 1)
    assert times["claimed_at"] <= row["started_at"] <= row["completed_at"]
    assert api.get(f"allocations/{mine.pk}").body["state"] == "completed"


def test_every_state_has_its_word_and_its_filter(operator: Speaker, clock: Clock) -> None:
    child = Child(capacity=10)
    begun(*"abcdef", shard_size=1, max_attempts=1)
    queue.allocate_now()
    claimed, executing, completed, failed, timeout = (child.claim() for _ in range(5))
    for package, word in ((executing, "executing"), (completed, "completed"), (failed, "failed")):
        child.status(package, word).good()
    Allocation.objects.filter(pk=timeout["allocation_id"]).update(deadline=timezone.now())
    clock.forward(1)
    lifecycle.expire(timezone.now())
    queue.allocate_now()
    shown = {each["id"]: each["status"] for each in operator.get("allocations").good()["list"]}
    for word, package in zip(
        ("claimed", "executing", "completed", "failed", "timeout"),
        (claimed, executing, completed, failed, timeout),
        strict=True,
    ):
        assert shown[package["allocation_id"]] == word
        found = operator.get(f"allocations?status={word}").good()
        assert [each["id"] for each in found["list"]] == [package["allocation_id"]]
    assert {each["status"] for each in operator.get("allocations?status=pending").good()["list"]} == {"pending"}
    assert "asleep" in operator.get("allocations?status=asleep").why


def test_allocations_are_filtered_and_paged(operator: Speaker) -> None:
    child, other = Child(capacity=2), Child("other", capacity=2)
    begun("a", "b", shard_size=1)
    begun("c", "d", shard_size=1)
    lifecycle.submit(type="echo", items=["not ours"])
    queue.allocate_now()
    every = operator.get("allocations").good()
    assert every["total"] == 4
    task = every["list"][0]["task_id"]
    assert {each["task_id"] for each in operator.get(f"allocations?task_id={task}").good()["list"]} == {task}
    for node in (child, other):
        mine = operator.get(f"allocations?node_id={node.id}").good()
        assert {each["node_id"] for each in mine["list"]} == {str(node.id)}
    page = operator.get("allocations?limit=1&offset=2").good()
    assert [each["id"] for each in page["list"]] == [every["list"][2]["id"]]
    assert (page["total"], page["page"]) == (4, {"limit": 1, "offset": 2})
    assert operator.get("allocations?task_id=nobody").good()["total"] == 0
    assert operator.get(f"allocations?node_id={NO_ROW}").good()["total"] == 0
    assert operator.get("allocations?limit=x").status == 400


# sync-logs


def test_exchanges_are_in_the_log_and_can_be_filtered(operator: Speaker) -> None:
    synclog.flush(now=True)  # what other tests have left
    SyncLog.objects.all().delete()
    child = Child()
    begun("a")
    child.get("feeds").good()
    package = child.claim()
    child.upload(package, article("a")).good()
    child.report(package).good()
    synclog.flush(now=True)
    listed = operator.get(f"sync-logs?node_id={child.id}").good()
    assert {"feeds", "dispatch", "claim", "upload", "report"} <= {each["operation"] for each in listed["list"]}
    (upload,) = operator.get("sync-logs?operation=upload").good()["list"]
    assert upload.pop("started_at").endswith("Z")
    assert upload.pop("completed_at").endswith("Z")
    assert upload == {
        "id": str(SyncLog.objects.get(operation="upload").pk),
        "node_id": str(child.id),
        "operation": "upload",
        "direction": "push",
        "status": 1,
        "data_count": 1,
        "error_message": "",
        "extra_data": {"exchanges": 1},
    }
    assert operator.get("sync-logs?node_id=0").good()["total"] == 0
    assert len(operator.get("sync-logs?limit=2").good()["list"]) == 2


# feed-status


def test_feeds_show_their_articles_and_their_last_task(operator: Speaker, store: Saver) -> None:
    for key in ("a", "b", "c"):
        feed(key, name=key.upper())
    child = Child()
    begun("a", "b", max_attempts=1)
    package = child.claim()
    sent = [article("a", number, publish_time=1_767_225_600 + number) for number in range(3)]
    child.upload(package, *sent).good()
    child.report(package).good()
    begun("b", "x")
    again = child.claim()
    save(store)
    listed = operator.get("feed-status").good()
    first, second, third = listed["list"]
    assert listed["total"] == 3
    assert first.pop("last_task_time").endswith("Z")
    assert first == {
        "id": "a",
        "name": "A",
        "article_count": 3,
        "latest_article_time": "2026-01-01T00:00:02Z",
        "last_task_status": "completed",
        "last_task_node": "kid",
    }
    assert (second["article_count"], second["last_task_status"]) == (0, "claimed")
    assert third["last_task_status"] is third["last_task_time"] is third["last_task_node"] is None
    assert [each["id"] for each in operator.get("feed-status?feed_id=b").good()["list"]] == ["b"]
    assert [each["id"] for each in operator.get("feed-status?limit=1&offset=2").good()["list"]] == ["c"]
    assert operator.get("feed-status?feed_id=' OR 1").good() == {
        "list": [],
        "total": 0,
        "page": {"limit": 50, "offset": 0},
    }
    child.status(again, "failed").good()


# The scheduler


def test_the_scheduler_is_stopped_started_and_reloaded(operator: Speaker) -> None:
    message_task("news", "a", cron="0 * * * *")
    assert operator.post("stop-scheduler").good() == {"running": False}
    switch = Switch.objects.get(name="scheduler")
    assert (switch.on, switch.note) == (False, "stopped by admin")
    assert operator.post("start-scheduler/").good() == {"running": True}
    assert Switch.objects.get(name="scheduler").on
    assert operator.post("reload-scheduler").good() == {"tasks": 1}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "nodes/1"),
        ("PUT", "nodes/1"),
        ("DELETE", "nodes/1"),
        ("POST", "nodes"),
        ("POST", "nodes/1/credentials"),
        ("POST", "nodes/1/test-connection"),
        ("POST", "dispatch-task"),
        ("GET", "allocations"),
        ("GET", "sync-logs"),
        ("GET", "feed-status"),
        ("POST", "start-scheduler"),
        ("POST", "stop-scheduler"),
        ("POST", "reload-scheduler"),
    ],
)
def test_nobody_but_staff_does_any_of_it(method: str, path: str) -> None:
    child: Any = Child()
    assert Speaker(Client()).send(method, path).status == 401
    assert child.send(method, path).status == 401

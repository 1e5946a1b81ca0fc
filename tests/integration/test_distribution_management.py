"""Overviews, performance, rebalance and cleanup of the distribution dialect."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone

from dispatch.models import Allocation, Run, Switch
from tests.integration.devices import device_key, operator
from tests.integration.factory import dispatch

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder")]


@pytest.mark.parametrize("path", ["stats/overview", "system/overview"])
def test_an_overview_has_tasks_devices_and_system(path):
    by = device_key(many=True)
    by.register("w1", 2)
    by.register("w2", 3)
    by.put("devices/w2/status", {"status": "offline"})
    by.create()
    found = by.get(path)
    assert set(found) == {"task_stats", "device_stats", "system_overview"}
    counts = found["device_stats"]
    assert (counts["total"], counts["online"], counts["offline"]) == (2, 1, 1)
    assert found["task_stats"]["total"] == found["task_stats"]["pending"] == 1
    assert found["system_overview"]["capacity"] == 5


@pytest.mark.parametrize("path", ["stats/performance/w1", "stats/devices/w1/performance"])
def test_performance_has_heartbeats_and_figures_of_the_last_hours(path, clock):
    by = device_key()
    by.register()
    by.post("devices/w1/heartbeat", {"cpu_usage": 10, "memory_usage": 20})
    clock.forward(2 * 3600)
    by.post("devices/w1/heartbeat", {"cpu_usage": 30, "memory_usage": 40, "running_tasks": 1})
    task = by.create()
    by.pull()
    by.say(task, "failed", error_message="no")
    found = by.get(f"{path}?hours=1")
    assert (found["device_id"], found["period_hours"]) == ("w1", 1)
    (beat,) = found["heartbeats"]
    assert (beat["cpu_usage"], beat["memory_usage"], beat["running_tasks"]) == (30, 40, 1)
    assert found["health_stats"]["average_cpu"] == 30
    assert (found["assignment_stats"]["total"], found["assignment_stats"]["failed"]) == (1, 1)
    assert found["assignment_stats"]["success_rate"] == 0
    assert [each["cpu_usage"] for each in by.get(f"{path}?hours=3")["heartbeats"]] == [30, 10]
    by.get(path.replace("w1", "w9"), 404)


def test_a_rebalance_moves_what_was_not_fetched_and_leaves_what_was():
    by = device_key(many=True)
    by.register("w1", 4)
    tasks = [by.create() for _ in range(4)]
    dispatch()
    assert by.pull("w1", 1) == tasks[:1]
    by.register("w2", 4)
    found = operator().post("management/rebalance")
    assert found["status"] == "success"
    assert found["moved_count"] == len(found["moved"]) > 0
    assert all((each["from_device"], each["to_device"]) == ("w1", "w2") for each in found["moved"])
    moved = sorted(each["task_id"] for each in found["moved"])
    assert sorted(by.pull("w2")) == moved
    assert sorted([*by.pull("w1"), *moved, tasks[0]]) == tasks
    assert not any(each.shard.attempts for each in Allocation.objects.select_related("shard"))


def test_a_cleanup_forgets_what_ended_long_ago():
    by = device_key()
    by.register()
    task = by.create(max_retry_count=0)
    by.pull()
    by.say(task, "failed", error_message="no")
    staff = operator()
    assert staff.post("management/cleanup", {"days": 7})["deleted"]["runs"] == 0
    Run.objects.update(ended_at=timezone.now() - dt.timedelta(days=8))
    # The bare number, as one client sends it.
    assert staff.post("management/cleanup", 9)["deleted"]["runs"] == 0
    assert staff.post("management/cleanup", 7)["deleted"]["runs"] == 1
    assert not Run.objects.exists()


@pytest.mark.parametrize("body", [{"days": 0}, {"days": "7"}, -1, True, [7], {"days": None}])
def test_a_cleanup_that_cannot_be_names_days(body):
    assert operator().post("management/cleanup", body, 400)["detail"].startswith("days: ")


def test_management_is_the_operators():
    by = device_key()
    assert "operator" in by.post("management/rebalance", {}, 403)["detail"]
    by.post("management/cleanup", {"days": 7}, 403)
    by.get("management/scheduler/status")


def test_the_schedulers_status_tells_whether_it_is_on():
    by = device_key()
    by.register()
    by.create()
    found = by.get("management/scheduler/status")
    assert found["running"] is True
    assert found["strategy"] == "most_free"
    assert found["intervals"]["device_timeout"] == 180
    assert (found["counters"]["tasks_pending"], found["counters"]["devices_online"]) == (1, 1)
    for on in (False, True):
        Switch.objects.update_or_create(name="scheduler", defaults={"on": on})
        assert by.get("management/scheduler/status")["running"] is on

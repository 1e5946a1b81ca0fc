"""Devices of the distribution dialect: register, heartbeat, lists, status."""

from __future__ import annotations

import pytest

from nodes.models import Heartbeat, Node
from tests.integration.devices import device_key, operator

pytestmark = pytest.mark.django_db


def devices(by, status: str = "") -> dict[str, str]:
    found = by.get(f"devices?status={status}" if status else "devices")["devices"]
    return {each["device_id"]: each["status"] for each in found}


def test_a_device_is_a_native_node_with_what_it_said_of_itself(api):
    by = device_key()
    capabilities = {"max_concurrent_tasks": 5, "supported_task_types": ["other"]}
    said = {"device_name": "Büro 1", "device_type": "worker", "ip_address": "10.1.1.7", "capabilities": capabilities}
    answer = by.post("devices/register", {"device_id": "worker-001", **said, "unknown": [1]})
    assert answer["status"] == "success"
    assert answer["message"]
    node = Node.objects.get(name="worker-001")
    assert (node.dialect, node.capacity, node.facts, node.executors) == ("distribution", 5, said, ["external"])
    assert api.get(f"nodes/{node.pk}").body["state"] == "online"
    (device,) = by.get("devices")["devices"]
    assert device["last_heartbeat"].endswith("Z")
    assert {name: device[name] for name in said} == said
    assert (device["status"], device["current_tasks"], device["max_concurrent_tasks"]) == ("online", 0, 5)


def test_registering_again_updates():
    by = device_key()
    by.register("w1", 2, device_name="old", ip_address="10.0.0.1")
    by.register("w1", 7, device_name="new")
    (device,) = by.get("devices")["devices"]
    assert (device["device_name"], device["max_concurrent_tasks"]) == ("new", 7)
    by.post("devices/register", {"device_id": "w1"})
    assert by.get("devices/w1")["device"]["max_concurrent_tasks"] == 7


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "device_id"),
        ({"device_id": 7}, "device_id"),
        ({"device_id": " x/\u202e"}, "device_id"),
        ({"device_id": "x" * 101}, "device_id"),
        ({"device_id": "w1", "device_name": 5}, "device_name"),
        ({"device_id": "w1", "device_name": "a\x00"}, "device_name"),
        ({"device_id": "w1", "capabilities": [1]}, "capabilities"),
        ({"device_id": "w1", "capabilities": {"a": "x" * 30_000}}, "capabilities"),
        ({"device_id": "w1", "max_concurrent_tasks": 0}, "max_concurrent_tasks"),
        ({"device_id": "w1", "max_concurrent_tasks": "3"}, "max_concurrent_tasks"),
        ({"device_id": "w1", "capabilities": {"max_concurrent_tasks": True}}, "max_concurrent_tasks"),
    ],
)
def test_a_registration_that_cannot_be_names_the_key(body, field):
    answer = device_key().post("devices/register", body, 400)
    assert answer["detail"].startswith(f"{field}: ")
    assert not Node.objects.exists()


def test_a_heartbeat_is_kept_and_what_follows_does_not_wipe_its_load():
    by = device_key()
    by.register()
    said = {"network_status": "good", "running_tasks": 1, "system_load": 0.7, "error_count": 2, "status_info": {"a": 1}}
    load = {"cpu_usage": 12.5, "memory_usage": 40, "disk_usage": 71.5}
    assert by.post("devices/w1/heartbeat", {"device_id": "w1", **load, **said, "timestamp": 1}) == {"status": "success"}
    by.pull()
    node = Node.objects.get(name="w1")
    assert (node.cpu, node.memory, node.disk) == (12.5, 40, 71.5)
    found = by.get("devices/w1")
    assert {name: found["latest_heartbeat"][name] for name in (*load, *said)} == {**load, **said}
    beat = Heartbeat.objects.get()
    assert (beat.cpu, beat.memory, beat.disk, beat.running) == (12.5, 40, 71.5, 1)
    assert found["health_stats"]["average_cpu"] == 12.5
    assert by.get("stats/devices")["device_heartbeats"][0]["cpu_usage"] == 12.5


def test_a_heartbeat_with_lists_nulls_and_much_to_say_is_taken():
    by = device_key()
    by.register()
    body = {"cpu_usage": None, "running_tasks": [{"id": 1}, {"id": 2}], "status_info": {"log": "x" * 50_000}}
    by.post("devices/w1/heartbeat/", body)
    assert Heartbeat.objects.get().running == 2
    by.post("devices/w1/heartbeat", {"cpu_usage": "high"}, 400)
    by.post("devices/w1/heartbeat", {"running_tasks": -1}, 400)


def test_a_silent_device_is_offline_until_it_is_heard_of_again(clock):
    by = device_key()
    by.register()
    clock.forward(200)
    assert devices(by) == {"w1": "offline"}
    by.post("devices/w1/heartbeat", {})
    assert devices(by) == {"w1": "online"}


def test_disabled_drains_and_online_gives_work_again():
    by = device_key()
    by.register()
    by.put("devices/w1/status", {"status": "disabled"})
    assert Node.objects.get(name="w1").draining
    task = by.create()
    assert by.pull() == []
    by.put("devices/w1/status", {"status": "online"})
    assert by.pull() == [task]
    assert "status: " in by.put("devices/w1/status", {"status": "asleep"}, 400)["detail"]
    by.put("devices/w1/status", {}, 400)


def test_offline_is_a_goodbye():
    by = device_key()
    by.register()
    by.put("devices/w1/status", {"status": "offline"})
    assert devices(by) == {"w1": "offline"}


def test_lists_are_filtered_by_status():
    by = device_key(many=True)
    for name, tasks in (("w1", 1), ("w2", 1), ("w3", 1)):
        by.register(name, tasks)
    by.put("devices/w2/status", {"status": "disabled"})
    by.put("devices/w3/status", {"status": "offline"})
    by.create()
    by.pull("w1")
    assert devices(by) == {"w1": "busy", "w2": "disabled", "w3": "offline"}
    assert devices(by, "busy") == {"w1": "busy"}
    assert devices(by, "online") == {}
    by.get("devices?status=lost", 400)
    assert devices(operator(), "offline") == {"w3": "offline"}


def test_one_device_has_its_tasks_and_figures():
    by = device_key()
    by.register()
    done, held = by.create(), by.create()
    assert sorted(by.pull()) == [done, held]
    by.say(done, "completed", result_data={"n": 1})
    by.say(held, "running")
    found = by.get("devices/w1")
    assert set(found) == {"device", "latest_heartbeat", "running_tasks", "assignment_stats", "health_stats"}
    assert [(each["task_id"], each["status"]) for each in found["running_tasks"]] == [(held, "running")]
    figures = by.get("devices/w1/stats?hours=2")
    assert figures["assignment_stats"] == found["assignment_stats"]
    assert (figures["assignment_stats"]["total"], figures["assignment_stats"]["completed"]) == (2, 1)
    by.get("devices/w1/stats?hours=soon", 400)
    by.get("devices/nobody", 404)
    by.get("devices/%00", 404)

"""Deployed clients of the dialect ``distribution`` against a real server: their whole life, and what goes wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from cascade.local import LocalTree
from tests.acceptance.crawlers import Device, Plain, Worker
from tests.acceptance.trees import rows, until

PATIENT_SECONDS = 4


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    env = {"CASCADE_PATIENT_SECONDS": str(PATIENT_SECONDS), "CASCADE_FALLBACK_WORKERS": "0"}
    with LocalTree(tmp_path_factory.mktemp("distribution"), env=env) as tree:
        yield tree


@pytest.fixture(scope="module")
def fleet(tree: LocalTree) -> str:
    """A key for any number of devices."""
    return key(tree, "fleet", "--many")


def key(tree: LocalTree, name: str, *options: str) -> str:
    return str(json.loads(tree.manage("registration_key", name, "--json", *options).stdout)["key"])


def plain(tree: LocalTree, key: str, name: str, tasks: int = 2) -> Plain:
    return Plain("127.0.0.1", tree.port, key, name, tasks)


def worked(device: Device) -> list[int]:
    """What it has done, with what it finds now."""
    device.once()
    return device.done


def state(tree: LocalTree, run: int) -> str:
    return str(tree.json("GET", f"/api/v1/runs/{run}")["state"])


def test_a_device_with_capabilities_only_lives_its_whole_life(tree, fleet):
    device = plain(tree, fleet, "plain-1")
    assert device.register()[0] == 200
    device.beat()
    task = device.submit("anything")
    until(lambda: worked(device) == [task])
    tree.wait(task)
    assert state(tree, task) == "completed"
    (row,) = rows(tree, task)
    assert (row["task"], row["number"], row["type"], row["_node"]) == (str(task), 0, "anything", "plain-1")
    assert json.loads(row["data"]) == {"by": "plain-1", "task": task}
    device.beat()
    node = tree.nodes()["plain-1"]
    assert (node["state"], node["capacity"]) == ("online", 2)
    assert [each["state"] for each in tree.json("GET", f"/api/v1/allocations?run={task}")["results"]] == ["completed"]
    # A pull finds nothing at once; it does not wait.
    assert device.pull() == []
    assert device.slowest_pull < 2
    device.good("PUT", "/devices/plain-1/status", {"status": "offline"})
    assert tree.nodes()["plain-1"]["state"] == "offline"


def test_a_worker_that_reads_task_data_lives_its_whole_life(tree, fleet):
    device = Worker("127.0.0.1", tree.port, fleet, "worker-1", 3)
    assert device.register()[0] == 200
    device.beat()
    subject = {"username": "ü1", "app_id": "77", "start_date": "2026-01-01", "end_date": "2026-01-02"}
    body = {"task_type": "comments", **subject, "priority": 3, "execution_timeout": 60, "max_retry_count": 1}
    task = device.good("POST", "/tasks", body)["task_id"]
    until(lambda: worked(device) == [task])
    tree.wait(task)
    found = sorted((row["number"], row["data"]) for row in rows(tree, task))
    days = [(number, json.loads(text)) for number, text in found]
    expected = [{"user": "ü1", "app": "77", "day": subject[name]} for name in ("start_date", "end_date")]
    assert days == list(enumerate(expected))
    assert device.good("GET", f"/tasks/{task}")["status"] == "completed"
    device.good("PUT", "/devices/worker-1/status", {"status": "offline"})


def test_two_devices_share_the_work_and_no_task_is_lost_or_done_twice(tree, fleet):
    devices = [plain(tree, fleet, f"fleet-{number}", tasks=2) for number in range(2)]
    assert [device.register()[0] for device in devices] == [200, 200]
    tasks = [devices[0].submit("shared") for _ in range(20)]
    threads = [device.run() for device in devices for _ in range(2)]
    until(lambda: sum(len(device.done) for device in devices) == len(tasks))
    for device in devices:
        device.stop()
    for thread in threads:
        thread.join()
    assert Counter(done for device in devices for done in device.done) == Counter(tasks)
    assert all(device.done and not device.lost for device in devices)
    for task in tasks:
        tree.wait(task)
        assert len(rows(tree, task)) == 1
    for device in devices:
        device.good("PUT", f"/devices/{device.device_id}/status", {"status": "offline"})


def test_a_silent_device_loses_its_task_and_its_late_report_saves_nothing(tree, fleet):
    silent, other = plain(tree, fleet, "silent-1"), plain(tree, fleet, "silent-2")
    assert silent.register()[0] == 200
    task = silent.submit("slow")
    until(lambda: [each["id"] for each in silent.pull()] == [task])
    assert silent.tell(task, "running") == 200
    until(lambda: tree.nodes()["silent-1"]["state"] == "offline")
    assert other.register()[0] == 200
    until(lambda: worked(other) == [task])
    assert silent.tell(task, "completed", result_data={"by": "silent-1"}) == 409
    tree.wait(task)
    assert [json.loads(row["data"])["by"] for row in rows(tree, task)] == ["silent-2"]
    assert other.tell(task, "completed", result_data=other.work({"id": task})) == 200
    for device in (silent, other):
        device.good("PUT", f"/devices/{device.device_id}/status", {"status": "offline"})


def test_wrong_keys_strangers_and_nonsense_are_answered_and_nothing_breaks(tree, fleet):
    mine = plain(tree, key(tree, "mine"), "mine-1")
    assert mine.register()[0] == 200
    assert plain(tree, "CR" + "0" * 40, "mine-1").register()[0] == 401
    assert plain(tree, "AK:SK", "mine-1").register()[0] == 401
    assert plain(tree, fleet, "mine-1").register()[0] == 409
    assert plain(tree, mine.key, "mine-2").register()[0] == 403
    assert mine.call("GET", "/devices/plain-1")[0] == 404
    for method, path, body in [
        ("POST", "/devices/register", {}),
        ("POST", "/devices/register/", {"device_id": ["x"]}),
        ("POST", "/devices/mine-1/heartbeat", {"cpu_usage": "x"}),
        ("POST", "/tasks", {"task_type": None}),
        ("POST", "/tasks/", {"task_type": "x", "priority": 99}),
        ("PUT", "/tasks/status", {"status": "x"}),
        ("GET", "/tasks?status=x", None),
        ("GET", "/tasks/?limit=x", None),
    ]:
        status, answer = mine.call(method, path, body)
        assert (status, set(answer)) == (400, {"detail"}), (method, path, answer)
    assert mine.call("GET", "/no/such/route")[0] == 404
    assert mine.call("DELETE", "/devices")[0] == 405
    assert "Traceback" not in tree.log("parent").read_text()

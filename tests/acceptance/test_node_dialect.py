"""A child without a parent, driven by a program that knows only the wire: plain HTTP, nothing of the project."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import pytest

from cascade.local import LocalTree, free_port
from tests.acceptance.trees import SOON, until

KEYS_OF_HEALTH = {
    "node_id",
    "node_name",
    "status",
    "cpu_percent",
    "memory_percent",
    "active_tasks",
    "completed_tasks",
    "failed_tasks",
    "uptime_seconds",
    "last_heartbeat",
    "capabilities",
}
KEYS_OF_STATUS = {"task_id", "status", "result", "error", "started_at", "completed_at", "execution_time"}
BARS = {"symbol", "datetime", "open", "high", "low", "close", "volume", "data_source"}


class Node:
    """One node at its address."""

    def __init__(self, port: int, api_key: str = "") -> None:
        self.port = port
        self.api_key = api_key

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        keyed = {"X-API-Key": self.api_key} if self.api_key else {}
        connection.request(method, path, content, {**keyed, **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        # One deployed client takes an answer without a length for an empty one.
        assert int(answer.headers["Content-Length"]) == len(text)
        return answer.status, json.loads(text)

    def execute(self, task_id: str, task_type: str = "echo", data: Any = None, **more: Any) -> tuple[int, Any]:
        data = {"items": ["a"]} if data is None else data
        body = {"task_id": task_id, "task_type": task_type, "task_data": data, **more}
        return self.ask("POST", "/api/v1/task/execute", body)

    def status(self, task_id: str) -> Any:
        code, told = self.ask("GET", f"/api/v1/task/{task_id}/status")
        assert code == 200, told
        return told

    def ended(self, task_id: str) -> Any:
        """Polls as a driver does."""
        words = ("completed", "failed", "cancelled")
        return until(
            lambda: told if (told := self.status(task_id))["status"] in words else None, what=f"{task_id}'s end"
        )

    def health(self) -> Any:
        code, told = self.ask("GET", "/api/v1/health")
        assert code == 200, told
        return told

    def idle(self) -> None:
        until(lambda: self.health()["active_tasks"] == 0, what="an idle node")


def start(tree: LocalTree, name: str, *arguments: str, **env: str) -> Node:
    port = free_port()
    argv = [tree.python, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}", "--role", "child", *arguments]
    tree.spawn(name, argv, {"CASCADE_AGENT_DIR": str(tree.folder(name)), **env})

    def up() -> bool:
        assert tree.alive(name), tree.tail(name)
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(up, 60, "a listening node")
    return Node(port, env.get("CASCADE_NODE_API_KEY", ""))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    """Processes are started one by one; it has no parent unless a test starts it."""
    tree = LocalTree(tmp_path_factory.mktemp("nodes"))
    yield tree
    tree.stop(grace=5)


@pytest.fixture(scope="module")
def node(tree: LocalTree) -> Node:
    return start(tree, "lonely", MAX_WORKERS="4", NODE_NAME="Worker-1")


def sleepers(node: Node, count: int, prefix: str, seconds: float = 60) -> list[str]:
    names = [f"{prefix}-{number}" for number in range(count)]
    for name in names:
        code, told = node.execute(name, data={"items": ["a"], "seconds": seconds})
        assert code == 200, told
    return names


def free(node: Node, names: list[str]) -> None:
    for name in names:
        node.ask("POST", f"/api/v1/task/{name}/cancel")
    node.idle()


def test_it_says_who_it_is(node: Node) -> None:
    code, told = node.ask("GET", "/")
    assert code == 200
    assert {"service", "version", "node_id", "node_name", "status"} <= told.keys()
    assert (told["node_name"], told["status"]) == ("Worker-1", "running")


@pytest.mark.parametrize("path", ["/api/v1/health", "/api/v1/health/"])
def test_health_has_every_key_and_no_null(node: Node, path: str) -> None:
    code, told = node.ask("GET", path)
    assert code == 200
    assert told.keys() >= KEYS_OF_HEALTH
    assert None not in told.values()
    assert told["status"] == "healthy"
    assert "data_import" in told["capabilities"]
    # The driver subtracts it from its own naive clock.
    assert abs((datetime.now() - datetime.fromisoformat(told["last_heartbeat"])).total_seconds()) < 30


def test_health_is_sampled_in_the_background(node: Node) -> None:
    first = node.health()["last_heartbeat"]
    until(lambda: node.health()["last_heartbeat"] > first, what="a new sample")


def test_a_driver_imports_and_polls_until_it_has_the_bars(node: Node) -> None:
    data = {
        "symbols": ["AAPL", "IBM"],
        "data_source": "sample",
        "start_date": "2012-01-03",
        "end_date": "2012-01-04",
        "freq": "D",
    }
    code, taken = node.execute("import-1", "data_import", data, priority=5, timeout=300)
    assert code == 200
    assert (taken["task_id"], taken["status"], taken["completed_at"]) == ("import-1", "running", None)
    assert taken["message"]
    assert datetime.fromisoformat(taken["started_at"]).tzinfo is None
    told = node.ended("import-1")
    assert told.keys() == KEYS_OF_STATUS
    assert (told["status"], told["error"]) == ("completed", None)
    assert datetime.fromisoformat(told["completed_at"]).tzinfo is None
    assert told["execution_time"] > 0
    result = told["result"]
    kdata = result["kdata"]
    assert {name: result[name] for name in ("task_type", "symbols_count", "imported_count", "total_records")} == {
        "task_type": "data_import",
        "symbols_count": 2,
        "imported_count": 2,
        "total_records": 4,
    }
    assert (result["data_source"], result["first_symbol"], result["status"]) == ("sample", "AAPL", "completed")
    assert {record.keys() == BARS for record in kdata} == {True}
    assert [(each["symbol"], each["datetime"], each["close"]) for each in kdata[:2]] == [
        ("AAPL", "2012-01-03T00:00:00", 411.23),
        ("AAPL", "2012-01-04T00:00:00", 413.44),
    ]


def test_a_large_result_comes_whole(node: Node) -> None:
    assert node.execute("large", "data_import", {"symbols": ["AAPL", "MSFT"], "data_source": "sample"})[0] == 200
    result = node.ended("large")["result"]
    assert len(result["kdata"]) == result["total_records"] > 6_000


def test_a_task_whose_symbols_failed_in_part_is_completed(node: Node) -> None:
    assert node.execute("part", "data_import", {"symbols": ["NONE", "IBM"], "data_source": "sample"})[0] == 200
    told = node.ended("part")
    assert told["status"] == "completed"
    assert (told["result"]["symbols_count"], told["result"]["imported_count"]) == (2, 1)
    assert list(told["result"]["errors"]) == ["NONE"]
    assert {record["symbol"] for record in told["result"]["kdata"]} == {"IBM"}


def test_a_task_of_which_nothing_succeeded_is_failed_and_says_why(node: Node) -> None:
    assert node.execute("none", "data_import", {"symbols": ["NONE"], "data_source": "sample"})[0] == 200
    told = node.ended("none")
    assert told["status"] == "failed"
    assert "NONE" in told["error"]


def test_the_same_order_again_is_the_same_task_and_another_one_a_conflict(node: Node) -> None:
    body = {"task_id": "twice", "task_type": "echo", "task_data": {"items": ["a"]}, "timestamp": 1}
    first = node.ask("POST", "/api/v1/task/execute", body)
    again = node.ask("POST", "/api/v1/task/execute/", {**body, "timestamp": 2})
    assert first == again
    assert first[0] == 200
    code, told = node.ask("POST", "/api/v1/task/execute", {**body, "task_data": {"items": ["b"]}})
    assert code == 409
    assert "twice" in told["detail"]
    node.ended("twice")
    assert node.ask("POST", "/api/v1/task/execute", body) == first


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task_id": None}, "task_id"),
        ({"task_id": "a/b"}, "task_id"),
        ({"task_id": "x" * 5000}, "task_id"),
        ({"task_type": "conjuring"}, "data_import"),
        ({"task_type": ["echo"]}, "task_type"),
        ({"task_data": None}, "task_data.symbols"),
        ({"task_data": {"symbols": ["A"], "data_source": "nowhere"}}, "sample"),
        ({"task_data": {"symbols": ["A"], "data_source": "sample", "freq": "7s"}}, "task_data.freq"),
        ({"task_data": {"symbols": ["A"], "data_source": "sample", "start_date": "soon"}}, "task_data.start_date"),
        ({"task_data": {"symbols": [" A"], "data_source": "sample"}}, "task_data.items[0]"),
        ({"priority": 11}, "priority"),
        ({"priority": True}, "priority"),
        ({"timeout": 9}, "timeout"),
        ({"timeout": "long"}, "timeout"),
    ],
)
def test_a_bad_body_is_unprocessable_and_says_where(node: Node, change: dict[str, Any], named: str) -> None:
    good = {"task_id": "bad", "task_type": "data_import", "task_data": {"symbols": ["IBM"], "data_source": "sample"}}
    code, told = node.ask("POST", "/api/v1/task/execute", good | change)
    assert code == 422, told
    assert named in told["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_unprocessable(node: Node, body: bytes) -> None:
    assert node.ask("POST", "/api/v1/task/execute", body)[0] == 422


def test_what_is_not_there_is_not_found(node: Node) -> None:
    assert node.ask("GET", "/api/v1/task/nobody/status")[0] == 404
    assert node.ask("POST", "/api/v1/task/nobody/cancel")[0] == 404
    assert node.ask("GET", "/admin/")[0] == 404
    assert node.ask("GET", "/api/v1/task/execute")[0] == 405


def test_four_busy_workers_are_busy_and_health_answers_at_once(node: Node) -> None:
    names = sleepers(node, 4, "busy")
    try:
        code, told = node.execute("one-too-many")
        assert code == 503
        assert told["detail"]
        health = node.health()
        assert (health["status"], health["active_tasks"]) == ("busy", 4)
        assert node.status("busy-0")["status"] == "running"
        assert node.status("busy-0")["completed_at"] is None
        assert node.status("busy-0")["execution_time"] >= 0
        waits = []
        for _ in range(50):
            began = time.monotonic()
            node.health()
            waits.append(time.monotonic() - began)
        assert sorted(waits)[25] < 0.05
    finally:
        free(node, names)
    assert node.execute("one-too-many")[0] == 200  # it was refused, so it is not known
    assert node.ended("one-too-many")["status"] == "completed"


def test_a_cancel_kills_what_runs_and_frees_its_slot(node: Node) -> None:
    [name] = sleepers(node, 1, "cancelled")
    code, told = node.ask("POST", f"/api/v1/task/{name}/cancel")
    assert code == 200
    assert told.keys() == KEYS_OF_STATUS
    assert told["status"] == "cancelled"
    node.idle()
    assert node.status(name)["status"] == "cancelled"


def test_a_cancel_after_the_end_changes_nothing(node: Node) -> None:
    node.execute("over")
    before = node.ended("over")
    assert node.ask("POST", "/api/v1/task/over/cancel") == (200, before)


def test_a_worker_that_is_killed_costs_its_task_only(node: Node, tree: LocalTree) -> None:
    names = sleepers(node, 2, "killed")
    pid = tree.pid("lonely")
    fork_server = until(
        lambda: [each for each in psutil.Process(pid).children() if len(each.children()) >= 2], what="two workers"
    )[0]
    fork_server.children()[0].kill()
    try:
        told = until(
            lambda: [each for name in names if (each := node.status(name))["status"] == "failed"], what="a failure"
        )[0]
        assert "died" in told["error"]
        assert sum(node.status(name)["status"] == "running" for name in names) == 1
    finally:
        free(node, names)
    node.execute("after")
    assert node.ended("after")["status"] == "completed"


def test_statistics_count_what_ended(node: Node) -> None:
    node.idle()
    code, before = node.ask("GET", "/api/v1/statistics")
    assert code == 200
    assert before["success"] is True
    node.execute("counted")
    node.ended("counted")
    after = node.ask("GET", "/api/v1/statistics")[1]["data"]
    assert after["total_executed"] == before["data"]["total_executed"] + 1
    assert after["total_failed"] == before["data"]["total_failed"]
    assert 0 < after["success_rate"] <= 1
    assert after["average_time"] > 0
    assert after["completed_tasks_cached"] == before["data"]["completed_tasks_cached"] + 1
    code, told = node.ask("GET", "/api/v1/node/stats")
    assert code == 200
    assert told["data"]["node_info"].keys() == {"node_id", "node_name", "max_workers", "uptime_seconds"}
    assert told["data"]["node_info"]["max_workers"] == 4
    assert told["data"]["task_stats"] == after
    assert told["data"]["system_info"].keys() == {"cpu_count", "memory_total_gb", "disk_usage_percent"}


@pytest.mark.parametrize("path", ["/notify", "/api/v1/cascade/notify", "/api/v1/wx/cascade/notify/"])
def test_a_knock_is_answered(node: Node, path: str) -> None:
    code, told = node.ask("POST", path, {"type": "new_task", "allocation_id": "1", "feed_count": 2, "timestamp": "x"})
    assert (code, told["code"]) == (200, 0)


def test_a_page_of_another_site_may_not_hand_over_work(node: Node) -> None:
    body = {"task_id": "evil", "task_type": "echo", "task_data": {"items": ["a"]}}
    code, _ = node.ask("POST", "/api/v1/task/execute", body, {"Origin": "https://evil.example"})
    assert code == 403
    assert node.ask("GET", "/api/v1/task/evil/status")[0] == 404


def test_an_idle_node_takes_less_than_90_megabytes(tree: LocalTree) -> None:
    start(tree, "small")  # nothing asked it yet
    process = psutil.Process(tree.pid("small"))
    assert process.children(recursive=True) == []
    assert process.memory_info().rss < 90e6
    tree.terminate("small")


def test_times_are_the_machines_own_whatever_zone_a_server_would_use(tree: LocalTree) -> None:
    node = start(tree, "tokyo", TZ="Asia/Tokyo")
    there = datetime.now(ZoneInfo("Asia/Tokyo")).replace(tzinfo=None)
    assert abs((there - datetime.fromisoformat(node.health()["last_heartbeat"])).total_seconds()) < 30
    tree.terminate("tokyo")


def test_a_node_is_stopped_through_no_proxy(node: Node) -> None:
    assert node.ask("POST", "/api/v1/node/shutdown", headers={"X-Forwarded-For": "10.0.0.9"})[0] == 403
    assert node.health()["status"] == "healthy"


def test_with_an_api_key_only_who_has_it_is_answered(tree: LocalTree) -> None:
    node = start(tree, "locked", CASCADE_NODE_API_KEY="open sesame", CASCADE_HEALTHY_WORD="active")
    assert node.health()["status"] == "active"
    assert Node(node.port).ask("GET", "/healthz") == (200, {"status": "active"})
    for key in ("", "open sesamé", "open sesam"):
        stranger = Node(node.port)
        headers = {"X-API-Key": key.encode().decode("latin-1")} if key else {}
        for method, path in [
            ("GET", "/api/v1/health"),
            ("GET", "/api/v1/statistics"),
            ("POST", "/api/v1/task/execute"),
            ("GET", "/api/v1/task/x/status"),
            ("POST", "/api/v1/task/x/cancel"),
            ("POST", "/api/v1/node/shutdown"),
            ("POST", "/notify"),
        ]:
            assert stranger.ask(method, path, headers=headers)[0] == 401, path
    assert node.execute("t")[0] == 200
    assert node.ended("t")["status"] == "completed"
    tree.terminate("locked")


def test_a_shutdown_drains_and_then_stops(tree: LocalTree) -> None:
    node = start(tree, "leaving", MAX_WORKERS="2")
    sleepers(node, 1, "last", seconds=1.5)
    code, told = node.ask("POST", "/api/v1/node/shutdown")
    assert code == 200
    assert told["success"] is True
    until(lambda: node.health()["status"] == "busy", what="a node that takes no more")
    assert node.execute("late")[0] == 503
    # What runs is not cut off, and who gave it can read how it ended.
    assert node.status("last-0")["status"] == "running"
    until(lambda: node.health()["completed_tasks"] == 1, what="the end of the task")
    time.sleep(1.5)  # until a driver asks again
    assert node.ended("last-0")["status"] == "completed"
    until(lambda: not tree.alive("leaving"), what="the end of the process")


def test_results_of_an_earlier_process_are_gone(tree: LocalTree) -> None:
    folder = tree.folder("lonely") / "direct"
    assert list(Path(folder).glob("*.json"))
    tree.restart("lonely")
    until(lambda: not list(Path(folder).glob("*.json")), what="an empty folder")

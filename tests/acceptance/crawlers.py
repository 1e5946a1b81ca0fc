"""Clients of the dialect ``distribution`` as they are deployed: plain HTTP, nothing of this project."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any


class Device:
    """What both kinds share: one connection per request; an answer without its length counts as none."""

    def __init__(self, host: str, port: int, key: str, device_id: str, tasks: int, timeout: float | None) -> None:
        self.address = (host, port)
        self.key = key
        self.device_id = device_id
        self.tasks = tasks
        self.timeout = timeout
        self.done: list[int] = []
        self.lost: list[int] = []
        self.slowest_pull = 0.0
        self._stopping = threading.Event()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*self.address, timeout=self.timeout)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps({**body, "timestamp": time.time()})
        connection.request(method, f"/api/distribution{path}", content, headers)
        answer = connection.getresponse()
        # It would take a redirect or an answer of unknown length for an empty success.
        assert not 300 <= answer.status < 400, (answer.status, answer.headers["Location"])
        assert answer.headers["Content-Length"] is not None, (method, path)
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text)

    def good(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.call(method, path, body)
        assert status == 200, (method, path, status, answer)
        return answer

    def beat(self) -> None:
        said = {"cpu_usage": 12.0, "memory_usage": 30.0, "disk_usage": 50.0, "network_status": "good"}
        more = {"running_tasks": 0, "system_load": 0.5, "error_count": 0, "status_info": {"version": "1.0"}}
        self.good("POST", f"/devices/{self.device_id}/heartbeat", {"device_id": self.device_id, **said, **more})

    def pull(self) -> list[dict[str, Any]]:
        began = time.monotonic()
        found: list[dict[str, Any]] = self.good("GET", self.pull_path())["tasks"]
        self.slowest_pull = max(self.slowest_pull, time.monotonic() - began)
        return found

    def pull_path(self) -> str:
        raise NotImplementedError

    def work(self, task: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def tell(self, task: int, status: str, **more: Any) -> int:
        body = {"task_id": task, "device_id": self.device_id, "status": status, **more}
        return self.call("PUT", "/tasks/status", body)[0]

    def once(self) -> None:
        """Pulls, and does what came."""
        for task in self.pull():
            assert self.tell(task["id"], "running") in (200, 409)
            status = self.tell(task["id"], "completed", result_data=self.work(task))
            (self.done if status == 200 else self.lost).append(task["id"])

    def run(self) -> threading.Thread:
        """Works in a thread of its own until ``stop``."""

        def loop() -> None:
            while not self._stopping.is_set():
                self.beat()
                self.once()
                self._stopping.wait(0.02)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        self._stopping.set()


class Plain(Device):
    """No time-outs, its slots and a list of types within ``capabilities`` only, priority 0 in what it submits."""

    def __init__(self, host: str, port: int, key: str, device_id: str, tasks: int) -> None:
        super().__init__(host, port, key, device_id, tasks, timeout=None)

    def register(self) -> tuple[int, Any]:
        capabilities = {"max_concurrent_tasks": self.tasks, "supported_task_types": ["a_fixed_list"]}
        about = {"device_id": self.device_id, "device_name": f"Plain {self.device_id}", "device_type": "crawler"}
        body = {**about, "ip_address": "10.0.0.5", "capabilities": capabilities}
        return self.call("POST", "/devices/register", body)

    def pull_path(self) -> str:
        return f"/tasks/{self.device_id}/pull?limit={self.tasks}"

    def submit(self, task_type: str) -> int:
        body = {"task_type": task_type, "username": "", "app_id": None, "priority": 0, "task_data": None}
        return int(self.good("POST", "/tasks", body)["task_id"])

    def work(self, task: dict[str, Any]) -> dict[str, Any]:
        return {"by": self.device_id, "task": task["id"]}


class Worker(Device):
    """Reads user, application and dates in ``task_data``, and sends many rows of a task."""

    def __init__(self, host: str, port: int, key: str, device_id: str, tasks: int) -> None:
        super().__init__(host, port, key, device_id, tasks, timeout=20)

    def register(self) -> tuple[int, Any]:
        about = {"device_id": self.device_id, "device_name": "Worker", "device_type": "worker", "ip_address": ""}
        return self.call("POST", "/devices/register", {**about, "capabilities": {}, "max_concurrent_tasks": self.tasks})

    def pull_path(self) -> str:
        return f"/tasks/pull/?device_id={self.device_id}&limit=10"

    def work(self, task: dict[str, Any]) -> dict[str, Any]:
        data = task["task_data"]
        days = [data["start_date"], data["end_date"]]
        return {"rows": [{"user": data["username"], "app": data["app_id"], "day": day} for day in days]}

"""Devices of the ``distribution`` dialect as tests use them: JSON in; status and JSON out. No code of the dialect."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from django.contrib.auth.models import User
from django.test import Client
from rest_framework_simplejwt.tokens import AccessToken

from nodes import registrations


class Answer(NamedTuple):
    status: int
    body: Any
    headers: Any


class Caller:
    """Whoever holds ``bearer``; paths are below /api/distribution/."""

    def __init__(self, bearer: str) -> None:
        self.bearer = bearer
        self.client: Any = Client(raise_request_exception=False)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        given = {"HTTP_AUTHORIZATION": f"Bearer {self.bearer}"} if self.bearer else {}
        content = "" if body is None else json.dumps(body)
        response = self.client.generic(
            method, f"/api/distribution/{path}", content, content_type="application/json", **given, **headers
        )
        assert response.headers["Content-Length"] == str(len(response.content))
        return Answer(response.status_code, json.loads(response.content), response.headers)

    def get(self, path: str, status: int = 200) -> Any:
        return self.checked("GET", path, None, status)

    def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        return self.checked("POST", path, body, status)

    def put(self, path: str, body: Any = None, status: int = 200) -> Any:
        return self.checked("PUT", path, body, status)

    def checked(self, method: str, path: str, body: Any, status: int) -> Any:
        answer = self.send(method, path, body)
        assert answer.status == status, answer
        return answer.body

    # What devices do

    def register(self, device_id: str = "w1", tasks: int = 2, **more: Any) -> Any:
        return self.post("devices/register", {"device_id": device_id, "max_concurrent_tasks": tasks, **more})

    def create(self, task_type: str = "crawl", **more: Any) -> int:
        return int(self.post("tasks", {"task_type": task_type, **more})["task_id"])

    def pull(self, device_id: str = "w1", limit: int = 10) -> list[int]:
        return [each["id"] for each in self.get(f"tasks/{device_id}/pull?limit={limit}")["tasks"]]

    def say(self, task: int, status: str, device_id: str = "w1", answered: int = 200, **more: Any) -> Any:
        return self.put(f"tasks/{task}/status", {"device_id": device_id, "status": status, **more}, answered)

    def status(self, task: int) -> str:
        return str(self.get(f"tasks/{task}")["status"])


def device_key(name: str = "crawlers", many: bool = False) -> Caller:
    return Caller(registrations.issue(name, many).key)


def operator() -> Caller:
    user, _ = User.objects.get_or_create(username="olga", is_staff=True)
    return Caller(str(AccessToken.for_user(user)))

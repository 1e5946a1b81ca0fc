"""Operators and children of the ``cascade`` dialect, each behind Django's own client."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from django.test import Client

from dispatch import lifecycle
from dispatch.models import Allocation, Run, Source, Task
from nodes import registry
from nodes.models import Node

BASE = "/api/v1/cascade/"


class Said(NamedTuple):
    status: int
    body: dict[str, Any]

    def good(self) -> Any:
        """What a good answer brings."""
        assert self.status == 200, self
        assert self.body["code"] == 0, self
        return self.body["data"]

    @property
    def why(self) -> str:
        """The message of a refusal."""
        assert self.status >= 400, self
        assert self.body["code"] != 0, self
        return str(self.body["message"])


class Speaker:
    def __init__(self, client: Any, authorization: str = "") -> None:
        self.client = client
        self.client.raise_request_exception = False
        self.headers = {"HTTP_AUTHORIZATION": authorization} if authorization else {}

    def send(self, method: str, path: str, body: Any = None) -> Said:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        answer = self.client.generic(method, BASE + path, content, content_type="application/json", **self.headers)
        assert answer.headers["Content-Length"] == str(len(answer.content))
        return Said(answer.status_code, answer.json())

    def get(self, path: str) -> Said:
        return self.send("GET", path)

    def post(self, path: str, body: Any = None) -> Said:
        return self.send("POST", path, body)

    def put(self, path: str, body: Any = None) -> Said:
        return self.send("PUT", path, body)

    def delete(self, path: str) -> Said:
        return self.send("DELETE", path)


class Child(Speaker):
    """A node of the dialect that has beaten once."""

    def __init__(self, name: str = "kid", **fields: Any) -> None:
        made, key = registry.add_node(name, dialect="cascade", **fields)
        super().__init__(Client(), f"AK-SK {key.access_key}:{key.secret_key}")
        self.id = made.pk
        self.post("heartbeat").good()

    @property
    def node(self) -> Node:
        return Node.objects.get(pk=self.id)

    def claim(self) -> dict[str, Any]:
        package: dict[str, Any] = self.post("claim-task").good()
        assert package is not None, "nothing was there to claim"
        return package

    def upload(self, package: dict[str, Any], *articles: dict[str, Any]) -> Said:
        return self.post("upload-articles", {"allocation_id": package["allocation_id"], "articles": list(articles)})

    def status(self, package: dict[str, Any], status: str, **more: Any) -> Said:
        return self.put("task-status", {"allocation_id": package["allocation_id"], "status": status, **more})

    def report(self, package: dict[str, Any], *results: dict[str, Any], **more: Any) -> Said:
        body = {"allocation_id": package["allocation_id"], "task_id": package["task_id"], "results": list(results)}
        return self.post("report-completion", {**body, **more})


def feed(key: str, **fields: Any) -> Source:
    return Source.objects.create(kind=Source.Kind.FEED, key=key, **fields)


def message_task(name: str = "news", *feeds: str, **fields: Any) -> Task:
    return Task.objects.create(name=name, type="feed_update", items=list(feeds), **fields)


def begun(*feeds: str, **fields: Any) -> Run:
    """A run of a message task over ``feeds``, all in one shard unless said otherwise."""
    given = {"shard_size": len(feeds), "backoff": 0.0, **fields}
    return lifecycle.submit_task(message_task(f"task of {'-'.join(feeds)}", *feeds), **given)


def article(feed: str, number: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": f"{feed}-{number}", "mp_id": feed, "title": f"Title {number}", **more}


def allocation(package: dict[str, Any]) -> Allocation:
    return Allocation.objects.get(pk=package["allocation_id"])

"""A client of the ``cascade`` dialect written from its contract alone: HTTP and JSON, and nothing of this project."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple


class Reply(NamedTuple):
    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    def good(self) -> Any:
        """What a good answer brings."""
        assert self.status == 200, self
        assert self.body["code"] == 0, self
        return self.body["data"]


class Wire:
    """One sender of requests. ``base`` as deployed clients have it; names and values go out as given."""

    def __init__(self, port: int, authorization: str, base: str = "/api/v1/wx/cascade") -> None:
        self.port = port
        self.authorization = authorization
        self.base = base

    def send(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
            headers = {"Authorization": self.authorization, "Content-Type": "application/json"}
            connection.request(method, f"{self.base}{path}", content, headers)
            answer = connection.getresponse()
            received = answer.read()
            named = {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        # A client that misses the length takes the answer for an empty success.
        assert named.get("content-length") == str(len(received)), (path, named)
        assert not 300 <= answer.status < 400, (path, answer.status)
        found = json.loads(received)
        assert set(found) == {"code", "message", "data"}, found
        assert (found["code"] == 0) == (answer.status < 400), found
        return Reply(answer.status, found, named)

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def post(self, path: str, body: Any = None) -> Reply:
        return self.send("POST", path, body)

    def put(self, path: str, body: Any = None) -> Reply:
        return self.send("PUT", path, body)


def article(feed: str, number: int, **more: Any) -> dict[str, Any]:
    """As a child sends it, with keys that the parent has no use for."""
    return {
        "id": f"{feed}-{number}",
        "mp_id": feed,
        "title": f"Title {number}",
        "url": f"https://example.org/{feed}/{number}",
        "pic_url": None,
        "description": "About it",
        "content": "<p>The text</p>",
        "publish_time": 1_767_225_600 + number,
        "is_export": 0,
        **more,
    }


def child_of(operator: Wire, name: str, base: str = "/api/v1/wx/cascade", **fields: Any) -> Wire:
    """A new node and its credentials, as its operator makes them."""
    made = operator.post("/nodes", {"node_type": 1, "name": name, **fields}).good()
    keys = operator.post(f"/nodes/{made['node_id']}/credentials").good()
    wire = Wire(operator.port, f"AK-SK {keys['api_key']}:{keys['api_secret']}", base)
    assert wire.send("POST", "/heartbeat", raw=b"").good() == {"status": "alive"}
    return wire

"""The native API as its tests use it: JSON in; status and JSON out."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.test import Client

JSON = "application/json"


class Answer(NamedTuple):
    status: int
    body: Any
    response: Any


class Api:
    """``/api/v1`` behind ``client``. Header names as in HTTP_IDEMPOTENCY_KEY."""

    client: Any  # its responses have more than their type says

    def __init__(self, client: Client) -> None:
        self.client = client
        # A 500 is an answer to assert on, not an exception out of the client.
        self.client.raise_request_exception = False

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        response = self.client.generic(
            method, f"/api/v1/{path}", _encoded(self.client, body), content_type=JSON, **headers
        )
        is_json = response.headers.get("Content-Type", "").startswith(JSON) and not response.streaming
        return Answer(response.status_code, response.json() if is_json else None, response)

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.send("POST", path, body, **headers)

    def put(self, path: str, body: Any) -> Answer:
        return self.send("PUT", path, body)

    def patch(self, path: str, body: Any) -> Answer:
        return self.send("PATCH", path, body)

    def delete(self, path: str) -> Answer:
        return self.send("DELETE", path)


def _encoded(client: Client, body: Any) -> str | bytes:
    if body is None or isinstance(body, (str, bytes)):
        return body or b""
    encoded: str = client._encode_json(body, JSON)  # type: ignore[attr-defined]
    return encoded

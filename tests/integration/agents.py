"""A real parent process, and nodes whose agent is the test itself: its requests, its sockets, work of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from cascade.local import LocalTree, next_look
from nodes import executors, signing
from nodes.executors.rows import encode, to_table

UPLOAD_LIMIT = 100_000
NO_ROW = 10**12
"""The id of no row: smaller ones are somebody's, depending on what ran before on the same database."""
SOON = 20.0
"""Seconds after which what should have happened will not."""


@contextmanager
def parent(folder: Path, **env: str) -> Iterator[LocalTree]:
    """Without children. ``env`` without the prefix: LEASE_SECONDS="2"."""
    settings = {"UPLOAD_LIMIT": str(UPLOAD_LIMIT), "LEASE_SECONDS": "60", "OFFER_SECONDS": "60", **env}
    with LocalTree(folder, env={f"CASCADE_{name}": value for name, value in settings.items()}) as tree:
        yield tree


def until(condition: Callable[[], Any], seconds: float = SOON) -> Any:
    """What ``condition`` gives once that is true."""
    began = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() < began + seconds, "it has not come about"
        time.sleep(next_look(began))
    return found


class Agent:
    """One node of ``tree``, known by a label that runs can ask for, so that tests do not get each other's work."""

    def __init__(self, tree: LocalTree, *, plain: bool = False, **fields: Any) -> None:
        self.tree = tree
        self.plain = plain
        self.name = f"node-{secrets.token_hex(4)}"
        made = tree.json("POST", "/api/v1/nodes", json={"name": self.name, "labels": {"only": self.name}, **fields})
        self.id: int = made["id"]
        self.key = {"access_key": made["access_key"], "secret_key": made["secret_key"]}
        self.session = requests.Session()
        self.session.trust_env = False

    # Messages

    def headers(self, method: str, path: str, content: bytes = b"", **signed: Any) -> dict[str, str]:
        if self.plain:
            return {"Authorization": "AK-SK {access_key}:{secret_key}".format(**self.key)}
        return signing.sign(method, self.tree.url + path, content, **{**self.key, **signed})

    def send(
        self, method: str, path: str, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> requests.Response:
        """``path`` below /api/v1/agent/; signed unless ``headers`` are given."""
        path = f"/api/v1/agent/{path}"
        headers = self.headers(method, path, content) if headers is None else headers
        url = self.tree.url + path
        return self.session.request(method, url, data=content, headers=headers, timeout=30)

    def say(self, verb: str, body: Any) -> requests.Response:
        return self.send("POST", verb, json.dumps(body).encode())

    def ask(self, verb: str, body: Any) -> dict[str, Any]:
        """The reply to what must be accepted."""
        answer = self.say(verb, body)
        assert answer.status_code == 200, answer.text
        reply: dict[str, Any] = answer.json()
        return reply

    def beat(self, **body: Any) -> dict[str, Any]:
        known = {"boot": "one", "executors": executors.names(), "version": "0.0-test", "carrier": "pull"}
        return self.ask("beat", {**known, **body})

    def upload(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        answer = self.send("PUT", f"segments/{sha256}", content)
        assert answer.status_code == 201, answer.text
        return sha256

    # Work

    def submit(self, *items: Any, shard_size: int = 1, type: str = "echo", **fields: Any) -> int:
        """A run that only this node may get."""
        return self.tree.submit(type, items, shard_size=shard_size, labels={"only": self.name}, **fields)

    def granted(self, count: int) -> list[list[Any]]:
        """So many allocations, claimed as they come."""
        work: list[list[Any]] = []
        deadline = time.monotonic() + SOON
        while len(work) < count:
            assert time.monotonic() < deadline, f"{len(work)} of {count} allocations came"
            work += self.ask("claim", {"slots": count, "wait": 5, "held": [each[0] for each in work]})["work"]
        return work

    def work(self, *items: Any, **fields: Any) -> tuple[int, list[list[Any]]]:
        """A fresh run and its allocations, one item each."""
        self.beat(hello=True)
        run = self.submit(*items, **fields)
        return run, self.granted(len(items))

    def allocation(self, id: int) -> dict[str, Any]:
        found: dict[str, Any] = self.tree.json("GET", f"/api/v1/allocations/{id}")
        return found

    def rows(self, run: int) -> list[dict[str, Any]]:
        """All that was saved of a run, with lineage."""
        found: list[dict[str, Any]] = self.tree.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"})
        return found


class Socket:
    """An open socket of ``agent``; frames that come while another is waited for are kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.numbers = itertools.count()
        self.kept: deque[dict[str, Any]] = deque()

    def say(self, frame: Any) -> None:
        self.socket.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame))

    def next(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = SOON) -> dict[str, Any]:
        """The next frame that is ``wanted``. Raises TimeoutError, ConnectionClosed."""
        for frame in list(self.kept):
            if wanted(frame):
                self.kept.remove(frame)
                return frame
        deadline = time.monotonic() + seconds
        while True:
            frame = json.loads(self.socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            if wanted(frame):
                return frame
            self.kept.append(frame)

    def ask(self, verb: str, body: Any) -> dict[str, Any]:
        """The reply frame to ``verb``."""
        number = next(self.numbers)
        self.say({"type": verb, "id": number, "body": body})
        return self.next(lambda frame: frame["type"] == "reply" and frame["re"] == number)

    def beat(self, **body: Any) -> dict[str, Any]:
        known = {"boot": "one", "executors": executors.names(), "version": "0.0-test", "carrier": "push"}
        reply = self.ask("beat", {**known, **body})
        assert reply["status"] == 200, reply
        found: dict[str, Any] = reply["body"]
        return found

    def offered(self, count: int) -> list[list[Any]]:
        """So many allocations, as offers bring them."""
        work: list[list[Any]] = []
        while len(work) < count:
            work += self.next(lambda frame: frame["type"] == "offer")["work"]
        return work

    def closed(self) -> int:
        """The code with which the parent has closed it."""
        with pytest.raises(ConnectionClosed) as closed:
            self.next(lambda _: False)
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


@contextmanager
def opened(agent: Agent, headers: dict[str, str] | None = None) -> Iterator[Socket]:
    url = f"{agent.tree.url}/ws/agent".replace("http", "ws", 1)
    headers = agent.headers("GET", "/ws/agent") if headers is None else headers
    with connect(url, additional_headers=headers, open_timeout=SOON, proxy=None) as socket:
        yield Socket(socket)


def done(parcel: list[Any], **more: Any) -> dict[str, Any]:
    """The report of an allocation of ``echo`` as its executor would make it."""
    allocation, _, start, stop, _, items = parcel
    rows = [[str(item), 0, f"{item}:0"] for item in items]
    ranges = [[index, index + 1, 1] for index in range(start, stop)]
    return {"allocation": allocation, "ranges": ranges, "errors": [], "rows": rows, "seconds": 0.01, **more}


def echo_segment(*items: str) -> bytes:
    """An Arrow file with one row of ``echo`` per item."""
    dataset = executors.get("echo").dataset
    return encode(to_table(dataset, [(item, 0, f"{item}:0") for item in items]))

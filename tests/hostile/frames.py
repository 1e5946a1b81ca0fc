"""Frames that no agent would send: broken JSON, wrong types in each field of each verb, and broken WebSocket itself."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

WRONG: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, -(2**70), 1e308, 0.5, "", "x", "9" * 30, "\x00", "\ud800", "\u202e", "x" * 5000, [], [[]],
    [None], [True], [-1], [2**70], ["1"], [1, [2]], [{}], {}, {"": 1}, {"\x00": 1}, {"-1": -1}, {"9" * 25: 1},
    {"1": "x"},
)  # fmt: skip
"""Values that are wrong in most places, and in each of them for another reason."""

_ENTRY: dict[str, Any] = {
    "allocation": 1,
    "ranges": [[0, 1, 1]],
    "errors": [[0, "text", True]],
    "rows": [["a", 0, "a:0"]],
    "segment": "0" * 64,
    "offset": 0,
    "seconds": 1.0,
    "log": "text",
    "log_start": 1,
    "stopped": 1,
    "part": 0,
    "nodes": ["a"],
    "failure": {"kind": "error", "message": "text"},
    "outcomes": [[0, {"found": ["x"], "memory": {"a": 1}, "status": "ok", "counts": {"new": 1}}]],
}
_COUNTS: dict[str, Any] = {
    "nodes": 1, "leaves": 1, "online": 1, "capacity": 1, "used": 1, "queued": 1, "depth": 1, "more": 0,
}  # fmt: skip
_CHILD: dict[str, Any] = {
    "name": "a", "role": "child", "state": "online", "capacity": 1, "used": 1, "queued": 1, "below": _COUNTS, "id": 1,
    "carrier": "push", "allowed": 1, "labels": {"zone": "a"}, "version": "1", "config_version": 1, "types": ["echo"],
    "quotas": [{"task_type": "echo", "item": "", "slots": 1, "limit": 1}], "speeds": {"echo": 1.0}, "cpu": 1.0,
    "memory": 1.0, "beat_seconds_ago": 1.0, "below_seconds_ago": 1.0,
}  # fmt: skip
_PICTURE = {"node": "a", "live": True, "seconds_ago": 0.0, "below": _COUNTS, "children": [_CHILD], "more": 0}
BODIES: dict[str, dict[str, Any]] = {
    "tell": {"answers": [{"id": 1, "status": 200, "detail": "text", "body": _PICTURE}]},
    "accept": {"allocations": [1]},
    "log": {"logs": [[1, 0, "text"]]},
    "release": {"allocations": [1], "detail": "text"},
    "report": {"reports": [_ENTRY]},
    "beat": {
        "boot": "one", "hello": False, "held": [1], "running": [1], "progress": {"1": 1}, "cpu": 1.0, "memory": 1.0,
        "disk": 1.0, "version": "1", "executors": ["echo"], "carrier": "push", "leaving": False, "config": 1,
        "protocol": 1, "role": "relay", "id": "ab" * 16, "slots": 2, "types": {"echo": 2}, "branches": [{"zone": "a"}],
        "begun": {"1": 1}, "configs": {"1": 1}, "subtree": {**_COUNTS, "children": [_CHILD]},
    },
}  # fmt: skip
"""A body of each verb that a socket takes, with every field that ``nodes.messages`` reads."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _places(each, (*path, name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _places(each, (*path, number))


def _with(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    if not path:
        return put
    name, *rest = path
    if isinstance(value, dict):
        return {**value, name: _with(value[name], tuple(rest), put)}
    return [_with(each, tuple(rest), put) if number == name else each for number, each in enumerate(value)]


def wrong_fields() -> Iterator[str]:
    """Each verb with each of its fields, at any depth, of each wrong value."""
    for verb, body in BODIES.items():
        for path in _places(body):
            for wrong in WRONG:
                yield json.dumps({"type": verb, "id": 1, "body": _with(body, path, wrong)})


def broken(seed: int) -> Iterator[str | bytes]:
    """What is no frame, or no JSON, or more than should be there. Without end after the first ones."""
    deep = 100_000
    yield from ("", "{", "nul", "[]", "1", '"x"', "null", "{}", '{"type": null}', '{"type": {}}', '{"type": ["beat"]}')
    yield from ("[" * deep, '{"a":' * deep, '{"type":"beat","body":' + "[" * deep + "]" * deep + "}")
    yield from ('{"type":"beat","id":' + "9" * 100_000 + "}", '{"type":"beat","body":{"cpu":1e999}}')
    yield from (
        '{"type":"beat","body":{"cpu":NaN}}',
        '{"type":"beat","id":{"a":[1]},"body":{}}',
        '{"type":"claim","id":1}',
    )
    yield from ('{"type":"beat","id":"\\ud800","body":{"boot":"\\ud800\\u0000"}}', '{"type":"\\ud800"}')
    yield from (b"", b"\x00", b"\xff\xfe", b"\x80" * 1000, json.dumps({"type": "beat", "body": {}}).encode())
    yield json.dumps({"type": "beat", "id": 1, "body": {"held": list(range(25_000))}})
    yield json.dumps({"type": "beat", "id": 1, "body": {"progress": {str(n): n for n in range(25_000)}}})
    chance = random.Random(seed)
    whole = [json.dumps({"type": verb, "id": 1, "body": body}) for verb, body in BODIES.items()]
    while True:
        text = list(chance.choice(whole))
        for _ in range(chance.choice((1, 2, 5))):
            at = chance.randrange(len(text))
            text[at : at + chance.choice((0, 1, 5))] = chance.choice(
                ("", '"', "{", "]", ",", "\\", "\\ud83d", "0", "-", "e9", "\u202e", "\x01", "😀", " ")
            )
        yield "".join(text)


class Raw:
    """A WebSocket connection byte by byte, for what a proper client refuses to send."""

    def __init__(self, host: str, port: int, path: str, headers: dict[str, str]) -> None:
        self.socket = socket.create_connection((host, port), timeout=20)
        lines = {"Host": f"{host}:{port}", "Upgrade": "websocket", "Connection": "Upgrade"}
        lines |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} | headers
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.socket.sendall(f"GET {path} HTTP/1.1\r\n{text}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head and (piece := self.socket.recv(4096)):
            head += piece
        self.status = int(head.split(b" ", 2)[1])

    def frame(
        self, code: int, content: bytes, *, last: bool = True, masked: bool = True, length: int | None = None
    ) -> None:
        size = len(content) if length is None else length
        first = bytes([(0x80 if last else 0) | code])
        mask = 0x80 if masked else 0
        if size < 126:
            head = first + bytes([mask | size])
        elif size < 65536:
            head = first + bytes([mask | 126]) + struct.pack(">H", size)
        else:
            head = first + bytes([mask | 127]) + struct.pack(">Q", size)
        self.socket.sendall(head + (bytes(4) if masked else b"") + content)

    def ended(self) -> bool:
        """Whether the other side closes, by a close frame or outright, before the time-out."""
        try:
            while piece := self.socket.recv(65536):
                if piece[0] & 0x0F == 8:
                    return True
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()


def raw_attacks() -> dict[str, Any]:
    """By name, what is done with a ``Raw`` that is open."""

    def many_pieces(raw: Raw) -> None:
        raw.frame(1, b"{", last=False)
        for _ in range(2000):
            raw.frame(0, b" ", last=False)
        raw.frame(0, b"}")

    def pieces_without_end(raw: Raw) -> None:
        raw.frame(1, b"x", last=False)
        for _ in range(64):
            raw.frame(0, bytes(64 * 1024), last=False)

    return {
        "too long": lambda raw: raw.frame(1, b"x" * (2 * 1024 * 1024)),
        "claims 2**62 bytes": lambda raw: raw.frame(1, b"x", length=2**62),
        "invalid UTF-8": lambda raw: raw.frame(1, b"\xff\xff\xff"),
        "half a character": lambda raw: raw.frame(1, "😀".encode()[:2]),
        "not masked": lambda raw: raw.frame(1, b"{}", masked=False),
        "reserved bits": lambda raw: raw.frame(0x71, b"{}"),
        "unknown code": lambda raw: raw.frame(5, b"{}"),
        "a piece of nothing": lambda raw: raw.frame(0, b"{}"),
        "a long ping": lambda raw: raw.frame(9, bytes(200)),
        "a ping in pieces": lambda raw: raw.frame(9, b"x", last=False),
        "a close with one byte": lambda raw: raw.frame(8, b"x"),
        "a close with a wrong code": lambda raw: raw.frame(8, struct.pack(">H", 1)),
        "two thousand pieces": many_pieces,
        "pieces without end": pieces_without_end,
        "no WebSocket at all": lambda raw: raw.socket.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100),
    }

"""The configuration's file on a child: whole or not at all; and when it is fetched."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nodes.agent import configuration
from nodes.agent.carriers import Unreachable
from nodes.agent.configuration import FILE, Damaged, Store, Sync, Version


def packed(number: int, tasks: list[str], mark: str = "m") -> bytes:
    content = json.dumps({"tasks": tasks}).encode()
    header = {"version": number, "mark": mark, "digest": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return gzip.compress(json.dumps(header).encode() + b"\n" + content)


def test_what_was_taken_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.take(packed(7, ["a"])) == store.version() == Version(7, "m")
    assert store.read() == (Version(7, "m"), {"tasks": ["a"]})
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "sent",
    [
        packed(8, ["b"])[:-9],
        packed(8, ["b"])[:20],
        b"",
        b"<html>please sign in</html>",
        gzip.compress(b"[]\n[]"),
        gzip.compress(b'{"version": "x"}\n{}'),
        gzip.compress(gzip.decompress(packed(8, ["b"])).replace(b'"b"', b'"c"')),
        gzip.compress(gzip.decompress(packed(8, ["b"]))[:-1]),
    ],
)
def test_what_is_not_whole_is_refused_and_the_one_before_stays(tmp_path: Path, sent: bytes) -> None:
    store = Store(tmp_path)
    store.take(packed(7, ["a"]))
    with pytest.raises(Damaged):
        store.take(sent)
    assert store.read() == (Version(7, "m"), {"tasks": ["a"]})
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "SIZE_LIMIT", 1_000_000)
    with pytest.raises(Damaged, match="larger"):
        Store(tmp_path).take(packed(1, ["a" * 2_000_000]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [0, 1, 60, -1])
def test_a_file_cut_off_is_not_read(tmp_path: Path, length: int) -> None:
    store = Store(tmp_path)
    store.take(packed(7, ["a"]))
    store.file.write_bytes(store.file.read_bytes()[:length])
    for look in (store.version, store.read):
        with pytest.raises(Damaged):
            look()


class Parent:
    """What a parent has, and how often it was asked."""

    def __init__(self, number: int = 1, mark: str = "m") -> None:
        self.number, self.mark = number, mark
        self.asked = 0
        self.body: Callable[[], bytes] = lambda: packed(self.number, [f"v{self.number}"], self.mark)

    async def fetch(self) -> bytes:
        self.asked += 1
        return self.body()

    async def beat(self, sync: Sync) -> None:
        """Its answer to a beat, and until what that begins is done."""
        sync.heard(self.number, self.mark)
        if sync._job is not None:
            await asyncio.wait([sync._job])


async def test_a_version_is_fetched_once_and_another_one_again(tmp_path: Path) -> None:
    parent, store, told = Parent(3), Store(tmp_path), []
    sync = Sync(store, parent.fetch, lambda: told.append(sync.number))
    sync.open()
    assert sync.number == 0
    await parent.beat(sync)
    await parent.beat(sync)
    assert (sync.number, parent.asked, told) == (3, 1, [3])
    parent.number = 5
    await parent.beat(sync)
    assert (store.read()[1], told) == ({"tasks": ["v5"]}, [3, 5])


async def test_after_a_restore_of_the_parent_a_lower_number_is_taken_and_so_is_the_same_one(tmp_path: Path) -> None:
    parent, store = Parent(5), Store(tmp_path)
    sync = Sync(store, parent.fetch, lambda: None)
    await parent.beat(sync)
    parent.number, parent.mark = 2, "older"
    await parent.beat(sync)
    assert store.version() == Version(2, "older")
    parent.mark = "other content"
    await parent.beat(sync)
    assert store.version() == Version(2, "other content")


async def test_an_agent_begins_with_what_an_earlier_one_left(tmp_path: Path) -> None:
    parent, store = Parent(4), Store(tmp_path)
    store.take(packed(4, ["a"]))
    sync = Sync(store, parent.fetch, lambda: None)
    sync.open()
    await parent.beat(sync)
    assert (sync.number, parent.asked) == (4, 0)
    store.file.write_bytes(b"torn")
    again = Sync(store, parent.fetch, lambda: None)
    again.open()
    assert again.number == 0
    await parent.beat(again)
    assert (again.number, parent.asked) == (4, 1)


async def test_a_parent_that_fails_is_asked_again_but_not_with_every_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "jitter", lambda attempt: 0.05 * attempt)
    parent = Parent()

    def fail() -> bytes:
        raise Unreachable("no")

    good, parent.body = parent.body, fail
    sync = Sync(Store(tmp_path), parent.fetch, lambda: None)
    await parent.beat(sync)
    await parent.beat(sync)
    assert (parent.asked, sync.number) == (1, 0)
    parent.body = good
    await asyncio.sleep(0.06)
    await parent.beat(sync)
    assert (parent.asked, sync.number) == (2, 1)


@pytest.mark.parametrize("answer", [(None, None), (0, ""), ("7", "m"), (7, None)])
async def test_a_parent_without_a_configuration_is_not_asked(tmp_path: Path, answer: tuple[object, object]) -> None:
    parent = Parent()
    sync = Sync(Store(tmp_path), parent.fetch, lambda: None)
    sync.heard(*answer)
    assert sync._job is None

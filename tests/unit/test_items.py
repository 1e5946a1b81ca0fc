"""Frozen items: what goes in comes out, in any slice, and only what is asked for is unpacked."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.items import CHUNK, Frozen, Growing, freeze, item_key
from nodes.executors.base import Item

SCALAR = st.text(max_size=8) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
ITEMS = st.lists(SCALAR | st.dictionaries(st.text(max_size=4), SCALAR, max_size=3), max_size=30)


@given(ITEMS)
def test_what_is_frozen_comes_back_as_it_was(items: list[Item]) -> None:
    assert Frozen(freeze(items)).all() == items


@given(st.data())
def test_any_slice_is_that_of_the_list(data: st.DataObject) -> None:
    count = data.draw(st.sampled_from((1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5)))
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    items = list(range(count))
    frozen = Frozen(freeze(items))
    assert frozen.slice(start, stop) == items[start:stop]
    # Again, now that chunks are kept.
    assert frozen.slice(0, stop) == items[:stop]


def test_an_empty_slice_is_empty() -> None:
    frozen = Frozen(freeze(["a", "b"]))
    assert [frozen.slice(at, at) for at in (0, 1, 2)] == [[], [], []]


def test_a_million_items_are_one_blob_of_some_megabytes() -> None:
    blob = freeze([f"SYM{number:07}" for number in range(1_000_000)])
    assert len(blob) < 4_000_000
    frozen = Frozen(blob)
    assert frozen.slice(999_998, 1_000_000) == ["SYM0999998", "SYM0999999"]


def test_a_shard_costs_one_chunk_to_read_and_its_neighbour_none(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Frozen(freeze(list(range(5 * CHUNK))))
    read: list[bytes] = []
    unpack = zlib.decompress

    def counted(packed: bytes) -> bytes:
        read.append(packed)
        return unpack(packed)

    monkeypatch.setattr(zlib, "decompress", counted)
    frozen.slice(2 * CHUNK, 2 * CHUNK + 10)
    frozen.slice(2 * CHUNK + 10, 2 * CHUNK + 20)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("item", "key"),
    [
        ("AAPL", "AAPL"),
        (7, "7"),
        (1.5, "1.5"),
        ({"symbol": "AAPL", "start_date": "2001-01-01"}, "AAPL"),
        ({"key": "one", "symbol": "AAPL"}, "one"),
        ({"n": 3, "m": 4}, "3"),
        ({}, ""),
    ],
)
def test_what_quotas_and_messages_call_an_item(item: Item, key: str) -> None:
    assert item_key(item) == key


class Additions:
    """What was added to a run, as the database gives it."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int, bytes]] = []
        self.asked: list[int] = []

    def add(self, start: int, items: list[str]) -> None:
        self.parts.append((start, start + len(items), freeze(items)))

    def later(self, start: int, stop: int | None) -> list[tuple[int, int, bytes]]:
        self.asked.append(start)
        return [part for part in self.parts if start <= part[0] and (stop is None or part[0] < stop)]


@given(st.lists(st.integers(1, 2300), min_size=1, max_size=6), st.integers(0, 9000), st.integers(0, 3000))
def test_a_growing_run_reads_as_one_list_wherever_its_parts_meet(sizes: list[int], start: int, length: int) -> None:
    wanted = [f"i{number}" for number in range(sum(sizes))]
    added = Additions()
    for size in sizes[1:]:
        at = sizes[0] + sum(stop - first for first, stop, _ in added.parts)
        added.add(at, wanted[at : at + size])
    items = Growing(freeze(wanted[: sizes[0]]), added.later)
    assert items.slice(start, start + length) == wanted[start : start + length]
    assert items.all() == wanted


def test_what_was_added_is_read_once_and_only_when_asked_for() -> None:
    added = Additions()
    items = Growing(freeze(["a", "b"]), added.later)
    assert items.slice(0, 2) == ["a", "b"]
    assert added.asked == []
    added.add(2, ["c"])
    assert items.slice(1, 3) == ["b", "c"]
    assert items.slice(2, 3) == ["c"]
    assert added.asked == [2]


def test_a_run_that_begins_without_items_grows_from_nothing() -> None:
    added = Additions()
    items = Growing(freeze([]), added.later)
    assert items.slice(0, 5) == []
    added.add(0, ["a"])
    assert items.all() == ["a"]

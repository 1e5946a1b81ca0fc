"""Task types that tests register for themselves: one whose items find others, one that remembers, one that reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from nodes import executors
from nodes.executors.base import Column, Dataset, Executor, Item, Param, Reading, Rows

FOUND = Dataset("found", (Column("item", "string"), Column("score", "float64")), ("item",))


class Finds(Executor):
    """Items may find further ones, at most ``most`` in all."""

    type = "finds"
    title = "Finds"
    params = (Param("most", "integer", 100, "Items in all.", minimum=1),)
    dataset = FOUND
    grows = True
    reductions = {
        "best": "SELECT item, score FROM rows ORDER BY score DESC LIMIT 2",
        "mean": "SELECT avg(score) AS mean, count(*) AS items FROM rows",
    }

    @classmethod
    def most_items(cls, params: Mapping[str, Any]) -> int | None:
        return int(params["most"])

    def run(self, item: Item) -> Rows:
        raise NotImplementedError("tests report for it")


class Remembers(Finds):
    type = "remembers"
    grows = False
    remembers = True
    source_kind = "feed"
    reductions = {}

    @classmethod
    def resolve(cls, item: Item, address: str, name: str) -> Item:
        return {"key": item, "url": address, "name": name}

    @classmethod
    def outside(cls, items: Sequence[Item], params: Mapping[str, Any]) -> bool:
        return any(isinstance(item, str) and "://" not in item for item in items)


class Planned(Finds):
    """Six items, of which a run begins with two."""

    type = "planned"
    grows = False
    items_optional = True

    @classmethod
    def begin(cls, items: Sequence[Item], params: Mapping[str, Any]) -> list[Item]:
        return ["t0", "t1"]

    @classmethod
    def expected(cls, items: Sequence[Item], params: Mapping[str, Any]) -> int | None:
        return 6


class Reads(Finds):
    """Its items are symbols, whose closes it needs."""

    type = "reads"
    grows = False
    reductions = {}

    @classmethod
    def reads(cls, items: Sequence[Item], params: Mapping[str, Any]) -> Reading | None:
        return Reading(
            table="kline",
            columns=("symbol", "datetime", "close"),
            where={"freq": "D"},
            column="symbol",
            values=tuple(items),
            order=("symbol", "datetime"),
            time_column="datetime",
            until="2024-01-03",
        )


KINDS = (Finds, Remembers, Planned, Reads)


@contextmanager
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They are task types of this process."""
    for kind in KINDS:
        monkeypatch.setitem(executors.EXECUTORS, kind.type, f"{__name__}:{kind.__name__}")
    yield
    executors.get.cache_clear()

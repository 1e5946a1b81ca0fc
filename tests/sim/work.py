"""Task types whose items say by a script how they go, and whose rows say who brought them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodes.executors.base import Column, Dataset, Executor, Item, ItemFailed, Outcome, Param, Rows

DATASET = Dataset(
    table="sim",
    columns=(Column("uid", "string"), Column("allocation", "int64"), Column("way", "string")),
    key=("uid",),
)


class Script:
    """How items go when they run; set by the pool before it has the production code run them."""

    allocation = 0
    way = ""
    """Whose pool it is: its name, behind those of the relays above it."""
    failing: Mapping[str, bool] = {}
    """Key of an item that fails now -> whether another attempt may follow."""


class Sim(Executor):
    """``rows`` rows per item: item and number, and the allocation that made them."""

    type = "sim"
    title = "Sim"
    params = (Param("rows", "integer", 1, "Rows per item.", minimum=0),)
    dataset = DATASET

    def run(self, item: Item) -> Rows:
        key = str(item)
        if key in Script.failing:
            raise ItemFailed(f"{key} fails", retry=Script.failing[key])
        return [
            (f"{self.run_id}/{key}/{number}", Script.allocation, Script.way) for number in range(self.given["rows"])
        ]


class Finds(Sim):
    """Each item finds two, three deep."""

    type = "sim_finds"
    title = "Sim that finds"
    grows = True

    @classmethod
    def most_items(cls, params: Mapping[str, Any]) -> int | None:
        return 10_000

    def run(self, item: Item) -> Any:
        return Outcome(super().run(item), found=found_by(str(item)))


def found_by(key: str) -> list[str]:
    """The second of them is found by each neighbour, too."""
    depth = key.count(".")
    return [f"{key}.a", f"{key.rpartition('.')[0] or 'x'}.{depth}.b"] if depth < 2 else []

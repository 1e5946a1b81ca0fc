"""A process that saves shards in a lake, as one that leads would: ``python -m tests.integration.lake_writer …``.

Arguments: PostgreSQL's address, path and schema of the lake; the shards, with commas, those of one append with "+"; its
allocation. Says of each shard whether it has ``saved`` it or found it ``there``.
"""

from __future__ import annotations

import datetime as dt
import sys

from dispatch.results import datasets
from dispatch.results.base import Part
from dispatch.results.lake import LakeStore
from dispatch.results.lake_place import Place
from nodes.executors.base import Column, Dataset
from nodes.protocol import Conflict

PAIRS = Dataset("pairs", (Column("item", "string"), Column("value", "int64")), ("item", "value"))


def shard(start: int, allocation: int = 1) -> Part:
    """One item with two rows."""
    rows = [[f"i{start}", 1], [f"i{start}", 2]]
    lineage = datasets.with_lineage(
        datasets.from_rows(PAIRS, rows),
        run=1,
        start=start,
        allocation=allocation,
        node="n",
        saved_at=dt.datetime(2026, 11, 21),
    )
    return Part(PAIRS, lineage, [(1, start, start + 1, allocation, "ab" * 32, 2)])


def save(store: LakeStore, starts: list[int], allocation: int) -> None:
    """As the saver does: what turns out to be in the ledger is left out the next time."""
    wanted = starts
    while wanted:
        try:
            store.append([shard(start, allocation) for start in wanted])
            print(*(f"saved {start}" for start in wanted), sep="\n", flush=True)
            return
        except Conflict:
            there = {start for _, start, _ in store.recorded([(1, start, start + 1) for start in wanted])}
            print(*(f"there {start}" for start in sorted(there)), sep="\n", flush=True)
            wanted = [start for start in wanted if start not in there]


def main(server: str, path: str, schema: str, appends: str, allocation: str) -> None:
    with LakeStore(Place(server, path, schema=schema, process=f"writer {allocation}"), memory="200MB") as store:
        for starts in appends.split(","):
            save(store, [int(start) for start in starts.split("+")], int(allocation))


if __name__ == "__main__":
    main(*sys.argv[1:])

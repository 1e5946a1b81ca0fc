"""The cost of moving work: items that do nothing, from submission to all results known."""

from __future__ import annotations

from bench.peer_dask import dask
from bench.report import Table, interleaved
from bench.tree import seconds, tree

ITEMS = 5_000
WARM_UP = 500
WORKERS, SLOTS = 2, 4


def measure(rounds: int) -> list[Table]:
    with tree(WORKERS, capacity=SLOTS) as cascade, dask(WORKERS, SLOTS) as peer:
        seconds(cascade, WARM_UP, shard_size=1)
        seconds(cascade, WARM_UP, shard_size=0)
        peer.seconds(WARM_UP)
        samples = interleaved(
            {
                "cascade, shard size 1": lambda: seconds(cascade, ITEMS, shard_size=1),
                "dask.distributed": lambda: peer.seconds(ITEMS),
                "cascade, automatic size": lambda: seconds(cascade, ITEMS, shard_size=0),
            },
            rounds,
        )
    table = Table(
        f"noop: {ITEMS:,} no-op items over {WORKERS} workers × {SLOTS}; ours end up on disk, dask's in memory",
        ["system", "seconds", "items/s", "× dask", "floor", "reached"],
    )
    peer_median = samples["dask.distributed"].median
    for name, sample in samples.items():
        ratio = peer_median / sample.median
        ours = name != "dask.distributed"
        table.add(
            name,
            sample.text(2),
            f"{ITEMS / sample.median:,.0f}",
            f"{ratio:.2f}",
            "> 1" if ours else "",
            table.judge(f"noop, {name}: {ratio:.2f} × dask", ratio > 1) if ours else "",
        )
    return [table]

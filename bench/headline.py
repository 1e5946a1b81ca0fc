"""The claims that this project is measured by: 30 items of 5 s, 100 of 50 ms, and one worker a node against none."""

from __future__ import annotations

from bench.report import Sample, Table, interleaved
from bench.tree import seconds, tree
from bench.waits import one_at_a_time

NODES, WORKERS = 3, 4
LONG, SHORT = {"seconds": 5.0}, {"seconds": 0.05}
LONG_LIMIT, SHORT_LIMIT = 16.0, 0.7
SPEED_UP = 2.85
ITEMS_ALONE = 100


def measure(rounds: int) -> list[Table]:
    return [limits(rounds), speed_up(rounds)]


def limits(rounds: int) -> Table:
    """Shards of automatic size, as a user has them who says nothing."""
    with tree(NODES, capacity=WORKERS) as cascade:
        seconds(cascade, 2 * NODES * WORKERS, params=SHORT, shard_size=1)
        samples = {
            "100 items of 50 ms": Sample(
                tuple(seconds(cascade, 100, params=SHORT, shard_size=0) for _ in range(rounds))
            )
        }
    with tree(NODES, capacity=WORKERS) as cascade:
        # Once: at a quarter of a minute each, noise of milliseconds says nothing.
        samples["30 items of 5 s"] = Sample((seconds(cascade, 30, params=LONG, shard_size=0),))
    table = Table(f"headline: {NODES} nodes x {WORKERS} workers", ["run", "seconds", "floor", "reached"])
    for (name, sample), limit in zip(samples.items(), (SHORT_LIMIT, LONG_LIMIT), strict=True):
        reached = table.judge(f"headline, {name}: {sample.median:.2f} s", sample.median <= limit)
        table.add(name, sample.text(2), f"<= {limit:g}", reached)
    return table


def speed_up(rounds: int) -> Table:
    """Three workers cannot be more than three times as fast as one; how near do they come?"""
    with tree(NODES, capacity=1) as cascade:
        seconds(cascade, 4 * NODES, params=SHORT, shard_size=1)
        samples = interleaved(
            {
                "one at a time": lambda: one_at_a_time(ITEMS_ALONE),
                f"{NODES} nodes x 1": lambda: seconds(cascade, ITEMS_ALONE, params=SHORT, shard_size=0),
            },
            rounds,
        )
    table = Table(
        f"headline: {ITEMS_ALONE} items of 50 ms, 1 worker a node", ["system", "seconds", "x", "floor", "reached"]
    )
    alone = samples["one at a time"].median
    for name, sample in samples.items():
        ratio = alone / sample.median
        ours = name != "one at a time"
        reached = table.judge(f"headline, {name}: {ratio:.2f} x", ratio >= SPEED_UP) if ours else ""
        table.add(name, sample.text(2), f"{ratio:.2f}", f">= {SPEED_UP:g}" if ours else "", reached)
    return table

"""The claims that this project is measured by: 30 items of 5 s, 100 of 50 ms, and one worker a node against none."""

from __future__ import annotations

from bench.report import Sample, Table, interleaved
from bench.tree import seconds, tree
from bench.waits import one_at_a_time

NODES, WORKERS = 3, 4
LONG, SHORT = {"seconds": 5.0}, {"seconds": 0.05}
LONG_LIMIT, SHORT_LIMIT = 16.0, 0.7
SPEED_UP = 2.85


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
    """Three workers cannot be more than three times as fast as one; how near do they come?

    The floor is for items that take as long as imports do; of short ones the fixed costs of a run show.
    """
    table = Table("headline: 1 worker a node", ["items", "system", "seconds", "x", "floor", "reached"])
    with tree(NODES, capacity=1) as cascade:
        seconds(cascade, 4 * NODES, params=SHORT, shard_size=1)
        for items, wait, floor, times in ((60, 0.5, SPEED_UP, 1), (100, 0.05, None, rounds)):
            samples = interleaved(
                {
                    "one at a time": lambda items=items, wait=wait: one_at_a_time(items, wait),  # type: ignore[misc]
                    f"{NODES} nodes x 1": lambda items=items, wait=wait: seconds(  # type: ignore[misc]
                        cascade, items, params={"seconds": wait}, shard_size=0
                    ),
                },
                times,
            )
            alone = samples["one at a time"].median
            for name, sample in samples.items():
                ratio = alone / sample.median
                wanted = floor if name != "one at a time" else None
                reached = table.judge(f"headline, {name}: {ratio:.2f} x", ratio >= wanted) if wanted else ""
                floor_text = f">= {wanted:g}" if wanted else ""
                what = f"{items} of {wait * 1000:.0f} ms"
                table.add(what, name, sample.text(2), f"{ratio:.2f}", floor_text, reached)
    return table

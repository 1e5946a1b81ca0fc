"""Spreading work: items that wait 50 ms, over three children, against the same items one at a time."""

from __future__ import annotations

import time

from bench.report import Table, interleaved
from bench.tree import seconds, tree
from nodes import executors

WAIT = 0.05
CHILDREN, SLOTS = 3, 4
FLOORS = {30: 6.0, 100: 8.0}
PARAMS = {"seconds": WAIT}


def one_at_a_time(items: int, wait: float = WAIT) -> float:
    """The executor itself, in this process, item after item."""
    echo = executors.get("echo")({"seconds": wait})
    began = time.perf_counter()
    for number in range(items):
        echo.run(str(number))
    return time.perf_counter() - began


def measure(rounds: int) -> list[Table]:
    tables = []
    with tree(CHILDREN, capacity=SLOTS) as cascade:
        seconds(cascade, 2 * CHILDREN * SLOTS, params=PARAMS, shard_size=1)
        for items, floor in FLOORS.items():
            samples = interleaved(
                {
                    "one at a time": lambda items=items: one_at_a_time(items),  # type: ignore[misc]
                    "cascade, shard size 1": lambda items=items: seconds(  # type: ignore[misc]
                        cascade, items, params=PARAMS, shard_size=1
                    ),
                    "cascade, automatic size": lambda items=items: seconds(  # type: ignore[misc]
                        cascade, items, params=PARAMS, shard_size=0
                    ),
                },
                rounds,
            )
            best = -(-items // (CHILDREN * SLOTS)) * WAIT
            table = Table(
                f"waits: {items} items of {WAIT * 1000:.0f} ms over {CHILDREN} children × {SLOTS} slots;"
                f" no more than {items * WAIT / best:.1f} × is possible",
                ["system", "seconds", "× one at a time", "floor", "reached"],
            )
            alone = samples["one at a time"].median
            for name, sample in samples.items():
                ratio = alone / sample.median
                ours = name != "one at a time"
                table.add(
                    name,
                    sample.text(2),
                    f"{ratio:.1f}",
                    f"{floor:g}" if ours else "",
                    table.judge(f"waits, {items} items, {name}: {ratio:.1f} ×", ratio >= floor) if ours else "",
                )
            tables.append(table)
    return tables

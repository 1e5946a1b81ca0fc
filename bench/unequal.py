"""Unequal nodes: one of three children is four times slower; how far from the best possible time does a run end?"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bench.report import Table, interleaved
from bench.tree import seconds
from cascade.local import Child, LocalTree
from nodes.executors.echo import SLOWNESS

ITEMS, WAIT, SLOWER = 100, 0.1, 4
FLOOR = 1.10
PARAMS = {"seconds": WAIT}


def best() -> float:
    """Seconds of the best possible plan: the first moment by which three slots can have done all items."""
    units = next(units for units in range(1, ITEMS + 1) if 2 * units + units // SLOWER >= ITEMS)
    return units * WAIT


def measure(rounds: int) -> list[Table]:
    children = [Child(f"child-{number}", capacity=1, carrier="push") for number in (1, 2)]
    children.append(Child("slow", capacity=1, carrier="push", env={SLOWNESS: str(SLOWER)}))
    with TemporaryDirectory(prefix="cascade-bench-") as folder, LocalTree(Path(folder), children=children) as tree:
        seconds(tree, 12, params=PARAMS, shard_size=1)
        samples = interleaved(
            {
                "shard size 1": lambda: seconds(tree, ITEMS, params=PARAMS, shard_size=1),
                "automatic size": lambda: seconds(tree, ITEMS, params=PARAMS, shard_size=0),
                "an equal split": lambda: equal_split(),
            },
            rounds,
        )
    table = Table(
        f"unequal: {ITEMS} items of {WAIT * 1000:.0f} ms on 3 children x 1 slot, one {SLOWER} x slower;"
        f" the best possible is {best():.2f} s",
        ["plan", "seconds", "x the best", "floor", "reached"],
    )
    for name, sample in samples.items():
        ratio = sample.median / best()
        ours = name != "an equal split"
        table.add(
            name,
            sample.text(2),
            f"{ratio:.2f}",
            f"<= {FLOOR:.2f}" if ours else "",
            table.judge(f"unequal, {name}: {ratio:.2f} x", ratio <= FLOOR) if ours else "",
        )
    return [table]


def equal_split() -> float:
    """By arithmetic: a third of the items each, so the slow one ends last."""
    return -(-ITEMS // 3) * WAIT * SLOWER

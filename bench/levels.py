"""What a level of the tree costs: the same leaves under the root, and under relays of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench import leaves
from bench.report import Sample, Table, interleaved
from bench.tree import seconds, tree
from cascade.local import Child, LocalTree, LocalTreeError

WAIT = 0.05
RELAYS, LEAVES, SLOTS = 2, 2, 3
"""``LEAVES`` under each relay."""
ITEMS = 2_400
MOST_RATIO = 1.10
SINGLES = 20
"""Runs of one shard in a round."""
MOST_EXTRA = 0.015
START_SECONDS = 60.0
LOOK_SECONDS = 0.05


@contextmanager
def branched(relays: int = RELAYS, each: int = LEAVES, slots: int = SLOTS) -> Iterator[LocalTree]:
    """A root over ``relays``, ``each`` over so many leaves with ``slots``."""
    env = {"CASCADE_FALLBACK_WORKERS": "0"}
    with TemporaryDirectory(prefix="cascade-bench-") as folder, ExitStack() as stack:
        root = stack.enter_context(LocalTree(Path(folder, "root"), env=env))
        for number in range(1, relays + 1):
            key = json.loads(root.manage("node", "add", f"relay-{number}", "--capacity", "100", "--json").stdout)
            below = [Child(f"leaf-{number}-{leaf}", capacity=slots, carrier="push") for leaf in range(each)]
            named = {**env, "CASCADE_NODE_NAME": f"relay-{number}"}
            stack.enter_context(
                LocalTree(Path(folder, f"relay-{number}"), children=below, env=named, above=(root.url, key))
            )
        _await_leaves(root, relays * each, relays * each * slots)
        yield root


def _await_leaves(root: LocalTree, count: int, slots: int) -> None:
    """Until a run spreads over all of them: relays offer what is below them with their next beat."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        run = root.submit("echo", [str(number) for number in range(4 * slots)], params={"seconds": WAIT}, shard_size=1)
        root.wait(run)
        rows = root.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"})
        if len({row["_node"] for row in rows}) == count:
            return
        if time.monotonic() > deadline:
            raise LocalTreeError(f"no run has spread over {count} leaves in {START_SECONDS:g} s")


def once(root: LocalTree, number: int) -> float:
    """Seconds that a run of one item that does nothing takes, from its submission until its row is saved at the root.

    The root says when that was, by the clock of this machine; it is asked rarely, as a level is to be idle.
    """
    time.sleep(LOOK_SECONDS)
    began = time.time()
    run = root.submit("echo", [f"{time.time_ns()}-{number}"], shard_size=1)
    root.wait(run, every=LOOK_SECONDS)
    ended = datetime.fromisoformat(root.json("GET", f"/api/v1/runs/{run}")["ended_at"])
    return ended.timestamp() - began


def measure(rounds: int) -> list[Table]:
    return [*costs(rounds), *leaves.measure(rounds)]


def costs(rounds: int) -> list[Table]:
    """Throughput and latency."""
    with tree(RELAYS * LEAVES, capacity=SLOTS) as flat, branched() as levels:
        for root in (flat, levels):
            seconds(root, 2 * RELAYS * LEAVES * SLOTS, params={"seconds": WAIT}, shard_size=0)
        spread = _spread(flat, levels, rounds)
    with tree(1, capacity=1) as flat, branched(1, 1, 1) as levels:
        for root in (flat, levels):
            for number in range(3):
                once(root, number)
        delay = _delay(flat, levels, rounds)
    return [spread, delay]


def _spread(flat: LocalTree, levels: LocalTree, rounds: int) -> Table:
    table = Table(
        f"tree: {ITEMS} items of {WAIT * 1000:.0f} ms over {RELAYS * LEAVES} leaves × {SLOTS} slots, under the root or "
        f"under {RELAYS} relays",
        ["shard size", "flat, seconds", "tree, seconds", "tree ÷ flat", "at most", "reached"],
    )
    for size, name in ((0, "automatic"), (1, "1")):

        def took(root: LocalTree, size: int = size) -> float:
            return seconds(root, ITEMS, params={"seconds": WAIT}, shard_size=size)

        samples = interleaved({"flat": lambda: took(flat), "tree": lambda: took(levels)}, rounds)
        ratio = samples["tree"].median / samples["flat"].median
        # Single items are mostly messages, and here root, relays and leaves share the cores: shown, not judged.
        good = "" if size else table.judge(f"tree, shard size {name}: {ratio:.2f} × flat", ratio <= MOST_RATIO)
        most = "" if size else f"{MOST_RATIO:.2f}"
        table.add(name, samples["flat"].text(2), samples["tree"].text(2), f"{ratio:.2f}", most, good)
    return table


def _delay(flat: LocalTree, levels: LocalTree, rounds: int) -> Table:
    taken: dict[str, list[float]] = {"flat": [], "tree": []}
    for number in range(rounds * SINGLES):
        taken["flat"].append(once(flat, number))
        taken["tree"].append(once(levels, number))
    extra = median(taken["tree"]) - median(taken["flat"])
    table = Table(
        f"tree: one shard through an idle level more, {rounds * SINGLES} runs of each in turns",
        ["", "flat, ms", "tree, ms", "more, ms", "at most", "reached"],
    )
    shown = {name: Sample(tuple(1000 * each for each in values)) for name, values in taken.items()}
    table.add(
        "from submission to saved",
        shown["flat"].text(0),
        shown["tree"].text(0),
        f"{1000 * extra:.0f}",
        f"{1000 * MOST_EXTRA:.0f}",
        table.judge(f"tree, an idle level: {1000 * extra:.0f} ms more", extra <= MOST_EXTRA),
    )
    return table

"""Kinds of work over a tree of real processes, beside one process that does the same alone: analysis and optimization,
which compute, and feeds, which wait.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.alone import running
from bench.report import Sample, Table, interleaved
from bench.tree import RUN_SECONDS
from cascade.local import Child, LocalTree, LocalTreeError

SYMBOLS, BARS = 1_000, 2_500
TRIALS, TRIAL_SYMBOLS, TRIAL_FOLDS = 500, 120, 4
FEEDS, FEED_SECONDS, FEED_SLOTS = 500, 0.05, 24
COMPUTE_FLOOR, WAIT_FLOOR = 1.8, 20.0
LOOPBACK = {"CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8"}


@contextmanager
def tree(children: int, capacity: int, env: Mapping[str, str] | None = None) -> Iterator[LocalTree]:
    with TemporaryDirectory(prefix="cascade-bench-") as folder:
        names = [Child(f"child-{number}", capacity=capacity, carrier="push") for number in range(1, children + 1)]
        with LocalTree(Path(folder), children=names, env=env) as running_tree:
            yield running_tree


def seconds(tree: LocalTree, count: int, *, least: float = 0.0, **submission: Any) -> float:
    """From the submission to the run's end, which cannot come before ``least`` seconds.

    Raises LocalTreeError unless ``count`` items were saved.
    """
    began = time.perf_counter()
    run = tree.json("POST", "/api/v1/runs", json=submission)["id"]
    time.sleep(least)
    while (progress := tree.progress(run))["state"] == "running":
        if time.perf_counter() - began > 3 * RUN_SECONDS:
            raise LocalTreeError(f"run {run} did not end: {progress}\n{tree.tail('parent')}")
        # Asking costs the parent milliseconds of one core: some hundredths of the time so far are exact enough.
        time.sleep(min(0.1, max(0.01, (time.perf_counter() - began) / 50)))
    elapsed = time.perf_counter() - began
    if progress["state"] != "completed" or progress["saved"] != count:
        raise LocalTreeError(f"run {run} should have saved {count} items: {progress}")
    return elapsed


def write_bars(folder: Path, count: int) -> list[str]:
    """``count`` Parquet files of BARS daily bars each, random walks that are the same each time; their symbols."""
    import numpy as np
    import pandas as pd

    chance = np.random.default_rng(1)
    dates = pd.date_range("2014-01-01", periods=BARS, freq="B")
    symbols = [f"S{number:04}" for number in range(count)]
    for symbol in symbols:
        close = 100 * np.exp(np.cumsum(chance.normal(0, 0.015, BARS)))
        opening = np.concatenate([[100.0], close[:-1]])
        high, low = np.maximum(opening, close) * 1.005, np.minimum(opening, close) * 0.995
        volume = chance.integers(100_000, 5_000_000, BARS)
        bars = {"datetime": dates, "open": opening, "high": high, "low": low, "close": close, "volume": volume}
        pd.DataFrame(bars).to_parquet(folder / f"{symbol}.parquet", index=False)
    return symbols


def analysis(rounds: int) -> Table:
    """Indicators over files; the newest bar of each symbol with its summary is saved."""
    from nodes.executors.analysis import EXTRAS_LIMIT
    from nodes.indicators.table import TABLE

    extra = list(TABLE)[:EXTRAS_LIMIT]
    what = f"{SYMBOLS} symbols x {BARS} bars, all columns and {len(extra)} indicators more, engine pandas"
    table = _table(f"analysis: {what}; 2 children x 1 slot")
    with TemporaryDirectory(prefix="cascade-bench-") as folder, tree(2, 1) as two, running() as alone:
        symbols = write_bars(Path(folder), SYMBOLS)
        params = {"source": "files", "path": folder, "engine": "pandas", "rows": "latest", "extra": extra}
        seconds(two, 40, type="analysis", params=params, items=symbols[:40])
        alone.seconds("analysis", params, symbols[:40])
        # Two children are never more than twice as fast, so nobody need ask before.
        least = 0.45 * alone.seconds("analysis", params, symbols[: SYMBOLS // 10]) * 10
        samples = interleaved(
            {
                "one process": lambda: alone.seconds("analysis", params, symbols),
                "Cascade": lambda: seconds(two, SYMBOLS, least=least, type="analysis", params=params, items=symbols),
            },
            rounds,
        )
    _judge(table, samples, COMPUTE_FLOOR, "analysis")
    return table


def optimization(_rounds: int) -> Table:
    """TPE asks one trial after the other; children evaluate them. One round only, since it takes minutes."""
    what = f"{TRIALS} trials by TPE, each over {TRIAL_SYMBOLS} symbols x {BARS} bars in {TRIAL_FOLDS} folds"
    table = _table(f"optimization: {what}; 2 children x 1 slot")
    params: dict[str, Any] = {"source": "files", "strategy": "ma_cross", "search": "tpe", "objective": "sharpe"}
    params |= {"space": {"fast": {"low": 5, "high": 19}, "slow": {"low": 20, "high": 200}}, "seed": 1}
    with TemporaryDirectory(prefix="cascade-bench-") as folder, tree(2, 1) as two, running() as alone:
        params |= {"path": folder, "symbols": write_bars(Path(folder), TRIAL_SYMBOLS), "folds": TRIAL_FOLDS}
        warm, whole = {**params, "trials": 20}, {**params, "trials": TRIALS}
        seconds(two, 20, type="optimization", params=warm)
        least = 0.45 * alone.seconds("optimization", warm, []) * TRIALS / 20
        samples = interleaved(
            {
                "optuna in one process": lambda: alone.seconds("optimization", whole, []),
                "Cascade": lambda: seconds(two, TRIALS, least=least, type="optimization", params=whole),
            },
            1,
        )
    _judge(table, samples, COMPUTE_FLOOR, "optimization")
    return table


def feeds(rounds: int) -> Table:
    """New articles of feeds whose server takes a while to answer."""
    table = _table(f"feeds: {FEEDS} feeds of {FEED_SECONDS * 1000:.0f} ms, 3 children x {FEED_SLOTS // 3} slots")
    even, least = -(-FEEDS // FEED_SLOTS), FEED_SECONDS * FEEDS / FEED_SLOTS
    argv = [sys.executable, "-m", "bench.slow_feeds", str(FEED_SECONDS)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            base = f"http://127.0.0.1:{int(server.stdout.readline())}"
            with tree(3, FEED_SLOTS // 3, LOOPBACK) as three, running() as alone:
                number = iter(range(1_000_000))

                def fresh(count: int) -> list[str]:
                    # Addresses of their own each time: nothing is remembered of them.
                    return [f"{base}/feed-{next(number)}" for _ in range(count)]

                def ours(size: int) -> float:
                    items = fresh(FEEDS)
                    return seconds(three, FEEDS, least=least, type="feed_update", items=items, shard_size=size)

                seconds(three, 48, type="feed_update", items=fresh(48), shard_size=1)
                alone.seconds("feed_update", {}, fresh(5))
                samples = interleaved(
                    {
                        "one at a time": lambda: alone.seconds("feed_update", {}, fresh(FEEDS)),
                        f"Cascade, shards of {even}": lambda: ours(even),
                        "Cascade, automatic": lambda: ours(0),
                    },
                    rounds,
                )
        finally:
            server.kill()
    _judge(table, samples, WAIT_FLOOR, "feeds")
    return table


def _table(title: str) -> Table:
    return Table(title, ["system", "seconds", "x one process", "floor", "reached"])


def _judge(table: Table, samples: Mapping[str, Sample], floor: float, what: str) -> None:
    """The first of ``samples`` is the peer's."""
    (first, peer), *ours = samples.items()
    table.add(first, peer.text(2), "1.00", "", "")
    for name, sample in ours:
        ratio = peer.median / sample.median
        reached = table.judge(f"{what}, {name}: {ratio:.2f} x one process", ratio >= floor)
        table.add(name, sample.text(2), f"{ratio:.2f}", f">= {floor:g}", reached)

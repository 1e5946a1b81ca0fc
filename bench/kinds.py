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

from bench.alone import Alone, running
from bench.report import Table, interleaved
from bench.tree import RUN_SECONDS
from cascade.local import Child, LocalTree, LocalTreeError

SYMBOLS, BARS = 1_000, 2_500
TRIALS = 500
FEEDS, FEED_SECONDS = 500, 0.05
COMPUTE_FLOOR, WAIT_FLOOR = 1.8, 20.0
LOOPBACK = {"CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8"}


@contextmanager
def tree(children: int, capacity: int, env: Mapping[str, str] | None = None) -> Iterator[LocalTree]:
    with TemporaryDirectory(prefix="cascade-bench-") as folder:
        names = [Child(f"child-{number}", capacity=capacity, carrier="push") for number in range(1, children + 1)]
        with LocalTree(Path(folder), children=names, env=env) as running_tree:
            yield running_tree


def seconds(tree: LocalTree, count: int, **submission: Any) -> float:
    """From the submission to the run's end. Raises LocalTreeError unless ``count`` items were saved."""
    began = time.perf_counter()
    run = tree.json("POST", "/api/v1/runs", json=submission)["id"]
    while (progress := tree.progress(run))["state"] == "running":
        if time.perf_counter() - began > 3 * RUN_SECONDS:
            raise LocalTreeError(f"run {run} did not end: {progress}\n{tree.tail('parent')}")
        # Asking costs the parent milliseconds of one core: a twentieth of the time so far is exact enough.
        time.sleep(min(0.1, max(0.01, (time.perf_counter() - began) / 20)))
    elapsed = time.perf_counter() - began
    if progress["state"] != "completed" or progress["saved"] != count:
        raise LocalTreeError(f"run {run} should have saved {count} items: {progress}")
    return elapsed


def write_bars(folder: Path) -> list[str]:
    """SYMBOLS Parquet files of BARS daily bars each, random walks that are the same each time; their symbols."""
    import numpy as np
    import pandas as pd

    chance = np.random.default_rng(1)
    dates = pd.date_range("2014-01-01", periods=BARS, freq="B")
    symbols = [f"S{number:04}" for number in range(SYMBOLS)]
    for symbol in symbols:
        close = 100 * np.exp(np.cumsum(chance.normal(0, 0.015, BARS)))
        opening = np.concatenate([[100.0], close[:-1]])
        high, low = np.maximum(opening, close) * 1.005, np.minimum(opening, close) * 0.995
        volume = chance.integers(100_000, 5_000_000, BARS)
        bars = {"datetime": dates, "open": opening, "high": high, "low": low, "close": close, "volume": volume}
        pd.DataFrame(bars).to_parquet(folder / f"{symbol}.parquet", index=False)
    return symbols


def analysis(rounds: int) -> Table:
    """The indicators of the pandas engine over files, the newest bar of each symbol with its summary saved."""
    table = _table(f"analysis: {SYMBOLS} symbols x {BARS} bars, 2 children x 1 slot, engine pandas", COMPUTE_FLOOR)
    with TemporaryDirectory(prefix="cascade-bench-") as folder, tree(2, 1) as two, running() as alone:
        symbols = write_bars(Path(folder))
        params = {"source": "files", "path": folder, "engine": "pandas", "rows": "latest"}
        job = {"type": "analysis", "params": params}
        _measure(table, rounds, two, alone, job, symbols, warm=symbols[:40])
    return table


def optimization(rounds: int) -> Table:
    """TPE asks one trial after the other; children evaluate them."""
    table = _table(f"optimization: {TRIALS} trials by TPE, 2 children x 1 slot", COMPUTE_FLOOR)
    space = {"fast": {"low": 5, "high": 60}, "slow": {"low": 20, "high": 200}}
    params: dict[str, Any] = {
        "source": "sample",
        "symbols": ["AAPL", "IBM", "MSFT"],
        "strategy": "ma_cross",
        "space": space,
    }
    params |= {"search": "tpe", "objective": "sharpe", "folds": 4, "seed": 1}
    with tree(2, 1) as two, running() as alone:
        seconds(two, 20, type="optimization", params={**params, "trials": 20})
        alone.seconds("optimization", {**params, "trials": 20}, [])
        job = {"type": "optimization", "params": {**params, "trials": TRIALS}}
        samples = interleaved(
            {
                "one process": lambda: alone.seconds(job["type"], job["params"], []),  # type: ignore[arg-type]
                "Cascade": lambda: seconds(two, TRIALS, **job),
            },
            rounds,
        )
    _judge(table, samples, COMPUTE_FLOOR, "optimization")
    return table


def feeds(rounds: int) -> Table:
    """New articles of feeds whose server takes a while to answer."""
    table = _table(f"feeds: {FEEDS} feeds of {FEED_SECONDS * 1000:.0f} ms, 3 children x 8 slots", WAIT_FLOOR)
    argv = [sys.executable, "-m", "bench.slow_feeds", str(FEED_SECONDS)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            base = f"http://127.0.0.1:{int(server.stdout.readline())}"
            with tree(3, 8, LOOPBACK) as three, running() as alone:
                number = iter(range(1_000_000))

                def fresh(count: int) -> list[str]:
                    # Addresses of their own each time: nothing is remembered of them.
                    return [f"{base}/feed-{next(number)}" for _ in range(count)]

                seconds(three, 48, type="feed_update", items=fresh(48), shard_size=1)
                alone.seconds("feed_update", {}, fresh(5))
                samples = interleaved(
                    {
                        "one at a time": lambda: alone.seconds("feed_update", {}, fresh(FEEDS)),
                        "Cascade": lambda: seconds(three, FEEDS, type="feed_update", items=fresh(FEEDS)),
                    },
                    rounds,
                )
        finally:
            server.kill()
    _judge(table, samples, WAIT_FLOOR, "feeds")
    return table


def measure(rounds: int) -> list[Table]:
    return [analysis(rounds), optimization(rounds), feeds(rounds)]


def _table(title: str, floor: float) -> Table:
    return Table(title, ["system", "seconds", "x one process", "floor", "reached"])


def _measure(
    table: Table, rounds: int, tree: LocalTree, alone: Alone, job: dict[str, Any], items: list[str], warm: list[str]
) -> None:
    seconds(tree, len(warm), **job, items=warm)
    alone.seconds(job["type"], job["params"], warm)
    samples = interleaved(
        {
            "one process": lambda: alone.seconds(job["type"], job["params"], list(items)),
            "Cascade": lambda: seconds(tree, len(items), **job, items=items),
        },
        rounds,
    )
    _judge(table, samples, COMPUTE_FLOOR, job["type"])


def _judge(table: Table, samples: Mapping[str, Any], floor: float, what: str) -> None:
    peer, ours = samples.values()
    ratio = peer.median / ours.median
    for name, sample in samples.items():
        mine = sample is ours
        table.add(
            name,
            sample.text(2),
            f"{ratio:.2f}" if mine else "1.00",
            f">= {floor:g}" if mine else "",
            table.judge(f"{what}: {ratio:.2f} x one process", ratio >= floor) if mine else "",
        )

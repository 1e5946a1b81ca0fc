"""What an idle parent and an idle agent keep resident, all their processes summed, beside the peer's."""

from __future__ import annotations

import time
from functools import partial

import psutil

from bench.peer_dask import dask
from bench.report import Sample, Table
from bench.tree import tree
from cascade.local import PARENT

IDLE_SECONDS = 10.0
FLOORS = {"cascade parent": 120.0, "cascade agent": 45.0}


def resident(pid: int) -> tuple[float, int]:
    """MB (10^6 bytes) of the process and everything it started, and how many processes that is.

    Pages that several of them share are counted for each.
    """
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_info().rss for process in family) / 1e6, len(family)


def measure(rounds: int) -> list[Table]:
    found: dict[str, list[tuple[float, int]]] = {}
    for _ in range(rounds):
        with tree(1) as cascade, dask(1, 4) as peer:
            time.sleep(IDLE_SECONDS)
            for name, pid in {
                "cascade parent": cascade.pid(PARENT),
                "cascade agent": cascade.pid("child-1"),
                "dask scheduler": peer.scheduler,
                "dask worker": peer.workers[0],
            }.items():
                found.setdefault(name, []).append(resident(pid))
    table = Table(
        f"memory: resident, in MB, idle for {IDLE_SECONDS:.0f} s after the start",
        ["process", "MB", "processes", "floor", "reached"],
    )
    for name, values in found.items():
        sample = Sample(tuple(megabytes for megabytes, _ in values))
        floor = FLOORS.get(name)
        judge = partial(table.judge, f"memory, {name}: {sample.median:.0f} MB")
        table.add(
            name,
            sample.text(1),
            str(max(number for _, number in values)),
            f"< {floor:.0f}" if floor else "",
            judge(sample.median < floor) if floor else "",
        )
    return [table]

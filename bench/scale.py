"""A parent of several processes beside one of one process: the cost of moving work, on the same machine.

Two web processes, a dispatcher, PostgreSQL and Redis share this machine: on few cores that shows what the arrangement
costs, not what it gains, which needs machines of its own.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bench.noop import ITEMS, SLOTS, WARM_UP, WORKERS
from bench.report import Table, interleaved
from bench.tree import seconds, tree
from cascade.local import Child
from tests.scale.trees import ScaleTree
from tests.servers import postgresql_server, redis_server

PRODUCTION = {
    "CASCADE_BEAT_SECONDS": "5",
    "CASCADE_LEASE_SECONDS": "30",
    "CASCADE_OFFER_SECONDS": "15",
    "CASCADE_OFFLINE_SECONDS": "45",
}


def measure(rounds: int) -> list[Table]:
    children = [Child(f"child-{number}", capacity=SLOTS, carrier="push") for number in range(1, WORKERS + 1)]
    with (
        TemporaryDirectory(prefix="cascade-bench-") as folder,
        postgresql_server() as postgresql,
        redis_server() as redis,
        ScaleTree(
            Path(folder), postgresql, redis, children=children, dispatchers=["dispatcher1"], env=PRODUCTION
        ) as several,
        tree(WORKERS, capacity=SLOTS) as one,
    ):
        for running in (one, several):
            seconds(running, WARM_UP, shard_size=1)
            seconds(running, WARM_UP, shard_size=0)
        samples = interleaved(
            {
                "one process, shard size 1": lambda: seconds(one, ITEMS, shard_size=1),
                "several, shard size 1": lambda: seconds(several, ITEMS, shard_size=1),
                "one process, automatic size": lambda: seconds(one, ITEMS, shard_size=0),
                "several, automatic size": lambda: seconds(several, ITEMS, shard_size=0),
            },
            rounds,
        )
    table = Table(
        f"scale: {ITEMS:,} no-op items over {WORKERS} workers × {SLOTS}; one process on SQLite and DuckDB, or two web "
        "processes and a dispatcher on PostgreSQL, Redis and a lake",
        ["parent", "seconds", "items/s"],
    )
    for name, sample in samples.items():
        table.add(name, sample.text(2), f"{ITEMS / sample.median:,.0f}")
    return [table]

"""A thread that looks at the database all the time, one consistent state after the other, while verbs run."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from django.db import connection, transaction

from dispatch.models import Allocation, Receipt, Run, Shard
from dispatch.states import ALLOCATION, LIVE, run_end
from nodes.models import Node, Quota

ENDS = ("saved", "failed", "quarantined", "cancelled")


@dataclass
class Seen:
    """The database at one moment, between two commits."""

    nodes: dict[int, int]
    limits: dict[int, int]
    runs: dict[int, dict[str, Any]]
    shards: list[Any]
    allocations: dict[int, Any]
    manifests: dict[int, list[dict[str, Any]]]

    @classmethod
    def now(cls) -> Seen:
        with transaction.atomic():
            if connection.vendor == "postgresql":
                with connection.cursor() as cursor:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return cls(
                dict(Node.objects.values_list("pk", "capacity")),
                {node: limit for node, limit in Quota.objects.values_list("node", "limit") if limit is not None},
                {row["pk"]: row for row in Run.objects.values("pk", "state", "count", "cut", *ENDS)},
                list(Shard.objects.order_by("run", "start").values("pk", "run_id", "start", "stop", "state")),
                {
                    row["pk"]: row
                    for row in Allocation.objects.values("pk", "node_id", "shard_id", "state", "start", "stop")
                },
                dict(Receipt.objects.values_list("pk", "manifest")),
            )

    def check(self) -> None:
        """Promises 1, 2 and 4 of this moment."""
        live = [each for each in self.allocations.values() if each["state"] in LIVE]
        held = Counter(each["node_id"] for each in live)
        for node, count in held.items():
            assert count <= self.nodes[node], f"node {node} holds {count}, capacity {self.nodes[node]}"
            assert count <= self.limits.get(node, count), f"node {node} holds {count}, limit {self.limits[node]}"
        by_shard: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for each in live:
            by_shard[each["shard_id"]].append(each)
        for run in self.runs.values():
            self._check_run(run, by_shard)
        saved: set[tuple[int, int]] = set()
        for manifest in self.manifests.values():
            for entry in manifest:
                for first, last, *_ in entry["ranges"]:
                    items = {(entry["run"], index) for index in range(first, last)}
                    assert not items & saved, f"the result of {sorted(items & saved)} counts twice"
                    saved |= items

    def _check_run(self, run: dict[str, Any], by_shard: dict[int, list[dict[str, Any]]]) -> None:
        at = 0
        counts: Counter[str] = Counter()
        for shard in [shard for shard in self.shards if shard["run_id"] == run["pk"]]:
            assert shard["start"] == at < shard["stop"], f"[{at}, {shard['start']}) of run {run['pk']}"
            at = shard["stop"]
            counts[shard["state"]] += shard["stop"] - shard["start"]
            held = by_shard[shard["pk"]]
            if shard["state"] in ("allocated", "executing"):
                assert {(each["start"], each["stop"]) for each in held} == {(shard["start"], shard["stop"])}
                assert len({each["node_id"] for each in held}) == len(held) <= 2
            else:
                assert not held, f"shard {shard} is {shard['state']}, and somebody works on it"
        assert at == run["cut"] <= run["count"]
        ends = {name: run[name] for name in ENDS}
        assert ends == {name: counts[name] for name in ENDS}
        assert (run_end(run["count"], **ends) or "running") == run["state"]

    def check_after(self, before: Seen) -> None:
        """What was over is over: an ended allocation, a receipt, an end that no retry opens."""
        for pk, each in before.allocations.items():
            now = self.allocations[pk]["state"]
            assert now == each["state"] or ALLOCATION[each["state"]], f"allocation {pk} went {each['state']} to {now}"
        assert all(self.manifests[pk] == manifest for pk, manifest in before.manifests.items())
        for pk, run in before.runs.items():
            assert run["state"] not in ("completed", "cancelled") or self.runs[pk]["state"] == run["state"]
            assert self.runs[pk]["saved"] >= run["saved"]


class Watcher:
    """Looks until the block ends, then once more; in the one thread of ``lookout``, which keeps its connection.
    What was wrong at any moment is raised.
    """

    def __init__(self, lookout: ThreadPoolExecutor) -> None:
        self._lookout = lookout
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._looking = self._lookout.submit(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._looking.result()

    def _look(self) -> None:
        before: Seen | None = None
        over = False
        while not over:
            over = self._over.is_set()
            seen = Seen.now()
            seen.check()
            if before is not None:
                seen.check_after(before)
            before = seen

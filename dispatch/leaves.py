"""Who ran what: of each allocation and each shard the node that did it, by its path where it hangs below a relay."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from django.db.models import F, Min, Sum

from dispatch.models import Allocation, LeafWork, Run, Shard
from dispatch.states import AllocationState, ShardState

DONE = (ShardState.SPOOLED, ShardState.SAVED)
PATHS = 50
"""So many are told of one allocation or shard."""


def of_allocations(allocations: Iterable[Allocation]) -> dict[int, list[str]]:
    """By id: paths in the order of the items, each once; none for what nobody has run. ``node`` must be at hand."""
    found = {each.pk: each for each in allocations}
    paths = below_relays(found)
    for pk, each in found.items():
        if not paths[pk] and each.state == AllocationState.COMPLETED and each.node is not None:
            paths[pk].append(each.node.name)
    return paths


def below_relays(allocations: Iterable[int]) -> dict[int, list[str]]:
    """As ``of_allocations``, where nodes below relays did something of them."""
    paths: dict[int, list[str]] = {pk: [] for pk in allocations}
    ways = LeafWork.objects.filter(allocation__in=paths).order_by().values_list("allocation", "path")
    for pk, path, _ in ways.annotate(first=Min("start")).order_by("first") if paths else ():
        if len(paths[pk]) < PATHS:
            paths[pk].append(path)
    return paths


def of_run(run: Run) -> dict[str | None, dict[str, int]]:
    """By relay: items that its nodes have done of the run, by path."""
    found: dict[str | None, dict[str, int]] = defaultdict(dict)
    works = LeafWork.objects.filter(run=run).order_by("path").values_list("allocation__node__name", "path")
    for name, path, items in works.annotate(items=Sum(F("stop") - F("start"))):
        found[name][path] = items
    return found


def of_shards(shards: Iterable[Shard]) -> dict[int, list[str]]:
    """The same of shards, in two queries for each of their runs; none for what is not done."""
    by_run: dict[int, list[Shard]] = defaultdict(list)
    paths: dict[int, list[str]] = {}
    for shard in shards:
        paths[shard.pk] = []
        if shard.state in DONE:
            by_run[shard.run_id].append(shard)
    for run, some in by_run.items():
        some.sort(key=lambda each: each.start)
        _fill(run, some, paths)
    return paths


def _fill(run: int, shards: Sequence[Shard], paths: dict[int, list[str]]) -> None:
    """Those of ``shards``, which ascend. They may be pieces of what was allocated, so ranges are compared."""
    starts = [shard.start for shard in shards]
    within = {"run": run, "start__lt": shards[-1].stop, "stop__gt": shards[0].start}
    for start, stop, path in LeafWork.objects.filter(**within).order_by("start").values_list("start", "stop", "path"):
        for shard in shards[max(bisect_right(starts, start) - 1, 0) : bisect_left(starts, stop)]:
            mine = paths[shard.pk]
            if shard.stop > start and path not in mine and len(mine) < PATHS:
                mine.append(path)
    completed = Allocation.objects.filter(**within, state=AllocationState.COMPLETED, node__isnull=False)
    # What was done is not done again, so the newest that covers it did it.
    for start, stop, name in completed.order_by("-pk").values_list("start", "stop", "node__name"):
        for shard in shards[bisect_left(starts, start) : bisect_left(starts, stop)]:
            paths[shard.pk] = paths[shard.pk] or [name]

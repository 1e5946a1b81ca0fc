"""Cancel, retry, and how far a run is."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.db.models import F, QuerySet, Sum
from django.utils import timezone

from dispatch import events
from dispatch.deciding import endings
from dispatch.deciding.effects import cancellable
from dispatch.lifecycle.writing import write_down
from dispatch.models import Allocation, Delivery, Run, Shard
from dispatch.ranges import Range, joined
from dispatch.states import LIVE, RUN, RUN_ENDED, SHARD_OPEN, RunState, ShardState, before
from nodes import journal
from nodes.protocol import Conflict, NotFound
from nodes.transactions import retried, write

_PARTS = ("saved", "failed", "quarantined", "cancelled", "spooled", "in_flight", "pending")
PROGRESS_TRIES = 5


@retried
def cancel(run_id: int) -> Run:
    """Stops what is not finished. What was reported already is saved. Raises NotFound, Conflict for an ended run."""
    with write():
        run = _locked(run_id)
        if run.state != RunState.RUNNING:
            raise Conflict(f"run {run_id} has ended already: {run.state}")
        # Shards before their allocations, as reports do.
        open_shards = Shard.objects.select_for_update().filter(run=run, state__in=cancellable())
        shards = list(open_shards.values_list("pk", "start", "stop"))
        live = list(Allocation.objects.select_for_update().filter(run=run, state__in=LIVE).values_list("pk", "node_id"))
        write_down(endings.cancelled(run.pk, run.cut, run.count, [pk for pk, _ in live], shards), timezone.now())
    events.changed()
    by_node: dict[int, list[int]] = {}
    for pk, node_id in live:
        by_node.setdefault(node_id, []).append(pk)
    for node_id, ids in by_node.items():
        events.tell([node_id], {"type": "node.cancel", "ids": ids})
    return Run.objects.defer("items").get(pk=run_id)


@retried
def retry(run_id: int, ranges: Iterable[Range] | None = None) -> int:
    """Opens again what failed or was quarantined, with all attempts anew. Returns the number of items.

    With ``ranges`` of items only shards that have one of these, and those whole, as they failed.
    Raises NotFound, and Conflict while the run goes on or where nothing of that failed.
    """
    with write():
        run = _locked(run_id)
        if run.state == RunState.RUNNING:
            raise Conflict(f"run {run_id} is still running; retry what failed when it has ended")
        lost = Shard.objects.filter(run=run, state__in=(ShardState.FAILED, ShardState.QUARANTINED))
        chosen = [lost] if ranges is None else _with_items(lost, ranges)
        items: Counter[str] = Counter()
        for some in chosen:
            items.update(dict(some.order_by().values_list("state").annotate(items=Sum(F("stop") - F("start")))))
        if not items or run.state not in before(RUN, RunState.RUNNING):
            raise Conflict(f"run {run_id} is {run.state}: nothing in it can be retried" + _OF * (ranges is not None))
        for some in chosen:
            some.update(
                state=ShardState.PENDING,
                attempts=0,
                deaths=0,
                losses=0,
                not_before=None,
                error="",
                updated_at=timezone.now(),
            )
        Run.objects.filter(pk=run_id, state=run.state).update(
            state=RunState.RUNNING,
            failed=F("failed") - items[ShardState.FAILED],
            quarantined=F("quarantined") - items[ShardState.QUARANTINED],
            ended_at=None,
            reduction=None,
        )
        journal.record(journal.About.RUN, "retried", run=run_id, count=items.total())
        # Its end is news again when it comes.
        Delivery.objects.filter(run_id=run_id, state=Delivery.State.WAITING).delete()
    events.changed()
    return items.total()


_OF = ", of the items that were asked for"
_AT_ONCE = 500
"""Rows that one statement names."""


def _with_items(shards: QuerySet[Shard], ranges: Iterable[Range]) -> list[QuerySet[Shard]]:
    """Those of ``shards`` that have an item in one of ``ranges``."""
    wanted = joined(ranges)
    stops = [stop for _, stop in wanted]
    found = []
    for pk, start, stop in shards.values_list("pk", "start", "stop"):
        at = bisect_right(stops, start)  # the first range that ends behind this shard's beginning
        if at < len(wanted) and wanted[at][0] < stop:
            found.append(pk)
    return [Shard.objects.filter(pk__in=found[at : at + _AT_ONCE]) for at in range(0, len(found), _AT_ONCE)]


def progress(run: Run) -> dict[str, Any]:
    """Numbers of items by what became of them: ``in_flight`` with a node, ``spooled`` reported but not saved yet.

    ``run`` says which one, and may be out of date.
    """
    told = _told(run)
    for _ in range(PROGRESS_TRIES):
        if sum(told[part] for part in _PARTS) == told["count"]:
            break
        # Its shards were read a moment after it: a result saved in between is in neither.
        run = Run.objects.defer("items").get(pk=run.pk)
        told = _told(run)
    return told


def _told(run: Run) -> dict[str, Any]:
    by_state: Counter[str] = Counter()
    if run.state not in RUN_ENDED:
        groups = (
            Shard.objects.filter(run=run, state__in=SHARD_OPEN)
            .values("state")
            .annotate(items=Sum(F("stop") - F("start")))
        )
        by_state.update({group["state"]: group["items"] for group in groups.order_by()})
    return {
        "run": run.pk,
        "state": run.state,
        "count": run.count,
        "saved": run.saved,
        "failed": run.failed,
        "quarantined": run.quarantined,
        "cancelled": run.cancelled,
        "spooled": by_state[ShardState.SPOOLED],
        "in_flight": by_state[ShardState.ALLOCATED] + by_state[ShardState.EXECUTING],
        "pending": run.count - run.cut + by_state[ShardState.PENDING],
        "rows": run.rows,
    }


def _locked(run_id: int) -> Run:
    try:
        return Run.objects.select_for_update().defer("items").get(pk=run_id)
    except Run.DoesNotExist:
        raise NotFound(f"there is no run {run_id}") from None

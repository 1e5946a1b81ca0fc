"""How shards and runs end: unsuccessful attempts, cancel, retry, the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Sum
from django.utils import timezone

from dispatch import events
from dispatch.attempts import Failure, Limits, Outcome, Record, Verdict, after
from dispatch.models import Allocation, Delivery, Run, Shard
from dispatch.ranges import halves
from dispatch.states import (
    ALLOCATION,
    LIVE,
    RUN,
    RUN_ENDED,
    SHARD,
    SHARD_OPEN,
    AllocationState,
    RunState,
    ShardState,
    before,
    run_end,
)
from nodes.protocol import Conflict, NotFound
from nodes.transactions import retried, write

SLICE = 5000
"""So many ids a statement names at most."""
_PARTS = ("saved", "failed", "quarantined", "cancelled", "spooled", "in_flight", "pending")
PROGRESS_TRIES = 5
_LIVE_OF = "SELECT shard_id, id, node_id FROM dispatch_allocation WHERE state IN (%s, %s) AND shard_id IN ({})"
_END = {Verdict.FAILED: ShardState.FAILED, Verdict.QUARANTINED: ShardState.QUARANTINED}


def unsuccessful(allocations: Sequence[Allocation], state: AllocationState, failure: Failure, detail: str) -> None:
    """Ends live ``allocations`` (with their shards loaded) in ``state`` and decides what becomes of their shards.

    Runs inside the caller's transaction.
    """
    if not allocations:
        return
    now = timezone.now()
    ids = [each.pk for each in allocations]
    Allocation.objects.filter(pk__in=ids, state__in=before(ALLOCATION, state)).update(
        state=state, finished_at=now, error=detail
    )
    limits = limits_of({each.run_id for each in allocations})
    shards = {each.shard_id: each for each in allocations}
    # With another copy under way nothing is lost yet.
    for shard in shards.keys() - twins_of(list(shards), but=ids).keys():
        give_up(shards[shard].shard, failure, detail, limits[shards[shard].run_id])
    finish({each.run_id for each in allocations})


def twins_of(shards: Sequence[int], *, but: Sequence[int]) -> dict[int, list[tuple[int, int | None]]]:
    """Shard -> its live allocations (id, node) that are not among ``but``; shards without any are left out."""
    twins: dict[int, list[tuple[int, int | None]]] = {}
    left = set(but)
    with connection.cursor() as cursor:
        for at in range(0, len(shards), SLICE):
            some = shards[at : at + SLICE]
            # By hand: asked with every report, it costs the ORM ten times as long as the database.
            cursor.execute(_LIVE_OF.format(", ".join(["%s"] * len(some))), [*map(str, LIVE), *some])
            for shard, pk, node in cursor.fetchall():
                if pk not in left:
                    twins.setdefault(shard, []).append((pk, node))
    return twins


def limits_of(run_ids: Iterable[int]) -> dict[int, Limits]:
    deaths = settings.CASCADE.worker_deaths
    return {
        pk: Limits(attempts, backoff, deaths)
        for pk, attempts, backoff in Run.objects.filter(pk__in=set(run_ids)).values_list(
            "pk", "max_attempts", "backoff"
        )
    }


def give_up(shard: Shard, failure: Failure, detail: str, limits: Limits) -> None:
    """One attempt at ``shard`` came to nothing: again, in halves, or never."""
    record = Record(shard.stop - shard.start, shard.attempts, shard.deaths, shard.losses)
    settle(shard, after(failure, record, limits), detail)


def settle(shard: Shard, outcome: Outcome, detail: str) -> None:
    """Writes ``outcome`` on ``shard``, which must be allocated or executing still."""
    now = timezone.now()
    record = outcome.record
    change: dict[str, Any] = {
        "attempts": record.attempts,
        "deaths": record.deaths,
        "losses": record.losses,
        "error": detail,
        "updated_at": now,
    }
    state = _END.get(outcome.verdict, ShardState.PENDING)
    if state is ShardState.PENDING:
        change["not_before"] = now + timedelta(seconds=outcome.delay) if outcome.delay else None
    if outcome.verdict is Verdict.SPLIT:
        first, second = halves(shard.start, shard.stop)
        change["stop"] = first[1]
    changed = Shard.objects.filter(
        pk=shard.pk,
        state__in=set(before(SHARD, state)) - {ShardState.SPOOLED, ShardState.FAILED, ShardState.QUARANTINED},
    ).update(state=state, **change)
    if not changed:
        return  # a cancel was first, and has counted these items
    if outcome.verdict is Verdict.SPLIT:
        Shard.objects.create(run_id=shard.run_id, start=second[0], state=state, **{**change, "stop": second[1]})
    items = shard.stop - shard.start
    if state is ShardState.FAILED:
        Run.objects.filter(pk=shard.run_id).update(failed=F("failed") + items)
    elif state is ShardState.QUARANTINED:
        Run.objects.filter(pk=shard.run_id).update(quarantined=F("quarantined") + items)


@retried
def cancel(run_id: int) -> Run:
    """Stops what is not finished. What was reported already is saved. Raises NotFound, Conflict for an ended run."""
    with write():
        run = _locked(run_id)
        if run.state != RunState.RUNNING:
            raise Conflict(f"run {run_id} has ended already: {run.state}")
        now = timezone.now()
        live = list(Allocation.objects.select_for_update().filter(run=run, state__in=LIVE).values_list("pk", "node_id"))
        Allocation.objects.filter(run=run, state__in=LIVE).update(
            state=AllocationState.CANCELLED, finished_at=now, error="the run was cancelled"
        )
        stopped = Shard.objects.filter(run=run, state__in=before(SHARD, ShardState.CANCELLED))
        items = stopped.aggregate(items=Sum(F("stop") - F("start")))["items"] or 0
        stopped.update(state=ShardState.CANCELLED, updated_at=now)
        if run.cut < run.count:
            Shard.objects.create(run=run, start=run.cut, stop=run.count, state=ShardState.CANCELLED)
            items += run.count - run.cut
        Run.objects.filter(pk=run_id).update(cut=F("count"), cancelled=F("cancelled") + items, growing=False)
        finish([run_id])
    events.changed()
    by_node: dict[int, list[int]] = {}
    for pk, node_id in live:
        by_node.setdefault(node_id, []).append(pk)
    for node_id, ids in by_node.items():
        events.tell([node_id], {"type": "node.cancel", "ids": ids})
    return Run.objects.defer("items").get(pk=run_id)


@retried
def retry(run_id: int) -> int:
    """Opens again what failed or was quarantined, with all attempts anew. Returns the number of items.

    Raises NotFound, and Conflict while the run goes on or where nothing failed.
    """
    with write():
        run = _locked(run_id)
        if run.state == RunState.RUNNING:
            raise Conflict(f"run {run_id} is still running; retry what failed when it has ended")
        lost = Shard.objects.filter(run=run, state__in=(ShardState.FAILED, ShardState.QUARANTINED))
        items = lost.aggregate(items=Sum(F("stop") - F("start")))["items"] or 0
        if not items or run.state not in before(RUN, RunState.RUNNING):
            raise Conflict(f"run {run_id} is {run.state}: nothing in it can be retried")
        lost.update(
            state=ShardState.PENDING,
            attempts=0,
            deaths=0,
            losses=0,
            not_before=None,
            error="",
            updated_at=timezone.now(),
        )
        Run.objects.filter(pk=run_id, state=run.state).update(
            state=RunState.RUNNING, failed=0, quarantined=0, ended_at=None, reduction=None
        )
        # Its end is news again when it comes.
        Delivery.objects.filter(run_id=run_id, state=Delivery.State.WAITING).delete()
    events.changed()
    return int(items)


def finish(run_ids: Iterable[int]) -> None:
    """Ends those of the runs whose every item has ended. Runs inside the caller's transaction."""
    if not (run_ids := set(run_ids)):
        return
    open_runs = Run.objects.filter(pk__in=run_ids, state=RunState.RUNNING, growing=False)
    columns = ("pk", "task__webhook_url", "count", "saved", "failed", "quarantined", "cancelled")
    for pk, url, *counts in open_runs.values_list(*columns):
        if (end := run_end(*counts)) is None:
            continue
        ended = Run.objects.filter(pk=pk, state__in=before(RUN, end)).update(state=end, ended_at=timezone.now())
        if ended:
            transaction.on_commit(events.reducer.set)
        if ended and url:
            _announce(pk, url)


def _announce(run_id: int, url: str) -> None:
    """Has ``dispatch.webhooks`` tell ``url`` of the run's end, once the caller's transaction has committed."""
    # A run that ended before, and was opened again: a new row, as receivers drop an id that they have seen.
    Delivery.objects.filter(run_id=run_id, url=url).delete()
    Delivery.objects.create(run_id=run_id, url=url, next_at=timezone.now())
    transaction.on_commit(events.webhooks.set)


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

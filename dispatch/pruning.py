"""Pruning: what is older than the settings say is forgotten, in slices, so that nobody waits long for a turn to write.

Rows in the result store stay, and the ledger with them. Nothing is touched that is not saved or not purged from the
spool yet, and no run that has not ended.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet

from dispatch import buckets
from dispatch.models import Allocation, Delivery, LogPiece, Receipt, Run, Shard, StagedRow, SyncLog
from dispatch.states import LIVE, RUN_ENDED, ShardState
from nodes import registry
from nodes.models import Heartbeat, JournalEntry, Nonce
from nodes.transactions import write

SLICE = 500
"""Rows per transaction: some milliseconds."""
RUNS = 50
PAUSE_SECONDS = 0.002
"""Between two transactions, for the threads that wait for their turn."""
STAGED_DAYS = 1.0
"""Rows uploaded ahead of a report that can come no more are kept so long, for whoever wonders."""
KINDS = (
    *("runs", "allocations", "shards", "receipts", "sync_logs", "deliveries", "staged_rows", "log_pieces"),
    *("journal", "heartbeats", "nonces"),
)


class _OutOfTime(Exception):
    pass


class _Pass:
    """One call of ``prune``: what it counted, and until when it may go on."""

    def __init__(self, seconds: float | None) -> None:
        self.counts = dict.fromkeys(KINDS, 0)
        self._until = None if seconds is None else time.monotonic() + seconds

    def slice(self, kind: str, act: Callable[[], int]) -> int:
        """Runs ``act`` in a transaction of its own. Raises _OutOfTime when the time was over before."""
        if self._until is not None and time.monotonic() >= self._until:
            raise _OutOfTime
        with write():
            removed = act()
        self.counts[kind] += removed
        time.sleep(PAUSE_SECONDS)
        return removed

    def all_of(self, kind: str, rows: QuerySet[Any]) -> None:
        while self.slice(kind, lambda: _delete(rows)) == SLICE:
            pass


def prune(
    now: dt.datetime, *, days: float | None = None, seconds: float | None = None, dry_run: bool = False
) -> dict[str, int]:
    """Forgets what is old; how many rows of each kind (``KINDS``).

    ``days`` stands for the settings run_days and log_days. After ``seconds`` it leaves the rest to the next call.
    ``dry_run`` only counts; of runs and what belongs to them, all that is old enough.
    """
    of_runs = now - dt.timedelta(days=settings.CASCADE.run_days if days is None else days)
    of_logs = now - dt.timedelta(days=settings.CASCADE.log_days if days is None else days)
    runs, logs = _old_runs(of_runs), SyncLog.objects.filter(started_at__lt=of_logs)
    deliveries = Delivery.objects.filter(created_at__lt=of_runs).exclude(state=Delivery.State.WAITING)
    staged = _stale_rows(now)
    if dry_run:
        counts = _counted(now, runs, logs, deliveries, staged, of_runs)
        return {**counts, "journal": JournalEntry.objects.filter(at__lt=of_logs).count()}
    current = _Pass(seconds)
    current.counts |= registry.prune(now)
    buckets.forget(now)
    try:
        current.all_of("staged_rows", staged)
        current.all_of("sync_logs", logs)
        current.all_of("journal", JournalEntry.objects.filter(at__lt=of_logs))
        current.all_of("deliveries", deliveries)
        _forget_runs(current, runs, of_runs)
        current.all_of("receipts", _old_receipts(of_runs))
    except _OutOfTime:
        pass
    return current.counts


def _old_runs(before: dt.datetime) -> QuerySet[Run]:
    """Ended so long ago, nothing of them under way, and every row of theirs saved and out of the spool."""
    of_run = Allocation.objects.filter(run=OuterRef("pk"))
    unsettled = of_run.filter(Q(state__in=LIVE) | Q(receipt__isnull=False, receipt__purged_at=None))
    waiting = Delivery.objects.filter(run=OuterRef("pk"), state=Delivery.State.WAITING)
    ended = Run.objects.filter(state__in=RUN_ENDED, ended_at__lt=before)
    return ended.filter(~Exists(unsettled), ~Exists(waiting)).defer("items")


def _old_receipts(before: dt.datetime) -> QuerySet[Receipt]:
    """Saved, purged, and named by no allocation any more: a repeated report has nothing left to be compared with."""
    named = Allocation.objects.filter(receipt=OuterRef("pk"))
    old = Receipt.objects.filter(created_at__lt=before, saved_at__isnull=False, purged_at__isnull=False)
    return old.filter(~Exists(named))


def _stale_rows(now: dt.datetime) -> QuerySet[StagedRow]:
    ended = now - dt.timedelta(days=STAGED_DAYS)
    return StagedRow.objects.filter(allocation__finished_at__lt=ended)  # a live one has not finished


def _forget_runs(current: _Pass, runs: QuerySet[Run], before: dt.datetime) -> None:
    while ids := list(runs.order_by("ended_at").values_list("pk", flat=True)[:RUNS]):
        for pk in ids:
            _forget_run(current, pk, before)


def _forget_run(current: _Pass, pk: int, before: dt.datetime) -> None:
    """Piece by piece what no retry could need, then the run itself with the rest, unless it was opened again."""
    ended = {"run_id": pk, "run__state__in": RUN_ENDED, "run__ended_at__lt": before}
    allocations = Allocation.objects.filter(**ended).exclude(state__in=LIVE)
    current.all_of("staged_rows", StagedRow.objects.filter(allocation__in=allocations))
    current.all_of("log_pieces", LogPiece.objects.filter(allocation__in=allocations))
    current.all_of("allocations", allocations)
    current.all_of("shards", Shard.objects.filter(**ended, state__in=(ShardState.SAVED, ShardState.CANCELLED)))

    def last() -> int:
        run = Run.objects.select_for_update().filter(pk=pk, state__in=RUN_ENDED, ended_at__lt=before)
        if not run.exists():
            return 0
        current.counts["deliveries"] += Delivery.objects.filter(run_id=pk).delete()[0]
        current.counts["shards"] += Shard.objects.filter(run_id=pk).delete()[0]
        Run.objects.filter(pk=pk).delete()
        return 1

    current.slice("runs", last)


def _delete(rows: QuerySet[Any]) -> int:
    """Removes the first SLICE of ``rows``; how many."""
    ids = list(rows.order_by("pk").values_list("pk", flat=True)[:SLICE])
    if ids:
        rows.model._default_manager.filter(pk__in=ids).delete()
    return len(ids)


def _counted(
    now: dt.datetime,
    runs: QuerySet[Run],
    logs: QuerySet[SyncLog],
    deliveries: QuerySet[Delivery],
    staged: QuerySet[StagedRow],
    before: dt.datetime,
) -> dict[str, int]:
    ids = runs.values("pk")
    # Receipts that only these runs' allocations name go with them.
    others = Allocation.objects.filter(receipt=OuterRef("pk")).exclude(run__in=ids)
    receipts = Receipt.objects.filter(created_at__lt=before, saved_at__isnull=False, purged_at__isnull=False)
    history = now - dt.timedelta(days=settings.CASCADE.heartbeat_days)
    return {
        "runs": runs.count(),
        "allocations": Allocation.objects.filter(run__in=ids).count(),
        "shards": Shard.objects.filter(run__in=ids).count(),
        "receipts": receipts.filter(~Exists(others)).count(),
        "sync_logs": logs.count(),
        "deliveries": (deliveries | Delivery.objects.filter(run__in=ids)).count(),
        "staged_rows": (staged | StagedRow.objects.filter(allocation__run__in=ids)).distinct().count(),
        "log_pieces": LogPiece.objects.filter(run__in=ids).count(),
        "heartbeats": Heartbeat.objects.filter(at__lt=history).count(),
        "nonces": Nonce.objects.filter(expires_at__lt=now).count(),
    }

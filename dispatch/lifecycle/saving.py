"""After the result store has committed, or could not: receipts, shards and runs follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from django.utils import timezone

from dispatch import events
from dispatch.deciding import endings
from dispatch.lifecycle import memories
from dispatch.lifecycle.writing import write_down
from dispatch.models import Receipt, Run, Shard
from dispatch.states import RunState, ShardState
from nodes.prepared import Given, Prepared
from nodes.transactions import retried, write

_WAITING = Prepared(
    lambda: Receipt.objects.select_for_update().filter(pk__among=Given("receipts"), saved_at=None).values_list("pk")
)


@retried
def saved(receipts: Sequence[Receipt]) -> None:
    """These receipts' rows are in the result store. Repeating it, after a crash in between, changes nothing."""
    with write():
        # Another process may have come back from a crash with the same receipts.
        fresh = {pk for (pk,) in _WAITING.rows(receipts=[each.pk for each in receipts])}
        manifests = {each.pk: each.manifest for each in receipts if each.pk in fresh}
        write_down(endings.saved(manifests), timezone.now())
    events.changed()


@retried
def copied(receipts: Sequence[Receipt]) -> None:
    """These receipts' rows, which were passed on, are in this relay's own store, too."""
    with write():
        Receipt.objects.filter(pk__in=[each.pk for each in receipts], kept_at=None).update(kept_at=timezone.now())


@retried
def not_copied(receipt: Receipt) -> None:
    """The node above has the rows of ``receipt``, this relay cannot save them any more."""
    with write():
        Receipt.objects.filter(pk=receipt.pk).update(keep=False)


@retried
def damaged(receipt: Receipt, detail: str) -> None:
    """The spooled rows of ``receipt`` cannot be read: its items are done again, with no attempt counted."""
    with write():
        if not Receipt.objects.select_for_update().filter(pk=receipt.pk, saved_at=None).exists():
            return
        for entry in receipt.manifest:
            memories.forget(receipt.type, entry["run"], [(first, last) for first, last, _, _ in entry["ranges"]])
        write_down(endings.damaged(receipt.pk, receipt.manifest, detail), timezone.now())
    events.changed()


@retried
def lost(receipt: Receipt, entries: Sequence[dict[str, Any]], detail: str) -> None:
    """Rows of ``receipt`` that had been saved, those of ``entries``, are neither in the store nor in the spool now:
    they are made again. Repeating it changes nothing.
    """
    with write():
        ids = {shard for entry in entries for _, _, _, shard in entry["ranges"]}
        gone = Shard.objects.select_for_update().filter(pk__in=ids, state=ShardState.SAVED)
        saved = [(pk, run, stop - start) for pk, run, start, stop in gone.values_list("pk", "run", "start", "stop")]
        known = {pk for pk, _, _ in saved}
        rows: Counter[int] = Counter()
        for entry in entries:
            memories.forget(receipt.type, entry["run"], [(first, last) for first, last, _, _ in entry["ranges"]])
            rows[entry["run"]] += sum(count for _, _, count, shard in entry["ranges"] if shard in known)
        runs = {run for _, run, _ in saved}
        cancelled = set(Run.objects.filter(pk__in=runs, state=RunState.CANCELLED).values_list("pk", flat=True))
        now = timezone.now()
        write_down(endings.lost(saved, rows, cancelled, detail), now)
        if len(entries) == len(receipt.manifest):
            Receipt.objects.filter(pk=receipt.pk).update(purged_at=now, rows=0)
    events.changed()

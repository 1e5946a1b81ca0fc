"""After the result store has committed, or could not: receipts, shards and runs follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from django.db.models import F
from django.utils import timezone

from dispatch import events
from dispatch.lifecycle import memories
from dispatch.lifecycle.ends import finish
from dispatch.models import Receipt, Run, Shard
from dispatch.states import SHARD, ShardState, before
from nodes.transactions import retried, write

SLICE = 5000


@retried
def saved(receipts: Sequence[Receipt]) -> None:
    """These receipts' rows are in the result store. Repeating it, after a crash in between, changes nothing."""
    now = timezone.now()
    with write():
        # Compare-and-set: another process may have come back from a crash with the same receipts.
        fresh = set(
            Receipt.objects.select_for_update()
            .filter(pk__in=[each.pk for each in receipts], saved_at=None)
            .values_list("pk", flat=True)
        )
        shards: list[int] = []
        items: Counter[int] = Counter()
        rows: Counter[int] = Counter()
        for receipt in receipts:
            if receipt.pk not in fresh:
                continue
            for entry in receipt.manifest:
                for first, last, count, shard in entry["ranges"]:
                    shards.append(shard)
                    items[entry["run"]] += last - first
                    rows[entry["run"]] += count
        for some in _slices(shards):
            Shard.objects.filter(pk__in=some, state__in=before(SHARD, ShardState.SAVED)).update(
                state=ShardState.SAVED, updated_at=now
            )
        Receipt.objects.filter(pk__in=fresh).update(saved_at=now)
        for run, count in items.items():
            Run.objects.filter(pk=run).update(saved=F("saved") + count, rows=F("rows") + rows[run])
        finish(items)
    events.changed()


@retried
def damaged(receipt: Receipt, detail: str) -> None:
    """The spooled rows of ``receipt`` cannot be read: its items are done again, with no attempt counted."""
    now = timezone.now()
    with write():
        if not Receipt.objects.filter(pk=receipt.pk, saved_at=None).update(saved_at=now, purged_at=now, rows=0):
            return
        shards = [shard for entry in receipt.manifest for _, _, _, shard in entry["ranges"]]
        for entry in receipt.manifest:
            memories.forget(receipt.type, entry["run"], [(first, last) for first, last, _, _ in entry["ranges"]])
        for some in _slices(shards):
            Shard.objects.filter(pk__in=some, state=ShardState.SPOOLED).update(
                state=ShardState.PENDING, error=detail, updated_at=now
            )
    events.changed()


def _slices(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """A statement can name some tens of thousands of ids; a shard that failed in many places has as many pieces."""
    for at in range(0, len(ids), SLICE):
        yield ids[at : at + SLICE]

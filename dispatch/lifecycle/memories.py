"""What items of a type remember from run to run: written in the transaction that accepts a report, sent with the next
allocation of the item, wherever that is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from dispatch.lifecycle.kept import frozen
from dispatch.models import ItemMemory
from nodes import executors
from nodes.executors.base import Item, item_key
from nodes.messages import STATUS_LIMIT, Entry, ItemOutcome

SLICE = 500


def of(task_type: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By key, the memory of those that have any."""
    found: dict[str, dict[str, Any]] = {}
    for at in range(0, len(keys), SLICE):
        rows = ItemMemory.objects.filter(type=task_type, key__in=keys[at : at + SLICE])
        found.update((key, memory) for key, memory in rows.values_list("key", "memory") if memory)
    return found


def keep(task_type: str, run_id: int, entry: Entry, start: int, stop: int, now: dt.datetime) -> None:
    """How the items of ``entry``, [start, stop) of the run, went. Inside the caller's transaction."""
    items = frozen(run_id)
    told = {each.index: each for each in entry.outcomes}
    good: dict[str, ItemMemory] = {}
    remembering: dict[str, ItemMemory] = {}
    for first, last, _ in entry.ranges:
        for index, item in enumerate(items.slice(first, last), first):
            outcome = told.get(index) or ItemOutcome(index)
            row = _row(task_type, item, run_id, now, outcome.status or "ok")
            row.counts, row.succeeded_at = outcome.counts, now
            if outcome.memory is not None:
                row.memory = outcome.memory
            (good if outcome.memory is None else remembering)[row.key] = row
    failed = {index: message for index, message, _ in map(astuple, entry.errors)}
    if entry.failure:
        failed = dict.fromkeys(range(start, stop), entry.message or entry.failure)
    bad = {}
    for index, message in failed.items():
        row = _row(task_type, items.slice(index, index + 1)[0], run_id, now, message[:STATUS_LIMIT])
        row.failed = True
        bad[row.key] = row
    ended = ("status", "failed", "counts", "run", "at", "succeeded_at")
    _write(good, ended)
    _write(remembering, (*ended, "memory"))
    # What it remembers stays: the next try asks as the last good one would.
    _write(bad, ("status", "failed", "run", "at"))


def forget(task_type: str, run_id: int, ranges: Iterable[tuple[int, int]]) -> None:
    """The rows of these items were lost before they were saved: the next run of them must not think it had them."""
    if executors.get(task_type).remembers:
        keys = [item_key(item) for first, last in ranges for item in frozen(run_id).slice(first, last)]
        for at in range(0, len(keys), SLICE):
            ItemMemory.objects.filter(type=task_type, key__in=keys[at : at + SLICE]).update(memory={})


def _row(task_type: str, item: Item, run_id: int, now: dt.datetime, status: str) -> ItemMemory:
    return ItemMemory(type=task_type, key=item_key(item), run_id=run_id, at=now, status=status)


def _write(rows: Mapping[str, ItemMemory], fields: Sequence[str]) -> None:
    if rows:
        # By key, so that two reports that are about the same items wait for each other in one order.
        ordered = [rows[key] for key in sorted(rows)]
        ItemMemory.objects.bulk_create(
            ordered, SLICE, update_conflicts=True, unique_fields=["type", "key"], update_fields=list(fields)
        )

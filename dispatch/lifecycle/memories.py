"""What items of a type remember from run to run: written in the transaction that accepts a report, sent with the next
allocation of the item, wherever that is.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dispatch.lifecycle.kept import frozen
from dispatch.models import ItemMemory
from nodes import executors
from nodes.executors.base import item_key
from nodes.messages import STATUS_LIMIT, Entry, ItemOutcome
from nodes.transactions import moment, upsert_rows

SLICE = 500


def of(task_type: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By key, the memory of those that have any."""
    found: dict[str, dict[str, Any]] = {}
    for at in range(0, len(keys), SLICE):
        rows = ItemMemory.objects.filter(type=task_type, key__in=keys[at : at + SLICE])
        found.update((key, memory) for key, memory in rows.values_list("key", "memory") if memory)
    return found


COLUMNS = ("type", "key", "memory", "status", "failed", "counts", "run_id", "at", "succeeded_at")
_TOLD = ("status", "failed", "counts", "run_id", "at", "succeeded_at")


class Reported(NamedTuple):
    """An entry, and the items [start, stop) of a run that it is about."""

    entry: Entry
    run: int
    start: int
    stop: int


def keep(task_type: str, reports: Iterable[Reported], now: dt.datetime) -> None:
    """How the items of ``reports`` went. Inside the caller's transaction."""
    at = moment(now)
    good: dict[str, tuple[Any, ...]] = {}
    remembering: dict[str, tuple[Any, ...]] = {}
    bad: dict[str, tuple[Any, ...]] = {}
    for entry, run, start, stop in reports:
        items = frozen(run)
        told = {each.index: each for each in entry.outcomes}
        for first, last, _ in entry.ranges:
            for index, item in enumerate(items.slice(first, last), first):
                key, outcome = item_key(item), told.get(index) or ItemOutcome(index)
                memory, counts = json.dumps(outcome.memory or {}), json.dumps(outcome.counts)
                row = (task_type, key, memory, outcome.status or "ok", False, counts, run, at, at)
                (good if outcome.memory is None else remembering)[key] = row
        failed = {error.index: error.message for error in entry.errors}
        if entry.failure:
            failed = dict.fromkeys(range(start, stop), entry.message or entry.failure)
        for index, message in failed.items():
            key = item_key(items.slice(index, index + 1)[0])
            bad[key] = (task_type, key, "{}", message[:STATUS_LIMIT], True, "{}", run, at, None)
    _write(good, _TOLD)
    _write(remembering, (*_TOLD, "memory"))
    # What it remembers stays: the next try asks as the last good one would.
    _write(bad, ("status", "failed", "run_id", "at"))


def _write(rows: Mapping[str, tuple[Any, ...]], change: Sequence[str]) -> None:
    if rows:
        # By key, so that two reports that are about the same items wait for each other in one order.
        upsert_rows(ItemMemory, COLUMNS, [rows[key] for key in sorted(rows)], ("type", "key"), change)


def forget(task_type: str, run_id: int, ranges: Iterable[tuple[int, int]]) -> None:
    """The rows of these items were lost before they were saved: the next run of them must not think it had them."""
    if executors.get(task_type).remembers:
        keys = [item_key(item) for first, last in ranges for item in frozen(run_id).slice(first, last)]
        for at in range(0, len(keys), SLICE):
            ItemMemory.objects.filter(type=task_type, key__in=keys[at : at + SLICE]).update(memory={})

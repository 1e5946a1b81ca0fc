"""For clients that bring their rows ahead of their report: begin, stage, report what was staged.

A staged row counts once by its key within the allocation. With the report its content moves to the receipt or a
segment; its key stays until it is pruned, so that an upload sent again is known again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Count, Max, Sum, TextField
from django.db.models.functions import Cast, Length
from django.utils import timezone

from dispatch import events, synclog
from dispatch.items import item_key
from dispatch.lifecycle.grants import accept
from dispatch.lifecycle.kept import frozen
from dispatch.lifecycle.leases import start
from dispatch.lifecycle.reports import report
from dispatch.models import Allocation, StagedRow
from dispatch.results import datasets, spool
from dispatch.states import LIVE, AllocationState
from nodes import executors, keys
from nodes.executors.base import Dataset
from nodes.keys import Caller
from nodes.messages import TEXT_LIMIT, Entry, ItemError
from nodes.protocol import INLINE_ROWS, SEGMENT_BYTES_LIMIT, CascadeError, Conflict, NotFound, TooLarge, Unprocessable
from nodes.transactions import write

INLINE_BYTES = 4 * 1024 * 1024
"""Beside INLINE_ROWS: rows with long texts go to a segment earlier."""
STAGED_LIMIT = 100_000
"""Rows of one allocation."""
STAGED_BYTES = 128 * 1024 * 1024
"""Their texts; a report is unpacked as a whole where it is saved."""
BATCH_ROWS = 1000
_TRIES = 5


class Row(NamedTuple):
    """``item``: the key of the item it belongs to; ``key``: what it counts once by; ``cells`` in dataset order."""

    item: str
    key: str
    cells: list[Any]


class _Plan(NamedTuple):
    """What a report of the rows staged with ids up to ``last`` would say."""

    entry: Entry
    last: int


def begin(caller: Caller, allocation_id: int) -> None:
    """The child works on it from now on. Raises NotFound, and Conflict for a lost lease; repeating changes nothing."""
    now = timezone.now()
    with write():
        node = keys.check_live(caller)
        found = _mine(caller, allocation_id)
        if found.state == AllocationState.COMPLETED:
            return
        _check_live(found)
        if not found.delivered:
            accept(caller, [found.pk])
        start(node, [found.pk], now)
    events.changed(allocate=False)


def stage(caller: Caller, allocation_id: int, rows: Sequence[Row]) -> int:
    """Keeps ``rows`` until the report; returns how many were not here before.

    Raises NotFound, Conflict for a lost lease and TooLarge. After the report only what was staged before is taken.
    """
    with write():
        keys.check_live(caller)
        found = _mine(caller, allocation_id)
        datasets.check_rows(executors.get(found.type).dataset, [row.cells for row in rows])
        fresh = _fresh(found, rows)
        if not fresh and found.state == AllocationState.COMPLETED:
            return 0
        _check_live(found)
        _check_room(found, fresh)
        StagedRow.objects.bulk_create(
            [StagedRow(allocation=found, item=row.item, key=row.key, row=row.cells) for row in fresh],
            batch_size=BATCH_ROWS,
        )
    synclog.note(caller.node_id, "upload", synclog.PUSH, count=len(fresh))
    return len(fresh)


def report_staged(caller: Caller, allocation_id: int, failed: Mapping[str, str]) -> dict[str, Any]:
    """The allocation is finished: its staged rows are its result. ``failed``: keys of items, and why.

    A row of an item that failed, or is not in the shard, goes with the first item that is done. Returns the receipt's
    ``digest``, and whether it ``repeated``. Raises NotFound, Conflict for a lost lease, Unprocessable for a report that
    contradicts an earlier one.
    """
    for _ in range(_TRIES):
        # Outside of the transaction that accepts it: to write a segment takes its time.
        plan = _plan(_mine(caller, allocation_id, lock=False), failed)
        with write():
            staged = StagedRow.objects.filter(allocation=allocation_id)
            if (
                _mine(caller, allocation_id).state in LIVE
                and (staged.aggregate(last=Max("pk"))["last"] or 0) != plan.last
            ):
                continue  # an upload came in between
            result = report(caller, [plan.entry])["results"][0]
            if result["status"] == 200:
                staged.update(row=[])
        if result["status"] == 200:
            # ``report`` woke them before this transaction was committed.
            events.changed()
            events.reported()
        return _receipt(result)
    raise Conflict(f"rows of allocation {allocation_id} keep coming in; report it when all are uploaded")


def report_failure(caller: Caller, allocation_id: int, message: str) -> dict[str, Any]:
    """Nothing of it was done; its items are tried again while they may. Returns and raises as ``report_staged``."""
    message = message[:TEXT_LIMIT] or "the node reported a failure"
    digest = _digest(["error", message])
    return _receipt(
        report(caller, [Entry(allocation_id, failure="error", message=message, digest=digest)])["results"][0]
    )


def _mine(caller: Caller, allocation_id: int, *, lock: bool = True) -> Allocation:
    found = Allocation.objects.filter(pk=allocation_id, node_id=caller.node_id)
    if lock:
        found = found.select_for_update()
    allocation = found.first()
    if allocation is None:
        raise NotFound(f"this node has no allocation {allocation_id}")
    return allocation


def _check_live(found: Allocation) -> None:
    if found.state not in LIVE:
        raise Conflict(f"allocation {found.pk} is {found.state}: its lease was lost, or it has been reported")


def _plan(found: Allocation, failed: Mapping[str, str]) -> _Plan:
    """The report of what is staged of ``found``."""
    names = [item_key(item) for item in frozen(found.run_id).slice(found.start, found.stop)]
    errors = tuple(
        ItemError(found.start + at, failed[name][:TEXT_LIMIT], True) for at, name in enumerate(names) if name in failed
    )
    last = StagedRow.objects.filter(allocation=found).aggregate(last=Max("pk"))["last"] or 0
    staged = StagedRow.objects.filter(allocation=found, pk__lte=last)
    spans = _spans(found.start, found.stop, [error.index for error in errors])
    span_of = {names[at - found.start]: number for number, span in enumerate(spans) for at in range(*span)}
    counts: Counter[int] = Counter()
    if spans:
        for item in staged.order_by().values_list("item", flat=True):
            counts[span_of.get(item, 0)] += 1
    ranges = tuple((first, stop, counts[number]) for number, (first, stop) in enumerate(spans))
    began = found.started_at or found.delivered_at or found.granted_at
    entry = Entry(
        found.pk,
        ranges,
        errors,
        inline=[],
        seconds=max((timezone.now() - began).total_seconds(), 0.0),
        # Not the rows: they are gone when the same report comes a second time.
        digest=_digest([[error.index, error.message] for error in errors]),
    )
    if found.state in LIVE and entry.rows:
        entry = _with_rows(entry, _rows(found, last, span_of, len(spans)), executors.get(found.type).dataset)
    return _Plan(entry, last)


def _with_rows(entry: Entry, rows: Iterator[list[Any]], dataset: Dataset) -> Entry:
    """``entry`` with its rows: inline while they are few and small, else as a segment in the spool."""
    first: list[list[Any]] = []
    size = 0
    for row in rows:
        first.append(row)
        size += sum(len(cell) for cell in row if isinstance(cell, str))
        if len(first) > INLINE_ROWS or size > INLINE_BYTES:
            content = _segment(itertools.chain(first, rows), dataset)
            segment = spool.receive([content], settings.CASCADE.spool, limit=SEGMENT_BYTES_LIMIT)
            return replace(entry, inline=None, segment=segment.sha256)
    return replace(entry, inline=first)


def _segment(rows: Iterator[list[Any]], dataset: Dataset) -> bytes:
    """``rows`` as an Arrow IPC file; only a batch of them is unpacked at a time."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, datasets.schema(dataset), options=options) as writer:
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            writer.write_table(datasets.from_rows(dataset, batch))
    return bytes(sink.getvalue())


def _rows(found: Allocation, last: int, span_of: Mapping[str, int], spans: int) -> Iterator[list[Any]]:
    """What is staged up to ``last``, in the order of the spans that the rows go to."""
    staged = StagedRow.objects.filter(allocation=found, pk__lte=last)
    for number in range(spans):
        ids = [pk for pk, item in staged.values_list("pk", "item") if span_of.get(item, 0) == number]
        for at in range(0, len(ids), BATCH_ROWS):
            some = staged.filter(pk__in=ids[at : at + BATCH_ROWS])
            yield from some.values_list("row", flat=True)


def _spans(start: int, stop: int, gaps: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop) without the single indexes ``gaps``, which are in order."""
    edges = [start - 1, *gaps, stop]
    return [(left + 1, right) for left, right in itertools.pairwise(edges) if left + 1 < right]


def _fresh(found: Allocation, rows: Sequence[Row]) -> list[Row]:
    """Those of ``rows`` whose keys are not staged yet; the first one of each key."""
    by_key: dict[str, Row] = {}
    for row in rows:
        by_key.setdefault(row.key, row)
    every = list(by_key)
    for at in range(0, len(every), BATCH_ROWS):
        staged = StagedRow.objects.filter(allocation=found, key__in=every[at : at + BATCH_ROWS])
        for key in staged.values_list("key", flat=True):
            del by_key[key]
    return list(by_key.values())


def _check_room(found: Allocation, fresh: Sequence[Row]) -> None:
    """Raises TooLarge where ``fresh`` would bring an allocation above what one report can carry."""
    staged = StagedRow.objects.filter(allocation=found)
    seen = staged.aggregate(count=Count("pk"), size=Sum(Length(Cast("row", TextField()))))
    if seen["count"] + len(fresh) > STAGED_LIMIT:
        raise TooLarge(f"allocation {found.pk} would have more than {STAGED_LIMIT} rows")
    size = sum(len(cell) for row in fresh for cell in row.cells if isinstance(cell, str))
    if (seen["size"] or 0) + size > STAGED_BYTES:
        raise TooLarge(f"allocation {found.pk} would have more than {STAGED_BYTES} bytes of rows")


def _receipt(result: Mapping[str, Any]) -> dict[str, Any]:
    """What ``report`` answered to one entry, or the error it stands for."""
    if result["status"] == 200:
        return {"digest": result["receipt"], "repeated": result.get("repeated", False)}
    raise _ERRORS.get(result["status"], Conflict)(result["detail"])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


_ERRORS: Mapping[int, type[CascadeError]] = {404: NotFound, 422: Unprocessable}

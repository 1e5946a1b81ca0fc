"""The saver: takes receipts whose rows wait, writes them to the result store in batches, and tells lifecycle.

At start it finds by itself what a crash left behind: receipts not marked as saved, minus what the ledger has; and what
was saved since the last checkpoint and is in the ledger no more, because the store's write-ahead log was torn.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading
import time
import zlib
from collections.abc import Container, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import close_old_connections, connection
from django.db.models import Max, Q, QuerySet

from dispatch import backups, events, leading, lifecycle, metrics
from dispatch.models import Allocation, Receipt
from dispatch.results import datasets, decoding, opening, room, spool
from dispatch.results.base import Part, Store, StoreBusy
from dispatch.states import LIVE
from nodes import executors, failpoints
from nodes.protocol import CascadeError, Conflict, TooLarge, Unprocessable

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

BATCH_ENTRIES = 4000
"""Shards in one transaction of the result store at most; a commit there costs milliseconds whatever its size."""
BATCH_ROWS = 2_000_000
AT_ONCE = 32 * 1024 * 1024
"""Bytes of one segment's rows that are taken into memory as a whole; a larger segment is passed on in pieces."""
BATCH_BYTES = 128 * 1024 * 1024
"""Of rows in memory, and of inline rows as they are stored, in one transaction of the store."""
STREAM_ROWS = 65_536
CHECKPOINT_SECONDS = 20.0
IDLE_SECONDS = 1.0
GATHER_SECONDS = 0.2
"""From one batch's start to the next one's while more results are on their way: a commit costs the same for one shard
as for thousands. The last results of all are not kept waiting."""
SWEEP_SECONDS = 3600.0
"""An uploaded segment that no report named for so long is removed."""

_store: Store | None = None


def results() -> Store:
    """The result store, for reading. Raises Conflict where it is a file that this process does not own."""
    if _store is None and settings.CASCADE.in_lake:
        return opening.for_reading()
    if _store is None:
        raise Conflict("this process does not hold the result store; ask the one that runs `manage.py runserver`")
    return _store


def is_open() -> bool:
    """Whether this process has the result store."""
    return _store is not None


class Saver:
    """Owns the result store; runs in a thread of the parent's process."""

    def __init__(self) -> None:
        self.store = opening.make_store()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="saver", daemon=True)
        self._checkpointed = time.monotonic()
        self._swept = time.monotonic()
        self._dirty = False
        self._doubtful: int | None = None
        self._blocked: set[str] = set()
        self._replayed = False

    def start(self) -> None:
        """Raises StoreBusy when another process owns the store."""
        global _store
        self.store.open()
        _store = self.store
        self._thread.start()

    def stop(self) -> None:
        """Saves what waits, then closes the store."""
        global _store
        self._stopping.set()
        events.saver.set()
        self._thread.join(timeout=30)
        _store = None
        self.store.close()

    def run(self) -> None:
        events.saver.set()
        while not self._stopping.is_set():
            events.saver.wait(IDLE_SECONDS)
            events.saver.clear()
            metrics.turns["saver"] = time.monotonic()
            if not leading.held():
                continue
            try:
                began = time.monotonic()
                while leading.held() and self.once():
                    if room.short():
                        self._tidy()
                    backups.answer(self.store)
                    self._gather(began + GATHER_SECONDS)
                    began = time.monotonic()
                self._tidy()
            except Exception:
                logger.exception("saving failed; the rows stay in the spool and are tried again")
                self._doubtful = None
                close_old_connections()
                self._stopping.wait(IDLE_SECONDS)
        try:
            if self._dirty:
                self._settle()  # so that the next start finds nothing in doubt
        except Exception:
            logger.exception("the last checkpoint failed; the spool is kept")
        connection.close()

    def _gather(self, until: float) -> None:
        """Lets results come together, until then or until nothing is under way."""
        while (left := until - time.monotonic()) > 0 and Allocation.objects.filter(state__in=LIVE).exists():
            events.saver.wait(left)
            events.saver.clear()
            if self._stopping.is_set():
                return

    def once(self) -> bool:
        """Saves one batch; False when nothing waited."""
        began = metrics.turns["saver"] = time.monotonic()
        if not self._replayed:
            self._replay()
            self._replayed = True
        batch = self._next_batch()
        recorded = self._recorded(batch)
        whole: list[Receipt] = []
        parts: list[Part] = []
        size = 0
        for receipt in batch:
            entries = _unsaved(receipt, recorded)
            if not entries:
                whole.append(receipt)  # a crash came between the two commits
                continue
            if not self._readable(receipt) or not self._has_table(receipt):
                continue
            try:
                part = _part(receipt, entries)
            except decoding.NoDecoder:
                raise
            except CascadeError as error:
                # Accepted by another version of the dataset than the one that runs now.
                logger.error("receipt %s cannot be read any more: %s", receipt.pk, error)
                _again(receipt, f"the result does not fit its table any more: {error}")
                continue
            whole.append(receipt)
            parts.append(part)
            size += getattr(part.table, "nbytes", AT_ONCE)
            if size >= BATCH_BYTES:
                break
        if not whole:
            return False
        self.store.append(parts)
        self._dirty = True
        if passed_on := [receipt for receipt in whole if receipt.keep]:
            lifecycle.copied(passed_on)
        lifecycle.saved([receipt for receipt in whole if not receipt.keep])
        metrics.batches.observe(time.monotonic() - began)
        failpoints.reach("saver.told")
        events.advise()
        return True

    def _replay(self) -> None:
        """Saves again what was saved after the last checkpoint and is gone: a write-ahead log of the store that was cut
        short opens without an error. Its receipts say that they are saved, so nobody else would look for them.
        """
        last = 0
        while batch := self._batch(self._settled().filter(pk__gt=last)):
            last = batch[-1].pk
            self._dirty = True
            recorded = self._in_ledger(batch)
            for receipt in batch:
                if not (entries := _unsaved(receipt, recorded)):
                    continue
                if receipt.segment and not spool.verify(settings.CASCADE.spool, receipt.segment):
                    logger.error(
                        "receipt %s: the result store has lost its rows, segment %s is damaged: they are made again",
                        *(receipt.pk, receipt.segment),
                    )
                    spool.quarantine(settings.CASCADE.spool, receipt.segment)
                    if receipt.keep:
                        lifecycle.not_copied(receipt)
                    else:
                        lifecycle.lost(receipt, entries, "its rows were lost on disk, in the store and in the spool")
                    continue
                logger.error("the result store has lost the rows of receipt %s: saved again from the spool", receipt.pk)
                self.store.append([_part(receipt, entries)])

    def _settled(self) -> QuerySet[Receipt]:
        """Saved here since the last checkpoint."""
        unpurged = Receipt.objects.filter(saved_at__isnull=False, purged_at=None)
        return unpurged.filter(Q(origin=None, keep=False) | Q(keep=True, kept_at__isnull=False))

    def _next_batch(self) -> list[Receipt]:
        own = Receipt.objects.filter(saved_at=None, origin=None)
        passed_on = Receipt.objects.filter(keep=True, kept_at=None, saved_at__isnull=False, purged_at=None)
        return self._batch(own.exclude(type__in=self._blocked)) or self._batch(
            passed_on.exclude(type__in=self._blocked)
        )

    def _batch(self, waiting: QuerySet[Receipt]) -> list[Receipt]:
        """The oldest of them, as many as one transaction of the store may have."""
        batch: list[Receipt] = []
        entries = rows = size = 0
        for receipt in waiting.order_by("pk").iterator(chunk_size=20):
            batch.append(receipt)
            entries += len(receipt.manifest)
            rows += receipt.rows
            size += len(receipt.payload or b"")
            if entries >= BATCH_ENTRIES or rows >= BATCH_ROWS or size >= BATCH_BYTES:
                break
        return batch

    def _has_table(self, receipt: Receipt) -> bool:
        """False, until the next checkpoint, for a type whose table cannot be: the others are saved meanwhile."""
        if receipt.type in self._blocked:
            return False
        try:
            self.store.ensure(executors.get(receipt.type).dataset)
        except StoreBusy:
            raise
        except CascadeError as error:
            logger.error("results of %s wait in the spool: %s", receipt.type, error)
            self._blocked.add(receipt.type)
            return False
        return True

    def _recorded(self, receipts: Sequence[Receipt]) -> Container[tuple[int, int, int]]:
        """Ranges that the ledger has already.

        Asked only for receipts that were there when this process started or when a save failed half-way: later ones
        cannot be in the ledger, and should they be, its primary key refuses the whole batch, which brings us here.
        """
        if self._doubtful is None:
            self._doubtful = Receipt.objects.aggregate(newest=Max("pk"))["newest"] or 0
        return self._in_ledger([receipt for receipt in receipts if receipt.pk <= self._doubtful])

    def _in_ledger(self, receipts: Sequence[Receipt]) -> Container[tuple[int, int, int]]:
        return self.store.recorded(
            [
                (entry["run"], first, last)
                for receipt in receipts
                for entry in receipt.manifest
                for first, last, _, _ in entry["ranges"]
            ]
        )

    def _readable(self, receipt: Receipt) -> bool:
        """A flipped bit or a torn file is found by the hash; its items are then done again."""
        if not receipt.segment or spool.verify(settings.CASCADE.spool, receipt.segment):
            return True
        logger.error("segment %s is damaged", receipt.segment)
        spool.quarantine(settings.CASCADE.spool, receipt.segment)
        # Every receipt that names this segment is caught here when its turn comes.
        _again(receipt, "the spooled result was damaged on disk")
        return False

    def _tidy(self) -> None:
        """The spool is kept until a checkpoint: a torn write-ahead log of DuckDB opens without an error, but short."""
        now = time.monotonic()
        if now - self._checkpointed > CHECKPOINT_SECONDS:
            self._blocked.clear()
        if self._dirty and (now - self._checkpointed > CHECKPOINT_SECONDS or room.short()):
            self._checkpointed = now
            self._settle()
        if now - self._swept > SWEEP_SECONDS:
            self._swept = now
            keep = set(Receipt.objects.exclude(segment="").filter(purged_at=None).values_list("segment", flat=True))
            spool.sweep(settings.CASCADE.spool, keep, SWEEP_SECONDS)
        self.store.maintain()
        backups.answer(self.store)

    def _settle(self) -> None:
        """A checkpoint, after which the spool is not needed any more for what was saved before it."""
        settled = list(self._settled().values_list("pk", "segment"))
        self.store.checkpoint()
        self._dirty = False
        room.purge(settled)


def _again(receipt: Receipt, detail: str) -> None:
    """The rows of ``receipt`` cannot be saved: its items are run again, but for those whose rows the node above has."""
    if receipt.keep:
        lifecycle.not_copied(receipt)
    else:
        lifecycle.damaged(receipt, detail)


def _unsaved(receipt: Receipt, recorded: Container[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """The entries that the ledger does not have; one entry's ranges are saved together or not at all."""
    return [
        entry
        for entry in receipt.manifest
        if entry["ranges"] and (entry["run"], *entry["ranges"][0][:2]) not in recorded
    ]


def _part(receipt: Receipt, entries: Sequence[dict[str, Any]]) -> Part:
    """The rows of these entries of a receipt, with their lineage and what the ledger shall say."""
    dataset = executors.get(receipt.type).dataset
    table: pa.Table | pa.RecordBatchReader
    if receipt.segment:
        path = spool.path(settings.CASCADE.spool, receipt.segment)
        try:
            whole = datasets.decode(path, dataset, max_bytes=AT_ONCE)
        except TooLarge:
            _check_length(decoding.rows(path, dataset), entries)
            table = _streamed(datasets.batches(path, dataset), entries, receipt.created_at)
        else:
            _check_length(whole.num_rows, entries)
            table = _with_lineage(whole, entries, receipt.created_at)
    else:
        inline = json.loads(zlib.decompress(bytes(receipt.payload))) if receipt.payload else []
        table = _with_lineage(datasets.from_rows(dataset, inline), entries, receipt.created_at)
    return Part(
        dataset=dataset,
        table=table,
        entries=[
            (entry["run"], first, last, entry["allocation"], entry["digest"], rows)
            for entry in entries
            for first, last, rows, _ in entry["ranges"]
        ],
    )


def _rows_of(entry: dict[str, Any]) -> int:
    return sum(rows for _, _, rows, _ in entry["ranges"])


def _check_length(length: int, entries: Sequence[dict[str, Any]]) -> None:
    if any(entry["offset"] + _rows_of(entry) > length for entry in entries):
        raise Unprocessable(f"the segment has {length} rows, fewer than were reported")


def _with_lineage(
    table: pa.Table, entries: Sequence[dict[str, Any]], received: dt.datetime, begin: int = 0
) -> pa.Table:
    """Those rows of ``entries`` that are in ``table``, each beside the run, shard, allocation and node it came from.

    ``begin``: the number of the table's first row in its segment.
    """
    import pyarrow as pa

    end = begin + table.num_rows
    wanted = []
    nodes: list[tuple[str, int]] = []
    for entry in entries:
        first = max(entry["offset"], begin)
        last = min(entry["offset"] + _rows_of(entry), end)
        if first < last:
            wanted.append((entry, first - begin, last - first))
            nodes += _nodes_of(entry, first - entry["offset"], last - entry["offset"])
    rows = pa.concat_tables([table.slice(first, count) for _, first, count in wanted]) if wanted else table.slice(0, 0)

    def repeated(name: str) -> pa.Array:
        values = [pa.repeat(pa.scalar(entry[name], pa.int64()), count) for entry, _, count in wanted]
        return pa.chunked_array(values, pa.int64())

    return datasets.with_lineage(
        rows,
        run=repeated("run"),
        start=repeated("start"),
        allocation=repeated("allocation"),
        node=pa.chunked_array([pa.repeat(pa.scalar(name), count) for name, count in nodes], pa.string()),
        saved_at=received,
    )


def _nodes_of(entry: dict[str, Any], first: int, last: int) -> Iterator[tuple[str, int]]:
    """Who brought the rows from ``first`` to ``last`` of an entry, in order: (path, how many)."""
    if not entry.get("nodes"):
        yield entry["node"], last - first
        return
    at = 0
    for (_, _, rows, _), number in zip(entry["ranges"], entry["by"], strict=True):
        if (count := min(at + rows, last) - max(at, first)) > 0:
            yield entry["nodes"][number], count
        at += rows


def _streamed(
    batches: Iterator[pa.RecordBatch], entries: Sequence[dict[str, Any]], received: dt.datetime
) -> pa.RecordBatchReader:
    """As ``_with_lineage``, for a segment of which only some rows are in memory at a time."""
    import pyarrow as pa

    def each(first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        begin = 0
        for batch in chain([first], batches):
            for at in range(0, batch.num_rows, STREAM_ROWS):
                piece = pa.Table.from_batches([batch.slice(at, STREAM_ROWS)])
                yield from _with_lineage(piece, entries, received, begin + at).to_batches()
            begin += batch.num_rows

    first = next(batches)
    empty = _with_lineage(pa.Table.from_batches([first.slice(0, 0)]), entries, received)
    return pa.RecordBatchReader.from_batches(empty.schema, each(first))

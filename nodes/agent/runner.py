"""What a worker process does with a bundle of shards: run each item, keep each item's fate, encode the rows.

A bundle is several very short shards of one type in one trip to a worker; a longer shard travels alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from nodes import drive, executors, failpoints
from nodes.agent import capture
from nodes.executors.base import FOUND_LIMIT, MEMORY_LIMIT, Dataset, ItemFailed, Outcome, Rows
from nodes.executors.rows import encode, inline, to_table
from nodes.protocol import INLINE_ROWS, SEGMENT_BYTES_LIMIT

MESSAGE_LIMIT = 2_000
STATUS_LIMIT = 200
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROGRESS_SECONDS = 0.5
INLINE_CHARACTERS = 60_000

Shard = dict[str, Any]
"""allocation, type, params, start, items; where it has them: run, memory (by item_key) and input (a file)."""


class Dropped(BaseException):
    """Nobody wants the bundle any more: it ends between two items. Not an Exception, which would be an item's fate."""


class NoRoom(OSError):
    """This node's disk has no room for what a bundle brought: no fault of its items."""


class Orders:
    """What a bundle hears while it runs, and what it tells; here nobody is at the other end."""

    wanted = True

    def stop_of(self, allocation: int) -> float:
        """Item before which this allocation shall stop; infinity where nobody has said so."""
        return math.inf

    def tell(self, allocation: int, done: int) -> None:
        """So many items of it are done."""

    def listen(self, allocation: int, log: capture.Tail) -> None:
        """It begins, and what it prints is in ``log``."""


NOBODY = Orders()


def run(bundle: list[Shard], outbox: str) -> list[dict[str, Any]]:
    """Entries (see ``nodes.protocol``) for the shards of ``bundle``, in order: works, then keeps."""
    return keep(bundle, work(bundle), outbox)


def work(bundle: list[Shard], orders: Orders = NOBODY) -> list[Result]:
    """What the shards of ``bundle`` bring. Raises Dropped, at the next item, when they are not ``wanted`` any more.

    An item's failure costs that item; only what the executor cannot even begin costs its shard.
    """
    failpoints.reach("worker.taken")
    return [_run_shard(shard, orders) for shard in bundle]


def keep(bundle: list[Shard], results: list[Result], outbox: str) -> list[dict[str, Any]]:
    """Their entries; larger rows go to one segment file. A shard that names a file for its ``result`` was handed to
    this node directly: its rows stay in that file.
    """
    failpoints.reach("worker.worked")
    for shard, result in zip(bundle, results, strict=True):
        if "result" in shard:
            _leave(shard, result)
    large = [result for result in results if result.rows and not result.inline]
    if large:
        _write_segment(large, Path(outbox))
    return [result.entry for result in results]


class Result:
    """One shard's entry, and its rows until they are placed: per item a list for JSON or an Arrow table."""

    def __init__(self, shard: Shard) -> None:
        self.dataset: Dataset | None = None
        self.entry: dict[str, Any] = {"allocation": shard["allocation"]}
        self.rows: list[Any] = []
        self.inline = True
        self._count = self._characters = 0

    def keep(self, produced: Rows) -> int:
        """Checks what one item brought and keeps it; how many rows. Raises ItemFailed for rows that do not fit."""
        assert self.dataset is not None
        rows = inline(self.dataset, produced, INLINE_ROWS - self._count) if self.inline else None
        if rows is None:
            rows = to_table(self.dataset, produced)
            self.inline = False
        else:
            self._characters += sum(len(value) for row in rows for value in row if isinstance(value, str))
            self.inline = self._characters <= INLINE_CHARACTERS
        count = len(rows)
        if count:
            self.rows.append(rows)
            self._count += count
        return count


def _run_shard(shard: Shard, orders: Orders) -> Result:
    result = Result(shard)
    began = time.monotonic()
    with capture.log() as log:
        orders.listen(shard["allocation"], log)
        try:
            _run_items(shard, result, orders)
        except (Exception, SystemExit) as error:
            log.write(traceback.format_exc())
            result.rows = []
            result.entry = {
                "allocation": shard["allocation"],
                "failure": {"kind": "error", "message": describe(error)},
            }
    result.entry["seconds"] = time.monotonic() - began
    if text := log.text():
        result.entry["log"] = text
        if log.start:
            result.entry["log_start"] = log.start
    log.forget()
    return result


def _run_items(shard: Shard, result: Result, orders: Orders) -> None:
    executor_class = executors.get(shard["type"])
    result.dataset = executor_class.dataset
    executor = executor_class(shard["params"])
    executor.memory = shard.get("memory") or {}
    executor.input = shard.get("input") or ""
    executor.run_id = shard.get("run", 0)
    ranges: list[list[int]] = []
    errors: list[list[Any]] = []
    outcomes: list[list[Any]] = []
    told = time.monotonic()
    for index, item in enumerate(shard["items"], shard["start"]):
        if not orders.wanted:
            raise Dropped
        if index > shard["start"] and index >= orders.stop_of(shard["allocation"]):
            result.entry["stopped"] = index
            break
        try:
            produced = executor.run(item)
            rows, more = _taken(produced) if isinstance(produced, Outcome) else (produced, None)
            count = result.keep(rows)
        except ItemFailed as error:
            errors.append([index, str(error)[:MESSAGE_LIMIT], error.retry])
            continue
        except (Exception, SystemExit) as error:
            traceback.print_exc(file=sys.stderr)
            errors.append([index, describe(error), True])
            continue
        if more:
            outcomes.append([index, more])
        if ranges and ranges[-1][1] == index:
            ranges[-1][1:] = [index + 1, ranges[-1][2] + count]
        else:
            ranges.append([index, index + 1, count])
        if (now := time.monotonic()) - told > PROGRESS_SECONDS:
            told = now
            orders.tell(shard["allocation"], index + 1 - shard["start"])
    result.entry["ranges"] = ranges
    result.entry["errors"] = errors
    if outcomes:
        result.entry["outcomes"] = outcomes
    if result.inline and result.rows:
        result.entry["rows"] = [row for rows in result.rows for row in rows]


def _taken(outcome: Outcome) -> tuple[Rows, dict[str, Any]]:
    """Its rows, and the rest as it travels. Raises ItemFailed for what could not."""
    more: dict[str, Any] = {}
    if outcome.found:
        if len(outcome.found) > FOUND_LIMIT:
            raise ItemFailed(f"found {len(outcome.found)} items; at most {FOUND_LIMIT} are allowed")
        more["found"] = list(outcome.found)
    if outcome.memory is not None:
        more["memory"] = dict(outcome.memory)
        size = len(json.dumps(more["memory"], allow_nan=False))
        if size > MEMORY_LIMIT:
            raise ItemFailed(f"would remember {size} characters; at most {MEMORY_LIMIT} are allowed")
    if outcome.status:
        more["status"] = outcome.status[:STATUS_LIMIT]
    if outcome.counts:
        more["counts"] = dict(outcome.counts)
    return outcome.rows, more


def describe(error: BaseException) -> str:
    """As messages show it."""
    return f"{type(error).__name__}: {error}"[:MESSAGE_LIMIT]


def _leave(shard: Shard, result: Result) -> None:
    """The rows of ``result`` into the file that ``shard`` names, as its status will show them."""
    result.entry.pop("rows", None)
    if "failure" not in result.entry:
        dataset, kept = result.dataset, result.rows
        assert dataset is not None
        pieces = (inline(dataset, rows, sys.maxsize) or [] for rows in kept)
        problem = drive.write_result(
            Path(shard["result"]), shard["type"], shard["params"], shard["items"], result.entry, pieces
        )
        if problem:
            result.entry = {
                "allocation": shard["allocation"],
                "failure": {"kind": "error", "message": problem},
                "seconds": result.entry["seconds"],
            }
    result.rows = []


def _write_segment(results: list[Result], outbox: Path) -> None:
    """The rows of ``results`` as one Arrow IPC file in the outbox, named by its hash; each entry learns its offset."""
    import pyarrow as pa

    tables = []
    offset = 0
    for result in results:
        assert result.dataset is not None
        result.entry["offset"] = offset
        for rows in result.rows:
            tables.append(to_table(result.dataset, rows))
            offset += tables[-1].num_rows
    content = encode(pa.concat_tables(tables))
    if len(content) > SEGMENT_BYTES_LIMIT:
        message = (
            f"the shard's rows take {len(content)} bytes; at most {SEGMENT_BYTES_LIMIT} travel: use smaller shards"
        )
        for result in results:
            result.entry = {"allocation": result.entry["allocation"], "failure": {"kind": "error", "message": message}}
        return
    sha256 = hashlib.sha256(content).hexdigest()
    # Two threads may have brought the same rows.
    temp = outbox / f"{sha256}-{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        temp.write_bytes(content)
        failpoints.reach("worker.written")
        os.replace(temp, outbox / f"{sha256}.arrow")
    except OSError as error:
        with suppress(OSError):
            temp.unlink()
        if error.errno in FULL:
            raise NoRoom(f"no room for results on this node's disk: {error.strerror}") from error
        raise
    failpoints.reach("worker.kept")
    for result in results:
        result.entry["segment"] = sha256

"""What a worker process does with a bundle of shards: run each item, keep each item's fate, encode the rows.

A bundle is several very short shards of one type in one trip to a worker; a longer shard travels alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nodes import drive, executors, surroundings
from nodes.executors.base import FOUND_LIMIT, MEMORY_LIMIT, Dataset, ItemFailed, Outcome, Rows
from nodes.executors.rows import encode, inline, to_table
from nodes.protocol import INLINE_ROWS, SEGMENT_BYTES_LIMIT

LOG_LIMIT = 16_000
"""Characters of a shard's log that are kept: its end, where a failure shows."""
MESSAGE_LIMIT = 2_000
STATUS_LIMIT = 200
PROGRESS_SECONDS = 0.5
NICER = 5
INLINE_CHARACTERS = 60_000

Shard = dict[str, Any]
"""allocation, type, params, start, items; where it has them: memory (by item_key) and input (a file)."""

ORDER_SECONDS = 0.01
"""An order that came while a shard runs is looked for so often."""

_tell: Callable[[tuple[int, int]], None] | None = None
_orders: Connection | None = None
_stops: dict[int, int] = {}
"""Allocation -> the item at which it shall stop."""
_looked = 0.0


def serve(pipe: Connection, outbox: str, around: dict[str, Any] | None = None) -> None:
    """A worker's life: bundles come, and (allocation, items done) and lists of entries go, until the pipe is closed.

    ``around``: its Surroundings.
    """
    surroundings.settle(surroundings.Surroundings(**around or {}))
    global _tell, _orders
    _tell = pipe.send
    _orders = pipe
    threading.Thread(target=_end_with_agent, daemon=True).start()
    # Ctrl-C at a terminal and a stop by the init system reach the whole group; what becomes of the shards is the
    # agent's decision, which kills when it means it. Not SIG_IGN: programs that an executor starts would inherit it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Beats and questions of how this node is must not wait behind the work they are about.
    os.nice(NICER)
    while True:
        try:
            bundle = pipe.recv()
        except EOFError:
            return
        if isinstance(bundle, tuple):
            continue  # an order for what has just ended
        _stops.clear()
        try:
            pipe.send(run(bundle, outbox))
        except Exception as error:  # a full disk, say; the agent reports it for the bundle
            pipe.send(RuntimeError(_describe(error)))


def _end_with_agent() -> None:
    """A worker whose agent was killed must not go on alone. (Its parent by process id is the fork server.)"""
    agent = multiprocessing.parent_process()
    assert agent is not None
    agent.join()
    os._exit(1)


class _Tail(io.TextIOBase):
    """Keeps the end of what is written."""

    def __init__(self) -> None:
        self._text = ""
        self._cut = False

    def write(self, text: str) -> int:
        self._text += text
        if len(self._text) > 2 * LOG_LIMIT:
            self._text = self._text[-LOG_LIMIT:]
            self._cut = True
        return len(text)

    def text(self) -> str:
        if len(self._text) > LOG_LIMIT or self._cut:
            return "[…]\n" + self._text[-LOG_LIMIT + 10 :]
        return self._text


def run(bundle: list[Shard], outbox: str) -> list[dict[str, Any]]:
    """Entries (see ``nodes.protocol``) for the shards of ``bundle``, in order. Larger rows go to one segment file.

    An item's failure costs that item; only what the executor cannot even begin costs its shard. A shard that names a
    file for its ``result`` was handed to this node directly: its rows stay in that file.
    """
    results: list[_Result] = [_run_shard(shard) for shard in bundle]
    for shard, result in zip(bundle, results, strict=True):
        if "result" in shard:
            _leave(shard, result)
    large = [result for result in results if result.rows and not result.inline]
    if large:
        _write_segment(large, Path(outbox))
    return [result.entry for result in results]


class _Result:
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


def _run_shard(shard: Shard) -> _Result:
    result = _Result(shard)
    log = _Tail()
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    root.addHandler(handler)
    began = time.monotonic()
    try:
        with redirect_stdout(log), redirect_stderr(log):
            _run_items(shard, result)
    except (Exception, SystemExit) as error:
        log.write(traceback.format_exc())
        result.rows = []
        result.entry = {
            "allocation": shard["allocation"],
            "failure": {"kind": "error", "message": _describe(error)},
        }
    finally:
        root.removeHandler(handler)
    result.entry["seconds"] = time.monotonic() - began
    if text := log.text():
        result.entry["log"] = text
    return result


def _run_items(shard: Shard, result: _Result) -> None:
    executor_class = executors.get(shard["type"])
    result.dataset = executor_class.dataset
    executor = executor_class(shard["params"])
    executor.memory = shard.get("memory") or {}
    executor.input = shard.get("input") or ""
    ranges: list[list[int]] = []
    errors: list[list[Any]] = []
    outcomes: list[list[Any]] = []
    told = time.monotonic()
    for index, item in enumerate(shard["items"], shard["start"]):
        if index > shard["start"] and index >= _stop_of(shard["allocation"]):
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
            errors.append([index, _describe(error), True])
            continue
        if more:
            outcomes.append([index, more])
        if ranges and ranges[-1][1] == index:
            ranges[-1][1:] = [index + 1, ranges[-1][2] + count]
        else:
            ranges.append([index, index + 1, count])
        if _tell is not None and (now := time.monotonic()) - told > PROGRESS_SECONDS:
            told = now
            _tell((shard["allocation"], index + 1 - shard["start"]))
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


def _stop_of(allocation: int) -> float:
    """Where this allocation shall stop; infinity where nobody has said so."""
    global _looked
    if _orders is not None and (now := time.monotonic()) - _looked > ORDER_SECONDS:
        _looked = now
        while _orders.poll():
            # While a bundle runs, the agent sends nothing but orders.
            about, stop = _orders.recv()
            _stops[about] = stop
    return _stops.get(allocation, math.inf)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MESSAGE_LIMIT]


def _leave(shard: Shard, result: _Result) -> None:
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


def _write_segment(results: list[_Result], outbox: Path) -> None:
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
    temp = outbox / f"{sha256}-{os.getpid()}.tmp"
    temp.write_bytes(content)
    os.replace(temp, outbox / f"{sha256}.arrow")
    for result in results:
        result.entry["segment"] = sha256

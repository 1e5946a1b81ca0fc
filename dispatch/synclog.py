"""The sync log: what passed between this parent and its nodes, one row for many alike within a second.

``note`` is called thousands of times a second by the verbs, so it only adds to sums in memory; ``flush`` writes them.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import DatabaseError, close_old_connections, connection

from dispatch.models import SyncLog
from nodes import journal
from nodes.models import Node
from nodes.transactions import insert_rows, moment, write

logger = logging.getLogger(__name__)

KEPT = 20_000
"""Sums that wait to be written; beyond it the newest are only counted. A second brings some per node."""
FLUSH_SECONDS = 1.0
ERROR_LENGTH = 500
COLUMNS = ("node_id", "operation", "direction", "status", "count", "error", "extra", "started_at", "ended_at")
PUSH, PULL = SyncLog.Direction.PUSH.value, SyncLog.Direction.PULL.value


@dataclass(slots=True)
class _Sum:
    began: float
    ended: float
    exchanges: int = 0
    count: int = 0
    error: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


_Key = tuple[int | None, str, str, bool]
"""node, operation, direction, failed"""

_lock = threading.Lock()
_sums: dict[_Key, _Sum] = {}
_dropped = 0
_flushed = 0.0


def note(
    node_id: int | None,
    operation: str,
    direction: str,
    *,
    count: int = 0,
    error: str = "",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """One exchange took place; ``error`` says why it came to nothing. Never waits, never fails.

    ``direction`` is pull where one side fetched (work, configuration), push where one brought (grants, reports).
    ``count`` is how many allocations, rows or entries it moved. Of many alike the first error and the last ``extra``
    (plain JSON) are kept.
    """
    global _dropped
    now = time.time()
    key = (node_id, operation, direction, bool(error))
    with _lock:
        found = _sums.get(key)
        if found is None:
            if len(_sums) >= KEPT:
                _dropped += 1
                return
            found = _sums[key] = _Sum(now, now, error=error[:ERROR_LENGTH])
        found.exchanges += 1
        found.count += count
        found.ended = now
        if extra:
            found.extra.update(extra)


def flush(*, now: bool = False) -> int:
    """Writes what was noted; how many rows. Does nothing within a second of the last time, unless ``now``.

    Raises DatabaseError; what could not be written waits for the next time.
    """
    global _sums, _dropped, _flushed
    if not now and time.monotonic() - _flushed < FLUSH_SECONDS:
        return 0
    _flushed = time.monotonic()
    with _lock:
        taken, _sums = _sums, {}
        dropped, _dropped = _dropped, 0
    if dropped:
        taken[None, "log", PUSH, True] = _Sum(
            time.time(), time.time(), dropped, dropped, f"{dropped} exchanges were not kept: too many at once"
        )
    if not taken:
        return 0
    try:
        with write():
            return _store(taken)
    except DatabaseError:
        _put_back(taken)
        raise


def clear() -> None:
    """Forgets what is not written yet."""
    global _dropped
    with _lock:
        _sums.clear()
        _dropped = 0


def _store(taken: Mapping[_Key, _Sum]) -> int:
    # A node may have been removed since; its log went with it.
    there = {None, *Node.objects.values_list("pk", flat=True)}
    rows = [
        (
            *(node, operation[:40], direction),
            SyncLog.Status.FAILED.value if failed else SyncLog.Status.OK.value,
            min(each.count, 2**31 - 1),
            each.error.replace("\x00", "\ufffd"),
            json.dumps({**each.extra, "exchanges": each.exchanges}),
            *(moment(_at(each.began)), moment(_at(each.ended))),
        )
        for (node, operation, direction, failed), each in sorted(taken.items(), key=lambda pair: pair[1].began)
        if node in there
    ]
    insert_rows(SyncLog, COLUMNS, rows)
    return len(rows)


def _put_back(taken: dict[_Key, _Sum]) -> None:
    """The sums of before and of since, together."""
    with _lock:
        for key, earlier in taken.items():
            later = _sums.get(key)
            if later is not None:
                later.began = earlier.began
                later.exchanges += earlier.exchanges
                later.count += earlier.count
                later.error = earlier.error or later.error
                later.extra = {**earlier.extra, **later.extra}
            elif len(_sums) < KEPT:
                _sums[key] = earlier


def _at(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


class Writer:
    """A loop for processes without a dispatcher, which writes the log with its passes."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="sync log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)

    def run(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()
        connection.close()

    def _flush(self) -> None:
        try:
            flush(now=True)
            journal.flush(now=True)
        except Exception as error:
            # Told once a second, for as long as the database is away, it would drown the log.
            logger.debug("the sync log could not be written: %s", error)
            close_old_connections()

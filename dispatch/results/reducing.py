"""What is computed of a run's rows when it has ended: its executor's ``reductions``, in SQL, kept with the run.

A thread of the process that owns the result store. What a crash kept from being computed is found at the next start.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import threading
from typing import Any

from django.db import InterfaceError, OperationalError, close_old_connections, connection

from dispatch import events, leading
from dispatch.models import Run
from dispatch.results.saver import results
from dispatch.results.store import StoreBusy
from dispatch.states import RUN_ENDED
from nodes import executors
from nodes.protocol import CascadeError
from nodes.transactions import write

logger = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
MOST_RUNS = 100
MOST_ROWS = 1000
"""Rows that one reduction may have: it is kept in the run's own row."""


class Reducer:
    """The loop."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="reducer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        events.reducer.set()
        self._thread.join(timeout=30)

    def run(self) -> None:
        events.reducer.set()
        while not self._stopping.is_set():
            events.reducer.wait(LOOK_SECONDS)
            events.reducer.clear()
            if not leading.held():
                continue
            try:
                reduce_ended()
            except Exception:
                logger.exception("reductions failed; they are tried again")
                close_old_connections()
                self._stopping.wait(1)
        connection.close()


def reduce_ended() -> int:
    """Computes what is still to be computed of runs that have ended; of how many. {} for types that reduce nothing."""
    waiting = Run.objects.filter(state__in=RUN_ENDED, reduction__isnull=True)
    count = 0
    # The types that there are, and not all: their code need not be loaded.
    for task_type in list(waiting.order_by().values_list("type", flat=True).distinct()):
        if task_type not in executors.EXECUTORS or not executors.get(task_type).reductions:
            with write():
                waiting.filter(type=task_type).update(reduction={})
    # Of a run that came from above the node above has all rows.
    if waiting.filter(origin__isnull=False).exists():
        with write():
            waiting.filter(origin__isnull=False).update(reduction={})
    for pk, task_type in waiting.order_by("pk").values_list("pk", "type")[:MOST_RUNS]:
        try:
            found = reduction(pk, task_type)
            with write():
                # Not on a run that was opened again meanwhile: it will end again.
                count += Run.objects.filter(pk=pk, state__in=RUN_ENDED, reduction__isnull=True).update(reduction=found)
        except StoreBusy:
            return count  # this process is about to stop
        except (OperationalError, InterfaceError):
            raise  # the connection is at fault, not this run
        except Exception:
            # It must not keep the others waiting.
            logger.exception("run %s could not be reduced; it is tried again", pk)
    if count:
        events.changed(allocate=False)
    return count


def reduction(run_id: int, task_type: str) -> dict[str, Any]:
    """Name -> rows as objects; where one cannot be computed, {"error": why}."""
    executor = executors.get(task_type)
    texts = {column.name for column in executor.dataset.columns if column.type == "json"}
    found: dict[str, Any] = {}
    for name, sql in executor.reductions.items():
        try:
            rows = results().reduce(executor.dataset, sql, run_id, MOST_ROWS)
            found[name] = [
                {key: _plain(_decoded(value) if value and key in texts else value) for key, value in row.items()}
                for row in rows
            ]
        except StoreBusy:
            raise
        except CascadeError as error:
            logger.error("%s of run %s cannot be computed: %s", name, run_id, error)
            found[name] = {"error": str(error)[:500]}
    return found


def _decoded(value: Any) -> Any:
    """JSON of a json column. A node can have saved any text in it, which then stays one."""
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, int | bool):
        return value
    # PostgreSQL's JSON has neither NUL nor half a surrogate pair.
    return str(value).encode(errors="replace").decode().replace("\x00", "\ufffd")

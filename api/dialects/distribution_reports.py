"""What devices of the ``distribution`` dialect say of their tasks: running, completed with rows, failed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from api.dialects.common import body_of, need
from api.dialects.distribution_keys import sender
from api.dialects.distribution_tasks import named
from api.dialects.distribution_words import COMPLETED, FAILED, RUNNING, TYPE, choice, success
from dispatch import lifecycle
from dispatch.models import Allocation, Run
from dispatch.results import datasets
from dispatch.states import LIVE
from nodes import executors
from nodes.executors.base import shown
from nodes.messages import Entry, read_report
from nodes.models import Node
from nodes.protocol import CascadeError, Conflict, FieldError, NotFound, Unprocessable

MOST_ROWS = 100_000
REFUSALS: Mapping[int, type[CascadeError]] = {404: NotFound, 422: Unprocessable}


def status(request: HttpRequest, task_id: str | None = None) -> HttpResponse:
    """What a device says of a task that it has. Repeated, it is answered as before; 409 once the lease is lost."""
    by = sender(request)
    body = body_of(request)
    wanted = choice("status", need(body, "status"), (RUNNING, COMPLETED, FAILED))
    run = named(body, task_id)
    node = by.one(body.get("device_id"))
    rows = _rows(body.get("result_data"))
    error = body.get("error_message")
    caller = by.acting(node)
    held = _held(run, node)
    if wanted == RUNNING:
        lifecycle.begin(caller, held.pk)
        return success()
    if wanted == COMPLETED:
        entry = _done(held, run, rows)
    else:
        entry = _entry(held, failure={"kind": "error", "message": error if isinstance(error, str) else shown(error)})
    (result,) = lifecycle.report(caller, [entry])["results"]
    if result["status"] != 200:
        raise REFUSALS.get(result["status"], Conflict)(result["detail"])
    return success()


def _held(run: Run, node: Node) -> Allocation:
    """The device's newest attempt at the task: the one it has fetched, if any. Raises NotFound for a stranger."""
    mine = list(Allocation.objects.filter(run=run, node=node).order_by("pk"))
    if not mine:
        raise NotFound(f"task {run.pk} was never assigned to {node.name}")
    live = [each for each in mine if each.state in LIVE]
    fetched = [each for each in live if each.delivered]
    ended = [each for each in mine if each.state not in LIVE]
    # One that was not fetched is not what a device speaks of, unless it never had another.
    return (fetched or ended[-1:] or live)[0]


def _rows(result: Any) -> list[dict[str, Any]]:
    """One object is one row; a list of objects under ``rows`` are the rows."""
    if result is None:
        return []
    if not isinstance(result, dict):
        raise FieldError("result_data", f"{shown(result)} is not an object")
    rows = result.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return [result]
    if len(rows) > MOST_ROWS:
        raise FieldError("result_data.rows", f"has {len(rows)} rows; at most {MOST_ROWS} are allowed")
    return rows


def _done(held: Allocation, run: Any, rows: list[dict[str, Any]]) -> Entry:
    kind = run.params.get("task_type", "")
    # Numbers are apart for each shard: with the task they are the rows' key.
    numbered = enumerate(rows, held.start * MOST_ROWS)
    try:
        cells = [
            [str(run.pk), number, kind, json.dumps(row, ensure_ascii=False, allow_nan=False)]
            for number, row in numbered
        ]
    except (ValueError, RecursionError):
        raise FieldError(
            "result_data", "is not plain JSON: it has a number that is not finite, or is too deep"
        ) from None
    try:
        datasets.check_rows(executors.get(TYPE).dataset, cells)
    except FieldError as error:
        raise FieldError("result_data", error.message) from None
    entry = _entry(held, ranges=[[held.start, held.stop, len(cells)]], rows=cells)
    # Clients stamp what they repeat anew.
    same = [{name: value for name, value in row.items() if name != "timestamp"} for row in rows]
    return replace(entry, digest=hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest())


def _entry(held: Allocation, **content: Any) -> Entry:
    """A report on ``held``. Its seconds are this parent's, as these clients do not tell theirs."""
    began = held.started_at or held.granted_at
    seconds = max(0.0, ((held.finished_at or timezone.now()) - began).total_seconds())
    return read_report({"reports": [{"allocation": held.pk, "seconds": seconds, **content}]})[0]

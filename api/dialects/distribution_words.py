"""The words of the ``distribution`` dialect for this project's states, times and errors: all tables in one place."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db.models import Case, CharField, Exists, OuterRef, Q, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse

from api.dialects.common import answer
from api.errors import respond
from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE, AllocationState, RunState, ShardState
from nodes import registry
from nodes.executors.base import shown
from nodes.models import Node
from nodes.protocol import CascadeError, FieldError, Unauthenticated

TYPE = "external"
"""The task type of all this dialect's work."""
SUBJECT = ("username", "app_id", "start_date", "end_date")
"""What clients send beside ``task_data`` and look for within it."""

PENDING, ASSIGNED, RUNNING, COMPLETED, FAILED = "pending", "assigned", "running", "completed", "failed"
TASK_STATES = (PENDING, ASSIGNED, RUNNING, COMPLETED, FAILED)
DEVICE_STATES = ("online", "offline", "busy", "disabled")

ATTEMPTS = {
    AllocationState.PENDING: ASSIGNED,
    AllocationState.EXECUTING: RUNNING,
    AllocationState.COMPLETED: COMPLETED,
    AllocationState.FAILED: FAILED,
    AllocationState.EXPIRED: "timeout",
    AllocationState.CANCELLED: "cancelled",
    AllocationState.SUPERSEDED: "cancelled",
}
"""An allocation is an assignment here."""


def with_status(runs: QuerySet[Run]) -> QuerySet[Any]:
    """Each run with ``status``: one of TASK_STATES. Begun by a device is running; reported is completed."""
    here = Allocation.objects.filter(run=OuterRef("pk"), state__in=LIVE)
    open_run = Q(state=RunState.RUNNING)
    reported = Exists(Shard.objects.filter(run=OuterRef("pk"), state=ShardState.SPOOLED))
    return runs.annotate(
        status=Case(
            When(state=RunState.COMPLETED, then=Value(COMPLETED)),
            When(~open_run, then=Value(FAILED)),
            When(Exists(here.filter(state=AllocationState.EXECUTING)), then=Value(RUNNING)),
            When(Exists(here), then=Value(ASSIGNED)),
            When(reported, then=Value(COMPLETED)),
            default=Value(PENDING),
            output_field=CharField(),
        )
    )


def device_status(node: Node, held: int, now: dt.datetime) -> str:
    if node.draining or not node.active:
        return "disabled"
    if not registry.is_online(node, now):
        return "offline"
    return "busy" if held >= node.capacity else "online"


def choice(field: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Raises FieldError."""
    if value not in allowed:
        raise FieldError(field, f"{shown(value)} is not one of: {', '.join(allowed)}")
    return str(value)


def iso(at: dt.datetime | None) -> str | None:
    return at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None


def success(message: str = "", **more: Any) -> HttpResponse:
    return answer({"status": "success", **({"message": message} if message else {}), **more})


def wrong(error: CascadeError) -> HttpResponse:
    """How an error leaves: ``{"detail"}``."""
    headers = {name.replace("-", "_"): value for name, value in respond(error).headers.items() if name in _KEPT}
    if isinstance(error, Unauthenticated):
        headers["WWW_Authenticate"] = 'Bearer realm="cascade"'
    return answer({"detail": str(error)}, error.status, **headers)


_KEPT = ("Retry-After",)


def unknown(request: HttpRequest, *args: Any) -> HttpResponse:
    return answer({"detail": f"{request.path} does not exist"}, 404)

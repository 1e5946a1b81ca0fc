"""Tasks of the ``distribution`` dialect: given in, looked at, assigned, pulled, reported. A task is a run of type
``external``; its id is the run's, and an assignment is an allocation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse

from api.dialects.common import Body, answer, body_of, need, whole
from api.dialects.distribution_keys import sender
from api.dialects.distribution_stats import task_counts
from api.dialects.distribution_words import (
    ASSIGNED,
    ATTEMPTS,
    SUBJECT,
    TASK_STATES,
    TYPE,
    choice,
    iso,
    success,
    with_status,
)
from dispatch import lifecycle, queue
from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE, AllocationState
from nodes.executors.base import shown
from nodes.messages import LARGEST_ID, Claim
from nodes.models import Node
from nodes.protocol import CascadeError, Conflict, FieldError, NotFound
from nodes.transactions import retried, write

SECONDS = 3600.0
"""Of a task that names no time-out, where no setting does; RETRIES likewise."""
RETRIES = 3
LISTED = 100
MOST_PULLED = 10


def create(request: HttpRequest) -> HttpResponse:
    """A new task. Repeated, it is the same one: with an ``Idempotency-Key`` always, else after a 5xx of this server,
    within a minute, where key and body are the same but for ``timestamp``; see ``lifecycle.once``."""
    by = sender(request)
    work = _work(body := body_of(request))
    given = request.headers.get("Idempotency-Key", "")
    if given:
        key = "distribution:" + hashlib.sha256(f"{by.name}\n{given}".encode(errors="surrogatepass")).hexdigest()
        return _created(work, by.name, key)
    same = {name: value for name, value in body.items() if name != "timestamp"}
    fingerprint = hashlib.sha256(json.dumps([by.name, same], sort_keys=True).encode()).hexdigest()
    with lifecycle.once(fingerprint) as key:
        return _created(work, by.name, key)


def _created(work: dict[str, Any], by: str, key: str) -> HttpResponse:
    try:
        run = lifecycle.submit(**work, submitted_by=by, idempotency_key=key)
    except FieldError as error:
        raise FieldError(error.field.removeprefix("params."), error.message) from None
    return success(f"task {run.pk} is waiting for a device", task_id=run.pk)


def _work(body: Body) -> dict[str, Any]:
    """What ``lifecycle.submit`` is told. Raises FieldError in the client's own words."""
    task_type = need(body, "task_type")
    data = body.get("task_data")
    if data is not None and not isinstance(data, dict):
        raise FieldError("task_data", f"{shown(data)} is not an object")
    subject = {name: body[name] for name in SUBJECT if body.get(name) is not None}
    name = ":".join([task_type, *(str(subject[word]) for word in ("username", "app_id") if word in subject)])
    if not task_type or len(name) > 200:
        raise FieldError("task_type", "with username and app_id has 1 to 200 characters")
    work: dict[str, Any] = {
        "type": TYPE,
        "items": [name],
        "name": name,
        "params": {"task_type": task_type, "task_data": {**(data or {}), **subject}},
    }
    # Clients send 0 for what they do not mean, as null.
    if body.get("priority"):
        work["priority"] = body["priority"]
    if body.get("execution_timeout"):
        work["timeout"] = _number(body, "execution_timeout", 0.1, 7 * 86_400)
    else:
        work["timeout"] = _settled("default_timeout", SECONDS)
    if body.get("max_retry_count") is not None:
        work["max_attempts"] = 1 + int(_number(body, "max_retry_count", 0, 99, whole=True))
    else:
        work["max_attempts"] = _settled("default_max_attempts", 1 + RETRIES)
    return work


def _settled(name: str, otherwise: Any) -> Any:
    """The operator's setting where one was made, or else what masters of this dialect have."""
    settled = settings.CASCADE
    return getattr(settled, name) if name in settled.model_fields_set else otherwise


def _number(body: Body, name: str, least: float, most: float, *, whole: bool = False) -> float:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not least <= value <= most:
        raise FieldError(name, f"{shown(value)} is not a {'whole ' if whole else ''}number from {least} to {most}")
    return value


def listed(request: HttpRequest) -> HttpResponse:
    by = sender(request)
    runs = _runs()
    if status := request.GET.get("status", ""):
        runs = runs.filter(status=choice("status", status, TASK_STATES))
    if task_type := request.GET.get("task_type", "").replace("\x00", "\ufffd"):
        runs = runs.filter(params__task_type=task_type)
    if device_id := request.GET.get("device_id", ""):
        mine = Allocation.objects.filter(run=OuterRef("pk"), node=by.device(device_id))
        runs = runs.filter(Exists(mine))
    found = list(runs.order_by("-pk")[: whole(request, "limit", LISTED, 1, 1000)])
    return answer({"tasks": shapes(found)})


def one(request: HttpRequest, task_id: str) -> HttpResponse:
    sender(request)
    run = _run(task_id)
    return answer(
        {"task_id": run.pk, **shapes([run])[0], "assignments": [_assignment(each) for each in _attempts(run)]}
    )


def stats(request: HttpRequest) -> HttpResponse:
    sender(request)
    return answer(task_counts())


def shapes(runs: list[Any]) -> list[dict[str, Any]]:
    """Runs with their ``status``, as lists show them."""
    last: dict[int, Allocation] = {}
    for each in Allocation.objects.filter(run__in=runs).select_related("node").defer("log").order_by("pk"):
        last[each.run_id] = each
    errors = dict(Shard.objects.filter(run__in=runs).exclude(error="").values_list("run_id", "error"))
    return [_shape(run, last.get(run.pk), errors.get(run.pk, "")) for run in runs]


def _shape(run: Any, last: Allocation | None, error: str) -> dict[str, Any]:
    data = data_of(run)
    node = last.node if last else None
    return {
        "id": run.pk,
        "task_id": run.pk,
        "task_type": run.params.get("task_type", ""),
        "task_data": data,
        **{name: data[name] for name in SUBJECT},
        "priority": run.priority,
        "status": run.status,
        "execution_timeout": run.timeout,
        "max_retry_count": run.max_attempts - 1,
        "retry_count": last.attempt - 1 if last else 0,
        "device_id": node.name if node else None,
        "error_message": error or None,
        "created_at": iso(run.created_at),
        "started_at": iso(last.started_at) if last else None,
        "completed_at": iso(run.ended_at),
        "created_by": run.submitted_by,
    }


def data_of(run: Any) -> dict[str, Any]:
    """``task_data`` as workers read it: an object that has all of SUBJECT, null where nobody gave it."""
    data = run.params.get("task_data")
    return {**dict.fromkeys(SUBJECT), **(data if isinstance(data, Mapping) else {})}


def _assignment(each: Allocation) -> dict[str, Any]:
    return {
        "assignment_id": each.pk,
        "device_id": each.node.name if each.node else None,
        "status": ATTEMPTS[AllocationState(each.state)],
        "attempt": each.attempt,
        "assigned_at": iso(each.granted_at),
        "started_at": iso(each.started_at),
        "completed_at": iso(each.finished_at),
        "error_message": each.error or None,
        "reason": each.reason,
    }


def _attempts(run: Run) -> QuerySet[Allocation]:
    return Allocation.objects.filter(run=run).select_related("node").order_by("pk")


def _runs() -> QuerySet[Any]:
    return with_status(Run.objects.filter(type=TYPE).defer("items"))


def _run(task_id: Any) -> Any:
    """Raises NotFound."""
    run = _runs().filter(pk=number).first() if (number := _whole(task_id)) is not None else None
    if run is None:
        raise NotFound(f"there is no task {shown(task_id)}")
    return run


def _whole(value: Any) -> int | None:
    """An id, which comes as a number or as its digits; None for what cannot be one."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_ID:
        return None
    return value


def named(body: Body, task_id: str | None) -> Any:
    """The task that the address names, or else the body."""
    if task_id is None and body.get("task_id") is None:
        raise FieldError("task_id", "is required")
    return _run(body["task_id"] if task_id is None else task_id)


def assign(request: HttpRequest, task_id: str | None = None) -> HttpResponse:
    by = sender(request)
    body = body_of(request)
    run = named(body, task_id)
    node = by.device(need(body, "device_id"))
    try:
        allocation = _assigned(run, node)
    except Conflict as error:
        raise NotAvailable(str(error)) from None
    return success(f"task {run.pk} is assigned to {node.name}", assignment_id=allocation)


@retried
def _assigned(run: Run, node: Node) -> int:
    """The allocation of ``run`` to ``node``: the one it has, as this may be a repetition, or else a new one. What
    another device was granted and has not fetched is taken back for it. Raises Conflict, and then nothing changed."""
    with write():
        live = list(Allocation.objects.filter(run=run.pk, state__in=LIVE).select_related("node").order_by("-pk"))
        if run.count == 1:
            if mine := [each.pk for each in live if each.node_id == node.pk]:
                return mine[0]
            devices = [each.node.pk for each in live if each.node and each.node.dialect == Node.Dialect.DISTRIBUTION]
            lifecycle.recall(devices, f"assigned to {node.name} by an operator", run.pk)
        return queue.assign(run.pk, node.pk)


class NotAvailable(CascadeError):
    status = 400


def pull(request: HttpRequest, device_id: str | None = None) -> HttpResponse:
    """What was granted to the device and not fetched yet, up to its free slots; never waits."""
    by = sender(request)
    node = by.one(request.GET.get("device_id") if device_id is None else device_id)
    most = whole(request, "limit", MOST_PULLED, 0, MOST_PULLED)
    caller = by.acting(node)
    queue.allocate_now()
    fetched = Allocation.objects.filter(node=node, state__in=LIVE, delivered=True).count()
    most = max(0, min(most, node.capacity - fetched))
    if not most:
        return answer({"tasks": []})
    work = lifecycle.claim(caller, Claim("", most, 0.0, ()), most=most)["work"]
    runs = {run.pk: run for run in _runs().filter(pk__in=[each[1] for each in work])}
    return answer({"tasks": [_pulled(runs[run], node, pk, attempt, items) for pk, run, _, _, attempt, items in work]})


def _pulled(run: Any, node: Node, allocation: int, attempt: int, items: list[Any]) -> dict[str, Any]:
    data = data_of(run)
    if run.count > 1:
        # Not of this dialect's making, but of its type: the device is told which part is its own.
        data = {**data, "items": items}
    return {
        "id": run.pk,
        "task_id": run.pk,
        "assignment_id": allocation,
        "device_id": node.name,
        "task_type": run.params.get("task_type", ""),
        "task_data": data,
        **{name: data[name] for name in SUBJECT},
        "priority": run.priority,
        "status": ASSIGNED,
        "execution_timeout": run.timeout,
        "max_retry_count": run.max_attempts - 1,
        "retry_count": attempt - 1,
        "created_at": iso(run.created_at),
    }

"""What operators of the ``cascade`` dialect ask: nodes and their keys, a dispatch, and what became of it all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from api.dialects import common
from api.dialects.cascade_connection import try_parent
from api.dialects.cascade_feeds import status_of
from api.dialects.cascade_quotas import CAPACITY, read_sync_config
from api.dialects.cascade_shapes import (
    DIALECT,
    STATES,
    TYPE,
    allocation_of,
    log_of,
    moment,
    node_of,
    node_type,
    ok,
    page,
)
from dispatch import lifecycle, packages, queue, schedule, synclog
from dispatch.models import Allocation, Run, Source, StagedRow, SyncLog, Task
from dispatch.states import LIVE
from nodes import keys, registry
from nodes.executors.base import shown
from nodes.fields import read_whole
from nodes.messages import LARGEST_ID
from nodes.models import Node
from nodes.protocol import FieldError, NotFound
from nodes.transactions import write

PAGE = 50
LONGEST_PAGE = 1000


# Nodes


def nodes(request: HttpRequest) -> HttpResponse:
    common.operator(request)
    found = _nodes()
    if (kind := request.GET.get("node_type", "").strip()) != "":
        if kind not in ("0", "1"):
            raise FieldError("node_type", f"{shown(kind)} is not 0 (parent) or 1 (child)")
        parents = Q(role=Node.Role.PARENT)
        found = found.filter(parents if kind == "0" else ~parents)
    now = timezone.now()
    return ok([node_of(node, now) for node in found.order_by("pk")])


def add_node(request: HttpRequest) -> HttpResponse:
    common.operator(request)
    body = common.body_of(request)
    kind = 1 if body.get("node_type") is None else read_whole("node_type", body["node_type"], 0, 1)
    capacity, quotas = read_sync_config(body.get("sync_config"), None)
    with write():
        node, key = registry.add_node(
            common.need(body, "name"),
            role=Node.Role.PARENT if kind == 0 else Node.Role.CHILD,
            dialect=DIALECT,
            description=_text(body, "description") or "",
            api_url=_text(body, "api_url") or "",
            capacity=CAPACITY if capacity is None else capacity,
            quotas=quotas or (),
        )
        # Nobody has seen its secret: the child's comes with /credentials.
        keys.revoke(key.access_key)
    return ok(
        {
            "node_id": str(node.pk),
            "node_type": node_type(node),
            "name": node.name,
            "is_active": node.active,
            "created_at": moment(node.created_at),
        }
    )


def node(request: HttpRequest, id: str) -> HttpResponse:
    common.operator(request)
    return ok(node_of(_node(id), timezone.now()))


def change_node(request: HttpRequest, id: str) -> HttpResponse:
    """What is not named, or null, stays."""
    common.operator(request)
    body = common.body_of(request)
    found = _node(id)
    fields: dict[str, Any] = {
        name: value for name in ("name", "description", "api_url") if (value := _text(body, name)) is not None
    }
    if body.get("is_active") is not None:
        fields["active"] = _truth("is_active", body["is_active"])
    capacity, quotas = read_sync_config(body.get("sync_config"), found)
    if capacity is not None:
        fields["capacity"] = capacity
    registry.update_node(found.pk, quotas=quotas, **fields)
    return ok(node_of(_node(id), timezone.now()))


def remove_node(request: HttpRequest, id: str) -> HttpResponse:
    common.operator(request)
    found = _node(id)
    shape = node_of(found, timezone.now())
    registry.remove_node(found.pk)
    return ok(shape)


def credentials(request: HttpRequest, id: str) -> HttpResponse:
    """A new key; the one before stays valid, so that the child can change over."""
    common.operator(request)
    issued = keys.rotate(_node(id).pk)
    return ok({"node_id": id, "api_key": issued.access_key, "api_secret": issued.secret_key})


def test_connection(request: HttpRequest, id: str) -> HttpResponse:
    """Whether a parent at ``api_url`` (without one: the node's) takes these credentials."""
    common.operator(request)
    body = common.body_of(request)
    found = _node(id)
    url = body.get("api_url") or found.api_url or None
    tried = try_parent(
        common.need({"api_url": url}, "api_url"), common.need(body, "api_key"), common.need(body, "api_secret")
    )
    synclog.note(found.pk, "test_connection", synclog.PUSH, error=tried.get("error", ""))
    return ok(tried)


def _nodes() -> QuerySet[Node]:
    return Node.objects.filter(dialect=DIALECT).prefetch_related("keys", "quotas")


def _node(id: str) -> Node:
    found = _nodes().filter(pk=_number(id)).first()
    if found is None:
        raise NotFound(f"there is no node {shown(id)}")
    return found


# Dispatch


def dispatch_task(request: HttpRequest) -> HttpResponse:
    """A run of the message task ``task_id``, or of each active one; granted at once as far as nodes are free."""
    by = common.operator(request)
    tasks = _tasks(request.GET.get("task_id", "").strip())
    runs: list[tuple[Task, Run]] = []
    for task in tasks:
        # One task without feeds, when all are dispatched, is no reason to leave out the others.
        try:
            runs.append((task, lifecycle.submit_task(task, submitted_by=by)))
        except FieldError:
            if len(tasks) == 1:
                raise
    queue.allocate_now()
    return ok(
        {
            "online_nodes": len(packages.fitting(TYPE, {})),
            "task_count": len(runs),
            "tasks": [{"id": str(task.pk), "name": task.name, "mp_count": run.count} for task, run in runs],
            "allocations_created": Allocation.objects.filter(run__in=[run for _, run in runs]).count(),
        }
    )


def _tasks(task_id: str) -> list[Task]:
    found = Task.objects.filter(type=TYPE).order_by("pk")
    if not task_id:
        return list(found.filter(active=True))
    task = found.filter(pk=_number(task_id)).first()
    if task is None:
        raise NotFound(f"there is no message task {shown(task_id)}")
    return [task]


def start_scheduler(request: HttpRequest) -> HttpResponse:
    changed = schedule.start(common.operator(request))
    return ok({"running": True}, "the scheduler runs" if changed else "the scheduler ran already")


def stop_scheduler(request: HttpRequest) -> HttpResponse:
    changed = schedule.stop(common.operator(request))
    return ok({"running": False}, "the scheduler is stopped" if changed else "the scheduler was stopped already")


def reload_scheduler(request: HttpRequest) -> HttpResponse:
    common.operator(request)
    count = schedule.reload()
    return ok({"tasks": count}, f"{count} schedules were reckoned anew")


# What became of it


def allocations(request: HttpRequest) -> HttpResponse:
    common.operator(request)
    found = Allocation.objects.filter(type=TYPE)
    if task_id := request.GET.get("task_id", "").strip():
        if task_id.startswith("run-"):
            found = found.filter(run_id=_number(task_id.removeprefix("run-")), run__task=None)
        else:
            found = found.filter(run__task_id=_number(task_id))
    if node_id := request.GET.get("node_id", "").strip():
        found = found.filter(node_id=_number(node_id))
    if status := request.GET.get("status", "").strip():
        if status not in STATES:
            raise FieldError("status", f"{shown(status)} is not one of: {', '.join(STATES)}")
        found = found.filter(STATES[status])
    limit, offset = _page(request)
    rows = found.select_related("run__task", "node").defer("run__items", "log").order_by("-pk")[offset : offset + limit]
    waiting = [each.pk for each in rows if each.state in LIVE]
    staged = dict(
        StagedRow.objects.filter(allocation__in=waiting).order_by().values_list("allocation").annotate(Count("pk"))
    )
    return page([allocation_of(each, staged) for each in rows], found.count(), limit, offset)


def sync_logs(request: HttpRequest) -> HttpResponse:
    common.operator(request)
    found = SyncLog.objects.all()
    if node_id := request.GET.get("node_id", "").strip():
        found = found.filter(node_id=_number(node_id))
    if operation := request.GET.get("operation", "").strip():
        found = found.filter(operation=operation.replace("\x00", "\ufffd"))
    limit, offset = _page(request)
    rows = found.order_by("-pk")[offset : offset + limit]
    return page([log_of(each) for each in rows], found.count(), limit, offset)


def feed_status(request: HttpRequest) -> HttpResponse:
    common.operator(request)
    found = Source.objects.filter(kind=Source.Kind.FEED)
    if feed_id := request.GET.get("feed_id", "").strip():
        found = found.filter(key=feed_id.replace("\x00", "\ufffd"))
    limit, offset = _page(request)
    rows = list(found.order_by("key")[offset : offset + limit])
    return page(status_of(rows), found.count(), limit, offset)


def _page(request: HttpRequest) -> tuple[int, int]:
    return common.whole(request, "limit", PAGE, 1, LONGEST_PAGE), common.whole(request, "offset", 0, 0, 10**9)


def _number(text: str) -> int:
    """0, which is nobody's id, for what is no number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= LARGEST_ID else 0


def _text(body: Mapping[str, Any], name: str) -> str | None:
    return None if body.get(name) is None else str(common.need(body, name))


def _truth(name: str, value: Any) -> bool:
    if value in (0, 1):  # also true and false
        return bool(value)
    raise FieldError(name, f"{shown(value)} is not true or false")

"""Words and shapes of the ``cascade`` dialect: its envelope, its states, and our records as its clients know them."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Q
from django.http import HttpResponse

from api.dialects.common import answer
from dispatch.items import item_key
from dispatch.lifecycle.kept import frozen
from dispatch.models import Allocation, Source, SyncLog, Task
from dispatch.states import AllocationState
from nodes import registry
from nodes.executors.base import Item
from nodes.models import Node
from nodes.protocol import CascadeError, TooMany, Unauthenticated

TYPE = "feed_update"
DIALECT = Node.Dialect.CASCADE.value

STATES: Mapping[str, Q] = {
    "pending": Q(state=AllocationState.PENDING, delivered=False),
    "claimed": Q(state=AllocationState.PENDING, delivered=True),
    "executing": Q(state=AllocationState.EXECUTING),
    "completed": Q(state=AllocationState.COMPLETED),
    "failed": Q(state__in=(AllocationState.FAILED, AllocationState.CANCELLED, AllocationState.SUPERSEDED)),
    "timeout": Q(state=AllocationState.EXPIRED),
}
"""The dialect's word -> the allocations that it means; each allocation is in one of them."""
_WORDS = {
    AllocationState.EXECUTING: "executing",
    AllocationState.COMPLETED: "completed",
    AllocationState.FAILED: "failed",
    AllocationState.CANCELLED: "failed",
    AllocationState.SUPERSEDED: "failed",
    AllocationState.EXPIRED: "timeout",
}


def word_of(allocation: Allocation) -> str:
    """The dialect's word for where an allocation is."""
    if allocation.state == AllocationState.PENDING:
        return "claimed" if allocation.delivered else "pending"
    return _WORDS[AllocationState(allocation.state)]


# The envelope


def ok(data: Any = None, message: str = "success") -> HttpResponse:
    return answer({"code": 0, "message": message, "data": data})


def refused(error: CascadeError) -> HttpResponse:
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW_Authenticate"] = 'AK-SK realm="cascade"'
    if isinstance(error, TooMany):
        headers["Retry_After"] = str(math.ceil(error.retry_after))
    return answer({"code": error.status, "message": str(error), "data": None}, error.status, **headers)


def page(rows: Sequence[Any], total: int, limit: int, offset: int) -> HttpResponse:
    return ok({"list": list(rows), "total": total, "page": {"limit": limit, "offset": offset}})


def moment(at: dt.datetime | None) -> str | None:
    """ISO 8601 in UTC, with Z."""
    if at is None:
        return None
    if at.tzinfo is not None:
        at = at.astimezone(dt.UTC).replace(tzinfo=None)
    return f"{at.isoformat(timespec='microseconds' if at.microsecond else 'seconds')}Z"


# Nodes


def node_type(node: Node) -> int:
    return 0 if node.role == Node.Role.PARENT else 1


def node_of(node: Node, now: dt.datetime) -> dict[str, Any]:
    """``node`` with its keys and quotas; their newest live key is shown, its secret is known to the child only."""
    newest = max((key for key in node.keys.all() if key.revoked_at is None), key=lambda key: key.pk, default=None)
    return {
        "id": str(node.pk),
        "node_type": node_type(node),
        "name": node.name,
        "description": node.description,
        "api_url": node.api_url,
        "api_key": newest.access_key if newest else "",
        "parent_id": None,
        "status": 1 if registry.is_online(node, now) else 0,
        "is_active": node.active,
        "sync_config": sync_config(node),
        "last_sync_at": moment(node.synced_at),
        "last_heartbeat_at": moment(node.last_beat_at),
        "created_at": moment(node.created_at),
        "updated_at": moment(node.updated_at),
    }


def sync_config(node: Node) -> dict[str, Any]:
    """Capacity and quotas. A quota of one item of another type than this dialect's is not shown, and is left alone."""
    quotas = {
        quota.item or quota.task_type: quota.slots
        for quota in node.quotas.all()
        if not quota.item or quota.task_type == TYPE
    }
    return {"max_capacity": node.capacity, "feed_quota": quotas}


# Feeds and tasks


def feed_of(source: Source) -> dict[str, Any]:
    return {
        **_feed(source.key, source),
        "created_at": moment(source.created_at),
        "updated_at": moment(source.updated_at),
    }


def feeds_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The feeds that ``items`` name; one that is no source any more has its key, and what the item itself says."""
    keys = [item_key(item) for item in items]
    known = {source.key: source for source in Source.objects.filter(kind=Source.Kind.FEED, key__in=set(keys))}
    return [_feed(key, known.get(key), item) for key, item in zip(keys, items, strict=True)]


def _feed(key: str, source: Source | None, item: Item = "") -> dict[str, Any]:
    said = {**(item if isinstance(item, dict) else {}), **(source.extra if source else {})}
    return {
        "id": key,
        "faker_id": text(said.get("faker_id")),
        "mp_name": source.name if source and source.name else text(said.get("mp_name")) or key,
        "mp_cover": text(said.get("mp_cover")),
        "mp_intro": text(said.get("mp_intro")),
        "status": whole(said.get("status"), int(source.active) if source else 1),
    }


def task_of(task: Task) -> dict[str, Any]:
    """A task of type feed_update as its message task."""
    ids = [{"id": item_key(item)} for item in task.items]
    if not ids and task.source_kind:
        sources = Source.objects.filter(kind=task.source_kind, active=True).order_by("key")
        ids = [{"id": key} for key in sources.values_list("key", flat=True)]
    return {
        "id": str(task.pk),
        "name": task.name,
        **message_of(task, task.params),
        "mps_id": json.dumps(ids, ensure_ascii=False),
        "status": whole(task.extra.get("status"), 1) if task.active else 0,
        "created_at": moment(task.created_at),
        "updated_at": moment(task.updated_at),
    }


def message_of(task: Task | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a client does with the articles: as the run has it, else as its task keeps it. Never null."""
    kept = task.extra if task else {}

    def said(name: str) -> Any:
        return params.get(name) or kept.get(name)

    return {
        "message_type": whole(said("message_type"), 0),
        "message_template": text(said("message_template")),
        "web_hook_url": text(said("web_hook_url")),
        "cron_exp": (task.cron if task else "") or text(kept.get("cron_exp")),
        "headers": text(said("headers")),
        "cookies": text(said("cookies")),
    }


def task_id_of(allocation: Allocation) -> str:
    """Of its task; a run that was submitted without one stands for itself."""
    return str(allocation.run.task_id) if allocation.run.task_id else f"run-{allocation.run_id}"


def package_of(allocation: Allocation, params: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """What a child gets to work on."""
    run = allocation.run
    return {
        "allocation_id": str(allocation.pk),
        "task_id": task_id_of(allocation),
        "task_name": run.task.name if run.task else run.name or str(run),
        **message_of(run.task, params),
        "feeds": feeds_of(items),
        "dispatched_at": moment(allocation.granted_at),
    }


# Allocations and the sync log


def allocation_of(allocation: Allocation, staged: Mapping[int, int]) -> dict[str, Any]:
    """``staged``: rows that wait for their report, by allocation."""
    run = allocation.run
    rows = allocation.rows or staged.get(allocation.pk, 0)
    return {
        "id": str(allocation.pk),
        "task_id": task_id_of(allocation),
        "task_name": run.task.name if run.task else run.name or str(run),
        "node_id": str(allocation.node_id) if allocation.node_id else None,
        "node_name": allocation.node.name if allocation.node else None,
        "feed_ids": feed_ids(allocation),
        "status": word_of(allocation),
        "dispatched_at": moment(allocation.granted_at),
        "claimed_at": moment(allocation.delivered_at),
        "started_at": moment(allocation.started_at),
        "completed_at": moment(allocation.finished_at),
        "error_message": allocation.error,
        "article_count": rows,
        "new_article_count": rows,
        "schedule_run_id": str(run.pk),
    }


def feed_ids(allocation: Allocation) -> list[str]:
    return [item_key(item) for item in frozen(allocation.run_id).slice(allocation.start, allocation.stop)]


def log_of(entry: SyncLog) -> dict[str, Any]:
    return {
        "id": str(entry.pk),
        "node_id": str(entry.node_id) if entry.node_id else None,
        "operation": entry.operation,
        "direction": entry.direction,
        "status": entry.status,
        "data_count": entry.count,
        "error_message": entry.error,
        "extra_data": entry.extra,
        "started_at": moment(entry.started_at),
        "completed_at": moment(entry.ended_at),
    }


# Values that are never null


def text(value: Any) -> str:
    """``value`` as a text; an object or a list as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def whole(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return default

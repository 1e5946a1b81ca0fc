"""What operators of the ``distribution`` dialect look at and do: overviews, performance, rebalance, cleanup."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from api.dialects.common import answer, content, whole
from api.dialects.distribution_devices import HOURS, MOST_HOURS, latest, shapes
from api.dialects.distribution_keys import sender
from api.dialects.distribution_stats import assignment_stats, device_counts, health_stats, heartbeats, task_counts
from api.dialects.distribution_words import DEVICE_STATES, TASK_STATES, success
from dispatch import dispatcher, lifecycle, pruning, queue
from dispatch.models import Allocation, Switch
from dispatch.states import LIVE
from nodes.executors.base import shown
from nodes.models import Node
from nodes.protocol import FieldError

DAYS = 7
MOST_DAYS = 36_500
CLEANUP_SECONDS = 20.0
"""No longer: the next call does the rest."""


def overview(request: HttpRequest) -> HttpResponse:
    by = sender(request)
    nodes = list(by.devices)
    tasks = task_counts()
    devices = device_counts(nodes)
    slots = sum(node.capacity for node in nodes if not node.draining)
    ended = tasks["completed"] + tasks["failed"]
    system = {
        "mode": "standalone" if settings.CASCADE.role == "standalone" else "master",
        "scheduler_running": _scheduling(),
        "capacity": slots,
        "current_tasks": Allocation.objects.filter(node__in=nodes, state__in=LIVE).count(),
        "success_rate": round(100 * tasks["completed"] / ended, 2) if ended else None,
    }
    return answer({"task_stats": tasks, "device_stats": devices, "system_overview": system})


def devices(request: HttpRequest) -> HttpResponse:
    nodes = list(sender(request).devices)
    told = zip(nodes, shapes(nodes), strict=True)
    names = ("device_id", "device_name", "status", "current_tasks", "last_heartbeat")
    return answer(
        {
            "device_heartbeats": [
                {**(latest(node) or {}), **{name: shape[name] for name in names}} for node, shape in told
            ]
        }
    )


def performance(request: HttpRequest, device_id: str) -> HttpResponse:
    node = sender(request).device(device_id)
    hours = whole(request, "hours", HOURS, 1, MOST_HOURS)
    return answer(
        {
            "device_id": node.name,
            "period_hours": hours,
            "heartbeats": heartbeats(node, hours),
            "health_stats": health_stats(node, hours),
            "assignment_stats": assignment_stats(node, hours),
        }
    )


def rebalance(request: HttpRequest) -> HttpResponse:
    """What devices have not fetched yet is granted anew; ``moved`` is what got another device by that."""
    by = sender(request)
    by.only_staff()
    names = dict(Node.objects.filter(dialect=Node.Dialect.DISTRIBUTION).values_list("pk", "name"))
    recalled = lifecycle.recall(list(names), "recalled by an operator to be balanced anew")
    queue.allocate_now()
    now_with = dict(
        Allocation.objects.filter(shard__in=[each.shard for each in recalled], state__in=LIVE).values_list(
            "shard_id", "node__name"
        )
    )
    moved = [
        {"task_id": each.run, "from_device": names.get(each.node or 0), "to_device": now_with.get(each.shard)}
        for each in recalled
    ]
    moved = [each for each in moved if each["to_device"] != each["from_device"]]
    return success(f"{len(moved)} of {len(recalled)} moved", moved_count=len(moved), moved=moved)


def cleanup(request: HttpRequest) -> HttpResponse:
    """Forgets what ended longer ago than ``{"days": n}`` or the bare number; without a body, than a week."""
    by = sender(request)
    by.only_staff()
    deleted = pruning.prune(timezone.now(), days=_days(content(request)), seconds=CLEANUP_SECONDS)
    return success(f"{sum(deleted.values())} deleted", deleted=deleted, deleted_count=sum(deleted.values()))


def _days(body: bytes) -> float:
    try:
        given: Any = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise FieldError("body", f"is not JSON: {error}") from None
    days = given.get("days", DAYS) if isinstance(given, dict) else given
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days <= MOST_DAYS:
        raise FieldError("days", f"{shown(days)} is not a number of days above 0, up to {MOST_DAYS}")
    return float(days)


def scheduler(request: HttpRequest) -> HttpResponse:
    by = sender(request)
    settled = settings.CASCADE
    tasks = task_counts()
    counts = device_counts(list(by.devices))
    return answer(
        {
            "running": _scheduling(),
            "strategy": settled.default_balancer,
            "intervals": {
                "dispatch_interval": dispatcher.PASS_SECONDS,
                "heartbeat_interval": settled.beat_seconds,
                "timeout_check_interval": dispatcher.EXPIRE_SECONDS,
                "device_timeout": settled.patient_seconds,
            },
            "counters": {
                **{f"tasks_{word}": tasks[word] for word in TASK_STATES},
                **{f"devices_{word}": counts[word] for word in DEVICE_STATES},
            },
        }
    )


def _scheduling() -> bool:
    """Unless an operator switched it off."""
    return Switch.objects.filter(name="scheduler").values_list("on", flat=True).first() is not False

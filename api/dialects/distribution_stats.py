"""Figures of ``distribution``: tasks and devices by state, heartbeats and assignments of the last hours."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

from django.db.models import Avg, Count, F, Max, Q
from django.utils import timezone

from api.dialects.distribution_words import (
    ATTEMPTS,
    DEVICE_STATES,
    TASK_STATES,
    TYPE,
    device_status,
    iso,
    with_status,
)
from dispatch.models import Allocation, Run
from dispatch.states import LIVE, AllocationState
from nodes import registry
from nodes.models import Heartbeat, Node

MOST_HEARTBEATS = 1000


def since(hours: int) -> dt.datetime:
    return timezone.now() - dt.timedelta(hours=hours)


def task_counts() -> dict[str, Any]:
    """``total``, each state, and the same by type."""
    runs = with_status(Run.objects.filter(type=TYPE)).order_by()
    by_status: Counter[str] = Counter(dict.fromkeys(TASK_STATES, 0))
    by_type: dict[str, Counter[str]] = {}
    for word, kind, count in runs.values_list("status", "params__task_type").annotate(Count("pk")):
        by_status[word] += count
        by_type.setdefault(str(kind), Counter())[word] += count
    types = {kind: {"total": counts.total(), **counts} for kind, counts in sorted(by_type.items())}
    return {"total": by_status.total(), **by_status, "by_status": dict(by_status), "by_type": types}


def device_counts(nodes: list[Node]) -> dict[str, int]:
    """``online`` has the busy ones, too; ``busy`` says how many of them those are."""
    now = timezone.now()
    held = registry.in_use(nodes)
    words = Counter(device_status(node, held[node.pk], now) for node in nodes)
    counts = {word: words[word] for word in DEVICE_STATES}
    return {"total": len(nodes), **counts, "online": words["online"] + words["busy"]}


def held_by(node: Node) -> list[dict[str, Any]]:
    """The tasks that a device has now."""
    live = Allocation.objects.filter(node=node, state__in=LIVE).select_related("run").defer("run__items").order_by("pk")
    return [
        {
            "task_id": each.run_id,
            "assignment_id": each.pk,
            "task_type": each.run.params.get("task_type", ""),
            "status": ATTEMPTS[AllocationState(each.state)],
            "priority": each.run.priority,
            "assigned_at": iso(each.granted_at),
            "started_at": iso(each.started_at),
        }
        for each in live
    ]


def assignment_stats(node: Node, hours: int) -> dict[str, Any]:
    """Of the assignments of the last ``hours``; ``success_rate`` is percent of those that have ended, times are
    seconds."""
    mine = Allocation.objects.filter(node=node, granted_at__gte=since(hours)).order_by()
    words: Counter[str] = Counter()
    for state, count in mine.values_list("state").annotate(Count("pk")):
        words[ATTEMPTS[AllocationState(state)]] += count
    done = mine.filter(state=AllocationState.COMPLETED).aggregate(
        mean=Avg("seconds"), longest=Max("seconds"), waited=Avg(F("started_at") - F("granted_at"))
    )
    ended = words["completed"] + words["failed"] + words["timeout"]
    return {
        "total": words.total(),
        **{word: words[word] for word in dict.fromkeys(ATTEMPTS.values())},
        "success_rate": round(100 * words["completed"] / ended, 2) if ended else None,
        "average_seconds": done["mean"],
        "longest_seconds": done["longest"],
        "average_wait_seconds": done["waited"].total_seconds() if done["waited"] else None,
    }


def health_stats(node: Node, hours: int) -> dict[str, Any]:
    """Of the heartbeats of the last ``hours`` that are kept, one in 15 s; loads are percent."""
    beats = Heartbeat.objects.filter(node=node, at__gte=since(hours)).order_by()
    figures = beats.aggregate(
        heartbeats=Count("pk"),
        average_cpu=Avg("cpu"),
        average_memory=Avg("memory"),
        average_disk=Avg("disk"),
        highest_cpu=Max("cpu"),
        highest_memory=Max("memory"),
        highest_disk=Max("disk"),
        average_tasks=Avg("running"),
        high_load=Count("pk", filter=Q(cpu__gt=90) | Q(memory__gt=90)),
    )
    return {**figures, "last_heartbeat": iso(node.last_beat_at)}


def heartbeats(node: Node, hours: int) -> list[dict[str, Any]]:
    """Newest first."""
    beats = Heartbeat.objects.filter(node=node, at__gte=since(hours)).order_by("-at")[:MOST_HEARTBEATS]
    return [
        {
            "heartbeat_time": iso(beat.at),
            "cpu_usage": beat.cpu,
            "memory_usage": beat.memory,
            "disk_usage": beat.disk,
            "running_tasks": beat.running,
        }
        for beat in beats
    ]

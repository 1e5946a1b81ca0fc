"""What the nodes below can do now, as one node: the more of them are there, the larger it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import Sum
from django.utils import timezone

from dispatch.models import Allocation
from dispatch.states import LIVE
from nodes import registry
from nodes.models import Node, Quota

BRANCHES = 50
"""So many different sets of labels are told; a run that wants another one waits for a node above."""


class Below(NamedTuple):
    """One node below. ``limits`` are the most slots a type may have there; ``labels`` are several sets where it is a
    relay, whose nodes differ.
    """

    capacity: int
    types: frozenset[str]
    labels: Sequence[tuple[tuple[str, str], ...]]
    limits: dict[str, int]
    busy: int
    """Slots that work of this relay's own takes."""


def summary(nodes: Iterable[Below]) -> dict[str, Any]:
    """``slots`` in all, ``types`` with their slots, and ``branches``, the labels that there are together. Pure."""
    slots = 0
    types: dict[str, int] = {}
    branches: dict[tuple[tuple[str, str], ...], None] = {}
    for node in nodes:
        free = max(node.capacity - node.busy, 0)
        slots += free
        for each in node.types:
            types[each] = types.get(each, 0) + min(free, node.limits.get(each, free))
        branches.update(dict.fromkeys(node.labels))
    return {"slots": slots, "types": types, "branches": [dict(each) for each in list(branches)[:BRANCHES]]}


def now(at: datetime | None = None) -> dict[str, Any]:
    """As ``summary``, of the nodes that are here now."""
    at = at or timezone.now()
    online = Node.objects.filter(registry.online_filter(at), draining=False)
    there = [node for node in online if not node.embedded]
    limits: dict[int, dict[str, int]] = {}
    for quota in Quota.objects.filter(node__in=there, item="", limit__isnull=False):
        limits.setdefault(quota.node_id, {})[quota.task_type] = int(quota.limit or 0)
    own = Allocation.objects.filter(node__in=there, state__in=LIVE, run__origin=None).order_by()
    busy = dict(own.values_list("node").annotate(Sum("slots")))
    return summary(
        Below(
            registry.slots(node),
            frozenset(node.executors),
            _labels(node),
            _least(limits.get(node.pk, {}), node.facts.get("types") or {}),
            busy.get(node.pk, 0),
        )
        for node in there
    )


def _labels(node: Node) -> list[tuple[tuple[str, str], ...]]:
    below = (node.facts.get("branches") or [{}]) if node.role == Node.Role.RELAY else [{}]
    return [tuple(sorted({**node.labels, **each}.items())) for each in below]


def _least(limits: Mapping[str, int], told: Mapping[str, int]) -> dict[str, int]:
    """Of a relay below, of whose nodes only some run a type."""
    return {name: min(each[name] for each in (limits, told) if name in each) for name in {*limits, *told}}

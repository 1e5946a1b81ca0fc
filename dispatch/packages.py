"""How many items a run's shards have where clients fetch one shard at a poll, and may poll minutes apart.

The measured size that other work gets, a second's worth, would bring such a client one item at each poll.
"""

from __future__ import annotations

from collections.abc import Mapping

from django.utils import timezone

from nodes import registry
from nodes.models import Node

POLLED = frozenset({"feed_update"})
"""Task types whose clients poll like that."""


def fitting(task_type: str, labels: Mapping[str, str]) -> list[Node]:
    """The nodes that are there for work of this type and these labels."""
    now = timezone.now()
    return [each for each in _known(task_type, labels) if registry.is_fresh(each, now)]


def fair_size(task_type: str, count: int, labels: Mapping[str, str]) -> int:
    """Each node gets its fair share of ``count`` items in one shard, with no more items than it has capacity.

    Where no node is there, those that are known count. 0 (automatic) for other types, and where there is none.
    """
    if task_type not in POLLED:
        return 0
    nodes = fitting(task_type, labels) or _known(task_type, labels)
    if not nodes:
        return 0
    return max(min(-(-count // len(nodes)), *(each.capacity for each in nodes)), 1)


def _known(task_type: str, labels: Mapping[str, str]) -> list[Node]:
    return [
        each
        for each in Node.objects.filter(active=True, draining=False, dialect__in=Node.PATIENT)
        if task_type in each.executors and labels.items() <= each.labels.items()
    ]

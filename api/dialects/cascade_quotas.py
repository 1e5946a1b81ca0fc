"""``sync_config`` of the ``cascade`` dialect, read into a node's capacity and quotas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from api.dialects.cascade_shapes import TYPE
from nodes import executors
from nodes.executors.base import shown
from nodes.fields import CAPACITY_LIMIT, QuotaSpec, read_text, read_whole
from nodes.models import Node
from nodes.protocol import FieldError

CAPACITY = 4
"""Of a node whose ``sync_config`` does not say."""


def read_sync_config(sent: Any, node: Node | None) -> tuple[int | None, list[QuotaSpec] | None]:
    """Capacity and quotas that {"max_capacity", "feed_quota"} asks for; None for what it does not name.

    Raises FieldError on ``sync_config.<key>``. A quota's hard limit, and quotas that the dialect cannot say, stay.
    """
    if isinstance(sent, str) and sent.strip():
        try:
            sent = json.loads(sent)
        except (ValueError, RecursionError):
            raise FieldError("sync_config", f"{shown(sent)} is not JSON") from None
    if sent in (None, ""):
        return None, None
    if not isinstance(sent, dict):
        raise FieldError("sync_config", f"{shown(sent)} is not an object")
    capacity = sent.get("max_capacity")
    if capacity is not None:
        read_whole("sync_config.max_capacity", capacity, 1, CAPACITY_LIMIT)
    before = {(each.task_type, each.item): each for each in node.quotas.all()} if node else {}
    most = capacity if capacity is not None else node.capacity if node else CAPACITY
    given = sent.get("feed_quota")
    if given is None:
        for each in before.values():
            if each.slots > most:
                raise FieldError("sync_config.max_capacity", f"{most} is below the quota {each}; lower that first")
        return capacity, None
    if not isinstance(given, Mapping):
        raise FieldError("sync_config.feed_quota", f'{shown(given)} is not an object like {{"<feed id>": 5}}')
    wanted: dict[tuple[str, str], int] = {}
    for name, slots in given.items():
        path = f"sync_config.feed_quota.{name[:60]}"
        read_text(path, name, 200)
        read_whole(path, slots, 0, CAPACITY_LIMIT)
        if slots > most:
            raise FieldError(path, f"{slots} is above the node's max_capacity, {most}")
        wanted[(name, "") if name in executors.names() else (TYPE, name)] = slots
    specs = []
    for key, slots in wanted.items():
        limit = before[key].limit if key in before else None
        specs.append(QuotaSpec(key[0], slots, key[1], None if limit is None else max(limit, slots)))
    unsaid = [each for key, each in before.items() if key not in wanted and each.item and each.task_type != TYPE]
    specs += [QuotaSpec(each.task_type, each.slots, each.item, each.limit) for each in unsaid]
    return capacity, specs

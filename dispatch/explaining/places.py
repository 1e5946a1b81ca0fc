"""Where an item is: in which shard, in what state, who had it, and why it waits; and the same of a shard."""

from __future__ import annotations

from typing import Any

from dispatch import leaves
from dispatch.explaining import history, waiting
from dispatch.items import CHUNK, item_key
from dispatch.lifecycle.kept import frozen
from dispatch.models import Run, Shard
from dispatch.states import RunState, ShardState
from nodes.executors.base import shown
from nodes.protocol import FieldError, NotFound

MATCHES = 20
"""Items of one key that are told of; an item may be there several times."""


def of_index(run: Run, index: int) -> dict[str, Any]:
    """Of item number ``index``. Raises FieldError."""
    if not 0 <= index < run.count:
        raise FieldError("index", f"{shown(index)} is not one of 0 to {run.count - 1}, the items of run {run.pk}")
    return _told(run, index, [index])


def of_key(run: Run, key: str) -> dict[str, Any]:
    """Of the first item that is, or is called, ``key``; ``indexes`` are the first ones of all. Raises NotFound."""
    indexes = _indexes(run, key)
    if not indexes:
        raise NotFound(f"run {run.pk} has no item {shown(key)}")
    return _told(run, indexes[0], indexes)


def _indexes(run: Run, key: str) -> list[int]:
    found: list[int] = []
    items = frozen(run.pk)
    for start in range(0, run.count, CHUNK):
        for at, item in enumerate(items.slice(start, min(start + CHUNK, run.count)), start):
            if item_key(item) == key:
                found.append(at)
                if len(found) == MATCHES:
                    return found
    return found


def _told(run: Run, index: int, indexes: list[int]) -> dict[str, Any]:
    (item,) = frozen(run.pk).slice(index, index + 1)
    about: dict[str, Any] = {"run": run.pk, "index": index, "indexes": indexes, "item": item}
    shard = Shard.objects.filter(run=run, start__lte=index, stop__gt=index).first()
    if shard is not None:
        return {**about, **of_shard(run, shard)}
    waits = waiting.of_item(run, index) if run.state == RunState.RUNNING else None
    return {
        **about,
        "state": "uncut" if waits else run.state,
        "shard": None,
        "ahead": {"shards": _ready_shards(run), "items": index - run.cut} if waits else None,
        "attempts": [],
        "older": 0,
        "waiting": waits and waits.told(),
    }


def of_shard(run: Run, shard: Shard) -> dict[str, Any]:
    """A shard with its attempts, oldest first, and why it waits, where it does. ``ahead``: what of its own run is
    given out before it."""
    tried, older = history.attempts(shard)
    waits = shard.state == ShardState.PENDING and run.state == RunState.RUNNING
    return {
        "run": run.pk,
        "state": shard.state,
        "shard": {
            "id": shard.pk,
            "start": shard.start,
            "stop": shard.stop,
            "attempts": shard.attempts,
            "deaths": shard.deaths,
            "losses": shard.losses,
            "not_before": shard.not_before,
            "error": shard.error,
            "updated_at": shard.updated_at,
            "ran_by": leaves.of_shards([shard])[shard.pk],
        },
        "ahead": {"shards": _ready_shards(run, shard.pk), "items": 0} if waits else None,
        "attempts": tried,
        "older": older,
        "waiting": waiting.of_shard(run, shard).told() if waits else None,
    }


def _ready_shards(run: Run, before: int | None = None) -> int:
    """Shards of ``run`` that wait, all or those before one: they are given out by their numbers."""
    shards = Shard.objects.filter(run=run, state=ShardState.PENDING)
    return (shards if before is None else shards.filter(pk__lt=before)).count()

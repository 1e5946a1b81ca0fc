"""What never changes of a run once it is there, read once in each process: what children must know of it, its items."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dispatch.items import Growing
from dispatch.models import ItemsPart, Origin, Run


@lru_cache(maxsize=64)
def about(run_id: int) -> dict[str, Any]:
    """What a child must know of a run; it never changes."""
    run = Run.objects.only("type", "params", "timeout", "priority").get(pk=run_id)
    return {"type": run.type, "params": run.params, "timeout": run.timeout, "priority": run.priority}


@lru_cache(maxsize=64)
def beyond(run_id: int) -> dict[str, Any]:
    """What a relay must know beyond that, to give the run to its own nodes; it never changes either."""
    names = ("name", "shard_size", "labels", "rate_key", "island_seconds")
    run = Run.objects.only(*names).get(pk=run_id)
    return {name: getattr(run, name) for name in names}


@lru_cache(maxsize=64)
def remembered(run_id: int) -> dict[str, Any] | None:
    """What the items of a run remember, where a parent above keeps that; None: it is kept here."""
    memory: dict[str, Any] | None = Origin.objects.filter(pk=run_id).values_list("memory", flat=True).first()
    return memory


@lru_cache(maxsize=16)
def frozen(run_id: int) -> Growing:
    """A run's items; they never change, so they are read once, and what is added when it is asked for."""
    blob = Run.objects.values_list("items", flat=True).get(pk=run_id)

    def later(start: int, stop: int | None) -> list[tuple[int, int, bytes]]:
        parts = ItemsPart.objects.filter(run=run_id, start__gte=start).order_by("start")
        parts = parts if stop is None else parts.filter(start__lt=stop)
        return [(first, last, bytes(items)) for first, last, items in parts.values_list("start", "stop", "items")]

    return Growing(bytes(blob), later)

"""What never changes of a run once it is there, read once in each process: what children must know of it, its items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from typing import Any

from dispatch.items import Growing
from dispatch.models import ItemsPart, Origin, Run
from nodes.prepared import Given, Prepared

ABOUT = ("type", "params", "timeout", "priority")
BEYOND = ("name", "shard_size", "labels", "rate_key", "island_seconds")
_RUN = Run.objects.filter(pk=Given("run")).order_by()
_ABOUT = Prepared(lambda: _RUN.values_list(*ABOUT))
_BEYOND = Prepared(lambda: _RUN.values_list(*BEYOND))
_ITEMS = Prepared(lambda: _RUN.values_list("items"))
_MEMORY = Prepared(lambda: Origin.objects.filter(pk=Given("run")).order_by().values_list("memory"))


def _one(asked: Prepared[Any], run_id: int) -> tuple[Any, ...]:
    if not (found := asked.rows(run=run_id)):
        raise Run.DoesNotExist(f"there is no run {run_id}")
    return found[0]


_drafts: dict[int, Run] = {}
_numbers = count(-1, -1)


@contextmanager
def supposed(run: Run) -> Iterator[None]:
    """Meanwhile ``run``, which is not stored, has a number below 0 that no other one has, and is known here by it."""
    run.pk = next(_numbers)
    _drafts[run.pk] = run
    try:
        yield
    finally:
        del _drafts[run.pk]


@lru_cache(maxsize=64)
def about(run_id: int) -> dict[str, Any]:
    """What a child must know of a run; it never changes."""
    if run_id in _drafts:
        return {name: getattr(_drafts[run_id], name) for name in ABOUT}
    return dict(zip(ABOUT, _one(_ABOUT, run_id), strict=True))


@lru_cache(maxsize=64)
def beyond(run_id: int) -> dict[str, Any]:
    """What a relay must know beyond that, to give the run to its own nodes; it never changes either."""
    return dict(zip(BEYOND, _one(_BEYOND, run_id), strict=True))


@lru_cache(maxsize=64)
def remembered(run_id: int) -> dict[str, Any] | None:
    """What the items of a run remember, where a parent above keeps that; None: it is kept here."""
    found = _MEMORY.rows(run=run_id)
    return found[0][0] if found else None


@lru_cache(maxsize=16)
def frozen(run_id: int) -> Growing:
    """A run's items; they never change, so they are read once, and what is added when it is asked for."""
    if run_id in _drafts:
        return Growing(bytes(_drafts[run_id].items), lambda start, stop: ())
    (blob,) = _one(_ITEMS, run_id)

    def later(start: int, stop: int | None) -> list[tuple[int, int, bytes]]:
        parts = ItemsPart.objects.filter(run=run_id, start__gte=start).order_by("start")
        parts = parts if stop is None else parts.filter(start__lt=stop)
        return [(first, last, bytes(items)) for first, last, items in parts.values_list("start", "stop", "items")]

    return Growing(bytes(blob), later)

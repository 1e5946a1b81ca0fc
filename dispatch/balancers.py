"""Balancers: which of the eligible nodes gets the next shard. Pure; to add one, write a function and add its line.

A balancer is a sort key over a node as the allocator sees it while it decides; the smallest key wins, and ties go by
name. It must depend on nothing but its arguments, so that a decision can be explained and repeated. Installed packages
offer theirs as entry points of the group ``cascade.balancers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from random import Random
from typing import TYPE_CHECKING

from nodes.protocol import FieldError

if TYPE_CHECKING:
    from dispatch.seats import Seat

Balancer = Callable[["Seat", str, int], float]
"""(seat, task type, seed) -> key."""
GROUP = "cascade.balancers"
LEAST_PERFORMANCE = 0.05
"""Part of its weight that a node keeps however loaded it is."""


def most_free(seat: Seat, task_type: str, seed: int) -> float:
    """The node with the most free slots."""
    return seat.used - seat.offer.capacity


def least_tasks(seat: Seat, task_type: str, seed: int) -> float:
    """The node with the fewest shards in hand."""
    return seat.used


def round_robin(seat: Seat, task_type: str, seed: int) -> float:
    """The node that has waited longest since its last grant."""
    return seat.last_grant


def weighted(seat: Seat, task_type: str, seed: int) -> float:
    """Shards in proportion to the nodes' performance: their weight, times the part of CPU and memory that is free."""
    load = ((seat.offer.cpu or 0) + (seat.offer.memory or 0)) / 200
    return (seat.used + 1) / (seat.offer.weight * max(1 - load, LEAST_PERFORMANCE))


def random(seat: Seat, task_type: str, seed: int) -> float:
    """Any of them; the seed makes it repeatable."""
    return Random(f"{seed}:{seat.offer.node}:{seat.used}").random()


def health(seat: Seat, task_type: str, seed: int) -> float:
    """The highest of 100 - CPU * 0.5 - memory * 0.3 - shards * 10 (percent); an unknown load counts as none."""
    return -(100 - (seat.offer.cpu or 0) * 0.5 - (seat.offer.memory or 0) * 0.3 - seat.used * 10)


def earliest_finish(seat: Seat, task_type: str, seed: int) -> float:
    """The node that would be done first, by its measured seconds per item; an unmeasured node comes first."""
    return seat.offer.speeds.get(task_type, 0.0) * (seat.used // max(seat.offer.capacity, 1) + 1)


BALANCERS: dict[str, Balancer] = {
    "most_free": most_free,
    "least_tasks": least_tasks,
    "round_robin": round_robin,
    "weighted": weighted,
    "random": random,
    "health": health,
    "earliest_finish": earliest_finish,
}


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Those that installed packages offer, by name; read once. None of them hides one of ours."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BALANCERS}


def names() -> list[str]:
    """All that can be named without a dotted path."""
    return sorted([*BALANCERS, *installed()])


@cache
def get(name: str) -> Balancer:
    """The balancer called ``name``, or the callable at a dotted path. Raises FieldError on ``balancer``."""
    if name in BALANCERS:
        return BALANCERS[name]
    found = _loaded(name)
    if not callable(found):
        raise FieldError("balancer", f"{name!r} is not callable")
    return found


def _loaded(name: str) -> Balancer:
    try:
        if point := installed().get(name):
            loaded: Balancer = point.load()
            return loaded
        module, _, attribute = name.rpartition(".")
        found: Balancer = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        known = ", ".join(names())
        raise FieldError("balancer", f"{name!r} is not one of: {known}; nor a dotted path to a function") from None
    except Exception as error:
        # Somebody's module, which may fail in any way when it is imported.
        raise FieldError("balancer", f"{name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return found


def meaning(name: str) -> str:
    """What it says of itself, in a line; "" for one that says nothing or cannot be loaded."""
    try:
        text = (get(name).__doc__ or "").strip()
    except FieldError:
        return ""
    return text.partition("\n")[0]

"""Balancers: which of the eligible nodes gets the next shard. Pure; to add one, write a function and add its line.

A balancer is a sort key over a node as the allocator sees it while it decides; the smallest key wins, and ties go by
name. It must depend on nothing but its arguments, so that a decision can be explained and repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING

from nodes.protocol import FieldError

if TYPE_CHECKING:
    from dispatch.allocator import Seat

Balancer = Callable[["Seat", str, int], float]
"""(seat, task type, seed) -> key."""


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
    """Shards in hand in proportion to the nodes' weights."""
    return (seat.used + 1) / seat.offer.weight


def random(seat: Seat, task_type: str, seed: int) -> float:
    """Any of them; the seed makes it repeatable."""
    return Random(f"{seed}:{seat.offer.node}:{seat.used}").random()


def health(seat: Seat, task_type: str, seed: int) -> float:
    """The highest of 100 - CPU * 0.5 - memory * 0.3 - shards * 10 (percent); an unknown load counts as none."""
    return -(100 - (seat.offer.cpu or 0) * 0.5 - (seat.offer.memory or 0) * 0.3 - seat.used * 10)


def earliest_finish(seat: Seat, task_type: str, seed: int) -> float:
    """The node that would be done first, by its measured seconds per item; an unmeasured node comes first."""
    return seat.offer.speeds.get(task_type, 0.0) * (seat.used // seat.offer.capacity + 1)


BALANCERS: dict[str, Balancer] = {
    "most_free": most_free,
    "least_tasks": least_tasks,
    "round_robin": round_robin,
    "weighted": weighted,
    "random": random,
    "health": health,
    "earliest_finish": earliest_finish,
}


def get(name: str) -> Balancer:
    """The balancer called ``name``, or the callable at a dotted path. Raises FieldError on ``balancer``."""
    if name in BALANCERS:
        return BALANCERS[name]
    module, _, attribute = name.rpartition(".")
    try:
        found: Balancer = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        known = ", ".join(sorted(BALANCERS))
        raise FieldError("balancer", f"{name!r} is not one of: {known}; nor a dotted path to a function") from None
    if not callable(found):
        raise FieldError("balancer", f"{name!r} is not callable")
    return found

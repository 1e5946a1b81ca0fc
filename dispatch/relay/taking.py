"""What comes from above: allocations become runs here, and end when the parent above does not want them any more."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from django.db import IntegrityError
from django.utils import timezone

from dispatch import events, lifecycle
from dispatch.deciding import endings
from dispatch.items import freeze
from dispatch.lifecycle.submit import defaults, hands_of
from dispatch.lifecycle.writing import write_down
from dispatch.models import Origin, Receipt, Run
from dispatch.states import RunState
from nodes import executors, failpoints
from nodes.protocol import CascadeError, Conflict
from nodes.transactions import retried, write

logger = logging.getLogger(__name__)

ATTEMPTS = 1
"""An item that fails is the parent's to try again: it counts the attempts. What is lost below is done again below."""


class Taken(NamedTuple):
    """Allocations above: those that are here now, old and new, and those that this server cannot have run."""

    held: list[int]
    unknown: list[int]


def take(parent: str, message: Mapping[str, Any]) -> Taken:
    """The work of an offer or a claim of the node ``parent`` becomes runs. Repeating it changes nothing."""
    taken = Taken([], [])
    runs = message.get("runs") or {}
    memories = message.get("memory") or {}
    slots = message.get("slots") or {}
    for allocation, above, start, _, _, items in message.get("work") or []:
        about = runs[str(above)]
        memory = memories.get(str(allocation)) or {}
        if Origin.objects.filter(parent=parent, allocation=allocation).exists():
            taken.held.append(allocation)
            continue
        try:
            executors.get(about["type"])
        except CascadeError as error:
            logger.error("allocation %s of %s goes back: %s", allocation, parent, error)
            taken.unknown.append(allocation)
            continue
        if _begin(parent, allocation, above, start, items, about, memory, int(slots.get(str(allocation), 1))):
            taken.held.append(allocation)
    if taken.held:
        failpoints.reach("relay.taken")
        events.changed()
    return taken


def _begin(
    parent: str,
    allocation: int,
    above: int,
    start: int,
    items: Sequence[Any],
    about: Mapping[str, Any],
    memory: Mapping[str, Any],
    slots: int,
) -> bool:
    executor = executors.get(about["type"])
    run = Run(
        **defaults(),
        **{name: about[name] for name in ("type", "params") if name in about},
        items=freeze(list(items)),
        count=len(items),
        name=f"{about.get('name') or 'run'} {above} of {parent}"[:200],
        hands=hands_of(executor, list(items), about["params"]),
        shard_size=int(about.get("shard_size") or 0),
        labels=about.get("labels") or {},
        submitted_by="relay",
    )
    run.timeout, run.priority, run.max_attempts = about["timeout"], about["priority"], ATTEMPTS
    run.fallback = "never"
    try:
        with write():
            run.save(force_insert=True)
            Origin.objects.create(
                run=run, parent=parent, allocation=allocation, start=start, above=above, slots=slots, memory=memory
            )
    except IntegrityError:
        return Origin.objects.filter(parent=parent, allocation=allocation).exists()
    return True


def held(parent: str) -> list[int]:
    """The allocations of ``parent`` that are not settled here; where it is not known yet who that is, of whoever it
    was before: a relay that was started anew has lost nothing.
    """
    open_ = Origin.objects.filter(closed_at=None)
    return list((open_.filter(parent=parent) if parent else open_).values_list("allocation", flat=True))


def drop(parent: str, allocations: Iterable[int]) -> int:
    """The parent does not want these any more: their runs end, and what they have not passed on is forgotten."""
    gone = list(Origin.objects.filter(parent=parent, allocation__in=list(allocations), closed_at=None))
    for origin in gone:
        _forget(origin)
    return len(gone)


def drop_others(parent: str) -> int:
    """What came from another parent than this one is nobody's any more."""
    gone = list(Origin.objects.filter(closed_at=None).exclude(parent=parent))
    for origin in gone:
        _forget(origin)
    return len(gone)


@retried
def _forget(origin: Origin) -> None:
    with write():
        waiting = Receipt.objects.select_for_update().filter(origin=origin, saved_at=None)
        for receipt in waiting:
            write_down(
                endings.damaged(receipt.pk, receipt.manifest, "the node above does not want it any more"),
                timezone.now(),
            )
    if Run.objects.filter(pk=origin.pk, state=RunState.RUNNING).exists():
        with suppress(Conflict):  # it has just ended
            lifecycle.cancel(origin.pk)
    # Last: a relay that dies on the way does all of this again, as long as it is open.
    Origin.objects.filter(pk=origin.pk, closed_at=None).update(closed_at=timezone.now())

"""What comes from above: allocations become runs here, and end when the parent above does not want them any more."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from django.db import DatabaseError, IntegrityError
from django.utils import timezone

from dispatch import events, leading, lifecycle, queue
from dispatch.deciding import endings
from dispatch.items import freeze
from dispatch.lifecycle.submit import defaults, hands_of
from dispatch.lifecycle.writing import write_down
from dispatch.models import Origin, Receipt, Run
from dispatch.rates import KEY_LIMIT
from dispatch.relay import inputs
from dispatch.states import RunState
from nodes import executors, failpoints
from nodes.prepared import Given, Prepared
from nodes.protocol import CascadeError, Conflict
from nodes.transactions import retried, write

logger = logging.getLogger(__name__)

ATTEMPTS = 1
"""An item that fails is the parent's to try again: it counts the attempts. What is lost below is done again below."""


class Taken(NamedTuple):
    """Allocations above: those that are here now, old and new, and those that this server cannot have run."""

    held: list[int]
    unknown: list[int]


_KNOWN = Prepared(
    lambda: Origin.objects.filter(parent=Given("parent"), allocation=Given("allocation")).order_by().values_list("pk")
)


def take(parent: str, message: Mapping[str, Any], *, give: bool = False) -> Taken:
    """The work of an offer or a claim of the node ``parent`` becomes runs. Repeating it changes nothing.

    With ``give``, what can begin at once is given to nodes in the same transaction: who waits for it has it before the
    dispatcher has woken up.
    """
    given: Collection[int] = ()
    with write():
        taken = _take(parent, message)
        if give and taken.held and leading.held():
            try:
                given = queue.allocate_now().nodes
            except DatabaseError:
                raise
            except Exception:
                logger.exception("what was taken could not be given out at once; the dispatcher does it")
    if taken.held:
        failpoints.reach("relay.taken")
        events.tell(given, {"type": "node.work"})
        events.changed()
    return taken


def _take(parent: str, message: Mapping[str, Any]) -> Taken:
    taken = Taken([], [])
    runs = message.get("runs") or {}
    memories = message.get("memory") or {}
    slots = message.get("slots") or {}
    keys = message.get("rates") or {}
    for allocation, above, start, _, _, items in message.get("work") or []:
        about = runs[str(above)]
        memory = memories.get(str(allocation)) or {}
        if _KNOWN.any(parent=parent, allocation=allocation):
            taken.held.append(allocation)
            continue
        try:
            executors.get(about["type"])
        except CascadeError as error:
            logger.error("allocation %s of %s goes back: %s", allocation, parent, error)
            taken.unknown.append(allocation)
            continue
        wide = int(slots.get(str(allocation), 1))
        if _begin(parent, allocation, above, start, items, about, memory, wide, keys.get(str(allocation)) or ""):
            taken.held.append(allocation)
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
    key: str,
) -> bool:
    executor = executors.get(about["type"])
    run = Run(
        **defaults(),
        **{name: about[name] for name in ("type", "params") if name in about},
        items=freeze(list(items)),
        count=len(items),
        rate_key=_literal(key) or about.get("rate_key") or "",
        island_seconds=about.get("island_seconds"),
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
                run=run,
                parent=parent,
                allocation=allocation,
                start=start,
                above=above,
                slots=slots,
                memory=memory,
                rate=key,
            )
    except IntegrityError:
        return Origin.objects.filter(parent=parent, allocation=allocation).exists()
    return True


def _literal(key: str) -> str:
    """A template that makes ``key`` of every item: what is behind a host's name may not be known here."""
    template = key.replace("{", "{{").replace("}", "}}")
    return template if len(template) <= KEY_LIMIT else ""


def hold(silence: float, cut_off: float) -> int:
    """The parent is silent for ``silence`` seconds: what may not go on for so long stops, and waits to be wanted again.

    Up to ``cut_off`` seconds nobody is cut off. Returns how many runs were stopped.
    """
    if silence < cut_off:
        return 0
    late = Origin.objects.filter(closed_at=None, held_at=None, run__island_seconds__lte=silence)
    found = list(late.filter(run__state=RunState.RUNNING).values_list("pk", "run__island_seconds"))
    for run, seconds in found:
        # First of all, so that no pass gives it out again.
        Origin.objects.filter(pk=run).update(held_at=timezone.now())
        lifecycle.withdraw(run, f"cut off from the node above for more than {seconds:g} s")
    return len(found)


def go_on(parent: str) -> int:
    """The parent is heard of, and has said what it does not want any more: the rest goes on. Returns how many runs."""
    found = Origin.objects.filter(parent=parent, closed_at=None, held_at__isnull=False).update(held_at=None)
    if found:
        events.changed()
    return found


def parent_before() -> str:
    """Whose allocations are here, as far as any are: a relay that was started anew has lost nothing."""
    return Origin.objects.filter(closed_at=None).values_list("parent", flat=True).order_by("-pk").first() or ""


def held(parent: str) -> list[int]:
    """The allocations of ``parent`` that are not settled here."""
    return list(Origin.objects.filter(parent=parent, closed_at=None).values_list("allocation", flat=True))


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
    inputs.drop([origin.pk])
    # Last: a relay that dies on the way does all of this again, as long as it is open.
    Origin.objects.filter(pk=origin.pk, closed_at=None).update(closed_at=timezone.now())

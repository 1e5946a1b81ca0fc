"""Items that are added to a run while it goes on, found by an accepted report (or, see ``growth``, planned).

Each is there once by its key. They are appended in the transaction that they are found in, so an item that was found
is never lost, and the run cannot end in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.db.models import F

from dispatch.items import freeze
from dispatch.lifecycle.submit import SLICE, check_item, digest_of, seen
from dispatch.models import ItemsPart, Run, SeenItem
from dispatch.states import RunState
from nodes import executors
from nodes.executors.base import Item
from nodes.messages import Entry
from nodes.protocol import FieldError


def check(task_type: str, entry: Entry) -> None:
    """Raises FieldError for an entry whose found items cannot be items of ``task_type``."""
    executor = executors.get(task_type)
    for outcome in entry.outcomes:
        if outcome.found and not executor.grows:
            raise FieldError("outcomes", f"items of type {task_type} find no further ones")
        for at, item in enumerate(outcome.found):
            check_item(executor, item, f"outcomes.{outcome.index}.found[{at}]")


def take(task_type: str, run_id: int, entries: Sequence[Entry]) -> int:
    """Adds what ``entries``, which were checked, found and the run has not; how many.

    Inside the caller's transaction.
    """
    found = {digest_of(item): item for entry in entries for outcome in entry.outcomes for item in outcome.found}
    if not found:
        return 0
    # Locked: reports of several nodes may find the same at once.
    run = Run.objects.select_for_update().only("count", "state", "params").get(pk=run_id)
    if run.state != RunState.RUNNING:
        return 0
    digests = list(found)
    for at in range(0, len(digests), SLICE):
        known = SeenItem.objects.filter(run=run_id, digest__in=digests[at : at + SLICE])
        for digest in known.values_list("digest", flat=True):
            del found[bytes(digest)]
    most = executors.get(task_type).most_items(run.params)
    room = min(settings.CASCADE.max_items, settings.CASCADE.max_items if most is None else most) - run.count
    fresh = dict(list(found.items())[: max(room, 0)])
    add(run_id, run.count, fresh)
    return len(fresh)


def add(run_id: int, start: int, items: dict[bytes, Item]) -> None:
    """To a run that has ``start`` items and is locked by the caller."""
    if items:
        SeenItem.objects.bulk_create(seen(run_id, items.values()), SLICE)
        stop = start + len(items)
        ItemsPart.objects.create(run_id=run_id, start=start, stop=stop, items=freeze(list(items.values())))
        Run.objects.filter(pk=run_id).update(count=F("count") + len(items))

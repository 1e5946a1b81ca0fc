"""Items that the parent adds to a run it plans as it goes."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils import timezone

from dispatch import events
from dispatch.deciding.effects import EndRuns
from dispatch.lifecycle import found
from dispatch.lifecycle.submit import check_item, digest_of
from dispatch.lifecycle.writing import write_down
from dispatch.models import Run
from dispatch.states import RunState
from nodes import executors
from nodes.executors.base import Item
from nodes.transactions import retried, write


@retried
def append(run_id: int, start: int, items: Sequence[Item], *, last: bool) -> bool:
    """Adds ``items`` to a growing run, numbered from ``start``; with ``last`` there are no more to come.

    False where the run has ended, or somebody else has added to it since it had ``start`` items. Raises FieldError.
    """
    with write():
        run = Run.objects.select_for_update().only("count", "state", "type", "growing").filter(pk=run_id).first()
        if run is None or run.state != RunState.RUNNING or not run.growing or run.count != start:
            return False
        executor = executors.get(run.type)
        for at, item in enumerate(items):
            check_item(executor, item, f"items[{at}]")
        found.add(run_id, start, {digest_of(item): item for item in items})
        if last:
            Run.objects.filter(pk=run_id).update(growing=False)
            write_down([EndRuns(frozenset([run_id]))], timezone.now())
    events.changed()
    return True

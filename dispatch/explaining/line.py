"""The line of runs that have something to give: who is served before whom, and why. The allocator's order, in words."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db.models import F, Q, Sum

from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE, RunState, ShardState

SHOWN = 20
"""Runs before one that are listed; all are counted."""


class Place(NamedTuple):
    """A run in line. ``served`` are the slots that it has now."""

    run: int
    priority: int
    served: int


def standing(now: dt.datetime) -> list[Place]:
    """The runs that have something to give ``now``, in order: by priority, fewest slots, age (``seats.Queue.key``)."""
    running = Run.objects.filter(state=RunState.RUNNING).order_by("created_at", "pk")
    came_back = Shard.objects.filter(
        Q(not_before=None) | Q(not_before__lte=now), state=ShardState.PENDING, run__state=RunState.RUNNING
    )
    back = set(came_back.order_by().values_list("run_id", flat=True).distinct())
    # Those that came back are asked for by their state, not by number: there may be more than a query takes.
    rows = running if back else running.filter(cut__lt=F("count"))
    live = Allocation.objects.filter(state__in=LIVE).order_by()
    served = dict(live.values_list("run_id").annotate(Sum("slots")))
    found = [
        Place(pk, priority, served.get(pk, 0))
        for pk, priority, cut, count in rows.values_list("pk", "priority", "cut", "count")
        if cut < count or pk in back
    ]
    # Stable: what is equal stays in the order of age.
    return sorted(found, key=lambda place: (-place.priority, place.served))


def position(line: Sequence[Place], run: int) -> dict[str, Any] | None:
    """Where ``run`` stands in ``line``, and who is before it; None where it is not in it."""
    at = next((number for number, place in enumerate(line) if place.run == run), None)
    if at is None:
        return None
    mine, ahead = line[at], line[:at]
    shown = ahead[:SHOWN]
    columns = ("pk", "name", "type", "created_at")
    about = {row[0]: row[1:] for row in Run.objects.filter(pk__in=[each.run for each in shown]).values_list(*columns)}
    before = []
    for place in shown:
        # One that was removed since is not in the way any more.
        if place.run in about:
            name, kind, submitted = about[place.run]
            before.append({"run": place.run, "name": name, "type": kind, "why": _words(place, mine, submitted)})
    return {
        "position": at + 1,
        "of": len(line),
        "ahead": Counter(_code(place, mine) for place in ahead),
        "before": before,
        "more": len(ahead) - len(shown),
    }


def _code(place: Place, mine: Place) -> str:
    """Why ``place`` comes before ``mine``, which is behind it."""
    if place.priority != mine.priority:
        return "priority"
    return "served" if place.served != mine.served else "age"


def _words(place: Place, mine: Place, submitted: dt.datetime) -> str:
    code = _code(place, mine)
    if code == "priority":
        return f"priority {place.priority}, above {mine.priority}"
    if code == "served":
        return f"has fewer slots: {place.served}, this one {mine.served}"
    return f"submitted earlier: {submitted:%Y-%m-%d %H:%M:%S} UTC"

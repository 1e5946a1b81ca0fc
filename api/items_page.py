"""The items of a run: found by number or by name, with where each is, who had it and why, or why it waits."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from api.parts import State, iso, lasted
from api.run_page import BAD
from api.words import Text, words
from dispatch.explaining import places
from dispatch.items import item_key
from dispatch.lifecycle.kept import frozen
from dispatch.models import Run, Shard
from dispatch.states import RUN_ENDED, RunState
from nodes.protocol import FieldError, NotFound

PAGE = 50
KEY = 200
SHOWN = 2_000


@dataclass(frozen=True)
class ItemView:
    index: int
    text: str
    state: State
    shard: int | None
    error: str
    bad: bool


@dataclass(frozen=True)
class AttemptView:
    id: int
    attempt: int
    start: int
    stop: int
    node: Text
    ran_by: tuple[str, ...]
    state: State
    ended: str
    reason: str
    granted: str
    started: str
    finished: str
    took: Text
    rows: int
    receipt: int | None
    error: str


def show(request: HttpRequest, pk: int) -> HttpResponse:
    """The page as HTML. ``index`` or ``item`` of the address say which item is looked for, ``from`` the first of those
    listed. Raises NotFound."""
    run = Run.objects.defer("items").filter(pk=pk).first()
    if run is None:
        raise NotFound(f"there is no run {pk}")
    index, key = request.GET.get("index", "").strip(), request.GET.get("item", "")
    problem, found = "", None
    try:
        found = _found(run, index, key)
    except (FieldError, NotFound) as error:
        problem = str(error)
    start = _start(request.GET.get("from", ""), found["index"] if found else 0, run.count)
    items, ended = _listed(run, start), run.state in RUN_ENDED
    context = {
        "run": run,
        "index": index,
        "item": key[:KEY],
        "problem": problem,
        "found": _shown(found) if found else None,
        "items": items,
        "ended": ended,
        "retriable": ended and any(each.bad for each in items),
        "start": start,
        "last": min(start + PAGE, run.count) - 1,
        "earlier": urlencode({"from": max(start - PAGE, 0)}) if start else "",
        "later": urlencode({"from": start + PAGE}) if start + PAGE < run.count else "",
        "now": int(timezone.now().timestamp() * 1000),
    }
    return render(request, "items.html", context, status=404 if problem else 200)


def _found(run: Run, index: str, key: str) -> dict[str, Any] | None:
    if index:
        if not (index.isascii() and index.isdigit() and len(index) < 19):
            raise FieldError("index", f"{index[:20]!r} is not one of 0 to {run.count - 1}, the items of run {run.pk}")
        return places.of_index(run, int(index))
    return places.of_key(run, key) if key else None


def _start(text: str, index: int, count: int) -> int:
    """Of the page that is asked for, or else of the one with item ``index``."""
    start = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else index - index % PAGE
    return min(start, max(count - 1, 0))


def _listed(run: Run, start: int) -> list[ItemView]:
    stop = min(start + PAGE, run.count)
    within = Shard.objects.filter(run=run, start__lt=stop, stop__gt=start).order_by("start")
    shards = list(within.only("start", "stop", "state", "error")[: PAGE + 1])
    starts = [shard.start for shard in shards]
    uncut = State.of("pending" if run.state == RunState.RUNNING else "cancelled")
    views = []
    for index, item in enumerate(frozen(run.pk).slice(start, stop), start):
        at = bisect_right(starts, index) - 1
        shard = shards[at] if at >= 0 and shards[at].stop > index else None
        state = State.of(shard.state) if shard else uncut
        error = shard.error[:300] if shard else ""
        bad = shard is not None and shard.state in BAD
        views.append(ItemView(index, _text(item), state, shard.pk if shard else None, error, bad))
    return views


def _text(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def _shown(found: Mapping[str, Any]) -> dict[str, Any]:
    shard, waiting = found["shard"], found["waiting"]
    state = "pending" if found["state"] == "uncut" else found["state"]
    return {
        **found,
        "text": _text(found["item"])[:SHOWN],
        "key": item_key(found["item"])[:KEY],
        "others": [index for index in found["indexes"] if index != found["index"]],
        "state": State.of(state),
        "uncut": shard is None,
        "not_before": iso(shard["not_before"]) if shard else "",
        "updated": iso(shard["updated_at"]) if shard else "",
        "attempts": [_attempt(each) for each in found["attempts"]],
        "waiting": waiting,
    }


def _attempt(each: Mapping[str, Any]) -> AttemptView:
    seconds = each["seconds"]
    return AttemptView(
        each["allocation"],
        each["attempt"],
        each["start"],
        each["stop"],
        each["node"] or words("removed"),
        tuple(each["ran_by"]),
        State.of(each["state"]),
        each["ended"],
        each["reason"],
        iso(each["granted_at"]),
        iso(each["started_at"]),
        iso(each["finished_at"]),
        "" if seconds is None else lasted(seconds),
        each["rows"],
        each["receipt"],
        each["error"],
    )

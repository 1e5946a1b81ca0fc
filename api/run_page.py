"""The page of one run: how far it is, what failed and why, who had what of it. Read into parts as the overview is."""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import F, Sum
from django.db.models.functions import Substr
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode

from api import overview, strips
from api.pace import Pace, counters
from api.parts import LiveParts, RunView, Seen, Views, iso
from api.words import Text, Words, words
from dispatch import lifecycle, log_lines
from dispatch.explaining import waiting
from dispatch.items import item_key
from dispatch.lifecycle.kept import frozen
from dispatch.models import Run, Shard
from dispatch.ranges import Range
from dispatch.states import RunState, ShardState
from nodes.executors.base import shown
from nodes.protocol import Conflict, FieldError, NotFound

GROUPS_SHOWN, LOOKED = 50, 2_000
BEFORE_SHOWN = 5
SHARE = 0.02
MESSAGE = 300
"""Characters of a message that make it the same as another."""
PARTS = ("head", "strip", "lanes", "open", "waits", "errors", "log_mark", "allocations")
PROBLEM = 500
FORMATS = ("csv", "json", "parquet")
BAD = (ShardState.FAILED, ShardState.QUARANTINED)


@dataclass(frozen=True)
class HeadView:
    """What is said of the run as a whole, and of what was wished."""

    run: RunView
    params: str
    facts: tuple[tuple[Words, Text], ...]
    reduction: str


@dataclass(frozen=True)
class ErrorView:
    """Shards that ended badly with the same message."""

    id: int
    message: Text
    shards: int
    items: int
    first: str
    last: str


@dataclass(frozen=True)
class OpenView:
    """Items that a cancel would stop, before and while they run, and items that could be tried again."""

    waiting: int
    executing: int
    failed: int


@dataclass(frozen=True)
class WaitsView:
    """Why what waits of the run is with no node yet; empty ``headline`` where nothing waits."""

    headline: str = ""
    position: Text = ""
    before: tuple[tuple[int, str, str], ...] = ()
    """Runs before it in line: id, name, why."""
    reasons: tuple[tuple[str, Text], ...] = ()
    """Each with how many nodes it holds for, and who they are."""
    run: int = 0


@dataclass(frozen=True)
class LogMarkView:
    """How many lines the run's log has; the page fetches them itself."""

    newest: int


class Costly:
    """Something that may take long to read: read again only when reading takes at most SHARE of the time."""

    def __init__(self) -> None:
        self._value: Any = None
        self._due = 0.0

    def get(self, read: Callable[[], Any]) -> Any:
        began = time.monotonic()
        if began >= self._due:
            self._value = read()
            self._due = began + (time.monotonic() - began) / SHARE
        return self._value


class RunPage(LiveParts):
    """Reads one run; in each process one for all who look at it. Raises NotFound for none."""

    def __init__(self, pk: int) -> None:
        super().__init__()
        self._pk = pk
        self._pace = Pace(curves=False)
        self._strip = Costly()
        self._waits = Costly()

    def _read(self, now: dt.datetime) -> Seen:
        """The page now, in a handful of queries whatever the number of items."""
        run = Run.objects.defer("items").filter(pk=self._pk).first()
        if run is None:
            raise NotFound(f"there is no run {self._pk}")
        row = {name: getattr(run, name) for name in overview.RUN_FIELDS}
        self._pace.look(now.timestamp(), [row])
        pace = self._pace.of_run(run.pk, now.timestamp(), counters(row)[0])
        held = _under_way(run.pk)
        spooled = held[ShardState.SPOOLED]
        waits = self._waits.get(lambda: _waits(run)) if run.state == RunState.RUNNING else WaitsView()
        obstacle = words("waiting, for what is said below") if waits.headline else ""
        head = HeadView(
            overview.run_view(row, held.total() - spooled, spooled, pace, obstacle),
            json.dumps(run.params, indent=2, ensure_ascii=False, sort_keys=True) if run.params else "",
            _facts(run),
            json.dumps(run.reduction, indent=2, ensure_ascii=False) if run.reduction else "",
        )
        lists: Mapping[str, Views] = {
            "errors": [("error", each) for each in _errors(run.pk)],
            "allocations": [("allocation", each) for each in overview.allocation_views(run=run.pk)],
        }
        single = {
            "head": head,
            "strip": self._strip.get(lambda: strips.strip(run.pk, run.count, run.cut)),
            "lanes": strips.lanes(run.pk, now),
            "open": _open(run, held[ShardState.EXECUTING]),
            "waits": waits,
            "log_mark": LogMarkView(log_lines.newest(run.pk)),
        }
        return Seen(single, lists)


def _waits(run: Run) -> WaitsView:
    found = waiting.of_run(run)
    if not found.refusals and not found.put_off["shards"]:
        return WaitsView()
    place = found.position
    return WaitsView(
        found.headline,
        words("{position} of {count} in line", position=place["position"], count=place["of"]) if place else "",
        tuple((each["run"], each["name"] or each["type"], each["why"]) for each in place["before"][:BEFORE_SHOWN])
        if place
        else (),
        tuple((str(group), _names(group.names, group.nodes)) for group in found.groups),
        run.pk,
    )


def _names(names: Sequence[str], nodes: int) -> Text:
    more, named = nodes - len(names), ", ".join(names)
    return words("{names} and {n} more", names=named, n=more) if more > 0 else named


def _under_way(run: int) -> Counter[str]:
    """Items by state: with a node, running there, or waiting for their rows to be saved."""
    states = (ShardState.ALLOCATED, ShardState.EXECUTING, ShardState.SPOOLED)
    shards = Shard.objects.filter(run=run, state__in=states).order_by()
    return Counter(dict(shards.values_list("state").annotate(items=Sum(F("stop") - F("start")))))


def _facts(run: Run) -> tuple[tuple[Words, Text], ...]:
    labels = ", ".join(f"{key}={value}" for key, value in run.labels.items())
    facts: list[tuple[Words, Any]] = [
        (words("Type"), run.type),
        (words("Submitted by"), run.submitted_by),
        (words("Submitted"), iso(run.created_at)),
        (words("Ended"), iso(run.ended_at)),
        (words("Priority"), run.priority),
        (words("Time-out"), words("{n} s", n=f"{run.timeout:g}")),
        (words("Attempts"), run.max_attempts),
        (words("Labels"), labels),
        (words("Rate"), run.rate_key),
    ]
    return tuple(
        (name, value if isinstance(value, Words) else str(value)) for name, value in facts if value not in ("", None)
    )


def _errors(run: int) -> list[ErrorView]:
    """Of the newest LOOKED shards that ended badly, those with the same message together, the most items first."""
    views = [
        ErrorView(
            min(pk for pk, *_ in group),
            message or words("no message"),
            len(group),
            sum(stop - start for _, start, stop, _ in group),
            iso(min(at for *_, at in group)),
            iso(max(at for *_, at in group)),
        )
        for message, group in _alike(run, LOOKED).items()
    ]
    return sorted(views, key=lambda view: (-view.items, view.id))[:GROUPS_SHOWN]


def _alike(run: int, most: int | None = None) -> dict[str, list[_Bad]]:
    """Shards that ended badly, the newest first, by their messages without the item that each is of."""
    bad = Shard.objects.filter(run=run, state__in=BAD).order_by("-updated_at")
    rows = list(bad.annotate(message=Substr("error", 1, MESSAGE)).values_list(*_BAD_COLUMNS)[:most])
    items = frozen(run) if rows else None
    groups: dict[str, list[_Bad]] = {}
    for pk, start, stop, at, message in rows:
        assert items is not None
        key = item_key(items.slice(start, start + 1)[0])
        message = message.removeprefix(f"{key}: ")
        if len(key) > 1 and key in message:
            # What failed alike says so of its own item.
            message = re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", "…", message)
        groups.setdefault(message, []).append((pk, start, stop, at))
    return groups


_Bad = tuple[int, int, int, dt.datetime]
"""Shard, start, stop, when."""
_BAD_COLUMNS = ("pk", "start", "stop", "updated_at", "message")


def _open(run: Run, executing: int) -> OpenView:
    return OpenView(max(run.count - run.done - executing, 0), executing, run.failed + run.quarantined)


def show(request: HttpRequest, pk: int) -> HttpResponse:
    """The page as HTML."""
    snapshot = RunPage(pk).look()
    parts = {name: snapshot.html(name) for name in PARTS}
    problem = request.GET.get("problem", "")[:PROBLEM]
    now = int(timezone.now().timestamp() * 1000)
    running = not snapshot.parts["head"].view.run.took
    context = {**parts, "pk": pk, "now": now, "problem": problem, "formats": FORMATS, "running": running}
    return render(request, "run.html", context)


def act(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """A button of the page; what speaks against it is said on the page. Raises NotFound."""
    try:
        lifecycle.cancel(pk) if verb == "cancel" else lifecycle.retry(pk, _chosen(request, pk))
    except (Conflict, FieldError) as error:
        return redirect(f"{reverse('run', args=[pk])}?{urlencode({'problem': str(error)})}")
    return redirect("run", pk)


def _chosen(request: HttpRequest, pk: int) -> list[Range] | None:
    """Items that were ticked, by themselves or by their errors: None for all. Raises FieldError."""
    groups, items = set(_numbers(request, "group")), _numbers(request, "item")
    if "ticked" in request.POST and not items:
        raise FieldError("item", "none is ticked")
    if not groups and not items:
        return None
    alike = _alike(pk).values() if groups else ()
    found = [(start, stop) for group in alike if groups & {each[0] for each in group} for _, start, stop, _ in group]
    return found + [(index, index + 1) for index in items]


def _numbers(request: HttpRequest, name: str) -> list[int]:
    found = request.POST.getlist(name)
    for each in found:
        if not (each.isascii() and each.isdigit() and len(each) < 19):
            raise FieldError(name, f"{shown(each)} is not a number")
    return list(map(int, found))

"""A run drawn: all its items on one strip, and on a lane for each node what it had of them when. Bounded in size."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.db.models import Case, F, Q, Sum, Value, When

from api.parts import State, iso, lasted, state_word
from api.words import Text, Words, listed, words
from dispatch.models import Allocation, Shard
from dispatch.states import AllocationState, ShardState

CELLS = 500
"""Cells of a strip at most: about two points each on a wide window."""
LANES, MARKS, LAST = 40, 200, 2_000
"""Lanes shown, places on each where something may begin or end, and allocations looked at, the newest."""
TRIED = "retrying"
WORST = ("failed", "quarantined", "executing", TRIED, "allocated", "pending", "spooled", "saved", "cancelled")
"""What a cell with several states is coloured by: the first of these that is in it."""
_TONE = {"quarantined": "failed", "spooled": "saved"}
_LANE = {
    AllocationState.FAILED: "failed",
    AllocationState.EXPIRED: "expired",
    AllocationState.EXECUTING: "executing",
    AllocationState.PENDING: "allocated",
    AllocationState.COMPLETED: "saved",
    AllocationState.SUPERSEDED: "cancelled",
    AllocationState.CANCELLED: "cancelled",
}
"""What a mark with several is coloured by: the first that is in it."""


class Cell(NamedTuple):
    """A piece of a drawing, in percent of its length."""

    tone: str
    x: str
    width: str
    label: Words


@dataclass(frozen=True)
class StripView:
    cells: tuple[Cell, ...]
    states: tuple[tuple[State, int], ...]
    """How many items are in each state."""


@dataclass(frozen=True)
class Lane:
    node: Text
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class LanesView:
    """What nodes had of a run, on one axis of time. ``more``: there is more of it than is shown."""

    lanes: tuple[Lane, ...]
    began: str
    ended: str
    took: Text
    more: bool
    states: tuple[State, ...] = ()
    """Those that marks are coloured by."""


# ---- all items ---------------------------------------------------------------------------------------------------


def strip(run: int, count: int, cut: int) -> StripView:
    """Items 0 to ``count``, those from ``cut`` on are in no shard yet. Two queries, at most some CELLS rows each."""
    size = max(1, -(-count // CELLS))
    cells: dict[int, Counter[str]] = defaultdict(Counter)
    for start, stop, state in _stretches(run, size, count, cut):
        for at in range(start // size, -(-stop // size)):
            cells[at][state] += min(stop, (at + 1) * size) - max(start, at * size)
    sums: Counter[str] = sum(cells.values(), Counter())
    known = tuple((State.of(name), sums[name]) for name in reversed(WORST) if sums[name])
    return StripView(tuple(_drawn(sorted(cells.items()), size, count)), known)


def _stretches(run: int, size: int, count: int, cut: int) -> Iterator[tuple[int, int, str]]:
    """[start, stop) and its state; small shards that begin in the same cell are summed up, as if side by side there."""
    shards = (
        Shard.objects.filter(run=run)
        .order_by()
        .annotate(
            word=Case(
                When(Q(state=ShardState.PENDING) & ~Q(attempts=0, deaths=0, losses=0), then=Value(TRIED)),
                default=F("state"),
            )
        )
    )
    length = F("stop") - F("start")
    yield from shards.annotate(length=length).filter(length__gt=size).values_list("start", "stop", "word")
    small = shards.annotate(length=length).filter(length__lte=size).values_list(F("start") / size, "word")
    filled: Counter[int] = Counter()
    for cell, word, items in small.annotate(items=Sum(length)):
        at = int(cell) * size + filled[cell]
        filled[cell] += items
        yield at, min(at + items, count), word
    if cut < count:
        yield cut, count, "pending"


def _drawn(cells: Sequence[tuple[int, Counter[str]]], size: int, count: int) -> Iterator[Cell]:
    """Neighbours of one state, and of no other, as one."""
    merged: list[tuple[int, int, Counter[str]]] = []
    for at, states in cells:
        if merged and merged[-1][1] == at and len(states) == 1 and merged[-1][2].keys() == states.keys():
            merged[-1] = (merged[-1][0], at + 1, merged[-1][2] + states)
        else:
            merged.append((at, at + 1, states))
    for first, last, states in merged:
        start, stop = first * size, min(last * size, count)
        worst = next(name for name in WORST if states[name])
        told = listed(_counted(states[name], name) for name in WORST if states[name])
        if stop - start == 1:
            label = words("item {at}: {told}", at=f"{start:,}", told=told)
        else:
            label = words("items {first} to {last}: {told}", first=f"{start:,}", last=f"{stop - 1:,}", told=told)
        yield Cell(_TONE.get(worst, worst), f"{100 * start / count:.3f}", f"{100 * (stop - start) / count:.3f}", label)


def _counted(number: int, state: str) -> Words:
    return words("{n} {state}", n=f"{number:,}", state=state_word(state))


# ---- who had what when -------------------------------------------------------------------------------------------


class Stay(NamedTuple):
    """An allocation on a lane; ``ended`` is now for one that goes on."""

    node: int
    name: str
    state: str
    began: dt.datetime
    ended: dt.datetime


def lanes(run: int, now: dt.datetime) -> LanesView:
    """The run's last LAST allocations, by node. One query."""
    mine = Allocation.objects.filter(run=run).order_by("-pk")
    columns = ("node_id", "node__name", "state", "granted_at", "delivered_at", "started_at", "finished_at", "parts")
    stays = [
        # What was reported in parts begins anew with each of them.
        Stay(node or 0, name or "", state, (None if parts else started) or delivered or granted, finished or now)
        for node, name, state, granted, delivered, started, finished, parts in mine.values_list(*columns)[:LAST]
    ]
    if not stays:
        return LanesView((), "", "", "", more=False)
    began = min(stay.began for stay in stays)
    ended = max(stay.ended for stay in stays)
    by_node: dict[tuple[str, int], list[Stay]] = defaultdict(list)
    for stay in stays:
        by_node[stay.name, stay.node].append(stay)
    busiest = sorted(by_node, key=lambda node: -len(by_node[node]))[:LANES]
    drawn = tuple(
        Lane(name or words("removed"), tuple(_lane(by_node[name, node], began, ended)))
        for name, node in sorted(busiest)
    )
    took = lasted((ended - began).total_seconds())
    tones = {cell.tone for lane in drawn for cell in lane.cells}
    states = tuple(State.of(tone) for tone in reversed(dict.fromkeys(_LANE.values())) if tone in tones)
    more = len(stays) == LAST or len(by_node) > LANES
    return LanesView(drawn, iso(began), iso(ended), took, more, states)


def _lane(stays: Iterable[Stay], began: dt.datetime, ended: dt.datetime) -> Iterator[Cell]:
    """Marks that show the same, and follow each other, as one."""
    whole = max((ended - began).total_seconds(), 0.001)
    marks: dict[int, Counter[str]] = defaultdict(Counter)
    for stay in stays:
        first = int(MARKS * (stay.began - began).total_seconds() / whole)
        last = int(MARKS * (stay.ended - began).total_seconds() / whole)
        for at in range(min(first, MARKS - 1), min(max(last, first + 1), MARKS)):
            marks[at][stay.state] += 1
    merged: list[tuple[int, int, Counter[str]]] = []
    for at, states in sorted(marks.items()):
        if merged and merged[-1][1] == at and merged[-1][2] == states:
            merged[-1] = (merged[-1][0], at + 1, states)
        else:
            merged.append((at, at + 1, states))
    for first, last, states in merged:
        worst = next(state for state in _LANE if states[state])
        told = listed(_counted(number, state) for state, number in states.most_common())
        label = words("at {time}: {told}", time=lasted(whole * first / MARKS), told=told)
        yield Cell(_LANE[worst], f"{100 * first / MARKS:.2f}", f"{100 * (last - first) / MARKS:.2f}", label)

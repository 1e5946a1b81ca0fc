"""Which rate keys a run and its items have. What a key allows is for ``dispatch.buckets`` to say."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from django.db.models import Q

from dispatch import rates
from dispatch.items import CHUNK, Growing, item_key
from dispatch.lifecycle.kept import about, frozen, remembered
from dispatch.models import Allocation, Run, Source
from dispatch.rates import Lanes, Limits
from dispatch.states import LIVE
from nodes import executors
from nodes.executors.base import Item, Pace

WINDOW = 2000
"""Uncut items of a run that one pass looks at, where their keys differ."""

RECENT = 300
"""Allocations of a run that are looked at for those whose lane rests, beside those that were live the last time."""

_keys: WeakKeyDictionary[Growing, dict[int, list[str]]] = WeakKeyDictionary()
"""A run's items -> number of a chunk -> their rate keys, as they were at the first look."""


def by_item(run: Run) -> bool:
    """Whether its items have keys of their own."""
    return bool(rates.places(run.rate_key) & rates.OF_ITEMS)


def of_run(run: Run, limits: Limits) -> str:
    """The key that holds for all items of ``run``, none of which has its own; "" where there is no limit for it."""
    key = rates.fill(run.rate_key, source=_source(run))
    return key if limits.of(key) else ""


def of_items(run: Run, start: int, stop: int, limits: Limits, pace: Pace | None = None) -> list[tuple[int, int, str]]:
    """(start, stop, key) of the parts of items [start, stop) with one key, "" where neither a limit nor the run's own
    ``pace`` holds for it."""
    found: list[str] = []
    for number in range(start // CHUNK, (stop - 1) // CHUNK + 1) if start < stop else ():
        base = number * CHUNK
        found += _chunk(run, number)[max(0, start - base) : stop - base]
    return rates.stretches([key if pace or limits.of(key) else "" for key in found], start)


def pace_of(run: Run) -> Pace | None:
    """The pace that the run itself says. What a node above gave has one lane there, and so it has here."""
    pace = executors.get(run.type).pace(about(run.pk)["params"]) if run.rate_key else None
    if pace is None or remembered(run.pk) is None:
        return pace
    return replace(pace, per_second=pace.per_second / pace.lanes, lanes=1)


def lanes(run: Run, pace: Pace, keys: Iterable[str], now: dt.datetime, *, note: bool) -> dict[tuple[int, str], Lanes]:
    """The lanes of each of ``keys``. A lane is busy from the grant of its shard on, and rests when that has ended.

    With ``note`` what is live is kept in mind for the next look, as passes do that grant.
    """
    busy: dict[str, int] = {}
    resting: dict[str, list[float]] = {}
    live = set()
    for pk, start, state, finished_at in _shards_in_lanes(run):
        key = _chunk(run, start // CHUNK)[start % CHUNK]
        if state in LIVE:
            live.add(pk)
            busy[key] = busy.get(key, 0) + 1
        elif finished_at is not None and (left := pace.spacing - (now - finished_at).total_seconds()) > 0:
            resting.setdefault(key, []).append(min(left, pace.spacing))  # a clock may have been set back
    if note:
        _live[run.pk] = live
    return {(run.pk, key): Lanes(pace, busy.get(key, 0), tuple(sorted(resting.get(key, ())))) for key in keys}


def forget(runs: Sequence[Run]) -> None:
    """Keeps nothing of runs that are not among ``runs``, which are all that go on."""
    for gone in _live.keys() - {run.pk for run in runs}:
        del _live[gone]


_live: dict[int, set[int]] = {}
"""Run -> allocations that were live at the last look."""


def _shards_in_lanes(run: Run) -> list[tuple[int, int, str, dt.datetime | None]]:
    mine = Allocation.objects.filter(run=run.pk)
    columns = ("pk", "start", "state", "finished_at")
    found = list(mine.order_by("-pk").values_list(*columns)[:RECENT])
    if len(found) == RECENT:
        # Work that began long ago, while much else of the run was given out.
        older = mine.filter(pk__lt=found[-1][0]).filter(Q(state__in=LIVE) | Q(pk__in=_live.get(run.pk, ())))
        found += older.order_by().values_list(*columns)
    return found


def _chunk(run: Run, number: int) -> list[str]:
    items = frozen(run.pk)
    chunks = _keys.setdefault(items, {})
    first = number * CHUNK
    last = min(first + CHUNK, run.count)
    known = chunks.setdefault(number, [])
    if len(known) < last - first:  # the run may have grown since
        known += _item_keys(run, items.slice(first + len(known), last))
    return chunks[number]


def _item_keys(run: Run, items: list[Item]) -> list[str]:
    source, hosts = _source(run), [""] * len(items)
    if "host" in rates.places(run.rate_key):
        addresses = [rates.address_of(item) for item in items]
        unknown = {item_key(item) for item, address in zip(items, addresses, strict=True) if not address}
        named = dict(Source.objects.filter(key__in=unknown).order_by("-kind").values_list("key", "address"))
        found = [address or named.get(item_key(item), "") for item, address in zip(items, addresses, strict=True)]
        hosts = [rates.host_of(address) for address in found]
    return [
        rates.fill(run.rate_key, source=source, host=host, item=item_key(item))
        for host, item in zip(hosts, items, strict=True)
    ]


def _source(run: Run) -> str:
    """Of its params, which a pass does not load with every run."""
    return str(about(run.pk)["params"].get("source", "")) if "source" in rates.places(run.rate_key) else ""

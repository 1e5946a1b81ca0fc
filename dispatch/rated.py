"""Which rate keys a run and its items have. What a key allows is for ``dispatch.buckets`` to say."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from dispatch import rates
from dispatch.items import CHUNK, Frozen, item_key
from dispatch.lifecycle.grants import about, frozen
from dispatch.models import Run, Source
from dispatch.rates import Limits
from nodes.executors.base import Item

WINDOW = 2000
"""Uncut items of a run that one pass looks at, where their keys differ."""

_keys: WeakKeyDictionary[Frozen, dict[int, list[str]]] = WeakKeyDictionary()
"""A run's items -> number of a chunk -> their rate keys, as they were at the first look."""


def by_item(run: Run) -> bool:
    """Whether its items have keys of their own."""
    return bool(rates.places(run.rate_key) & rates.OF_ITEMS)


def of_run(run: Run, limits: Limits) -> str:
    """The key that holds for all items of ``run``, none of which has its own; "" where there is no limit for it."""
    key = rates.fill(run.rate_key, source=_source(run))
    return key if limits.of(key) else ""


def of_items(run: Run, start: int, stop: int, limits: Limits) -> list[tuple[int, int, str]]:
    """(start, stop, key) of the parts of items [start, stop) with one key, "" where there is no limit for it."""
    found: list[str] = []
    for number in range(start // CHUNK, (stop - 1) // CHUNK + 1) if start < stop else ():
        base = number * CHUNK
        found += _chunk(run, number)[max(0, start - base) : stop - base]
    return rates.stretches([key if limits.of(key) else "" for key in found], start)


def _chunk(run: Run, number: int) -> list[str]:
    items = frozen(run.pk)
    chunks = _keys.setdefault(items, {})
    if number not in chunks:
        first = number * CHUNK
        chunks[number] = _item_keys(run, items.slice(first, min(first + CHUNK, run.count)))
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

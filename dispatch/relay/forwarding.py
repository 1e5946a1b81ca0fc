"""What goes up: receipts of the runs that came from above, as reports. Each is stored here until the parent has it.

How receipts are put together into reports is written down before the first of them is sent (``Receipt.part``), so that
a report that is repeated after a crash says the same and counts once.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from dispatch import events, lifecycle
from dispatch.models import Allocation, Origin, Receipt, Shard
from dispatch.relay import inputs, leased
from dispatch.results import room
from dispatch.states import ShardState
from nodes import failpoints
from nodes.prepared import Change, Given, Prepared
from nodes.protocol import Conflict
from nodes.transactions import retried, write

RANGES, BYTES = 2000, 1024 * 1024
"""So many ranges, and bytes of packed rows, one part has at most; bytes of packed rows, one message."""
ERROR_BYTES = 1024 * 1024
"""Of the texts of all errors of one report."""
PART_SECONDS = 1.0
"""What an allocation has done is passed on so often while it goes on: a relay that dies costs what it did since."""
OPEN = (ShardState.PENDING, ShardState.ALLOCATED, ShardState.EXECUTING)
ENDED_BADLY = (ShardState.FAILED, ShardState.QUARANTINED, ShardState.CANCELLED)


class Open(NamedTuple):
    """An allocation of the node above that is not settled, and the run that it is here."""

    pk: int
    allocation: int
    start: int
    rate: str
    sent_at: datetime | None
    created_at: datetime
    cut: int
    items: int


class Done(NamedTuple):
    """Items [start, stop) of the run below with their rows, where these are inline, and who worked."""

    start: int
    stop: int
    length: int
    node: str
    rows: list[Any]


@dataclass(frozen=True, slots=True)
class Sending:
    """One report to be sent. ``last``: the allocation ends with it. ``receipts`` are settled by it."""

    origin: int
    entry: dict[str, Any]
    receipts: tuple[int, ...]
    last: bool
    size: int = 0
    """Bytes of packed rows in it."""


def due(parent: str, now: datetime | None = None) -> list[Sending]:
    """What is to be sent to ``parent``: the parts of each allocation in order, the last report behind them."""
    now = now or timezone.now()
    found: list[Sending] = []
    for row in _NEWS.rows(parent=parent, since=now - timedelta(seconds=PART_SECONDS)):
        found += _of(Open(*row), now)
    return found


def _with_news() -> QuerySet[Origin, Any]:
    """Those of which there may be something to send: asked with each report that comes from below."""
    waiting = Receipt.objects.filter(origin=OuterRef("pk"), saved_at=None)
    going_on = Shard.objects.filter(run=OuterRef("pk"), state__in=OPEN)
    # Where tokens came with it, work may end with items that still wait (``leased.broken``).
    done = Q(run__cut__gte=F("run__count")) & (~Exists(going_on) | ~Q(rate=""))
    late = Q(sent_at__lte=Given("since")) | Q(sent_at=None, run__created_at__lte=Given("since"))
    news = Q(Exists(waiting.filter(part__isnull=False))) | done | (late & Exists(waiting))
    columns = ("pk", "allocation", "start", "rate", "sent_at", "run__created_at", "run__cut", "run__count")
    return Origin.objects.filter(news, parent=Given("parent"), closed_at=None).order_by("pk").values_list(*columns)


_NEWS = Prepared(_with_news)
_WAITING = Prepared(lambda: Receipt.objects.filter(origin=Given("run"), saved_at=None).order_by("pk"))
_GOING_ON = Prepared(lambda: Shard.objects.filter(run=Given("run"), state__in=OPEN).order_by().values_list("pk")[:1])
_ENDED = Prepared(
    lambda: (
        Shard.objects.filter(run=Given("run"), state__in=(*ENDED_BADLY, *OPEN))
        .order_by("start")
        .values_list("start", "stop", "state", "error")
    )
)
_SECONDS = Prepared(lambda: Allocation.objects.filter(pk__among=Given("ids")).order_by().values_list("seconds"))


def _of(origin: Open, now: datetime) -> list[Sending]:
    done = _is_done(origin)
    waiting = _WAITING.objects(run=origin.pk)
    early = now - (origin.sent_at or origin.created_at) < timedelta(seconds=PART_SECONDS)
    if not done and not any(receipt.part for receipt in waiting) and (early or not waiting):
        return []
    fresh = [receipt for receipt in waiting if receipt.part is None]
    groups = _together([receipt for receipt in fresh if not receipt.segment])
    # With the last report rows come that need no part of their own.
    closing = groups.pop() if done and groups else []
    segments = [receipt for receipt in fresh if receipt.segment]
    if groups or segments:
        _number(origin, groups, segments, now)
    sendings = list(_parts(origin, [receipt for receipt in waiting if receipt.part is not None]))
    if done:
        sendings.append(_last(origin, closing))
    return sendings


def _is_done(origin: Open) -> bool:
    if origin.cut < origin.items:
        return False
    return not _GOING_ON.any(run=origin.pk) or (bool(origin.rate) and leased.broken(origin.pk))


def _together(inline: Iterable[Receipt]) -> list[list[Receipt]]:
    """Receipts with rows of their own, as many to a part as it may have."""
    groups: list[list[Receipt]] = []
    ranges = size = 0
    for receipt in inline:
        more, bytes_ = sum(len(line["ranges"]) for line in receipt.manifest), len(receipt.payload or b"")
        if not groups or ranges + more > RANGES or size + bytes_ > BYTES:
            groups.append([])
            ranges = size = 0
        groups[-1].append(receipt)
        ranges, size = ranges + more, size + bytes_
    return groups


@retried
def _number(origin: Open, groups: Sequence[Sequence[Receipt]], segments: Sequence[Receipt], now: datetime) -> None:
    """Gives them their numbers: each group shares one, each entry with rows in a segment has its own."""
    with write():
        number = Origin.objects.select_for_update().get(pk=origin.pk).numbered
        for group in groups:
            number += 1
            for receipt in group:
                receipt.part = number
        for receipt in segments:
            receipt.part = number + 1
            number += len(receipt.manifest)
        Receipt.objects.bulk_update([*(each for group in groups for each in group), *segments], ["part"])
        Origin.objects.filter(pk=origin.pk).update(numbered=number, sent_at=now)
        failpoints.reach("relay.numbered")


def _parts(origin: Open, receipts: Sequence[Receipt]) -> Iterator[Sending]:
    by_part: dict[int, list[Receipt]] = {}
    for receipt in receipts:
        by_part.setdefault(receipt.part or 0, []).append(receipt)
    for part, some in sorted(by_part.items()):
        if not some[0].segment:
            entry = _inline(origin, some)
            yield Sending(origin.pk, {**entry, "part": part}, tuple(each.pk for each in some), False, _size(some))
            continue
        (receipt,) = some
        for at, line in enumerate(receipt.manifest):
            entry = {**_entry(origin, _done_of(line, None)), "segment": receipt.segment, "offset": line["offset"]}
            settled = (receipt.pk,) if at == len(receipt.manifest) - 1 else ()
            extra = _beside(origin, [line])
            yield Sending(origin.pk, {**entry, **extra, "part": part + at}, settled, last=False)


def _last(origin: Open, receipts: Sequence[Receipt]) -> Sending:
    ended = [
        (index, error or state, state != ShardState.QUARANTINED)
        for start, stop, state, error in _ENDED.rows(run=origin.pk)
        for index in range(start, stop)
    ]
    hopeless = _hopeless(origin) if ended else set()
    most = min(2000, ERROR_BYTES // max(len(ended), 1))
    errors = [[index + origin.start, why[:most], again and index not in hopeless] for index, why, again in ended]
    entry = _inline(origin, receipts)
    return Sending(origin.pk, {**entry, "errors": errors}, tuple(each.pk for each in receipts), True, _size(receipts))


def _size(receipts: Iterable[Receipt]) -> int:
    return sum(len(receipt.payload or b"") for receipt in receipts)


def messages(sendings: Iterable[Sending]) -> Iterator[list[Sending]]:
    """``sendings`` in order, as many to a message as it may have."""
    some: list[Sending] = []
    ranges = size = 0
    for each in sendings:
        more = len(each.entry["ranges"]) + len(each.entry.get("errors", ()))
        if some and (ranges + more > 2 * RANGES or size + each.size > BYTES):
            yield some
            some, ranges, size = [], 0, 0
        some.append(each)
        ranges, size = ranges + more, size + each.size
    if some:
        yield some


def _hopeless(origin: Open) -> set[int]:
    """The items of its run that whoever tried them does not want tried again."""
    manifests = Receipt.objects.filter(origin=origin.pk).values_list("manifest", flat=True)
    return {index for manifest in manifests for line in manifest for index in line.get("hopeless", ())}


def _inline(origin: Open, receipts: Sequence[Receipt]) -> dict[str, Any]:
    done: list[Done] = []
    for receipt in receipts:
        rows = json.loads(zlib.decompress(bytes(receipt.payload))) if receipt.payload else []
        for line in receipt.manifest:
            done += _done_of(line, rows)
    done.sort()
    lines = [line for receipt in receipts for line in receipt.manifest]
    rows = [row for each in done for row in each.rows]
    return {**_entry(origin, done), "rows": rows, **_beside(origin, lines)}


def _done_of(line: Mapping[str, Any], rows: list[Any] | None) -> list[Done]:
    """The ranges of a receipt's entry in the order of its rows."""
    at = line["offset"]
    named = [line["nodes"][number] for number in line["by"]] if line.get("nodes") else None
    names = named or [line["node"]] * len(line["ranges"])
    found = []
    for (first, last, count, _), name in zip(line["ranges"], names, strict=True):
        found.append(Done(first, last, count, name, [] if rows is None else rows[at : at + count]))
        at += count
    return found


def _entry(origin: Open, done: Iterable[Done]) -> dict[str, Any]:
    """Ranges as the node above numbers its items; neighbours of one node together."""
    names: dict[str, int] = {}
    ranges: list[list[int]] = []
    for each in done:
        number = names.setdefault(each.node, len(names))
        first, last = each.start + origin.start, each.stop + origin.start
        if ranges and ranges[-1][1] == first and ranges[-1][3] == number:
            ranges[-1][1] = last
            ranges[-1][2] += each.length
        else:
            ranges.append([first, last, each.length, number])
    return {"allocation": origin.allocation, "ranges": ranges, **({"nodes": list(names)} if names else {})}


def _beside(origin: Open, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Time that nodes spent on them, and what items brought more than rows."""
    seconds = sum(each for (each,) in _SECONDS.rows(ids={line["allocation"] for line in lines}))
    outcomes = [[index + origin.start, told] for line in lines for index, told in line.get("outcomes", ())]
    return {"seconds": seconds, **({"outcomes": sorted(outcomes, key=lambda each: each[0])} if outcomes else {})}


_UNSAVED = Prepared(lambda: Receipt.objects.filter(pk__among=Given("receipts"), saved_at=None))
_CLOSE = Change(lambda: Origin.objects.filter(pk=Given("run")), closed_at=Given("now"))
_PASSED = Prepared(
    lambda: Receipt.objects.filter(
        origin__isnull=False, saved_at__isnull=False, purged_at=None, keep=False
    ).values_list("pk", "segment")
)
_RATED = Prepared(lambda: Origin.objects.filter(pk=Given("run")).exclude(rate="").values_list("pk"))


@retried
def settled(sending: Sending) -> None:
    """The parent has it: what was kept for it is done with."""
    # In one transaction: nobody looks for receipts of what is closed, and without them the last report says less.
    with write():
        receipts = _UNSAVED.objects(receipts=sending.receipts)
        if receipts:
            lifecycle.saved(receipts)
        if sending.last:
            _CLOSE.run(run=sending.origin, now=timezone.now())
    if sending.last:
        inputs.drop([sending.origin])
    if receipts:
        events.changed()
        purge()
    if sending.last and _RATED.any(run=sending.origin):
        with suppress(Conflict):
            lifecycle.cancel(sending.origin)  # what had no second start here was told as failed


def purge() -> None:
    """What was kept for the parent alone and has reached it is removed. Repeating it changes nothing."""
    if passed := _PASSED.rows():
        room.purge(passed)

"""Tokens of rate limits with relays. What a node gets begins at once, and its tokens are gone when it is granted; a
relay may begin its items at any time while its lease lasts, and until it has, nobody else gets tokens in their place.

Above, ``lend`` notes what a relay was granted, ``used`` what it says it has begun, ``reclaim`` what has ended. Below,
``begun`` is what a relay says. An item has one start with its token: what was lost below goes back (``stuck``), or,
where workers died of it, up as an error (``broken``), so that the node above counts the attempts.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from django.db.models import Exists, F, OuterRef, Q, QuerySet, Sum

from dispatch import buckets
from dispatch.allocator import Grant
from dispatch.models import Allocation, Origin, RateLease, Receipt, Run, Shard
from dispatch.states import LIVE, AllocationState, ShardState
from nodes.models import Node
from nodes.prepared import Given, Prepared

IDLE_SECONDS = 5.0
"""What a relay cannot give to any node for so long goes back: its tokens are of use to others."""
WITH_NODE = (ShardState.ALLOCATED, ShardState.EXECUTING)


# Above


_RELAYS = Prepared(
    lambda: Node.objects.filter(pk__among=Given("nodes"), role=Node.Role.RELAY).order_by().values_list("pk")
)


def lend(grants: Sequence[Grant], rated: Iterable[str]) -> None:
    """Notes the tokens that go to relays with ``grants``, just written; ``rated`` are keys that have a limit here.

    What came with tokens of a node above takes them along, whether there is a limit here or not.
    """
    relays = set(_RELAYS.rows(nodes={made.node for made in grants}))
    theirs = [made for made in grants if (made.node,) in relays]
    if not theirs:
        return
    above = dict(
        Origin.objects.filter(run__in={made.run for made in theirs}).exclude(rate="").values_list("run", "rate")
    )
    known = set(rated)
    for made in theirs:
        key = made.piece.rate if made.piece.rate in known else above.get(made.run, "")
        if not key:
            continue
        mine = Allocation.objects.filter(
            run=made.run, node=made.node, start=made.piece.start, state=AllocationState.PENDING, delivered=False
        )
        for pk, start, stop in mine.values_list("pk", "start", "stop"):
            RateLease.objects.create(allocation_id=pk, key=key, tokens=stop - start)


def used(node_id: int, begun: Mapping[int, int], held: Iterable[int], now: dt.datetime) -> bool:
    """A relay has begun so many items of each allocation, and drops what it does not name as held.

    True where there is room for more tokens now. Call it in a transaction.
    """
    kept = set(held)
    left: dict[int, int] = {}
    keys: set[str] = set()
    mine = RateLease.objects.select_for_update(of=("self",)).filter(allocation__node=node_id)
    rows = mine.values_list("pk", "key", "tokens", "allocation__start", "allocation__stop", "allocation__state")
    for pk, key, tokens, start, stop, state in rows:
        # One that lives and is not named may be on its way to the relay.
        now_left = max(stop - start - begun.get(pk, 0), 0) if pk in kept or state in LIVE else 0
        if now_left < tokens:
            left[pk] = now_left
            keys.add(key)
    _lower(left, keys, now)
    return bool(left)


def reclaim(now: dt.datetime) -> None:
    """What relays have brought to an end, or lost by their silence. Call it in the transaction that grants."""
    over = Q(allocation__state=AllocationState.COMPLETED) | Q(allocation__deadline__lt=now)
    found = dict(RateLease.objects.filter(over).values_list("pk", "key"))
    _lower(dict.fromkeys(found, 0), set(found.values()), now)


def _lower(left: Mapping[int, int], keys: Iterable[str], now: dt.datetime) -> None:
    """From ``now`` on there is room for what is not leased any more, and not a moment before."""
    if not left:
        return
    buckets.settle(now, keys)
    RateLease.objects.filter(pk__in=[pk for pk, tokens in left.items() if not tokens]).delete()
    for pk, tokens in left.items():
        if tokens:
            RateLease.objects.filter(pk=pk).update(tokens=tokens)


# Below


def told(parent: str, now: dt.datetime) -> tuple[dict[str, int], list[int]]:
    """``begun`` and ``stuck``."""
    # Mostly nothing came with tokens, and this is asked with each report.
    return (begun(parent), stuck(parent, now)) if _RATED.any(parent=parent) else ({}, [])


_RATED = Prepared(
    lambda: (
        Origin.objects.filter(parent=Given("parent"), closed_at=None).exclude(rate="").order_by().values_list("pk")[:1]
    )
)


def begun(parent: str) -> dict[str, int]:
    """Allocation of ``parent`` -> items of it that were begun below, of those that came with tokens."""
    open_ = Origin.objects.filter(parent=parent, closed_at=None).exclude(rate="").select_related("run")
    found = {}
    for origin in open_.defer("run__items", "memory"):
        run = origin.run
        waiting = run.count - run.cut + _items(_unbegun(run.pk))
        live = Allocation.objects.filter(run=run.pk, state__in=LIVE)
        waiting += live.filter(delivered=False).aggregate(items=Sum(F("stop") - F("start")))["items"] or 0
        waiting += live.filter(delivered=True).aggregate(tokens=Sum("rate_lease__tokens"))["tokens"] or 0
        found[str(origin.allocation)] = max(run.count - waiting, 0)
    return found


def _unbegun(run: int) -> QuerySet[Shard]:
    """Shards that wait and were with no node yet, nor was a part of them."""
    before = Allocation.objects.filter(
        run=OuterRef("run"), start__lt=OuterRef("stop"), stop__gt=OuterRef("start"), delivered=True
    )
    return Shard.objects.filter(~Exists(before), run=run, state=ShardState.PENDING)


def _items(shards: QuerySet[Shard]) -> int:
    return int(shards.aggregate(items=Sum(F("stop") - F("start")))["items"] or 0)


def unbegun(runs: Iterable[int]) -> dict[int, set[int]]:
    """Run -> shards of it that wait and may be given out: those that had no start yet."""
    found: dict[int, set[int]] = defaultdict(set)
    for run in runs:
        found[run] = set(_unbegun(run).values_list("pk", flat=True))
    return found


def stuck(parent: str, now: dt.datetime) -> list[int]:
    """Allocations of ``parent`` that go no further here, all that was done of them having been passed on: what is left
    had its one start, or finds no node."""
    late = now - dt.timedelta(seconds=IDLE_SECONDS)
    found = []
    open_ = Origin.objects.filter(parent=parent, closed_at=None).exclude(rate="").select_related("run")
    for origin in open_.defer("run__items", "memory"):
        run = origin.run
        if _with_node(run.pk) or Receipt.objects.filter(origin=origin, saved_at=None).exists():
            continue
        could = run.cut < run.count or _unbegun(run.pk).exists()
        waits = could or _pending(run.pk).exists()
        if waits and (_quiet_since(run) < late if could else not _blamed(run.pk)):
            found.append(origin.allocation)
    return found


def broken(run: int) -> bool:
    """Whether nothing more of a wholly cut run is begun, and something of it has failed or killed workers."""
    return not _with_node(run) and not _unbegun(run).exists() and _blamed(run)


def _with_node(run: int) -> bool:
    return Shard.objects.filter(run=run, state__in=WITH_NODE).exists()


def _pending(run: int) -> QuerySet[Shard]:
    return Shard.objects.filter(run=run, state=ShardState.PENDING)


def _blamed(run: int) -> bool:
    failed = Q(state__in=(ShardState.FAILED, ShardState.QUARANTINED))
    killed = Q(state=ShardState.PENDING) & (Q(deaths__gt=0) | Q(attempts__gt=0))
    return Shard.objects.filter(failed | killed, run=run).exists()


def _quiet_since(run: Run) -> dt.datetime:
    last = Allocation.objects.filter(run=run).order_by("-pk").values_list("finished_at", "granted_at").first()
    return run.created_at if last is None else max(last[0] or last[1], run.created_at)

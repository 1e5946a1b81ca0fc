"""Why work waits: each node with its reason, these counted, the limit that holds, and its place in line.

The reasons are the allocator's own, for the state that a pass would read now (``queue.load``, ``queue.read``). Nothing
is changed.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Count, F, Min, Q, Sum
from django.utils import timezone

from dispatch import lifecycle, queue
from dispatch.allocator import Grant, Piece, Plan, allocate
from dispatch.explaining import line, reasons
from dispatch.models import Run, Shard
from dispatch.plans import Refusal
from dispatch.states import RunState, ShardState
from nodes import registry
from nodes.models import Node

WHOLE_LIMIT = 500
"""Runs in line with which a whole pass is tried out, where it depends on them whether this one gets a free slot."""


@dataclass(frozen=True)
class Waiting:
    """What is known of work that waits. ``alone``: what it would be given holds if no run before it takes it.
    ``nodes``: all there are, by number."""

    run: Run
    at: dt.datetime
    nodes: Mapping[int, Node]
    position: dict[str, Any] | None
    put_off: dict[str, Any]
    grants: Sequence[Grant] = ()
    refusals: Sequence[Refusal] = ()
    groups: Sequence[reasons.Counted] = ()
    alone: bool = False

    @property
    def headline(self) -> str:
        """What it waits for, in a line."""
        if self.run.state != RunState.RUNNING:
            return f"the run is {self.run.state}"
        if self.refusals and not self.grants:
            return reasons.headline(self.groups)
        if self.grants:
            first = " unless runs before it take the slots" if self.alone else ""
            return f"the next pass gives out {_shards(len(self.grants))} of it{first}"
        if self.put_off["shards"]:
            return str(self.put_off["why"])
        if not self.nodes and self.position:
            return "there is no node"
        return "nothing of it waits for a node"

    def told(self) -> dict[str, Any]:
        """For the API and commands."""
        return {
            "at": self.at,
            "waits_for": self.headline,
            "position": self.position,
            "put_off": self.put_off if self.put_off["shards"] else None,
            "alone": self.alone,
            "grants": [
                {
                    "node": self.nodes[made.node].name,
                    "start": made.piece.start,
                    "stop": made.piece.stop,
                    "slots": made.slots,
                    "reason": made.reason,
                }
                for made in self.grants
            ],
            "reasons": [group.told() for group in self.groups],
            "refusals": [
                {
                    "node": self.nodes[refusal.node].name,
                    "code": refusal.code,
                    "reason": _reason(refusal, self.nodes[refusal.node], self.at),
                }
                for refusal in self.refusals
            ],
            "counts": Counter(refusal.code for refusal in self.refusals),
        }


def _shards(count: int) -> str:
    return f"{count} shard{'' if count == 1 else 's'}"


def _reason(refusal: Refusal, node: Node, now: dt.datetime) -> str:
    if refusal.code != "offline":
        return refusal.reason
    if node.last_beat_at is None:
        return "offline: never heard of"
    # Between the two a node keeps what it has and gets nothing new.
    state = "silent" if registry.is_online(node, now) else "offline"
    return f"{state}: last heard of {registry.ago(node.last_beat_at, now)}"


def of_run(run: Run) -> Waiting:
    """Of all that waits of ``run``."""
    return _waiting(run, timezone.now())


def in_full(run: Run, limit: int, offset: int = 0) -> dict[str, Any]:
    """``of_run`` with how far the run is, and ``limit`` entries of its long lists from ``offset`` on."""
    told, progress = of_run(run).told(), lifecycle.progress(run)
    cut = {name: told[name][offset : offset + limit] for name in ("grants", "refusals")}
    more = {f"more_{name}": max(len(told[name]) - offset - limit, 0) for name in cut}
    counts = {name: progress[name] for name in ("run", "state", "pending", "in_flight")}
    return {**counts, **told, **cut, **more}


def of_shard(run: Run, shard: Shard) -> Waiting:
    """Of one that waits."""
    tries = shard.attempts + shard.deaths + shard.losses
    return _waiting(run, timezone.now(), Piece(shard.start, shard.stop, shard=shard.pk, attempt=tries + 1))


def of_item(run: Run, index: int) -> Waiting:
    """Of an item that is in no shard yet."""
    return _waiting(run, timezone.now(), Piece(index, index + 1))


def _waiting(run: Run, now: dt.datetime, only: Piece | None = None) -> Waiting:
    nodes = list(Node.objects.defer("description", "api_key", "subtree").order_by("name", "pk"))
    by_number = {node.pk: node for node in nodes}
    put_off = _put_off(run, now, only)
    if run.state != RunState.RUNNING:
        return Waiting(run, now, by_number, None, put_off)
    standing = line.standing(now)
    position = line.position(standing, run.pk)
    active = [node for node in nodes if node.active]
    reading = queue.read(_narrowed(queue.load(active, now, [run], unready=True), run, only), now)
    reading = replace(reading, demands=[replace(demand, begun=run.cut > 0) for demand in reading.demands])
    plan = allocate(reading.demands, reading.offers, reading.terms, explain=True)
    grants = _ready(plan, now)
    others = bool(grants) and len(standing) > 1
    if others and len(standing) <= WHOLE_LIMIT:
        # Whether it gets what is free depends on all of them.
        reading = queue.read(queue.load(active, now, queue.running()), now)
        plan = allocate(reading.demands, reading.offers, reading.terms, explain=lambda _: {run.pk})
        grants = [made for made in plan.grants if made.run == run.pk and _overlaps(made.piece, only)]
    demand = next((demand for demand in reading.demands if demand.run == run.pk), None)
    if demand is None:
        return Waiting(run, now, by_number, position, put_off)
    refusals = list(plan.refusals)
    if refusals or not active:
        refusals += [Refusal(run.pk, node.pk, "inactive", "inactive") for node in nodes if not node.active]
    offers = {offer.node: offer for offer in reading.offers}
    slots: Counter[int] = Counter()
    for made in plan.grants:
        slots[made.node] += made.slots
    names = {node.pk: node.name for node in nodes}
    groups = reasons.counted(refusals, offers, demand, names, slots)
    alone = others and len(standing) > WHOLE_LIMIT
    return Waiting(run, now, by_number, position, put_off, grants, refusals, groups, alone)


def _narrowed(stored: queue.Stored, run: Run, only: Piece | None) -> queue.Stored:
    """``stored`` with nothing but ``only`` left to give."""
    if only is None:
        return stored
    mine = copy.copy(run)
    if only.shard is None:
        mine.cut, mine.count = only.start, only.stop
        return replace(stored, runs=[mine], returned={})
    mine.cut = mine.count
    return replace(stored, runs=[mine], returned={run.pk: [only]})


def _ready(plan: Plan, now: dt.datetime) -> list[Grant]:
    """Without those of shards that are put off."""
    shards = [made.piece.shard for made in plan.grants if made.piece.shard is not None]
    waiting = Shard.objects.filter(pk__in=shards, not_before__gt=now)
    unready = set(waiting.values_list("pk", flat=True)) if shards else set()
    return [made for made in plan.grants if made.piece.shard not in unready]


def _overlaps(piece: Piece, only: Piece | None) -> bool:
    return only is None or (piece.start < only.stop and only.start < piece.stop)


def _put_off(run: Run, now: dt.datetime, only: Piece | None) -> dict[str, Any]:
    """Its shards that are not to be given out before some time: how many, until when the first one, and why."""
    shards = Shard.objects.filter(run=run, state=ShardState.PENDING, not_before__gt=now)
    if only is not None:
        shards = shards.filter(pk=only.shard) if only.shard else shards.none()
    found = shards.aggregate(
        shards=Count("pk"),
        items=Sum(F("stop") - F("start"), default=0),
        until=Min("not_before"),
        tried=Count("pk", filter=Q(attempts__gt=0)),
    )
    tried = found.pop("tried", 0)
    if not found["shards"]:
        return {"shards": 0, "items": 0, "until": None, "why": ""}
    parts = []
    if tried:
        parts.append(f"{_wait(tried)} for the next attempt (back-off)")
    if left := found["shards"] - tried:
        parts.append(f"{_wait(left)} for the rate limit")
    why = f"{', '.join(parts)}; the first until {found['until']:%Y-%m-%d %H:%M:%S} UTC"
    return {**found, "why": why}


def _wait(count: int) -> str:
    return f"{_shards(count)} wait{'s' if count == 1 else ''}"

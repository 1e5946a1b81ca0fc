"""Loads what is wanted and what is offered, asks the allocator, hands its grants to lifecycle."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Count, F, Q, QuerySet, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from dispatch import lifecycle
from dispatch.allocator import Demand, Lookahead, Offer, Phase, Piece, Plan, QuotaRule, allocate
from dispatch.items import item_key
from dispatch.lifecycle.grants import frozen
from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE, RunState, ShardState
from nodes import registry
from nodes.models import Node, Quota
from nodes.transactions import write

RETURNED_LIMIT = 1000
"""Pending shards of each run looked at in one pass; the next pass sees the rest."""


@dataclass(frozen=True)
class Passed:
    """What a pass did: the nodes that got work, and whether it was all look-ahead, for nodes that are busy."""

    nodes: frozenset[int] = frozenset()
    ahead: bool = False

    def __bool__(self) -> bool:
        return bool(self.nodes)


def allocate_now() -> Passed:
    """One pass: everything that can be granted now is granted."""
    if not _something_to_do(timezone.now()):
        return Passed()
    with write():
        # The nodes' rows are the lock: capacity and quotas of a pass hold until its grants are written.
        nodes = list(Node.objects.select_for_update().filter(active=True).order_by("pk"))
        now = timezone.now()
        plan = _plan(nodes, now)
        if not plan.grants and not plan.aside:
            return Passed()
        lifecycle.grant(plan, now)
    return Passed(
        frozenset(made.node for made in plan.grants),
        all(made.phase is Phase.LOOKAHEAD for made in plan.grants),
    )


def explain(run_id: int | None = None) -> Plan:
    """What a pass would do now, with the reasons of all that would still wait. Changes nothing."""
    return _plan(list(Node.objects.all()), timezone.now(), run_id=run_id, explain=True)


def _something_to_do(now: dt.datetime) -> bool:
    running = Run.objects.filter(state=RunState.RUNNING)
    return (
        running.filter(cut__lt=F("count")).exists()
        or Shard.objects.filter(_ready(now), state=ShardState.PENDING, run__state=RunState.RUNNING).exists()
    )


def _ready(now: dt.datetime) -> Q:
    return Q(not_before=None) | Q(not_before__lte=now)


def _plan(nodes: Sequence[Node], now: dt.datetime, *, run_id: int | None = None, explain: bool = False) -> Plan:
    offers = _offers(nodes, now)
    demands = _demands(now, offers, run_id)
    settled = settings.CASCADE
    return allocate(
        demands,
        offers,
        target_seconds=settled.target_seconds,
        lookahead=Lookahead(settled.lookahead_seconds, settled.lookahead_limit),
        seed=max((offer.last_grant for offer in offers), default=0),
        explain=explain,
    )


def _offers(nodes: Sequence[Node], now: dt.datetime) -> list[Offer]:
    quotas: dict[int, dict[tuple[str, str], QuotaRule]] = defaultdict(dict)
    for quota in Quota.objects.filter(node__in=nodes):
        quotas[quota.node_id][quota.task_type, quota.item] = QuotaRule(quota.slots, quota.limit)
    in_use: dict[int, dict[tuple[str, str], int]] = defaultdict(dict)
    live = Allocation.objects.filter(state__in=LIVE, node__isnull=False).order_by()
    for node, task_type, item, count in live.values_list("node_id", "type", "item").annotate(Count("pk")):
        in_use[node][task_type, item] = count
    return [
        Offer(
            node=node.pk,
            name=node.name,
            capacity=node.capacity,
            types=frozenset(node.executors),
            in_use=in_use[node.pk],
            quotas=quotas[node.pk],
            labels=node.labels,
            online=registry.is_fresh(node, now),
            draining=node.draining,
            weight=node.weight,
            cpu=node.cpu,
            memory=node.memory,
            speeds=node.speeds,
            last_grant=node.last_grant,
        )
        for node in nodes
    ]


def _demands(now: dt.datetime, offers: Sequence[Offer], run_id: int | None) -> list[Demand]:
    runs = Run.objects.filter(state=RunState.RUNNING).defer("items", "params")
    if run_id is not None:
        runs = runs.filter(pk=run_id)
    served: dict[int, int] = dict(
        Allocation.objects.filter(state__in=LIVE).order_by().values_list("run_id").annotate(Count("pk"))
    )
    marks = _marks(offers)
    returned = _returned(now, runs)
    demands = []
    for run in runs:
        if run.cut >= run.count and run.pk not in returned:
            continue
        named = marks.get(run.type)
        demands.append(
            Demand(
                run=run.pk,
                type=run.type,
                cut=run.cut,
                count=run.count,
                priority=run.priority,
                served=served.get(run.pk, 0),
                age=run.created_at.timestamp(),
                shard_size=run.shard_size,
                balancer=run.balancer,
                labels=run.labels,
                returned=[_named(run.pk, piece, named) for piece in returned[run.pk]] if named else returned[run.pk],
                marked=_marked(run, named) if named else (),
            )
        )
    return demands


def _returned(now: dt.datetime, runs: QuerySet[Run]) -> dict[int, list[Piece]]:
    """Pieces that came back and may be tried again, by run."""
    returned: dict[int, list[Piece]] = defaultdict(list)
    waiting = Shard.objects.filter(_ready(now), state=ShardState.PENDING, run__in=runs.values("pk"))
    # Mostly there are none, and the question for the first ones of each run is a costly one to put.
    if not waiting.exists():
        return returned
    first = waiting.annotate(place=Window(RowNumber(), partition_by="run", order_by="pk"))
    for shard in first.filter(place__lte=RETURNED_LIMIT).order_by("pk"):
        returned[shard.run_id].append(
            Piece(shard.start, shard.stop, shard=shard.pk, attempt=shard.attempts + shard.deaths + shard.losses + 1)
        )
    return returned


def _marks(offers: Sequence[Offer]) -> dict[str, set[str]]:
    """Task type -> items that some node has a quota for."""
    marks: dict[str, set[str]] = defaultdict(set)
    for offer in offers:
        for task_type, item in offer.quotas:
            if item:
                marks[task_type].add(item)
    return marks


def _marked(run: Run, named: set[str]) -> list[tuple[int, str]]:
    keys = ((at, item_key(item)) for at, item in enumerate(frozen(run.pk).slice(run.cut, run.count), run.cut))
    return [(at, key) for at, key in keys if key in named]


def _named(run: int, piece: Piece, named: set[str]) -> Piece:
    """A single item that came back keeps its own quota."""
    if piece.stop - piece.start != 1:
        return piece
    key = item_key(frozen(run).slice(piece.start, piece.stop)[0])
    return Piece(piece.start, piece.stop, piece.shard, piece.attempt, key) if key in named else piece

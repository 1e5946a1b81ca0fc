"""Loads the tails of runs, asks ``dispatch.tail`` what is worth doing about them, and has it done."""

from __future__ import annotations

import datetime as dt
import time
from collections import defaultdict
from collections.abc import Sequence

from django.conf import settings
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from dispatch import events, lifecycle, queue
from dispatch.models import Allocation, Run
from dispatch.plans import Demand, Offer
from dispatch.relay import granted
from dispatch.states import LIVE, AllocationState, RunState
from dispatch.tail import Evened, Late, even_out
from nodes import executors, registry
from nodes.models import Node
from nodes.transactions import retried, write

LATE_LIMIT = 200
"""Allocations looked at in one pass, the oldest first."""


@retried
def even_out_now() -> frozenset[int]:
    """One look at the runs that have nothing left to cut; the nodes that got second copies."""
    if not settings.CASCADE.second_copies or not _tails().exists() or _busy():
        return frozenset()
    # Mostly there is nothing to do, and to find that out nobody has to wait for us.
    if not _look(list(Node.objects.filter(active=True)), timezone.now()):
        return frozenset()
    with write():
        evened = _look(queue.locked(), now := timezone.now())
        nodes = lifecycle.copy(evened.copies, now)
        back = lifecycle.take_back(evened.back, "taken back: it waited here while another node was idle")
    lifecycle.tell_superseded(back)
    for cut in evened.cuts:
        _asked[cut.late.allocation] = time.monotonic()
        wish = [cut.late.allocation, cut.late.start + cut.items]
        events.tell([cut.late.node], {"type": "node.shorten", "shorten": [wish]})
    return frozenset(nodes)


def _look(nodes: Sequence[Node], now: dt.datetime) -> Evened:
    offers = queue.offers(nodes, now)
    demands = {run.pk: _demand(run) for run in _tails().defer("items", "params")}
    above = granted.load(list(demands.values()), offers)
    demands = {run: granted.bounded(demand, above) for run, demand in demands.items()}
    return even_out(demands, offers, _lates(list(demands), offers, now), above.left)


_asked: dict[int, float] = {}
"""Allocation -> when its node was asked to end it early. A hint of this process: it is asked once, and then copied."""
_begun: dict[int, dt.datetime] = {}
"""Allocation -> when it was first seen among those that a node must be running, of those that have not said so yet."""
PATIENCE_SECONDS = 3.0
"""An item that takes longer than this keeps the answer; then a copy may be quicker."""
FORGET_SECONDS = 3600.0


def _forget_asked() -> None:
    before = time.monotonic() - FORGET_SECONDS
    for allocation in [each for each, at in _asked.items() if at < before]:
        del _asked[allocation]


def _tails() -> QuerySet[Run]:
    """Running runs that are all cut, whose work may be done twice.

    Not work of outside clients, whose code is not ours to run twice, nor rated work: a copy would take no token.
    """
    return Run.objects.filter(state=RunState.RUNNING, cut=F("count"), rate_key="").exclude(type__in=executors.ONCE)


def _busy() -> bool:
    """Whether every slot of the nodes that are there has something to do: then there is nobody to copy for."""
    live = Count("allocations", filter=Q(allocations__state__in=LIVE))
    # This server's own worker is there for what no node can do.
    nodes = Node.objects.filter(registry.online_filter(timezone.now())).exclude(role=Node.Role.STANDALONE)
    return not nodes.annotate(live=live).filter(live__lt=F("capacity")).exists()


def _demand(run: Run) -> Demand:
    return Demand(run=run.pk, type=run.type, cut=run.cut, count=run.count, labels=run.labels, fallback=run.fallback)


def _lates(runs: Sequence[int], offers: Sequence[Offer], now: dt.datetime) -> list[Late]:
    """Live allocations of ``runs`` that have no second copy."""
    slots = {offer.node: max(offer.capacity, 1) for offer in offers}
    _forget_asked()
    held: dict[int, int] = defaultdict(int)
    ahead: dict[int, int] = defaultdict(int)
    copies: dict[int, int] = defaultdict(int)
    lates: list[Late] = []
    looked_at: set[int] = set()
    live = Allocation.objects.filter(run__in=runs, state__in=LIVE, node__isnull=False).order_by("pk")
    # A relay evens out among its own nodes, and what is reported in parts cannot have a copy.
    live = live.exclude(node__role=Node.Role.RELAY)
    columns = ("pk", "run_id", "shard_id", "node_id", "start", "stop", "granted_at", "started_at", "progress")
    agents = live.filter(node__dialect=Node.Dialect.NATIVE).exclude(node__carrier=Node.Carrier.HTTP)
    divisible = set(agents.values_list("pk", flat=True)) - set(_asked)
    # One that was asked a moment ago is about to answer.
    answering = {pk for pk, at in _asked.items() if time.monotonic() - at < PATIENCE_SECONDS}
    for pk, run, shard, node, start, stop, granted_at, started_at, done in live[:LATE_LIMIT].values_list(*columns):
        # A node runs the oldest of what it has; it says so a little later, and of short ones not at all.
        begun = held[node] < slots.get(node, 1)
        since = (started_at or _begun.setdefault(pk, now)) if begun else granted_at
        age = max((now - since).total_seconds(), 0.0)
        before = 0.0 if begun else ahead[node] / slots.get(node, 1)
        if pk not in answering:
            lates.append(
                Late(pk, run, shard, node, start, stop - start, begun, age, done, before, divisible=pk in divisible)
            )
        looked_at.add(pk)
        held[node] += 1
        ahead[node] += stop - start
        copies[shard] += 1
    for pk in _begun.keys() - looked_at:
        del _begun[pk]
    spent = _spent({late.shard for late in lates})
    return [late for late in lates if copies[late.shard] == 1 and late.shard not in spent]


def _spent(shards: set[int]) -> set[int]:
    """Those whose attempt under way had a second copy already that came to nothing. That was free of charge, since the
    other one lived: copied again and again, a shard that nobody can do would be tried for ever.
    """
    lost = (AllocationState.FAILED, AllocationState.EXPIRED)
    under_way = Allocation.objects.filter(shard=OuterRef("shard"), attempt=OuterRef("attempt"), state__in=LIVE)
    ended = Allocation.objects.filter(Exists(under_way), shard__in=shards, state__in=lost)
    return set(ended.values_list("shard_id", flat=True)) if shards else set()

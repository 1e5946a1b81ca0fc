"""Loads the tails of runs, asks ``dispatch.tail`` what is worth doing about them, and has it done."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence

from django.conf import settings
from django.db.models import Count, F, Q, QuerySet
from django.utils import timezone

from dispatch import lifecycle, queue
from dispatch.models import Allocation, Run
from dispatch.plans import Demand, Offer
from dispatch.states import LIVE, RunState
from dispatch.tail import Late, even_out
from nodes import executors
from nodes.models import Node
from nodes.transactions import retried, write

LATE_LIMIT = 200
"""Allocations looked at in one pass, the oldest first."""


@retried
def even_out_now() -> frozenset[int]:
    """One look at the runs that have nothing left to cut; the nodes that got second copies."""
    if not settings.CASCADE.second_copies or not _tails().exists() or _busy():
        return frozenset()
    with write():
        offers = queue.offers(queue.locked(), now := timezone.now())
        demands = {run.pk: _demand(run) for run in _tails().defer("items", "params")}
        evened = even_out(demands, offers, _lates(list(demands), offers, now))
        if not evened.copies and not evened.back:
            return frozenset()
        nodes = lifecycle.copy(evened.copies, now)
        back = lifecycle.take_back(evened.back, "taken back: it waited here while another node was idle")
    lifecycle.tell_superseded(back)
    return frozenset(nodes)


def _tails() -> QuerySet[Run]:
    """Running runs that are all cut, whose work may be done twice.

    Not work of outside clients, whose code is not ours to run twice, nor rated work: a copy would take no token.
    """
    return Run.objects.filter(state=RunState.RUNNING, cut=F("count"), rate_key="").exclude(type__in=executors.OUTSIDE)


def _busy() -> bool:
    """Whether every slot of the nodes that are there has something to do: then there is nobody to copy for."""
    live = Count("allocations", filter=Q(allocations__state__in=LIVE))
    return not Node.objects.filter(active=True).annotate(live=live).filter(live__lt=F("capacity")).exists()


def _demand(run: Run) -> Demand:
    return Demand(run=run.pk, type=run.type, cut=run.cut, count=run.count, labels=run.labels, fallback=run.fallback)


def _lates(runs: Sequence[int], offers: Sequence[Offer], now: dt.datetime) -> list[Late]:
    """Live allocations of ``runs`` that have no second copy."""
    slots = {offer.node: max(offer.capacity, 1) for offer in offers}
    held: dict[int, int] = defaultdict(int)
    ahead: dict[int, int] = defaultdict(int)
    copies: dict[int, int] = defaultdict(int)
    lates = []
    live = Allocation.objects.filter(run__in=runs, state__in=LIVE, node__isnull=False).order_by("pk")[:LATE_LIMIT]
    columns = ("pk", "run_id", "shard_id", "node_id", "start", "stop", "granted_at", "started_at")
    for pk, run, shard, node, start, stop, granted_at, started_at in live.values_list(*columns):
        # A node runs the oldest of what it has; it says so a little later, and of short ones not at all.
        begun = held[node] < slots.get(node, 1)
        age = max((now - (started_at or granted_at)).total_seconds(), 0.0)
        before = 0.0 if begun else ahead[node] / slots.get(node, 1)
        lates.append(Late(pk, run, shard, node, stop - start, begun, age, before))
        held[node] += 1
        ahead[node] += stop - start
        copies[shard] += 1
    return [late for late in lates if copies[late.shard] == 1]

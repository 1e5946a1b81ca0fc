"""Loads what is wanted and what is offered, asks the allocator, hands its grants to lifecycle."""

from __future__ import annotations

import datetime as dt
import heapq
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from django.conf import settings
from django.db.models import F, Q, QuerySet, Sum, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from dispatch import buckets, events, lifecycle, metrics, rated
from dispatch.allocator import Demand, Local, Lookahead, Offer, Phase, Piece, Plan, QuotaRule, Terms, allocate
from dispatch.items import item_key
from dispatch.lifecycle.kept import frozen
from dispatch.models import Allocation, Run, Shard
from dispatch.rates import Bucket, Lanes, Limits
from dispatch.relay import granted, leased
from dispatch.states import LIVE, RunState, ShardState
from nodes import failpoints, registry
from nodes.cooling import cool_until
from nodes.executors.base import Pace
from nodes.models import Node, Quota
from nodes.prepared import Given, Prepared
from nodes.protocol import Conflict, NotFound
from nodes.transactions import retried, write

RETURNED_LIMIT = 1000
"""Pending shards of each run looked at in one pass; the next pass sees the rest."""


@dataclass(frozen=True)
class Passed:
    """What a pass did: the nodes that got work, in how many grants, and whether all of it was queued ahead.

    ``wake`` is in how many seconds a rate limit lets something through that waits for that alone.
    """

    nodes: frozenset[int] = frozenset()
    grants: int = 0
    ahead: bool = False
    wake: float | None = None

    def __bool__(self) -> bool:
        return bool(self.nodes)


class Wakes:
    """When shards that were put off will be due. A hint for this process: lost, it costs up to a second."""

    def __init__(self) -> None:
        self._heap: list[dt.datetime] = []
        self._lock = threading.Lock()

    def note(self, pieces: Iterable[Piece], now: dt.datetime) -> None:
        with self._lock:
            for piece in pieces:
                if piece.wait:
                    heapq.heappush(self._heap, now + dt.timedelta(seconds=piece.wait))

    def after(self, now: dt.datetime, other: float | None = None) -> float | None:
        """Seconds until the next one, or ``other`` where that is sooner."""
        with self._lock:
            while self._heap and self._heap[0] <= now:
                heapq.heappop(self._heap)
            first = (self._heap[0] - now).total_seconds() if self._heap else None
        return min((each for each in (first, other) if each is not None), default=None)


_wakes = Wakes()


@retried
def allocate_now() -> Passed:
    """One pass: everything that can be granted now is granted."""
    if not _something_to_do(timezone.now()):
        return Passed(wake=_wakes.after(timezone.now()))
    with write():
        nodes = locked()
        now = timezone.now()
        plan, terms = _plan(nodes, now, lock=True)
        _write(plan, terms, now)
    failpoints.reach("dispatcher.granted")
    return Passed(
        frozenset(made.node for made in plan.grants),
        len(plan.grants),
        all(made.phase is Phase.LOOKAHEAD for made in plan.grants) if plan.grants else False,
        _wakes.after(now, plan.wake),
    )


@retried
def assign(run_id: int, node_id: int) -> int:
    """Grants the run's next piece to this node now, as an operator wishes. Returns the allocation's id.

    What the node may have holds for operators too. Raises NotFound, and Conflict, which says why, when the run has
    nothing left to give or the node cannot take it.
    """
    with write():
        run = Run.objects.defer("items").filter(pk=run_id).first()
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        if not Node.objects.filter(pk=node_id).exists():
            raise NotFound(f"there is no node {node_id}")
        nodes = [node for node in locked() if node.pk == node_id]
        if run.state != RunState.RUNNING:
            raise Conflict(f"run {run_id} is {run.state}")
        if not nodes:
            raise Conflict(f"node {node_id} is not active")
        now = timezone.now()
        plan, terms = _plan(nodes, now, run_id=run_id, explain=True, lock=True, most=1)
        if not plan.grants:
            reasons = [refusal.reason for refusal in plan.refusals]
            raise Conflict(f"{nodes[0].name}: {reasons[0]}" if reasons else f"run {run_id} has nothing left to assign")
        (made,) = plan.grants
        _write(replace(plan, grants=[replace(made, reason="assigned by an operator")]), terms, now)
        mine = Allocation.objects.filter(run=run_id, node=node_id, start=made.piece.start, state__in=LIVE)
        granted = mine.order_by("-pk").values_list("pk", flat=True).first()
        if granted is None:
            # On PostgreSQL a cancel came in between.
            raise Conflict(f"run {run_id} has just ended")
    events.changed()
    events.tell([node_id], {"type": "node.work"})
    return granted


def explain(run_id: int | None = None) -> Plan:
    """What a pass would do now, with the reasons of all that would still wait. Changes nothing."""
    plan, _ = _plan(list(Node.objects.all()), timezone.now(), run_id=run_id, explain=True)
    return plan


@dataclass(frozen=True)
class Stored:
    """What a pass reads of nodes and runs before it decides; ``read`` makes of it what the allocator takes.

    ``live``: node -> (type, item) -> slots in use. ``served``: run -> slots it has, and how many of them on other
    nodes than the parent's own worker. ``returned``: run -> its pieces that came back. ``limits``: those that hold;
    ``before``: where these are only supposed, those that are stored.
    """

    nodes: Sequence[Node]
    quotas: Sequence[Quota]
    runs: Sequence[Run]
    live: Mapping[int, Mapping[tuple[str, str], int]] = field(default_factory=dict)
    served: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    returned: Mapping[int, Sequence[Piece]] = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(()))
    before: Limits | None = None


@dataclass(frozen=True)
class Reading:
    """What the allocator decides from."""

    demands: list[Demand]
    offers: list[Offer]
    terms: Terms


def locked() -> list[Node]:
    """The active nodes; nobody else grants to any of them before the transaction, which must be open, ends."""
    # The nodes' rows are the lock: capacity, quotas and rates of a pass hold until its grants are written.
    return _LOCKED.objects()


def _write(plan: Plan, terms: Terms, now: dt.datetime) -> None:
    if not plan.grants and not plan.aside and not plan.later:
        return
    lifecycle.grant(plan, now)
    if plan.spent:
        buckets.spend(terms.buckets, plan.spent)
    if plan.grants and (plan.spent or settings.CASCADE.role == "relay"):
        leased.lend(plan.grants, plan.spent)
    put_off = [*plan.later, *(piece for _, piece in plan.aside)]
    metrics.rate_waits.committed(sum(1 for piece in put_off if piece.rate))
    _wakes.note(put_off, now)


def _something_to_do(now: dt.datetime) -> bool:
    return _UNCUT.any() or _READY.any(now=now)


def _ready(now: dt.datetime | Given) -> Q:
    return Q(not_before=None) | Q(not_before__lte=now)


_LOCKED = Prepared(lambda: Node.objects.select_for_update().filter(active=True).order_by("pk"))
_UNCUT = Prepared(
    lambda: Run.objects.filter(state=RunState.RUNNING, cut__lt=F("count")).order_by().values_list("pk")[:1]
)
_PENDING = Shard.objects.filter(_ready(Given("now")), state=ShardState.PENDING).order_by().values_list("pk")
_READY = Prepared(lambda: _PENDING.filter(run__state=RunState.RUNNING)[:1])
_READY_OF = Prepared(lambda: _PENDING.filter(run=Given("run"))[:1])
_RUNS = Prepared(lambda: _running().defer("items", "params"))
_QUOTAS = Prepared(lambda: Quota.objects.filter(node_id__among=Given("nodes")))
_LIVE = Allocation.objects.filter(state__in=LIVE).order_by()
_IN_USE = Prepared(
    lambda: _LIVE.filter(node__isnull=False).values_list("node_id", "type", "item").annotate(slots_=Sum("slots"))
)
_SERVED = Prepared(lambda: _LIVE.values_list("run_id").annotate(slots_=Sum("slots")))


def _plan(
    nodes: Sequence[Node],
    now: dt.datetime,
    *,
    run_id: int | None = None,
    explain: bool = False,
    lock: bool = False,
    most: int | None = None,
) -> tuple[Plan, Terms]:
    """``most`` is for an operator's wish: so many grants, nothing queued ahead, nothing left to other nodes."""
    stored = load(nodes, now, running(run_id), unready=explain)
    if stored.limits and lock:
        leased.reclaim(now)
    if run_id is None and lock:
        rated.forget(stored.runs)
    found = read(stored, now, lock=lock, most=most)
    return allocate(found.demands, found.offers, found.terms, explain=explain), found.terms


def load(nodes: Sequence[Node], now: dt.datetime, runs: Sequence[Run], *, unready: bool = False) -> Stored:
    """What is stored of ``nodes``, and of ``runs``, one that goes on or all of them. With ``unready`` also pieces that
    were never tried and wait for a rate, so that it can be told."""
    return Stored(
        nodes,
        _QUOTAS.objects(nodes=[node.pk for node in nodes]),
        runs,
        live=_in_use(),
        served=_served([node.pk for node in nodes if node.embedded]),
        returned=_returned(now, runs, rated=unready),
        limits=buckets.limits() if any(run.rate_key for run in runs) else Limits(()),
    )


def read(stored: Stored, now: dt.datetime, *, lock: bool = False, most: int | None = None) -> Reading:
    """``stored`` as the allocator takes it. Without ``lock``, for a pass that grants, it changes nothing anywhere, and
    rates are as such a pass would find them. ``most`` as of ``_plan``."""
    settled = settings.CASCADE
    offered = _offers(stored.nodes, stored.quotas, stored.live, now)
    paces = {run.pk: pace for run in stored.runs if (pace := rated.pace_of(run))}
    demands = _demands(stored, now, offered, paces)
    above = granted.load(demands, offered)
    demands = [granted.bounded(demand, above) for demand in demands] if above.runs else demands
    filled: Mapping[str, Bucket] = {}
    if stored.limits:
        keys = _rate_keys(demands)
        if lock:
            filled = buckets.load(keys, stored.limits, now, lock=True)
        else:
            filled = buckets.foreseen(keys, stored.limits, now, before=stored.before or stored.limits)
    terms = Terms(
        target_seconds=settled.target_seconds,
        lookahead=Lookahead() if most else Lookahead(settled.lookahead_seconds, settled.lookahead_limit),
        local=Local(settled.fallback_seconds, always=most is not None or settled.role == "standalone"),
        buckets=filled,
        lanes=_lanes(stored.runs, demands, paces, now, lock=lock) if paces else {},
        seed=max((offer.last_grant for offer in offered), default=0),
        most=most,
        ceilings=above.left,
    )
    return Reading(demands, offered, terms)


def running(run_id: int | None = None) -> list[Run]:
    """The runs that go on, or that one if it does, without what a pass does not look at."""
    return _RUNS.objects() if run_id is None else list(_running(run_id).defer("items", "params"))


def _running(run_id: int | None = None) -> QuerySet[Run]:
    runs = Run.objects.filter(state=RunState.RUNNING)
    return runs if run_id is None else runs.filter(pk=run_id)


def _lanes(
    runs: Sequence[Run], demands: Sequence[Demand], paces: Mapping[int, Pace], now: dt.datetime, *, lock: bool
) -> dict[tuple[int, str], Lanes]:
    by_run = {run.pk: run for run in runs}
    found: dict[tuple[int, str], Lanes] = {}
    for demand in demands:
        if demand.run in paces:
            found |= rated.lanes(by_run[demand.run], paces[demand.run], _rate_keys([demand]), now, note=lock)
    return found


def _rate_keys(demands: Sequence[Demand]) -> set[str]:
    keys = {demand.rate for demand in demands}
    keys |= {key for demand in demands for _, _, key in demand.stretches or ()}
    keys |= {piece.rate for demand in demands if demand.rated for piece in demand.returned}
    return keys - {""}


def offers(nodes: Sequence[Node], now: dt.datetime) -> list[Offer]:
    """What each of ``nodes`` has and holds, as the allocator takes it."""
    return _offers(nodes, _QUOTAS.objects(nodes=[node.pk for node in nodes]), _in_use(), now)


def _in_use() -> dict[int, dict[tuple[str, str], int]]:
    in_use: dict[int, dict[tuple[str, str], int]] = defaultdict(dict)
    for node, task_type, item, count in _IN_USE.rows():
        in_use[node][task_type, item] = count
    return in_use


def _offers(
    nodes: Sequence[Node],
    rules: Sequence[Quota],
    in_use: Mapping[int, Mapping[tuple[str, str], int]],
    now: dt.datetime,
) -> list[Offer]:
    settled = settings.CASCADE
    quotas: dict[int, dict[tuple[str, str], QuotaRule]] = defaultdict(dict)
    for quota in rules:
        quotas[quota.node_id][quota.task_type, quota.item] = QuotaRule(quota.slots, quota.limit)
    for node in nodes:
        if node.role == Node.Role.RELAY:
            _as_told(node, quotas[node.pk])
    return [
        Offer(
            node=node.pk,
            name=node.name,
            capacity=registry.slots(node),
            types=frozenset(node.executors),
            in_use=in_use.get(node.pk, {}),
            quotas=quotas[node.pk],
            labels=node.labels,
            online=registry.is_fresh(node, now),
            draining=node.draining,
            cooling=_cooling(node, now),
            weight=node.weight,
            cpu=node.cpu,
            memory=node.memory,
            max_cpu=settled.max_cpu if node.max_cpu is None else node.max_cpu,
            max_memory=settled.max_memory if node.max_memory is None else node.max_memory,
            speeds=node.speeds,
            last_grant=node.last_grant,
            patient=node.patient,
            embedded=node.embedded,
            outside=node.dialect in Node.PATIENT,
            line=node.carrier != Node.Carrier.HTTP,
            relay=node.role == Node.Role.RELAY,
            branches=node.facts.get("branches") or () if node.role == Node.Role.RELAY else (),
        )
        for node in nodes
    ]


def _as_told(relay: Node, quotas: dict[tuple[str, str], QuotaRule]) -> None:
    """The rules of a relay with what its own nodes can do: of a type that only some of them run, so many slots."""
    told, slots = relay.facts.get("types") or {}, registry.slots(relay)
    for name, most in told.items():
        if most < slots:
            rule = quotas.get((name, ""), QuotaRule(0))
            quotas[name, ""] = replace(rule, limit=most if rule.limit is None else min(rule.limit, most))


def _cooling(node: Node, now: dt.datetime) -> str:
    until = cool_until(node.losses, node.lost_at, settings.CASCADE.lease_seconds)
    if until is None or until <= now:
        return ""
    return f"cooling down for {(until - now).total_seconds():.0f} s more: it lost its work {node.losses} times in a row"


def _demands(stored: Stored, now: dt.datetime, offers: Sequence[Offer], paces: Mapping[int, Pace]) -> list[Demand]:
    limits, served = stored.limits, stored.served
    marks = _marks(offers)
    demands = []
    for run in stored.runs:
        returned = stored.returned.get(run.pk, ())
        if run.cut >= run.count and not returned:
            continue
        named = marks.get(run.type)
        slots, elsewhere = served.get(run.pk, (0, 0))
        demand = Demand(
            run=run.pk,
            type=run.type,
            cut=run.cut,
            count=run.count,
            priority=run.priority,
            served=slots,
            age=run.created_at.timestamp(),
            shard_size=run.shard_size,
            balancer=run.balancer,
            labels=run.labels,
            affinity=run.affinity,
            returned=[_named(run.pk, piece, named) for piece in returned] if named else returned,
            marked=_marked(run, named) if named else (),
            fallback=run.fallback,
            hands=run.hands,
            elsewhere=elsewhere,
            waited=(now - run.created_at).total_seconds(),
            begun=run.cut > 0,
        )
        pace = paces.get(run.pk)
        demands.append(_rated(demand, run, limits, pace) if run.rate_key and (limits or pace) else demand)
    return demands


def _served(embedded: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Run -> slots it has, and how many of them on other nodes than the ``embedded`` ones."""
    if not embedded:
        return {run: (slots, slots) for run, slots in _SERVED.rows()}
    live = _LIVE.values_list("run_id")
    elsewhere = Sum("slots", filter=~Q(node_id__in=embedded), default=0)
    return {run: (slots, others) for run, slots, others in live.annotate(held=Sum("slots"), elsewhere=elsewhere)}


def _rated(demand: Demand, run: Run, limits: Limits, pace: Pace | None) -> Demand:
    """``demand`` with the rate limits, and the run's own pace, that hold for its items."""
    if not rated.by_item(run):
        key = rated.of_run(run, limits)
        return replace(demand, rate=key, returned=[replace(piece, rate=key) for piece in demand.returned])
    returned = []
    for piece in demand.returned:
        _, stop, key = rated.of_items(run, piece.start, piece.stop, limits, pace)[0]
        # A shard cut before there was this limit may have items of several keys: those of the first one now.
        returned.append(replace(piece, stop=stop, rate=key, rest=piece.stop if stop < piece.stop else 0))
    reach = min(run.count, run.cut + rated.WINDOW)
    stretches = rated.of_items(run, run.cut, reach, limits, pace)
    keys = {piece.rate for piece in returned} | {key for _, _, key in stretches}
    if pace and len(keys) == 1 and reach == run.count:
        # All of one host: what waits need not be set aside so that others can pass by.
        return replace(demand, returned=returned, rate=keys.pop())
    return replace(demand, returned=returned, stretches=stretches)


def _returned(now: dt.datetime, runs: Sequence[Run], *, rated: bool = False) -> dict[int, list[Piece]]:
    """Pieces that came back and may be tried again, by run; with ``rated`` also those that were never tried and wait
    for a rate limit, so that it can be told.
    """
    returned: dict[int, list[Piece]] = defaultdict(list)
    if not rated and not (_READY_OF.any(now=now, run=runs[0].pk) if len(runs) == 1 else _READY.any(now=now)):
        return returned
    ready = _ready(now) | Q(attempts=0, deaths=0, losses=0) if rated else _ready(now)
    # Not the runs by number: there may be more of them than a query takes.
    of_runs = Q(run=runs[0].pk) if len(runs) == 1 else Q(run__in=_running().values("pk"))
    waiting = Shard.objects.filter(ready, of_runs, state=ShardState.PENDING)
    # Mostly there are none, and the question for the first ones of each run is a costly one to put.
    if not runs or not waiting.exists():
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

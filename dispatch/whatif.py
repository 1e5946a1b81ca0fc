"""What a pass would give out now if something were otherwise: the allocator's own answer, of which nothing is done.

``suppose`` reads what a pass reads (``queue.load``), has the changes made to copies of it in memory, and has
``queue.read`` and ``allocator.allocate`` decide, as ``queue.allocate_now`` does. Changes are checked as the doors check
them which would make them: ``nodes.fields`` for nodes and quotas, ``buckets.check_limit`` for rates.
"""

from __future__ import annotations

import copy
import datetime as dt
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import Case, IntegerField, Value, When
from django.utils import timezone

from dispatch import buckets, queue
from dispatch.allocator import Demand, Plan, allocate
from dispatch.models import Run
from dispatch.rates import Rate
from dispatch.states import RunState
from nodes import executors
from nodes.executors.base import shown
from nodes.fields import QuotaSpec, check_fields, check_quotas, read_task_types, read_whole
from nodes.models import Node, Quota
from nodes.protocol import Conflict, FieldError, TooMany

RUNS_LIMIT = 10_000
"""Runs looked at, the first in line."""
LOOKS_LIMIT = 500_000
"""Nodes times kinds of runs (those that ask for the same of nodes) that are looked at: about a second of work."""
GRANTS_LIMIT = 10_000
"""Shards that the answer gives out; there it ends."""
CHANGES_LIMIT = 1000
"""Nodes, new nodes, runs and rates of one question, of each."""
WAITING_LIMIT = 100
"""Runs that still wait whose reasons are told, the first in line."""
REASONS_LIMIT, LEAST_EXPLAINED = 20_000, 10
"""Nodes times such runs, of which there are fewer where there are many nodes; but never fewer than these."""
TURN_SECONDS = 5.0
_turn = threading.Lock()
"""One at a time in this process: each may keep a core busy for seconds, beside which beats and claims are served."""
FIELDS = ("capacity", "weight", "labels", "active", "draining", "max_cpu", "max_memory")
"""Of a node, what may be supposed beside its quotas."""
PRIORITIES = (1, 10)


@dataclass(frozen=True)
class NodeChange:
    """Of the node called ``node``; ``fields`` are those of ``FIELDS``, ``quotas`` all that it would have."""

    node: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    quotas: Sequence[QuotaSpec] | None = None


@dataclass(frozen=True)
class NewNode:
    """A node that is not there: online, idle, of unknown speed. ``types`` None: all that this server knows."""

    name: str
    capacity: int = 4
    types: Sequence[str] | None = None
    quotas: Sequence[QuotaSpec] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What shall be supposed. ``priorities``: of runs, by number. ``rates``: (items a second, burst) by the limit's
    key; None: there is no such limit."""

    nodes: Sequence[NodeChange] = ()
    add: Sequence[NewNode] = ()
    priorities: Mapping[int, int] = field(default_factory=dict)
    rates: Mapping[str, tuple[float, int] | None] = field(default_factory=dict)
    draft: Run | None = None
    """A run that is not stored (``lifecycle.draft``), which would be there as well; see ``kept.supposed``. Then only
    its own reasons are told, and nothing of how it is without it."""

    def __bool__(self) -> bool:
        return bool(self.nodes or self.add or self.priorities or self.rates or self.draft)


@dataclass(frozen=True)
class Answer:
    """Both decisions on one state: as it is, and as it is supposed to be.

    ``changes`` are (what, field, now, then). ``names``: of nodes, the supposed ones among them, which have numbers
    below 0. ``runs``: those that were looked at, of ``runs_in_all``; ``complete``: nothing was left out, so that a pass
    on this state gives out exactly this.
    """

    at: dt.datetime
    changes: list[tuple[str, str, Any, Any]]
    names: Mapping[int, str]
    runs: Mapping[int, Run]
    before: queue.Reading
    after: queue.Reading
    plan_before: Plan
    plan: Plan
    runs_in_all: int
    looked_at: int
    complete: bool


def suppose(changes: Changes) -> Answer:
    """Raises FieldError for what is not known or not allowed, Conflict for the name of a new node in use, and TooMany
    where one is asked while another is looked at, for too long."""
    if not _turn.acquire(timeout=TURN_SECONDS):
        raise TooMany("another what-if is being looked at; try again", retry_after=TURN_SECONDS)
    try:
        return _suppose(changes)
    finally:
        _turn.release()


def _suppose(changes: Changes) -> Answer:
    for name in ("nodes", "add", "priorities", "rates"):
        if len(getattr(changes, name)) > CHANGES_LIMIT:
            raise FieldError(name, f"has {len(getattr(changes, name))} changes; at most {CHANGES_LIMIT} are allowed")
    now = timezone.now()
    nodes = list(Node.objects.defer("description", "api_key", "subtree").order_by("pk"))
    runs, in_all = _runs(now, changes.priorities)
    stored = queue.load([node for node in nodes if node.active], now, runs)
    noted: list[tuple[str, str, Any, Any]] = []
    supposed = _with_nodes(stored, nodes, changes, now, noted)
    supposed = _with_priorities(supposed, changes.priorities, noted)
    supposed = _with_draft(supposed, changes.draft)
    supposed = _with_rates(supposed, changes.rates, noted)
    alone = [changes.draft.pk] if changes.draft else []
    if alone:
        stored = replace(stored, runs=[])
    before, after = queue.read(stored, now), queue.read(supposed, now)
    first, whole_before = _bounded(before)
    second, whole = _bounded(after)
    plan_before = allocate(first.demands, first.offers, first.terms)
    plan = allocate(
        second.demands,
        second.offers,
        second.terms,
        explain=lambda plan: alone or [run for run, _ in left(second, plan, explained(second))],
    )
    most = max(len(plan.grants), len(plan_before.grants))
    return Answer(
        now,
        noted,
        {offer.node: offer.name for offer in (*before.offers, *after.offers)},
        {run.pk: run for run in supposed.runs},
        first,
        second,
        plan_before,
        plan,
        in_all,
        len(second.demands),
        whole_before and whole and in_all <= len(runs) and most < GRANTS_LIMIT,
    )


def _runs(now: dt.datetime, wanted: Mapping[int, int]) -> tuple[list[Run], int]:
    """The first runs in line, those of ``wanted`` with them, and how many there are in all."""
    running = Run.objects.filter(state=RunState.RUNNING)
    asked = Case(When(pk__in=list(wanted), then=Value(0)), default=Value(1), output_field=IntegerField())
    in_line = running.defer("items", "params").order_by(asked, "-priority", "created_at", "pk")
    found = list(in_line[: RUNS_LIMIT + 1])
    if len(found) <= RUNS_LIMIT:
        return found, len(found)
    return found[:RUNS_LIMIT], running.count()


# What is supposed


def _with_nodes(
    stored: queue.Stored, nodes: Sequence[Node], changes: Changes, now: dt.datetime, noted: list[Any]
) -> queue.Stored:
    by_name = {node.name: node for node in nodes}
    rules: dict[int, list[Quota]] = defaultdict(list)
    for quota in stored.quotas:
        rules[quota.node_id].append(quota)
    inactive = [change.node for change in changes.nodes if change.node in by_name and not by_name[change.node].active]
    for quota in Quota.objects.filter(node__name__in=inactive) if inactive else ():
        rules[quota.node_id].append(quota)
    for at, change in enumerate(changes.nodes):
        with _under(f"nodes.{at}"):
            if change.node not in by_name:
                raise FieldError("node", f"no node is called {shown(change.node)}")
            node = copy.copy(by_name[change.node])
            by_name[node.name] = node
            rules[node.pk] = _changed(node, change, rules[node.pk], noted)
    for at, new in enumerate(changes.add):
        with _under(f"add.{at}"):
            if new.name in by_name:
                raise Conflict(f"add.{at}.name: a node called {new.name!r} exists already")
            node = _new(new, -1 - at, now)
            by_name[node.name] = node
            rules[node.pk] = _quotas(node, new.quotas)
            noted.append((f"node {node.name}", "added", None, f"capacity {node.capacity}"))
    active = [node for node in by_name.values() if node.active]
    return replace(stored, nodes=active, quotas=[quota for node in active for quota in rules[node.pk]])


class _under:
    """Errors of a field become those of the field below ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, FieldError):
            raise FieldError(f"{self.path}.{error.field}", error.message) from None


def _changed(node: Node, change: NodeChange, rules: Sequence[Quota], noted: list[Any]) -> list[Quota]:
    """``node`` with the change; its quotas then."""
    for name in change.fields:
        if name not in FIELDS:
            raise FieldError(name, f"cannot be supposed; what can is: quotas, {', '.join(FIELDS)}")
    for name, value in check_fields(change.fields).items():
        if getattr(node, name) != value:
            noted.append((f"node {node.name}", name, getattr(node, name), value))
            setattr(node, name, value)
    if change.quotas is None:
        for quota in rules:
            if quota.slots > node.capacity:
                raise FieldError("capacity", f"{node.capacity} is below the quota {quota}; lower that, too")
        return list(rules)
    check_quotas(change.quotas, node.capacity)
    found = _quotas(node, change.quotas)
    was, will = ({(each.task_type, each.item): each for each in some} for some in (rules, found))
    for key in sorted(was.keys() | will.keys()):
        old, new = (str(some[key]).partition("=")[2] if key in some else None for some in (was, will))
        if old != new:
            name = f"{key[0]}[{key[1]}]" if key[1] else key[0]
            noted.append((f"node {node.name}", f"quota {name}", old, new))
    return found


def _quotas(node: Node, specs: Sequence[QuotaSpec]) -> list[Quota]:
    return [
        Quota(node_id=node.pk, task_type=spec.task_type, item=spec.item, slots=spec.slots, limit=spec.limit)
        for spec in specs
    ]


def _new(new: NewNode, pk: int, now: dt.datetime) -> Node:
    for name in new.fields:
        if name not in FIELDS:
            raise FieldError(name, f"cannot be supposed; what can is: name, types, quotas, {', '.join(FIELDS)}")
    checked = check_fields({"name": new.name, "capacity": new.capacity, **new.fields})
    known = executors.names()
    types = read_task_types("types", known if new.types is None else new.types)
    for at, name in enumerate(types):
        if name not in known:
            raise FieldError(f"types.{at}", f"{shown(name)} is not a task type; known are: {', '.join(known)}")
    check_quotas(new.quotas, checked["capacity"])
    return Node(pk=pk, **checked, executors=types, last_beat_at=now)


def _with_priorities(stored: queue.Stored, wanted: Mapping[int, int], noted: list[Any]) -> queue.Stored:
    runs = {run.pk: run for run in stored.runs}
    for at, (pk, priority) in enumerate(wanted.items()):
        if pk not in runs:
            raise FieldError(f"runs.{at}.run", f"{shown(pk)} is not a run that goes on")
        read_whole(f"runs.{at}.priority", priority, *PRIORITIES)
        run = copy.copy(runs[pk])
        if run.priority != priority:
            noted.append((f"run {pk}", "priority", run.priority, priority))
        run.priority, runs[pk] = priority, run
    return replace(stored, runs=list(runs.values()))


def _with_draft(stored: queue.Stored, draft: Run | None) -> queue.Stored:
    if draft is None:
        return stored
    limits = stored.limits or (buckets.limits() if draft.rate_key else stored.limits)
    return replace(stored, runs=[*stored.runs, draft], limits=limits)


def _with_rates(stored: queue.Stored, wanted: Mapping[str, tuple[float, int] | None], noted: list[Any]) -> queue.Stored:
    if not wanted:
        return stored
    known = buckets.limits()
    changes: dict[str, Rate | None] = {}
    for at, (key, said) in enumerate(wanted.items()):
        if said is None:
            if known.exactly(key) is None:
                raise FieldError(f"rates.{at}.key", f"there is no rate limit {shown(key)}")
            changes[key] = None
        else:
            with _under(f"rates.{at}"):
                checked = buckets.check_limit(key, *said)
            changes[key] = Rate(checked["per_second"], checked["burst"])
        old = known.exactly(key)
        noted.append((f"rate {key}", "limit", old and str(old), changes[key] and str(changes[key])))
    rated = any(run.rate_key for run in stored.runs)
    return replace(stored, limits=known.supposing(changes) if rated else stored.limits, before=known)


# The decision


def _bounded(reading: queue.Reading) -> tuple[queue.Reading, bool]:
    """``reading`` as far as it is looked at, and whether that is all of it."""
    reading = replace(reading, terms=replace(reading.terms, most=GRANTS_LIMIT))
    kinds: set[Any] = set()
    demands: list[Demand] = []
    for demand in sorted(reading.demands, key=lambda each: (-each.priority, each.served, each.age, each.run)):
        kinds.add((demand.type, demand.fallback, demand.hands, tuple(sorted(demand.labels.items())), demand.rate))
        if len(kinds) * max(len(reading.offers), 1) > LOOKS_LIMIT:
            return replace(reading, demands=demands), False
        demands.append(demand)
    # Not in this order: a pass has none, and where keys are equal none may matter.
    return reading, True


def left(reading: queue.Reading, plan: Plan, most: int = WAITING_LIMIT) -> list[tuple[int, int]]:
    """(run, items that still wait) of the first ``most`` runs in line after ``plan``."""
    items, slots = given(plan)
    found = []
    for demand in reading.demands:
        waits = wanted(demand) - items[demand.run]
        if waits > 0:
            key = (-demand.priority, demand.served + slots[demand.run], demand.age, demand.run)
            found.append((key, demand.run, waits))
    return [(run, waits) for _, run, waits in sorted(found)[:most]]


def explained(reading: queue.Reading) -> int:
    """Runs of which it is said why each node takes no more of them."""
    return min(WAITING_LIMIT, max(LEAST_EXPLAINED, REASONS_LIMIT // max(len(reading.offers), 1)))


def wanted(demand: Demand) -> int:
    """Items that it has to give."""
    return demand.count - demand.cut + sum((piece.rest or piece.stop) - piece.start for piece in demand.returned)


def given(plan: Plan) -> tuple[Counter[int], Counter[int]]:
    """Items and slots by run."""
    items: Counter[int] = Counter()
    slots: Counter[int] = Counter()
    for made in plan.grants:
        items[made.run] += made.piece.stop - made.piece.start
        slots[made.run] += made.slots
    return items, slots

"""What this relay's parent lets it run at once, as ceilings for the allocator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from django.conf import settings
from django.db.models import Sum

from dispatch.lifecycle.kept import about
from dispatch.models import Allocation, Origin
from dispatch.plans import Demand, Offer
from dispatch.relay import leased, place
from dispatch.states import LIVE
from nodes import executors
from nodes.prepared import Given, Prepared

ALL = "all from above"
ISLAND = "this relay is cut off from the node above for longer than the run may go on (island_seconds)"
LAPSED = "the tokens of its rate have lapsed: nothing was heard of the node above for the time of a lease"


_OPEN = Prepared(lambda: Origin.objects.filter(closed_at=None).values_list("run", "slots", "above", "rate", "held_at"))
_HELD = Prepared(
    lambda: (
        Allocation.objects.filter(run__among=Given("runs"), state__in=LIVE, node__isnull=False)
        .order_by()
        .values_list("run", "node", "type")
        .annotate(slots_=Sum("slots"))
    )
)


@dataclass(frozen=True, slots=True)
class Above:
    """``runs``: those that came from above, with their ceilings. ``left``: slots under each. ``held``: run -> node ->
    slots. ``of``: run -> its number above. ``stopped``: runs that are given to nobody now, and why. ``tokens``: runs
    that came with tokens; ``unbegun``: their shards that wait and had no start yet.
    """

    runs: dict[int, tuple[str, ...]] = field(default_factory=dict)
    of: dict[int, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    held: dict[int, dict[int, int]] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    unbegun: dict[int, set[int]] = field(default_factory=dict)
    tokens: frozenset[int] = frozenset()


def load(demands: Sequence[Demand], offers: Sequence[Offer]) -> Above:
    """The ceilings that hold now."""
    if settings.CASCADE.role != "relay":
        return Above()
    rows = _OPEN.rows()
    if not rows:
        return Above()
    granted = {run: slots for run, slots, *_ in rows}
    types = {demand.run: demand.type for demand in demands}
    held: dict[int, dict[int, int]] = defaultdict(dict)
    kinds: dict[int, str] = {}
    for run, node, kind, slots in _HELD.rows(runs=granted.keys()):
        held[run][node] = slots
        kinds[run] = kind
    capacity = {offer.node: offer.capacity for offer in offers}
    # What is queued behind others on a node that is full does not run.
    running = {run: sum(min(n, capacity.get(node, n)) for node, n in nodes.items()) for run, nodes in held.items()}
    left = {f"run {run}": slots - running.get(run, 0) for run, slots in granted.items()}
    here = place.here
    if here.capacity is not None:
        left[ALL] = here.capacity - sum(running.values())
    for kind, most in here.limits.items():
        left[f"type {kind}"] = most - sum(count for run, count in running.items() if kinds.get(run) == kind)
    runs = {
        run: tuple(name for name in (f"run {run}", ALL, f"type {types.get(run)}") if name in left) for run in granted
    }
    stopped = {run: ISLAND for run, *_, since in rows if since}
    if here.silence() >= here.lease:
        stopped |= {run: LAPSED for run, _, _, rate, since in rows if not since and (rate or _paced(run))}
    returned = {demand.run for demand in demands if demand.returned}
    unbegun = leased.unbegun(run for run, *_, rate, _ in rows if rate and run in returned)
    tokens = frozenset(run for run, *_, rate, _ in rows if rate)
    return Above(runs, {run: of for run, _, of, *_ in rows}, left, held, stopped, unbegun, tokens)


def _paced(run: int) -> bool:
    """Whether it has a pace of its own: the node above gives its lane to others when the lease has ended."""
    told = about(run)
    return executors.get(told["type"]).pace(told["params"]) is not None


def bounded(demand: Demand, above: Above) -> Demand:
    """``demand`` under its ceilings, if it came from above."""
    if (names := above.runs.get(demand.run)) is None:
        return demand
    may = above.unbegun.get(demand.run)
    return replace(
        demand,
        ceilings=names,
        held=above.held.get(demand.run, {}),
        measured=above.of[demand.run],
        stopped=above.stopped.get(demand.run, ""),
        returned=demand.returned if may is None else [piece for piece in demand.returned if piece.shard in may],
        tokens=demand.run in above.tokens,
    )

"""A what-if's answer in words and numbers: each node and run before and after, what would start where, what still
waits and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import Count, F, Min, Sum

from dispatch import queue
from dispatch.explaining import reasons
from dispatch.models import Shard
from dispatch.plans import Grant, Offer, Plan, Refusal
from dispatch.states import RunState, ShardState
from dispatch.whatif import GRANTS_LIMIT, Answer, explained, given, left, wanted

LISTED = 100
"""Of each list, unless more are asked for."""
MOST = 1000


def told(answer: Answer, *, most: int = LISTED, run: int | None = None) -> dict[str, Any]:
    """``most`` entries of each list; with ``run`` only what is about that one, among nodes and lists."""
    mine = [made for made in answer.plan.grants if run in (None, made.run)]
    waiting = [each for each in left(answer.after, answer.plan, explained(answer.after)) if run in (None, each[0])]
    still_waiting = _count_left(answer.after, answer.plan)
    nodes = _nodes(answer)
    runs = [each for each in _runs(answer) if run in (None, each["run"])]
    return {
        "at": answer.at,
        "changes": [{"what": what, "field": name, "now": old, "then": new} for what, name, old, new in answer.changes],
        "looked_at": {
            "runs": answer.looked_at,
            "of": answer.runs_in_all,
            "nodes": len(answer.after.offers),
            "complete": answer.complete,
            "limit": "" if answer.complete else _limit(answer),
        },
        "before": _sum(answer.plan_before.grants),
        "after": _sum(answer.plan.grants),
        "nodes": nodes[:most],
        "more_nodes": max(len(nodes) - most, 0),
        "runs": runs[:most],
        "more_runs": max(len(runs) - most, 0),
        "grants": [_grant(made, answer) for made in mine[:most]],
        "more_grants": max(len(mine) - most, 0),
        "waiting": _waiting(answer, waiting[:most]),
        "waiting_in_all": still_waiting,
        "held_back": _held_back(answer),
    }


def _limit(answer: Answer) -> str:
    if len(answer.plan.grants) >= GRANTS_LIMIT or len(answer.plan_before.grants) >= GRANTS_LIMIT:
        return f"it ends after {GRANTS_LIMIT} shards given out"
    return f"only the first {answer.looked_at} runs in line are looked at"


def _sum(grants: Iterable[Grant]) -> dict[str, int]:
    some = list(grants)
    items = sum(made.piece.stop - made.piece.start for made in some)
    return {"shards": len(some), "items": items, "slots": sum(made.slots for made in some)}


def _nodes(answer: Answer) -> list[dict[str, Any]]:
    """Those first for which something changes."""
    before = {offer.node: offer for offer in answer.before.offers}
    after = {offer.node: offer for offer in answer.after.offers}
    gave, gives = _by_node(answer.plan_before), _by_node(answer.plan)
    found = []
    for node in before.keys() | after.keys():
        sides = _side(before.get(node), gave[node]), _side(after.get(node), gives[node])
        differs = sides[0] != sides[1] or before.get(node) != after.get(node)
        row = {"node": answer.names[node], "supposed": node < 0, "changes": differs}
        found.append({**row, "before": sides[0], "after": sides[1]})
    return sorted(found, key=lambda row: (not row["changes"], row["node"]))


def _by_node(plan: Plan) -> Mapping[int, list[Grant]]:
    found: Mapping[int, list[Grant]] = defaultdict(list)
    for made in plan.grants:
        found[made.node].append(made)
    return found


def _side(offer: Offer | None, grants: Iterable[Grant]) -> dict[str, Any] | None:
    """A node after the pass. None: it is not active."""
    if offer is None:
        return None
    sums, used = _sum(grants), sum(offer.in_use.values())
    state = "offline" if not offer.online else "draining" if offer.draining else "online"
    free = max(offer.capacity - used - sums["slots"], 0)
    return {"state": state, "capacity": offer.capacity, "in_use": used, "gets": sums, "free": free}


def _runs(answer: Answer) -> list[dict[str, Any]]:
    """Those that get something in one of the two, those first for which that differs."""
    before, after = _by_run(answer.plan_before), _by_run(answer.plan)
    demands = {demand.run: demand for demand in answer.before.demands}
    demands |= {demand.run: demand for demand in answer.after.demands}
    items, _ = given(answer.plan)
    found = []
    for pk in before.keys() | after.keys():
        run, sides = answer.runs[pk], (_sum(before.get(pk, ())), _sum(after.get(pk, ())))
        row = {"run": pk, "name": run.name, "type": run.type, "priority": run.priority}
        still = wanted(demands[pk]) - items[pk]
        found.append({**row, "changes": sides[0] != sides[1], "before": sides[0], "after": sides[1], "waits": still})
    return sorted(found, key=lambda row: (not row["changes"], -row["priority"], row["run"]))


def _by_run(plan: Plan) -> dict[int, list[Grant]]:
    found: dict[int, list[Grant]] = defaultdict(list)
    for made in plan.grants:
        found[made.run].append(made)
    return dict(found)


def _grant(made: Grant, answer: Answer) -> dict[str, Any]:
    return {
        "run": made.run,
        "node": answer.names[made.node],
        "start": made.piece.start,
        "stop": made.piece.stop,
        "shard": made.piece.shard,
        "attempt": made.piece.attempt,
        "slots": made.slots,
        "by": str(made.phase),
        "reason": made.reason,
    }


def _count_left(reading: queue.Reading, plan: Plan) -> dict[str, int]:
    all_left = left(reading, plan, most=len(reading.demands))
    return {"runs": len(all_left), "items": sum(items for _, items in all_left)}


def _waiting(answer: Answer, waiting: list[tuple[int, int]]) -> list[dict[str, Any]]:
    offers = {offer.node: offer for offer in answer.after.offers}
    demands = {demand.run: demand for demand in answer.after.demands}
    mine: dict[int, list[Refusal]] = defaultdict(list)
    for refusal in answer.plan.refusals:
        mine[refusal.run].append(refusal)
    slots: Counter[int] = Counter()
    for made in answer.plan.grants:
        slots[made.node] += made.slots
    places = {pk: at for at, (pk, _) in enumerate(left(answer.after, answer.plan), 1)}
    found = []
    for pk, items in waiting:
        run, groups = answer.runs[pk], reasons.counted(mine[pk], offers, demands[pk], answer.names, slots)
        row = {"run": pk, "name": run.name, "type": run.type, "priority": run.priority, "items": items}
        told_groups = [group.told() for group in groups]
        found.append({**row, "position": places[pk], "waits_for": reasons.headline(groups), "reasons": told_groups})
    return found


def _held_back(answer: Answer) -> dict[str, Any]:
    """Shards of runs that go on, which are put off: until their back-off is over, or their rate lets them through."""
    put_off = Shard.objects.filter(
        state=ShardState.PENDING, run__state=RunState.RUNNING, not_before__gt=answer.at
    ).aggregate(shards=Count("pk"), items=Sum(F("stop") - F("start")), until=Min("not_before"))
    return {**put_off, "items": put_off["items"] or 0}

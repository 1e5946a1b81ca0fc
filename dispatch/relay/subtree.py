"""What hangs below this server: in short, for the node above, and in full, for whoever asks.

In short it is as large for ten nodes as for ten thousand: sums over the whole subtree, and some of the children by
name. The own worker of this server takes nothing from above: it is told in full only, and counts in no sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Sum
from django.utils import timezone

from dispatch.models import Allocation
from dispatch.states import LIVE, AllocationState
from nodes import registry
from nodes.models import Node
from nodes.protocol import CHILDREN_SUMMED, CHILDREN_TOLD, SUMMARY_NUMBERS

REACHED = ("online", "draining")
_COLUMNS = ("name", "role", "capacity", "active", "draining", "dialect", "last_beat_at", "facts", "subtree")
QUOTAS = 50
"""So many quotas of one node are told."""
SHORT_FIELDS = ("name", "role", "state", "capacity", "used", "queued", "below")
FULL_FIELDS = (
    *("id", "carrier", "allowed", "quotas", "labels", "version", "config_version", "types", "speeds", "cpu", "memory"),
    *("beat_seconds_ago", "below_seconds_ago"),
)


class Slots(NamedTuple):
    """Slots of one node: with work that runs, and with work that waits there."""

    used: int = 0
    queued: int = 0


def summary(children: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is below in short, of ``children`` with SHORT_FIELDS, where ``below`` has a relay's own numbers, or None.

    Relays and what is not there come first among those that are named. Pure.
    """
    children = [child for child in children if child["role"] != Node.Role.STANDALONE]
    counted = [numbers(child) for child in children]
    totals = {name: sum(each[name] for each in counted) for name in SUMMARY_NUMBERS}
    totals["depth"] = max((each["depth"] for each in counted), default=0)
    ordered = sorted(children, key=lambda child: (child["below"] is None, child["state"] in REACHED, child["name"]))
    named = [{name: child[name] for name in SHORT_FIELDS} for child in ordered[:CHILDREN_SUMMED]]
    return {**totals, "children": named, "more": len(children) - len(named)}


def numbers(child: Mapping[str, Any]) -> dict[str, int]:
    """What one child and all below it come to. Of a relay that is not there nothing below it is, either. Pure."""
    here = int(child["state"] in REACHED)
    below = child["below"]
    if below is None:
        there = {name: child[name] * here for name in ("capacity", "used", "queued")}
        leaf = int(child["role"] != Node.Role.RELAY)
        return {"nodes": 1, "leaves": leaf, "online": here, **there, "depth": 1}
    there = {name: below[name] * here for name in ("capacity", "used", "queued")}
    online = here + below["online"] * here
    sizes = {"nodes": 1 + below["nodes"], "leaves": below["leaves"], "depth": 1 + below["depth"]}
    return {**sizes, "online": online, **there}


def numbers_of(told: Mapping[str, Any] | None) -> dict[str, int] | None:
    """The sums of a summary, without the children that it names."""
    return None if told is None else {name: told[name] for name in SUMMARY_NUMBERS}


def now(at: datetime | None = None) -> dict[str, Any]:
    """``summary`` of the nodes of this server."""
    at = at or timezone.now()
    nodes = list(Node.objects.only(*_COLUMNS))
    slots = in_use(nodes)
    return summary([_in_short(node, slots[node.pk], at) for node in nodes])


def in_full(at: datetime | None = None) -> dict[str, Any]:
    """The nodes of this server as ``nodes.messages.read_tell`` reads them: relays first, then by name."""
    at = at or timezone.now()
    nodes = list(Node.objects.prefetch_related("quotas"))
    nodes.sort(key=lambda node: (node.role != Node.Role.RELAY, node.name))
    slots = in_use(nodes)
    short = [_in_short(node, slots[node.pk], at) for node in nodes]
    told = list(zip(nodes, short, strict=True))[:CHILDREN_TOLD]
    return {
        "node": settings.CASCADE.called,
        "live": True,
        "seconds_ago": 0.0,
        "below": numbers_of(summary(short)),
        "children": [{**said, **_in_detail(node, at)} for node, said in told],
        "more": len(nodes) - len(told),
    }


def kept(node: Node, at: datetime | None = None) -> dict[str, Any]:
    """As ``in_full``, what the relay ``node`` said last with a beat: less of each child, and how long ago that was."""
    at = at or timezone.now()
    told = node.subtree or {"children": [], "more": 0}
    return {
        "node": node.name,
        "live": False,
        "seconds_ago": _seconds(node.subtree_at, at),
        "below": numbers_of(node.subtree),
        "children": [{**child, **dict.fromkeys(FULL_FIELDS)} for child in told["children"]],
        "more": told["more"],
    }


def in_use(nodes: Iterable[Node]) -> dict[int, Slots]:
    """By node, in one query."""
    found = {node.pk: Slots() for node in nodes}
    live = Allocation.objects.filter(node__in=found, state__in=LIVE).order_by()
    for node, state, slots in live.values_list("node", "state").annotate(Sum("slots")):
        name = "used" if state == AllocationState.EXECUTING else "queued"
        found[node] = found[node]._replace(**{name: slots})
    return found


def _in_short(node: Node, slots: Slots, at: datetime) -> dict[str, Any]:
    below = numbers_of(node.subtree) if node.role == Node.Role.RELAY else None
    # A relay's slots are used by what its nodes run, which it tells; a run given to it may still wait there.
    used, queued = slots if below is None else (below["used"], below["queued"])
    return {
        "name": node.name,
        "role": node.role,
        "state": registry.state_of(node, at),
        "capacity": registry.slots(node),
        "used": used,
        "queued": queued,
        "below": below,
    }


def _in_detail(node: Node, at: datetime) -> dict[str, Any]:
    quotas = list(node.quotas.all())[:QUOTAS]
    found = (
        node.pk,
        node.carrier,
        node.capacity,
        [{name: getattr(each, name) for name in ("task_type", "item", "slots", "limit")} for each in quotas],
        node.labels,
        node.version,
        node.config_version,
        list(node.executors),
        {name: seconds for name, seconds in node.speeds.items() if "@" not in name},
        node.cpu,
        node.memory,
        _seconds(node.last_beat_at, at),
        _seconds(node.subtree_at, at),
    )
    return dict(zip(FULL_FIELDS, found, strict=True))


def _seconds(since: datetime | None, at: datetime) -> float | None:
    return None if since is None else round(max((at - since).total_seconds(), 0.0), 1)

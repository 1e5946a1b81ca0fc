"""Refusals of nodes, counted: "label region=eu: 3 nodes", "quota limit 4 of 4 for echo: 2 nodes". Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dispatch.plans import Demand, Offer, Refusal

NAMES = 5
"""Nodes of one reason that are named."""

RANK = (
    *("slots", "limit", "granted", "rate", "later", "load", "cooling", "island"),
    *("fallback", "hands", "label", "type", "draining", "offline", "inactive"),
)
"""Codes by how near a node is to taking the work: first what ends by itself, last what somebody must change."""

PASSING = frozenset(RANK[: RANK.index("island")])
"""Those of nodes that may have the work, if not now."""


@dataclass(slots=True)
class Counted:
    """Nodes with one reason. ``used`` of ``slots`` are in use on them."""

    code: str
    reason: str
    nodes: int = 0
    names: list[str] = field(default_factory=list)
    used: int = 0
    slots: int = 0

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'' if self.nodes == 1 else 's'}"
        if self.code == "slots":
            return f"{self.reason}: {self.used} of {self.slots} in use on {nodes}"
        return f"{self.reason}: {nodes}"

    def told(self) -> dict[str, object]:
        """For the API and commands."""
        return {
            "code": self.code,
            "reason": self.reason,
            "nodes": self.nodes,
            "names": self.names,
            "text": str(self),
        }


def counted(
    refusals: Iterable[Refusal],
    offers: Mapping[int, Offer],
    demand: Demand,
    names: Mapping[int, str],
    given: Mapping[int, int],
) -> list[Counted]:
    """``refusals`` of one run by reason, those of nodes that are nearest to taking it first.

    ``names``: of all nodes; those that are not active have no offer. ``given``: slots of each node that the pass
    itself has given out.
    """
    found: dict[tuple[str, str], Counted] = {}

    for refusal in refusals:
        offer = offers.get(refusal.node)
        reason = refusal.reason if offer is None else in_short(refusal, offer, demand)
        group = found.setdefault((refusal.code, reason), Counted(refusal.code, reason))
        group.nodes += 1
        if len(group.names) < NAMES:
            group.names.append(names[refusal.node])
        if offer is not None:
            # What is queued ahead there is in no slot yet.
            group.used += min(sum(offer.in_use.values()) + given.get(offer.node, 0), offer.capacity)
            group.slots += offer.capacity
    return sorted(found.values(), key=lambda group: (rank(group.code), -group.nodes, group.reason))


def rank(code: str) -> int:
    return RANK.index(code) if code in RANK else len(RANK)


def in_short(refusal: Refusal, offer: Offer, demand: Demand) -> str:
    """The reason without what differs from node to node though it means the same."""
    if refusal.code == "slots":
        return "no free slot"
    if refusal.code == "cooling":
        return "cooling down"
    if refusal.code == "load":
        return f"{refusal.reason.partition(' ')[0]} above its limit"
    if refusal.code == "label":
        wanted = demand.labels
        if not offer.branches:
            wanted = {name: value for name, value in wanted.items() if offer.labels.get(name) != value}
        return f"label {', '.join(f'{name}={value}' for name, value in sorted(wanted.items()))}"
    return refusal.reason


def headline(groups: Sequence[Counted]) -> str:
    """What it waits for, in a line: the reasons of the nodes that may have it, or of all where none may."""
    if not groups:
        return "there is no node"
    passing = [group for group in groups if group.code in PASSING]
    if passing:
        return "; ".join(map(str, passing[:3]))
    return "no node can take it: " + "; ".join(map(str, groups[:3]))

"""How a branch of the tree is shown: what a relay says of it with each beat, and its nodes in full when asked."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from django.utils import timezone

from api.parts import Segment, State, bar, iso
from api.words import Joined, Text, Words, counted
from api.words import words as said
from nodes.models import Node


def address(node: int, path: Sequence[str]) -> str:
    """Where what is below ``path`` of this node is shown."""
    query = urlencode({"path": "/".join(path)}) if path else ""
    return reverse("below", args=[node]) + (f"?{query}" if query else "")


@dataclass(frozen=True)
class Gauge:
    """Slots of a node, or of all leaves of a branch."""

    used: int
    queued: int
    capacity: int
    bar: tuple[Segment, ...]

    @classmethod
    def of(cls, numbers: Mapping[str, int]) -> Gauge:
        used, queued, capacity = numbers["used"], numbers["queued"], numbers["capacity"]
        return cls(used, queued, capacity, bar(capacity, ("used", used), ("queued", queued)))

    @property
    def label(self) -> Words:
        return said(
            "{used} of {capacity} slots in use, {queued} queued",
            used=f"{self.used:,}",
            capacity=f"{self.capacity:,}",
            queued=f"{self.queued:,}",
        )


def words(numbers: Mapping[str, int]) -> Text:
    """How large a branch is, and how much of it is there."""
    online = f"{numbers['online']:,}"
    there = counted("{online} of {n} node online", "{online} of {n} nodes online", numbers["nodes"], online=online)
    return said("{there}, {n} levels", there=there, n=numbers["depth"]) if numbers["depth"] > 1 else there


@dataclass(frozen=True)
class Twig:
    """A node below a relay. ``address`` and ``words`` are a relay's."""

    name: str
    state: State
    role: Text
    gauge: Gauge
    words: Text
    address: str
    beat: str
    facts: tuple[Text, ...]

    @classmethod
    def of(cls, node: int, path: Sequence[str], told: Mapping[str, Any]) -> Twig:
        """``told`` as ``dispatch.relay.subtree`` makes it, in short or in full, of a node below ``path``."""
        relay, below = told["role"] == Node.Role.RELAY, told["below"]
        return cls(
            name=told["name"],
            state=State.of(told["state"]),
            role="" if told["role"] == Node.Role.CHILD else said("own worker") if not relay else said("relay"),
            gauge=Gauge.of(below or told),
            words=words(below) if below else "",
            address=address(node, [*path, told["name"]]) if relay else "",
            beat=_since(told.get("beat_seconds_ago")),
            facts=tuple(_facts(told)),
        )


def _facts(told: Mapping[str, Any]) -> list[Text]:
    """What is known of a node beside its slots: nothing of one that was told in short, all of one told in full."""
    if told.get("id") is None:
        return []
    found: list[Text] = [" · ".join(word for word in (told["carrier"], told["version"]) if word)]
    found += [said("configuration {n}", n=told["config_version"])] if told["config_version"] else []
    found += [f"{name}={value}" for name, value in sorted((told["labels"] or {}).items())]
    for quota in told["quotas"] or ():
        item = f"[{quota['item']}]" if quota["item"] else ""
        limit: Text = "" if quota["limit"] is None else said(" (limit {n})", n=quota["limit"])
        found.append(said("quota {quota}{limit}", quota=f"{quota['task_type']}{item}={quota['slots']}", limit=limit))
    found += [Joined(" ", (name, _pace(seconds))) for name, seconds in sorted((told["speeds"] or {}).items())]
    return [fact for fact in found if fact]


def _since(seconds_ago: float | None) -> str:
    return "" if seconds_ago is None else iso(timezone.now() - dt.timedelta(seconds=seconds_ago))


def _pace(seconds: float) -> Words:
    if seconds >= 0.01:
        return said("{time} an item", time=said("{n} s", n=f"{seconds:.2g}"))
    return said("{n} ms an item", n=f"{seconds * 1000:.2g}")


@dataclass(frozen=True)
class Branch:
    """What is below a relay. ``at``: when that was said. ``problem``: why it is not known."""

    id: int
    title: str
    steps: tuple[tuple[str, str], ...]
    """(name, address) from this server's node down."""
    live: bool
    at: str
    numbers: Gauge | None
    words: Text
    twigs: tuple[Twig, ...]
    more: int
    address: str
    problem: str = ""

    @classmethod
    def of(cls, node: int, name: str, path: Sequence[str], picture: Mapping[str, Any] | None, problem: str) -> Branch:
        """Of an answer; see ``dispatch.relay.asking.ask``."""
        told = picture or {"children": [], "more": 0, "live": False, "seconds_ago": None, "below": None}
        names = [name, *path]
        return cls(
            id=node,
            title="/".join(names),
            steps=tuple((each, address(node, path[:at])) for at, each in enumerate(names)),
            live=told["live"],
            at=_since(told["seconds_ago"]),
            numbers=None if told["below"] is None else Gauge.of(told["below"]),
            words="" if told["below"] is None else words(told["below"]),
            twigs=tuple(Twig.of(node, path, each) for each in told["children"]),
            more=told["more"],
            address=address(node, path),
            problem=problem,
        )

    @classmethod
    def kept(cls, node: Node, state: str) -> Branch:
        """What a relay of this server said of all below it with its last beat."""
        told: Mapping[str, Any] = node.subtree or {}
        live = state in ("online", "draining")
        return cls(
            id=node.pk,
            title=node.name,
            steps=(),
            live=live,
            at="" if live else iso(node.subtree_at),  # what is there says it anew all the time
            numbers=Gauge.of(told),
            words=words(told),
            twigs=tuple(Twig.of(node.pk, [], each) for each in told["children"]),
            more=told["more"],
            address=address(node.pk, []),
        )

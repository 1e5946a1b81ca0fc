"""Where this server hangs in the tree, as its parent has told: ``upward`` keeps it, whoever answers below asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from django.conf import settings

from nodes import identity
from nodes.protocol import Conflict


@dataclass
class Place:
    """``path`` has [id, name] of each node from the root to the parent. ``capacity`` and ``limits`` are what the parent
    lets all of this subtree run at once, together and by type; None: it has no parent, or has not said so yet.
    """

    path: list[list[str]] = field(default_factory=list)
    capacity: int | None = None
    limits: dict[str, int] = field(default_factory=dict)


here = Place()


def path() -> list[list[str]]:
    """From the root to this server, which is last."""
    settled = settings.CASCADE
    return [*here.path, [identity.own(settled.data_dir), settled.called]]


def check(child: str, name: str) -> None:
    """Whether a relay with the id ``child``, called ``name`` here, may hang below this server. Raises Conflict."""
    own = path()
    if any(each == child for each, _ in own):
        raise Conflict(f"{name} would be its own ancestor: {_shown(own, child, name)}")
    if len(own) >= settings.CASCADE.max_depth:
        raise Conflict(
            f"the tree would be deeper than {settings.CASCADE.max_depth} levels (CASCADE_MAX_DEPTH): "
            f"{_shown(own, child, name)}"
        )


def closes_a_circle(above: Sequence[Sequence[str]]) -> str:
    """The path, if this server stands in the path to its own parent; else ""."""
    mine = identity.own(settings.CASCADE.data_dir)
    if all(each != mine for each, _ in above):
        return ""
    return " > ".join([*(name for _, name in above), settings.CASCADE.called])


def _shown(own: Sequence[Sequence[str]], child: str, name: str) -> str:
    return " > ".join([*(f"{each} (the same server)" if pk == child else each for pk, each in own), name])

"""Where this server hangs in the tree, as its parent has told: ``upward`` keeps it, whoever answers below asks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from django.conf import settings

from nodes import identity
from nodes.protocol import Conflict


@dataclass
class Place:
    """``path`` has [id, name] of each node from the root to the parent. ``capacity`` and ``limits`` are what the parent
    lets all of this subtree run at once, together and by type; None: it has no parent, or has not said so yet.

    ``heard`` is when the last beat was sent that it has answered, by this machine's monotonic clock; before the first
    one, when this server began to call it. ``beat`` and ``lease`` are seconds, as it told.
    """

    path: list[list[str]] = field(default_factory=list)
    capacity: int | None = None
    limits: dict[str, int] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)
    beat: float = 5.0
    lease: float = 30.0

    def silence(self) -> float:
        """Seconds without a word of the parent."""
        return time.monotonic() - self.heard

    @property
    def cut_off(self) -> float:
        """After so many seconds of silence the link is lost, and not just between two beats."""
        return CUT_OFF_BEATS * self.beat


CUT_OFF_BEATS = 2
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

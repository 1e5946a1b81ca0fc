"""Where this server hangs in the tree, as its parent has told ``upward``; whoever answers below asks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings

from dispatch.models import Above
from nodes import identity
from nodes.protocol import Conflict, Misdirected


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
"""In the process that has the line to the parent."""


def own() -> str:
    """This server's id, whatever it is called and wherever it hangs."""
    return _read(settings.CASCADE.identity_folder)


@lru_cache(maxsize=4)
def _read(folder: Path) -> str:
    return identity.own(folder)


def tell(told: Place) -> None:
    """The parent has said so. What is new of it is written down for other processes of this server."""
    global here
    if (told.path, told.capacity, told.limits) != (here.path, here.capacity, here.limits):
        known = {"path": told.path, "capacity": told.capacity, "limits": told.limits}
        Above.objects.update_or_create(pk=1, defaults=known)
    here = told


def remembered() -> Place:
    """As it was told last, to whichever process."""
    row = Above.objects.filter(pk=1).first()
    return Place() if row is None else Place(row.path, row.capacity, row.limits)


def path() -> list[list[str]]:
    """From the root to this server, which is last."""
    above = here.path
    if not above and settings.CASCADE.role == "relay":
        above = remembered().path  # another process has the line to the parent
    return [*above, [own(), settings.CASCADE.called]]


def check_meant(body: Any) -> None:
    """Raises Misdirected for a message about allocations of another server, whose ids may be those of ours."""
    if isinstance(body, dict) and body.get("parent") not in (None, "", own()):
        raise Misdirected("this is about work of another server: say hello again, without it")


def check(child: str, name: str) -> None:
    """Whether a relay with the id ``child``, called ``name`` here, may hang below this server. Raises Conflict."""
    way = path()
    if any(each == child for each, _ in way):
        raise Conflict(f"{name} would be its own ancestor: {_shown(way, child, name)}")
    if len(way) >= settings.CASCADE.max_depth:
        raise Conflict(
            f"the tree would be deeper than {settings.CASCADE.max_depth} levels (CASCADE_MAX_DEPTH): "
            f"{_shown(way, child, name)}"
        )


def closes_a_circle(above: Sequence[Sequence[str]]) -> str:
    """The path, if this server stands in the path to its own parent; else ""."""
    if all(each != own() for each, _ in above):
        return ""
    return " > ".join([*(name for _, name in above), settings.CASCADE.called])


def _shown(way: Sequence[Sequence[str]], child: str, name: str) -> str:
    return " > ".join([*(f"{each} (the same server)" if pk == child else each for pk, each in way), name])

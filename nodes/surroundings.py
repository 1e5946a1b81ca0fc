"""What executors find around them on this machine: which networks they may reach, which callables they may call.

Set once in each process that checks or runs work: in worker processes by the agent that starts them, in a parent at its
start. Django-free; nothing is read from here before it was set, save what is the default for everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Surroundings:
    """``allowed_networks``: CIDR networks that are not public and may be fetched from all the same: 10.1.0.0/16, say.
    ``custom``: name -> dotted path (``module:callable``) of what the type ``custom`` may call. ``folder``: where an
    executor may keep what saves it a fetch, shared by the worker processes of one agent; empty: nowhere.
    """

    allowed_networks: tuple[str, ...] = ()
    custom: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

    def plain(self) -> dict[str, Any]:
        """For another process; ``Surroundings(**plain)`` is the same again."""
        return asdict(self)

    @property
    def cache(self) -> Path | None:
        return Path(self.folder) if self.folder else None


_current = Surroundings()


def settle(surroundings: Surroundings) -> None:
    """From now on these hold in this process."""
    global _current
    _current = surroundings


def current() -> Surroundings:
    return _current

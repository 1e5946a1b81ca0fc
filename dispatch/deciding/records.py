"""What is there, as decisions see it. Plain tuples, so that a query's rows become them at no cost."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from dispatch.attempts import Record
from dispatch.states import LIVE

DIGEST = 16


class Shard(NamedTuple):
    """Items [start, stop) of a run, and what they have gone through."""

    id: int
    run: int
    start: int
    stop: int
    state: str
    attempts: int = 0
    deaths: int = 0
    losses: int = 0

    @property
    def record(self) -> Record:
        return Record(self.stop - self.start, self.attempts, self.deaths, self.losses)


class Held(NamedTuple):
    """An allocation. ``receipt`` is the number of the receipt that it ended with, if it did."""

    id: int
    run: int
    shard: int
    node: int | None
    type: str
    start: int
    stop: int
    state: str
    receipt: int | None = None
    parts: int = 0
    """Parts of it that were accepted."""
    digests: str = ""
    """Of each of them, the first ``DIGEST`` characters of its digest."""

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def digest_of(self, part: int) -> str:
        return self.digests[(part - 1) * DIGEST : part * DIGEST]


class Lease(NamedTuple):
    """How long an allocation is its node's. Only of a node that polls rarely the times matter."""

    id: int
    delivered: bool = True
    deadline: datetime | None = None
    timeout: float = 0.0
    """Seconds the work may take."""
    since: datetime | None = None
    """When it was delivered."""


class Patience(NamedTuple):
    """How long a node may be silent. Seconds."""

    lease: float
    """Of a node that beats."""
    patient: float
    """Of a client that polls rarely: the longest silence before it counts as gone."""
    polls_rarely: bool = False
    beats_while_working: bool = False
    """Of one that polls rarely: whether silence while it works says that the work is lost."""

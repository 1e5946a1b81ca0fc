"""What a decision wants changed, as data. Whoever writes it down does so in order, in one transaction.

Each change of a state names the states it may come from (``dispatch.states``), so that writing is a compare-and-set:
what somebody else has moved on meanwhile is left alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from dispatch.states import ALLOCATION, SHARD, AllocationState, ShardState, before
from nodes.messages import Entry, ItemOutcome


class Piece(NamedTuple):
    """A shard to be: items [start, stop), and what they have gone through."""

    start: int
    stop: int
    state: ShardState
    attempts: int = 0
    deaths: int = 0
    losses: int = 0
    error: str = ""
    not_before: datetime | None = None


class Closed(NamedTuple):
    """How a reported allocation ended."""

    id: int
    state: AllocationState
    rows: int
    seconds: float
    error: str
    log: str
    progress: int


class Line(NamedTuple):
    """What a receipt says of one allocation: ``ranges`` are (first, stop, rows) of items that are done."""

    allocation: int
    run: int
    start: int
    shard: int
    digest: str
    offset: int
    ranges: tuple[tuple[int, int, int], ...]
    among: tuple[tuple[int, int], ...] = ()
    """(start, id) of the shards that the ranges are in, ascending, where it is not ``shard`` alone."""
    nodes: tuple[str, ...] = ()
    by: tuple[int, ...] = ()
    """Who worked below the reporting node, as in its entry."""
    outcomes: tuple[ItemOutcome, ...] = ()
    """What items brought more than rows, where that is kept by a node above."""
    hopeless: tuple[int, ...] = ()
    """Items that are not worth another attempt, where a node above decides about that."""

    def shard_of(self, item: int) -> int:
        if not self.among:
            return self.shard
        return self.among[bisect_right(self.among, item, key=lambda each: each[0]) - 1][1]


class Advanced(NamedTuple):
    """An allocation of which a part was accepted, and which goes on."""

    id: int
    part: int
    rows: int
    items: int
    digest: str


@dataclass(frozen=True, slots=True)
class EndAllocations:
    """Live allocations end without a result."""

    ids: tuple[int, ...]
    state: AllocationState
    detail: str

    @property
    def among(self) -> tuple[AllocationState, ...]:
        return before(ALLOCATION, self.state)


@dataclass(frozen=True, slots=True)
class MoveShards:
    """Shards go to ``state``, those that are ``among`` still; ``then`` follows only where one did.

    ``columns`` change with it: error, attempts, deaths, losses, not_before, stop.
    """

    ids: tuple[int, ...]
    state: ShardState
    among: tuple[ShardState, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    then: tuple[Effect, ...] = ()


@dataclass(frozen=True, slots=True)
class AddShards:
    run: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class TakeApart:
    """A shard's row becomes the first of ``pieces``; the others are added. Together they are what it was."""

    shard: int
    run: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Accept:
    """One receipt: allocations of one type, with their rows in one place. ``apart`` comes before it."""

    type: str
    segment: str
    inline: list[list[Any]]
    lines: tuple[Line, ...]
    closed: tuple[Closed, ...]
    apart: tuple[TakeApart, ...] = ()
    advanced: tuple[Advanced, ...] = ()
    origin: int | None = None


@dataclass(frozen=True, slots=True)
class Remember:
    """What items found and remember counts with the rows that they brought."""

    type: str
    reports: tuple[tuple[Entry, int, int, int], ...]
    """(entry, run, start, stop)."""


@dataclass(frozen=True, slots=True)
class CountItems:
    """Numbers of items of a run, and of rows, that come to what it has."""

    run: int
    saved: int = 0
    failed: int = 0
    quarantined: int = 0
    cancelled: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class CutWhole:
    """A run has no uncut rest any more, and gets no further items."""

    run: int


@dataclass(frozen=True, slots=True)
class EndRuns:
    """Those of the runs end whose every item has ended by now."""

    runs: frozenset[int]


@dataclass(frozen=True, slots=True)
class Reopen:
    """A run that had ended, not by a cancel, goes on."""

    run: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Receipts are dealt with: their rows are in the result store, or with ``lost`` are gone for good."""

    receipts: tuple[int, ...]
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Lend:
    """Leases of what is live still run until ``until``; with ``since`` they began then."""

    ids: tuple[int, ...]
    until: datetime
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """Those of ``ids`` that were delivered to ``node``, and their shards, are executing."""

    node: int
    ids: tuple[int, ...]


Effect = (
    EndAllocations
    | MoveShards
    | AddShards
    | TakeApart
    | Accept
    | Remember
    | CountItems
    | CutWhole
    | EndRuns
    | Reopen
    | Settle
    | Lend
    | Begin
)

FROM_NODE = (ShardState.ALLOCATED, ShardState.EXECUTING)
"""Where a shard is while a node has it."""


def cancellable() -> tuple[ShardState, ...]:
    return before(SHARD, ShardState.CANCELLED)

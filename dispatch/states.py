"""States of runs, shards and allocations, and which may follow which. No ORM, no clock.

Reading the tables: ``SHARD["executing"]`` is the set of states an executing shard may go to.
``lifecycle`` makes every change as a compare-and-set whose expected states come from ``before()``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

State = TypeVar("State", bound=StrEnum)


class RunState(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ShardState(StrEnum):
    PENDING = "pending"
    ALLOCATED = "allocated"
    EXECUTING = "executing"
    SPOOLED = "spooled"
    SAVED = "saved"
    FAILED = "failed"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"


class AllocationState(StrEnum):
    PENDING = "pending"
    EXECUTING = "executing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


_RUN_ENDS = {RunState.COMPLETED, RunState.PARTIAL, RunState.FAILED, RunState.CANCELLED}

RUN: Mapping[RunState, set[RunState]] = {
    RunState.RUNNING: _RUN_ENDS,
    # A retry of what failed opens an ended run again.
    RunState.PARTIAL: {RunState.RUNNING},
    RunState.FAILED: {RunState.RUNNING},
    RunState.CANCELLED: set(),
    # Rows that had been saved were lost with a part of the disk, and are made again.
    RunState.COMPLETED: {RunState.RUNNING},
}

SHARD: Mapping[ShardState, set[ShardState]] = {
    ShardState.PENDING: {ShardState.ALLOCATED, ShardState.CANCELLED},
    # allocated -> spooled: a shard shorter than a beat starts and ends between two messages.
    ShardState.ALLOCATED: {
        ShardState.EXECUTING,
        ShardState.SPOOLED,
        ShardState.PENDING,
        ShardState.FAILED,
        ShardState.QUARANTINED,
        ShardState.CANCELLED,
    },
    ShardState.EXECUTING: {
        ShardState.SPOOLED,
        ShardState.PENDING,
        ShardState.FAILED,
        ShardState.QUARANTINED,
        ShardState.CANCELLED,
    },
    # spooled -> pending: the spool file was found damaged, so the work is done again.
    ShardState.SPOOLED: {ShardState.SAVED, ShardState.PENDING},
    # saved -> pending: as above, after the store had lost its newest rows.
    ShardState.SAVED: {ShardState.PENDING},
    ShardState.FAILED: {ShardState.PENDING},
    ShardState.QUARANTINED: {ShardState.PENDING},
    ShardState.CANCELLED: set(),
}

ALLOCATION: Mapping[AllocationState, set[AllocationState]] = {
    # pending -> completed or failed: as above, the report brings its start along.
    AllocationState.PENDING: {
        AllocationState.EXECUTING,
        AllocationState.COMPLETED,
        AllocationState.FAILED,
        AllocationState.EXPIRED,
        AllocationState.CANCELLED,
        AllocationState.SUPERSEDED,
    },
    AllocationState.EXECUTING: {
        AllocationState.COMPLETED,
        AllocationState.FAILED,
        AllocationState.EXPIRED,
        AllocationState.CANCELLED,
        AllocationState.SUPERSEDED,
    },
    AllocationState.COMPLETED: set(),
    AllocationState.FAILED: set(),
    AllocationState.EXPIRED: set(),
    AllocationState.CANCELLED: set(),
    AllocationState.SUPERSEDED: set(),
}

RUN_ENDED = tuple(sorted(_RUN_ENDS))
LIVE = (AllocationState.PENDING, AllocationState.EXECUTING)
"""An allocation in one of these holds a slot of its node, and its report is accepted."""
SHARD_OPEN = (ShardState.PENDING, ShardState.ALLOCATED, ShardState.EXECUTING, ShardState.SPOOLED)
"""A shard in one of these keeps its run from ending."""


def before(table: Mapping[State, set[State]], state: State) -> tuple[State, ...]:
    """The states from which ``state`` may be reached: what a compare-and-set may expect."""
    return tuple(sorted(source for source, targets in table.items() if state in targets))


def run_end(count: int, saved: int, failed: int, quarantined: int, cancelled: int) -> RunState | None:
    """How a run of ``count`` items ended, or None while some are still open. Arguments are numbers of items."""
    if saved + failed + quarantined + cancelled < count:
        return None
    if cancelled:
        return RunState.CANCELLED
    if saved == count:
        return RunState.COMPLETED
    return RunState.PARTIAL if saved else RunState.FAILED

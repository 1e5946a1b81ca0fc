"""Rows of the control database as they would be after something happened: written directly, past every verb."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from dispatch.items import freeze
from dispatch.models import Allocation, Run, Shard
from dispatch.states import AllocationState, ShardState
from nodes.models import Node


def node(name: str = "frankfurt-1", **fields: Any) -> Node:
    """A node of 8 slots that has just beaten."""
    fields = {"capacity": 8, "last_beat_at": timezone.now(), "executors": ["data_import", "echo"], **fields}
    return Node.objects.create(name=name, **fields)


def run(count: int = 500, **fields: Any) -> Run:
    """A run of ``count`` items, of which none has been cut off yet."""
    fields = {"type": "data_import", "items": freeze(list(range(count))), **fields}
    return Run.objects.create(count=count, **fields)


def cut(of: Run, start: int, stop: int, state: str = ShardState.PENDING, **fields: Any) -> Shard:
    """A shard of the run ``of``."""
    shard = Shard.objects.create(run=of, start=start, stop=stop, state=state, **fields)
    of.cut = max(of.cut, stop)
    of.save(update_fields=["cut"])
    return shard


def tried(shard: Shard, on: Node | None, state: str, **fields: Any) -> Allocation:
    """An allocation of ``shard`` to the node ``on``."""
    fields = {"type": shard.run.type, "deadline": shard.updated_at, "reason": "free capacity", **fields}
    return Allocation.objects.create(
        run=shard.run, shard=shard, node=on, start=shard.start, stop=shard.stop, state=state, **fields
    )


def allocation(
    of: Run, on: Node | None, start: int, stop: int, state: str = AllocationState.EXECUTING, **fields: Any
) -> Allocation:
    """A shard [start, stop) cut off the run ``of``, and its one allocation to the node ``on``."""
    return tried(cut(of, start, stop, ShardState.EXECUTING), on, state, **fields)


def hold(on: Node, count: int = 1, state: str = AllocationState.EXECUTING) -> None:
    """``count`` allocations of a run of echo to the node ``on``, each of one item."""
    of = run(count, type="echo")
    for at in range(count):
        allocation(of, on, at, at + 1, state)

"""The task types. To add one: write a file beside this one and add its line to EXECUTORS."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from nodes.executors.base import Executor
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings

EXECUTORS = {
    "analysis": "nodes.executors.analysis:Analysis",
    "backtest": "nodes.executors.backtest:Backtest",
    "crawl": "nodes.executors.crawl:Crawl",
    "custom": "nodes.executors.custom:Custom",
    "data_import": "nodes.executors.data_import:DataImport",
    "echo": "nodes.executors.echo:Echo",
    "external": "nodes.executors.external:External",
    "feed_update": "nodes.executors.feed_update:FeedUpdate",
    "optimization": "nodes.executors.optimization:Optimization",
}
OUTSIDE = frozenset({"external"})
"""Types that only clients with code of their own run; named here so that an agent need not import them to know."""
ONCE = OUTSIDE | {"crawl", "custom", "feed_update"}
"""Types whose work somebody else notices: a late shard of theirs is never run by two nodes at once."""


@cache
def get(task_type: str) -> type[Executor]:
    """The executor of ``task_type``. Raises FieldError on field ``type`` for an unknown one."""
    if task_type not in EXECUTORS:
        raise FieldError("type", f"{task_type!r} is not a task type; known are: {', '.join(sorted(EXECUTORS))}")
    module, _, name = EXECUTORS[task_type].partition(":")
    executor: type[Executor] = getattr(import_module(module), name)
    return executor


def names() -> list[str]:
    """All types."""
    return sorted(EXECUTORS)


def runnable() -> list[str]:
    """The types that this package has code for."""
    return sorted(set(EXECUTORS) - OUTSIDE)


def offered(around: Surroundings) -> list[str]:
    """The types that an agent asks for work of: ``runnable``, without what it would refuse item by item."""
    return [name for name in runnable() if name != "custom" or around.custom]

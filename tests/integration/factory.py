"""Children that talk to the parent as their agents do, results that they would send, and what must hold of any run."""

from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from django.conf import settings
from django.db import connection
from django.db.models import Sum
from django.utils import timezone

from dispatch import lifecycle, queue
from dispatch.lifecycle import grants
from dispatch.models import Allocation, Receipt, Run, Shard
from dispatch.results import spool
from dispatch.results.saver import Saver
from dispatch.states import LIVE, RUN_ENDED, SHARD_OPEN, AllocationState, RunState, ShardState, run_end
from nodes import executors, messages, registry
from nodes.executors import rows as rows_
from nodes.fields import parse_quota
from nodes.keys import Caller
from nodes.models import Node

SEGMENT_LIMIT = 1024 * 1024
SLOW = 6.0
"""Seconds per item that reports tell, so that nothing is queued ahead unless a test is about that."""


class Work(NamedTuple):
    """One allocation as it was delivered."""

    allocation: int
    run: int
    start: int
    stop: int
    attempt: int
    items: list[Any]


@dataclass
class Child:
    """A node with its key. Bodies go through the readers that every carrier uses."""

    id: int
    caller: Caller

    @property
    def node(self) -> Node:
        return Node.objects.get(pk=self.id)

    def beat(self, **body: Any) -> dict[str, Any]:
        return lifecycle.beat(self.caller, messages.read_beat({"boot": "b1", **body}))

    def claim(self, slots: int = 100, **body: Any) -> list[Work]:
        reply = self.claimed(slots, **body)
        return [Work(*each) for each in reply["work"]]

    def claimed(self, slots: int = 100, **body: Any) -> dict[str, Any]:
        return lifecycle.claim(self.caller, messages.read_claim({"boot": "b1", "slots": slots, **body}))

    def offered(self, after: int = 0) -> list[int]:
        """The ids that a socket would offer."""
        return [each.pk for each in lifecycle.offered(self.id, after)]

    def accept(self, *ids: int) -> list[int]:
        """The ids that are gone."""
        return list(lifecycle.accept(self.caller, messages.read_accept({"allocations": list(ids)}))["gone"])

    def report(self, *entries: Mapping[str, Any]) -> list[dict[str, Any]]:
        body = {"reports": list(entries)}
        return list(lifecycle.report(self.caller, messages.read_report(body))["results"])

    def statuses(self, *entries: Mapping[str, Any]) -> list[int]:
        return [result["status"] for result in self.report(*entries)]

    def release(self, *ids: int, detail: str = "") -> list[int]:
        body = {"allocations": list(ids), "detail": detail}
        return list(lifecycle.release(self.caller, *messages.read_release(body))["released"])

    def works(self, slots: int = 100) -> list[Work]:
        """What it is given when the dispatcher has made its pass."""
        dispatch()
        return self.claim(slots)

    def live(self) -> int:
        return Allocation.objects.filter(node_id=self.id, state__in=LIVE).count()

    def executing(self) -> int:
        return Allocation.objects.filter(node_id=self.id, state=AllocationState.EXECUTING).count()


def child(
    name: str = "a", capacity: int = 4, *quotas: str, types: Sequence[str] = ("echo", "data_import"), **fields: Any
) -> Child:
    """A child that has said hello. ``quotas`` as on the command line: echo=2, echo[x]=1/1."""
    node, key = registry.add_node(name, capacity=capacity, quotas=[parse_quota(each) for each in quotas], **fields)
    made = Child(node.pk, Caller(node.pk, node.keys.get().pk, key.access_key))
    made.beat(hello=True, executors=list(types))
    return made


def submit(items: int | Sequence[Any] = 4, **fields: Any) -> Run:
    """A run of echo, one item per shard unless said otherwise; a number of items stands for i0, i1 and so on."""
    # Ids come again when a test's transaction is rolled back; in production they never do.
    grants.frozen.cache_clear()
    named = [f"i{number}" for number in range(items)] if isinstance(items, int) else list(items)
    return lifecycle.submit(**{"type": "echo", "items": named, "shard_size": 1, "backoff": 0.0, **fields})


def dispatch() -> set[int]:
    """One pass; the ids of the nodes that got work."""
    return set(queue.allocate_now().nodes)


# What a child reports


def rows_of(work: Work, count: int = 1, only: Sequence[int] | None = None) -> list[list[Any]]:
    """Rows as echo makes them, ``count`` for each item, or for those at ``only`` (indexes in the run)."""
    indexes = range(work.start, work.stop) if only is None else only
    keys = [str(work.items[index - work.start]) for index in indexes]
    return [[key, number, f"{key}:{number}"] for key in keys for number in range(count)]


def done(work: Work, count: int = 1) -> dict[str, Any]:
    """All of it, with rows inline."""
    length = work.stop - work.start
    return {
        "allocation": work.allocation,
        "ranges": [[work.start, work.stop, count * length]],
        "rows": rows_of(work, count),
        "seconds": SLOW * length,
    }


def partly(work: Work, *failed: int, retry: bool = False, count: int = 1) -> dict[str, Any]:
    """All but the items at ``failed`` (indexes in the run)."""
    good = [index for index in range(work.start, work.stop) if index not in failed]
    ranges: list[list[int]] = []
    for index in good:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = [ranges[-1][0], index + 1, ranges[-1][2] + count]
        else:
            ranges.append([index, index + 1, count])
    return {
        "allocation": work.allocation,
        "ranges": ranges,
        "errors": [[index, f"no luck with {work.items[index - work.start]}", retry] for index in failed],
        "rows": rows_of(work, count, good),
        "seconds": SLOW * (work.stop - work.start),
    }


def failure(work: Work, kind: str = "crash", message: str = "the worker died") -> dict[str, Any]:
    return {"allocation": work.allocation, "failure": {"kind": kind, "message": message}}


def uploaded(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``entries`` with their rows moved to one segment, which is in the parent's spool now."""
    moved: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    for entry in entries:
        moved.append({**entry, "rows": None, "offset": len(rows)})
        rows += [tuple(row) for row in entry["rows"]]
    content = rows_.encode(rows_.to_table(executors.get("echo").dataset, rows))
    segment = spool.receive([content], settings.CASCADE.spool, limit=SEGMENT_LIMIT)
    return [{**entry, "segment": segment.sha256} for entry in moved]


# Saving


@contextmanager
def saver() -> Iterator[Saver]:
    """A saver as a parent's start makes it, without its thread: ``once()`` is called by the test."""
    made = Saver()
    with made.store:
        yield made


def save(made: Saver) -> None:
    while made.once():
        pass


class Stored(NamedTuple):
    """What the result store holds: rows of echo with where they came from, and the ledger."""

    rows: Counter[tuple[Any, ...]]
    """(item, number, run, allocation, node)"""
    ledger: Counter[tuple[int, int, int, int, int]]
    """(run, start, stop, allocation, rows)"""

    @property
    def items(self) -> Counter[str]:
        return Counter(item for item, *_ in self.rows.elements())


def stored(made: Saver) -> Stored:
    made.store.ensure(executors.get("echo").dataset)
    with made.store.reader() as reading:
        rows = reading.execute("SELECT item, number, _run, _allocation, _node FROM echo_rows").fetchall()
        ledger = reading.execute("SELECT run, start, stop, allocation, rows FROM ledger").fetchall()
    return Stored(Counter(rows), Counter(ledger))


# Time and threads


class Clock:
    """The parent's clock; the one thing that tests may move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = dt.timedelta()
        now = timezone.now
        monkeypatch.setattr(timezone, "now", lambda: now() + self.ahead)

    def forward(self, seconds: float) -> None:
        self.ahead += dt.timedelta(seconds=seconds)


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Runs ``actions`` in threads that begin together; returns what each returned or raised."""
    results: list[Any] = [None] * len(actions)
    gate = threading.Barrier(len(actions))

    def act(number: int) -> None:
        try:
            gate.wait()
            results[number] = actions[number]()
        except Exception as error:
            results[number] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=act, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# What must hold


def fresh(run: Run) -> Run:
    return Run.objects.get(pk=run.pk)


def state(run: Run) -> str:
    return fresh(run).state


def shards(run: Run) -> list[tuple[int, int, str]]:
    """(start, stop, state) in order."""
    return list(Shard.objects.filter(run=run).order_by("start").values_list("start", "stop", "state"))


def assert_partition(run: Run) -> None:
    """Shards and the uncut rest partition [0, N); states, counts, allocations and receipts agree with each other."""
    with_all = Run.objects.get(pk=run.pk)
    counts: Counter[str] = Counter()
    at = 0
    all_shards = list(Shard.objects.filter(run=run).order_by("start"))
    for shard in all_shards:
        assert shard.start == at, f"[{at}, {shard.start}) of {run} is in no shard, or in two"
        assert shard.start < shard.stop <= with_all.count
        counts[shard.state] += shard.stop - shard.start
        at = shard.stop
    assert at == with_all.cut <= with_all.count
    ended = {
        "saved": counts[ShardState.SAVED],
        "failed": counts[ShardState.FAILED],
        "quarantined": counts[ShardState.QUARANTINED],
        "cancelled": counts[ShardState.CANCELLED],
    }
    assert ended == {name: getattr(with_all, name) for name in ended}
    assert (run_end(with_all.count, **ended) or RunState.RUNNING) == with_all.state
    assert (with_all.ended_at is not None) == (with_all.state in RUN_ENDED)
    seen = lifecycle.progress(with_all)
    parts = (*ended, "spooled", "in_flight", "pending")
    assert sum(seen[name] for name in parts) == with_all.count == seen["count"]
    if with_all.state in RUN_ENDED:
        assert not any(counts[each] for each in SHARD_OPEN)
    _assert_allocations(with_all, all_shards)


def _assert_allocations(run: Run, all_shards: Sequence[Shard]) -> None:
    live: dict[int, list[Allocation]] = {}
    for allocation in Allocation.objects.filter(run=run, state__in=LIVE, parts=0):
        live.setdefault(allocation.shard_id, []).append(allocation)
    parted = list(Allocation.objects.filter(run=run, state__in=LIVE, parts__gt=0))
    waiting = {
        shard
        for receipt in Receipt.objects.filter(saved_at=None)
        for entry in receipt.manifest
        for *_, shard in entry["ranges"]
    }
    for shard in all_shards:
        held = live.pop(shard.pk, [])
        if shard.state in (ShardState.ALLOCATED, ShardState.EXECUTING):
            if not held:
                # What is left of one that is reported in parts.
                assert len([each for each in parted if each.start <= shard.start < shard.stop <= each.stop]) == 1
                continue
            # One, or a second copy of it beside.
            assert {(each.start, each.stop) for each in held} == {(shard.start, shard.stop)}
            assert len({each.node_id for each in held}) == len(held) <= 2
            executing = [each for each in held if each.state == AllocationState.EXECUTING]
            assert bool(executing) == (shard.state == ShardState.EXECUTING)
            assert all(each.delivered for each in executing)
        else:
            assert held == [], f"{shard} is {shard.state}, yet somebody works on it"
        assert (shard.state == ShardState.SPOOLED) == (shard.pk in waiting)
    assert live == {}
    for node in Node.objects.all():
        mine = Allocation.objects.filter(node=node)
        slots = mine.filter(state=AllocationState.EXECUTING).aggregate(slots=Sum("slots"))["slots"] or 0
        assert slots <= node.capacity
        assert mine.filter(state__in=LIVE).count() <= node.capacity + settings.CASCADE.lookahead_limit

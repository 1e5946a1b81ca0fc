"""Every page with ten thousand runs and a thousand nodes: a bounded number of queries, whatever there is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from api.overview import Overview
from dispatch.items import freeze
from dispatch.models import Allocation, Run, Shard, Source, Task
from dispatch.results import saver
from dispatch.results.store import ResultStore
from dispatch.states import AllocationState, RunState, ShardState
from nodes.models import Node, Quota
from tests.integration.test_table_pages import POINTS, save

NODES, RUNS, GOING = 1_000, 10_000, 200
MOST = 14
"""Queries of a page, with the session and the user."""
WITH_A_PASS = 22
"""Of one that says why something waits: what a pass reads, and who is before whom in line."""


@dataclass(frozen=True)
class Crowd:
    node: int
    going: int
    ended: int
    allocation: int


def crowd() -> Crowd:
    now = timezone.now()
    nodes = Node.objects.bulk_create(
        Node(name=f"node-{number:04}", capacity=8, last_beat_at=now, executors=["echo"], cpu=5.0, labels={"zone": "eu"})
        for number in range(NODES)
    )
    Quota.objects.bulk_create(
        Quota(node=node, task_type=kind, slots=2) for node in nodes for kind in ("echo", "data_import")
    )
    items = freeze([f"item {number}" for number in range(20)])
    runs = Run.objects.bulk_create(
        Run(
            type="echo", name=f"run {number}", count=20, cut=20, items=items, labels={"only": "nobody"},
            state=RunState.RUNNING if number < GOING else RunState.COMPLETED, saved=0 if number < GOING else 20,
            created_at=now - dt.timedelta(seconds=RUNS - number), ended_at=None if number < GOING else now,
        )
        for number in range(RUNS)
    )  # fmt: skip
    states = (ShardState.SAVED, ShardState.FAILED, ShardState.EXECUTING, ShardState.PENDING)
    shards = Shard.objects.bulk_create(
        Shard(
            run=run, start=5 * at, stop=5 * at + 5, state=state if number < GOING else ShardState.SAVED, error="no" * 50
        )
        for number, run in enumerate(runs[:2_000])
        for at, state in enumerate(states)
    )  # fmt: skip
    ends = (AllocationState.COMPLETED, AllocationState.FAILED, AllocationState.EXECUTING)
    held = Allocation.objects.bulk_create(
        Allocation(
            run_id=shard.run_id, shard=shard, start=shard.start, stop=shard.stop, type="echo", reason="free",
            state=ends[number % 3] if shard.state == ShardState.EXECUTING else AllocationState.COMPLETED,
            node=nodes[number % NODES], deadline=now + dt.timedelta(days=1), delivered=True,
            granted_at=now, started_at=now, finished_at=now,
        )
        for number, shard in enumerate(shards)
        if shard.state != ShardState.PENDING
    )  # fmt: skip
    Task.objects.bulk_create(Task(name=f"task {number}", type="echo", items=["x"]) for number in range(100))
    Source.objects.bulk_create(Source(kind="feed", key=f"http://x/{number}") for number in range(1_000))
    return Crowd(nodes[500].pk, runs[100].pk, runs[1_000].pk, held[-1].pk)


PAGES = (
    "/",
    "/runs",
    "/runs?state=completed&q=run+77&type=echo",
    "/runs/{going}",
    "/runs/{ended}",
    "/runs/{going}/items",
    "/runs/{going}/items?index=19",
    "/runs/{going}/items?item=item+7",
    "/allocations/{allocation}",
    "/nodes/{node}",
    "/submit",
    "/submit?type=data_import",
    "/submit?again={ended}",
    "/what-if",
    "/what-if?find=node-09",
    "/what-if?n{node}.capacity=99&run={going}",
    "/tables",
    "/tables/points",
    "/sql",
)
EXPLAINING = ("/runs/{going}", "/runs/{going}/items?index=19", "/what-if?n{node}.capacity=99&run={going}")


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ResultStore(tmp_path / "results.duckdb") as store:
        monkeypatch.setattr(saver, "_store", store)
        save(store, POINTS, 1, [[f"p{number}", "2024-01-01", 1.0, number, True, "[]"] for number in range(1_000)])
        yield


@pytest.mark.django_db
def test_no_page_asks_more_the_more_there_is(browser: Client, overview: Overview, tables: None) -> None:
    there = vars(crowd())
    asked = {}
    for page in PAGES:
        with CaptureQueriesContext(connection) as queries:
            assert browser.get(page.format(**there)).status_code == 200, page
        asked[page] = len(queries.captured_queries)
    most = {page: WITH_A_PASS if page in EXPLAINING else MOST for page in PAGES}
    assert {page: number for page, number in asked.items() if number > most[page]} == {}

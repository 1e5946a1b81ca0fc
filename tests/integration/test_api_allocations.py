"""Allocations over the native API: read only."""

from __future__ import annotations

import datetime as dt

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dispatch.lifecycle import submit
from dispatch.models import Allocation, Run
from dispatch.states import AllocationState, ShardState
from nodes.models import Node
from tests.integration.native import Api
from tests.integration.records import cut, tried

pytestmark = pytest.mark.django_db


@pytest.fixture
def run() -> Run:
    run = submit(type="echo", items=list(range(100)))
    north, south = (Node.objects.create(name=name) for name in ("north", "south"))
    for number in range(20):
        shard = cut(run, number, number + 1, ShardState.SAVED)
        tried(shard, north, AllocationState.FAILED, error="boom", log="line\n" * 100)
        tried(shard, south, AllocationState.COMPLETED, rows=1, attempt=2)
    return run


def test_an_allocation_tells_why_there_what_went_wrong_and_its_log(api: Api, run: Run) -> None:
    failed = Allocation.objects.filter(state="failed").first()
    assert failed is not None
    answer = api.get(f"allocations/{failed.pk}")
    assert answer.status == 200
    assert (answer.body["run"], answer.body["shard"]) == (run.pk, failed.shard_id)
    assert (answer.body["node_name"], answer.body["reason"]) == ("north", "free capacity")
    assert (answer.body["error"], answer.body["log"]) == ("boom", "line\n" * 100)


def test_the_list_is_newest_first_without_logs_and_costs_a_fixed_number_of_queries(
    api: Api, run: Run, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(5) as captured:
        answer = api.get("allocations")
    assert answer.body["count"] == 40
    ids = [allocation["id"] for allocation in answer.body["results"]]
    assert ids == sorted(ids, reverse=True)
    assert {allocation["node_name"] for allocation in answer.body["results"]} == {"north", "south"}
    assert "log" not in answer.body["results"][0]
    assert not any('"log"' in query["sql"] or '"payload"' in query["sql"] for query in captured.captured_queries)


def test_the_list_is_filtered(api: Api, run: Run) -> None:
    north = Node.objects.get(name="north")
    shard = run.shards.get(start=3)
    assert api.get(f"allocations?node={north.pk}").body["count"] == 20
    assert api.get(f"allocations?shard={shard.pk}").body["count"] == 2
    assert api.get(f"allocations?run={run.pk}&state=failed&state=completed").body["count"] == 40
    assert api.get("allocations?state=pending").body["count"] == 0
    assert api.get("allocations?type=data_import").body["count"] == 0
    last = api.get("allocations?limit=1").body["results"][0]["id"]
    assert api.get(f"allocations?before={last}&limit=1").body["results"][0]["id"] == last - 1


def test_an_allocation_outlives_its_node(api: Api, run: Run) -> None:
    Node.objects.all().delete()
    body = api.get("allocations?limit=1").body["results"][0]
    assert (body["node"], body["node_name"]) == (None, None)


def test_allocations_cannot_be_changed_and_bad_filters_are_refused(api: Api, run: Run) -> None:
    for method, path in (("POST", "allocations"), ("DELETE", f"allocations/{Allocation.objects.latest('id').pk}")):
        assert api.send(method, path, {}).status == 405
    for query, field in (("node=north", "node"), ("state=saved", "state"), ("ordering=log", "ordering")):
        answer = api.get(f"allocations?{query}")
        assert (answer.status, answer.body["field"]) == (400, field)


def test_allocations_are_for_staff(client: Client) -> None:
    assert Api(client).get("allocations").status == 401


def test_when_an_allocation_was_fetched_is_told(api: Api, run: Run) -> None:
    first, second = Allocation.objects.order_by("pk")[:2]
    at = timezone.now()
    Allocation.objects.filter(pk=first.pk).update(delivered=True, delivered_at=at)
    assert dt.datetime.fromisoformat(api.get(f"allocations/{first.pk}").body["delivered_at"]) == at
    assert api.get(f"allocations/{second.pk}").body["delivered_at"] is None

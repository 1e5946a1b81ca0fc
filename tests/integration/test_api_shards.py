"""Shards over the native API: read only."""

from __future__ import annotations

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from dispatch.lifecycle import submit
from dispatch.models import Run
from dispatch.states import ShardState
from tests.integration.native import Api
from tests.integration.records import cut

pytestmark = pytest.mark.django_db


@pytest.fixture
def run() -> Run:
    run = submit(type="echo", items=list(range(100)))
    for number in range(40):
        state = ShardState.FAILED if number % 10 == 0 else ShardState.SAVED
        cut(run, number, number + 1, state, error="no" if number % 10 == 0 else "")
    return run


def test_a_shard_tells_its_range_state_and_error(api: Api, run: Run) -> None:
    shard = run.shards.get(start=10)
    answer = api.get(f"shards/{shard.pk}")
    assert answer.status == 200
    assert (answer.body["run"], answer.body["start"], answer.body["stop"]) == (run.pk, 10, 11)
    assert (answer.body["state"], answer.body["error"]) == ("failed", "no")


def test_the_list_is_newest_first_filtered_and_costs_a_fixed_number_of_queries(
    api: Api, run: Run, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    cut(submit(type="echo", items=["a"]), 0, 1)
    with django_assert_num_queries(6):
        answer = api.get(f"shards?run={run.pk}")
    assert answer.body["count"] == 40
    ids = [shard["id"] for shard in answer.body["results"]]
    assert ids == sorted(ids, reverse=True)
    failed = api.get(f"shards?run={run.pk}&state=failed&ordering=start").body["results"]
    assert [shard["start"] for shard in failed] == [0, 10, 20, 30]
    assert api.get("shards?state=pending").body["count"] == 1


def test_pages_by_id_join(api: Api, run: Run) -> None:
    first = api.get("shards?limit=25").body["results"]
    rest = api.get(f"shards?limit=25&before={first[-1]['id']}").body["results"]
    starts = [shard["start"] for shard in first + rest]
    assert starts == list(reversed(range(40)))


def test_shards_cannot_be_changed_and_bad_filters_are_refused(api: Api, run: Run) -> None:
    shard = run.shards.first()
    assert shard is not None
    for method, path in (("POST", "shards"), ("PATCH", f"shards/{shard.pk}"), ("DELETE", f"shards/{shard.pk}")):
        assert api.send(method, path, {}).status == 405
    for query, field in (("run=x", "run"), ("state=lost", "state"), ("before=-1", "before"), ("node=1", "node")):
        answer = api.get(f"shards?{query}")
        assert (answer.status, answer.body["field"]) == (400, field)


def test_shards_are_for_staff(client: Client) -> None:
    assert Api(client).get("shards").status == 401

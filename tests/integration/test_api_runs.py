"""Runs over the native API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from dispatch.items import Frozen
from dispatch.lifecycle import submit
from dispatch.models import Run, Task
from dispatch.states import AllocationState, RunState, ShardState
from nodes.models import Node
from tests.integration.agents import NO_ROW
from tests.integration.native import Api
from tests.integration.records import cut, tried

pytestmark = pytest.mark.django_db

ECHO = {"type": "echo", "items": ["a", "b", "c"]}


def ended(state: RunState, **numbers: int) -> Run:
    run = submit(type="echo", items=[f"item-{number}" for number in range(10)])
    Run.objects.filter(pk=run.pk).update(state=state, **numbers)
    run.refresh_from_db()
    return run


def test_a_submitted_run_freezes_its_items_and_names_who_submitted_it(api: Api) -> None:
    answer = api.post("runs", {**ECHO, "name": "first", "params": {"rows": 2}, "priority": 7, "labels": {"eu": "1"}})
    assert answer.status == 201
    run = Run.objects.get(pk=answer.body["id"])
    assert Frozen(bytes(run.items)).all() == ["a", "b", "c"]
    assert (run.name, run.params["rows"], run.priority, run.labels) == ("first", 2, 7, {"eu": "1"})
    assert answer.body["submitted_by"] == "admin"
    assert answer.body["state"] == "running"
    assert answer.body["count"] == 3
    assert answer.response["Location"] == f"http://testserver/api/v1/runs/{run.pk}"
    assert "items" not in answer.body


def test_the_same_idempotency_key_gives_the_same_run_once(api: Api) -> None:
    first = api.post("runs", ECHO, HTTP_IDEMPOTENCY_KEY="nightly")
    again = api.post("runs", ECHO, HTTP_IDEMPOTENCY_KEY="nightly")
    assert (first.status, again.status) == (201, 200)
    assert again.body["id"] == first.body["id"]
    assert Run.objects.count() == 1


def test_an_idempotency_key_with_another_body_is_unprocessable(api: Api) -> None:
    api.post("runs", ECHO, HTTP_IDEMPOTENCY_KEY="nightly")
    answer = api.post("runs", {**ECHO, "items": ["z"]}, HTTP_IDEMPOTENCY_KEY="nightly")
    assert answer.status == 422
    assert "nightly" in answer.body["detail"]
    assert Run.objects.count() == 1


def test_an_empty_or_overlong_idempotency_key_is_refused(api: Api) -> None:
    for key in (" ", "k" * 500):
        answer = api.post("runs", ECHO, HTTP_IDEMPOTENCY_KEY=key)
        assert (answer.status, answer.body["field"]) == (400, "Idempotency-Key")
    assert not Run.objects.exists()


BAD: list[tuple[Any, str]] = [
    ({"items": ["a"]}, "type"),
    ({"type": "echo"}, "items"),
    ({"type": "nonsense", "items": ["a"]}, "type"),
    ({"type": "echo", "items": []}, "items"),
    ({"type": "echo", "items": "abc"}, "items"),
    ({**ECHO, "priority": 11}, "priority"),
    ({**ECHO, "priority": True}, "priority"),
    ({**ECHO, "priority": 2**64}, "priority"),
    ({**ECHO, "timeout": -1}, "timeout"),
    ({**ECHO, "shard_size": 2**31}, "shard_size"),
    ({**ECHO, "max_attempts": 0}, "max_attempts"),
    ({**ECHO, "balancer": "no_such"}, "balancer"),
    ({**ECHO, "labels": ["eu"]}, "labels"),
    ({**ECHO, "labels": {"region": [1]}}, "labels.region"),
    ({**ECHO, "params": []}, "params"),
    ({**ECHO, "params": {"rows": "many"}}, "params.rows"),
    ({**ECHO, "name": "a\u202eb"}, "name"),
    ({**ECHO, "name": "x" * 201}, "name"),
    ({**ECHO, "task": NO_ROW}, "task"),
    ({**ECHO, "split": "year"}, "split"),
    ([1, 2], "body"),
    ("text", "body"),
    (None, "body"),
    ({}, "type"),
]


@pytest.mark.parametrize(("body", "field"), BAD)
def test_a_bad_submission_is_refused_naming_its_field(api: Api, body: Any, field: str) -> None:
    answer = api.post("runs", json.dumps(body))
    assert answer.status == 400
    assert answer.body["field"] == field
    assert answer.body["detail"]
    assert not Run.objects.exists()


@pytest.mark.parametrize("item", [None, True, [1], {"symbol": ""}, "", "x" * 20_000])
def test_a_bad_item_is_refused_by_its_number(api: Api, item: Any) -> None:
    answer = api.post("runs", {**ECHO, "items": ["a", item]})
    assert answer.status == 400
    assert answer.body["field"].startswith("items")
    assert "1" in answer.body["field"]


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"{", "body"),
        (b"\xff", "body"),
        (b'{"type": "echo", "items": [NaN]}', "items.0"),
        (b'{"type": "echo", "items": [Infinity]}', "items.0"),
        (b'{"type": "echo", "items": [1e999]}', "items.0"),
        (b'{"type": "echo", "items": [123456789012345678901234567890]}', "items.0"),
        (b'{"type": "echo", "items": ["a\\u0000"]}', "items.0"),
        (b'{"type": "echo", "items": ["a\\ud800"]}', "items.0"),
        (b'{"type": "echo", "items": ["a"], "params": {"\\u0000": 1}}', "params"),
        (b'{"type": "echo", "items": ["a"], "params": {"x": ' + b"[" * 100 + b"]" * 100 + b"}}", "body"),
        (b"[" * 200_000, "body"),
    ],
)
def test_json_that_cannot_be_stored_or_shown_again_is_refused(api: Api, raw: bytes, field: str) -> None:
    answer = api.post("runs", raw)
    assert (answer.status, answer.body["field"]) == (400, field)


def test_an_unknown_field_is_named_with_what_was_probably_meant(api: Api) -> None:
    answer = api.post("runs", {**ECHO, "prioritty": 3})
    assert (answer.status, answer.body["field"]) == (400, "prioritty")
    assert "'priority'" in answer.body["detail"]
    assert "prioritty" in answer.body["errors"]


def test_a_run_of_a_task_takes_what_is_not_given_from_the_task(api: Api) -> None:
    task = Task.objects.create(name="nightly", type="echo", items=["a", "b"], params={"rows": 3}, priority=8)
    answer = api.post("runs", {"task": "nightly", "params": {"seconds": 0.5}, "items": ["c"]})
    assert answer.status == 201
    run = Run.objects.get(pk=answer.body["id"])
    assert run.task == task
    assert (run.params["rows"], run.params["seconds"], run.priority) == (3, 0.5, 8)
    assert Frozen(bytes(run.items)).all() == ["c"]
    assert api.post("runs", {"task": task.pk}).body["count"] == 2


def test_a_run_may_not_change_its_tasks_type_or_run_an_inactive_task(api: Api) -> None:
    Task.objects.create(name="nightly", type="echo", items=["a"], active=False)
    assert api.post("runs", {"task": "nightly", "type": "data_import"}).body["field"] == "type"
    assert api.post("runs", {"task": "nightly"}).status == 409
    assert not Run.objects.exists()


def test_the_list_is_newest_first_in_pages_with_a_fixed_number_of_queries(
    api: Api, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(30):
        submit(type="echo", items=[number])
    # session, user, count, page
    with django_assert_num_queries(4) as captured:
        answer = api.get("runs?limit=20")
    assert answer.body["count"] == 30
    ids = [run["id"] for run in answer.body["results"]]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 20
    assert not any('"items"' in query["sql"] for query in captured.captured_queries)
    following = answer.body["next"].partition("/api/v1/")[2]
    assert len(api.get(following).body["results"]) == 10


def test_the_list_is_filtered_and_ordered_as_asked(api: Api) -> None:
    first, second = (submit(type="echo", items=["a"], name=name) for name in ("Alpha one", "beta"))
    Run.objects.filter(pk=second.pk).update(state=RunState.FAILED, created_at="2020-01-01T00:00:00Z")

    def ids(query: str) -> list[int]:
        answer = api.get(f"runs?{query}")
        assert answer.status == 200, answer.body
        return [run["id"] for run in answer.body["results"]]

    assert ids("state=failed") == [second.pk]
    assert ids("state=failed&state=running") == [second.pk, first.pk]
    assert ids("name=alpha") == [first.pk]
    assert ids("type=data_import") == []
    assert ids("created_after=2021-01-01T00:00:00Z") == [first.pk]
    assert ids("created_before=2021-01-01T00:00:00Z") == [second.pk]
    assert ids("ordering=id") == [first.pk, second.pk]
    assert ids("ordering=-name") == [second.pk, first.pk]
    assert ids(f"task={NO_ROW}") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=nonsense", "state"),
        ("stat=failed", "stat"),
        ("ordering=items", "ordering"),
        ("ordering=submitted_by__password", "ordering"),
        ("limit=0", "limit"),
        ("limit=ten", "limit"),
        ("offset=-1", "offset"),
        ("offset=99999999999999999999", "offset"),
        ("task=abc", "task"),
        ("task=99999999999999999999", "task"),
        ("created_after=yesterday", "created_after"),
        ("created_after=0001-01-01T00:00:00%2B23:00", "created_after"),
        ("name=%00", "name"),
    ],
)
def test_a_bad_filter_is_refused_rather_than_ignored(api: Api, query: str, field: str) -> None:
    answer = api.get(f"runs?{query}")
    assert answer.status == 400
    assert answer.body["field"] == field


def test_a_page_holds_a_thousand_at_most(api: Api) -> None:
    run = submit(type="echo", items=["a"])
    run.state = RunState.FAILED
    Run.objects.bulk_create([Run(type="echo", count=1, items=b"", state="failed") for _ in range(1005)])
    assert len(api.get("runs?limit=5000").body["results"]) == 1000


def test_progress_counts_items(api: Api) -> None:
    run = submit(type="echo", items=list(range(10)))
    cut(run, 0, 4, ShardState.EXECUTING)
    answer = api.get(f"runs/{run.pk}/progress")
    assert answer.status == 200
    assert (answer.body["count"], answer.body["in_flight"], answer.body["pending"]) == (10, 4, 6)


def test_cancel_ends_a_run_and_a_second_one_conflicts(api: Api) -> None:
    run = submit(type="echo", items=["a", "b"])
    answer = api.post(f"runs/{run.pk}/cancel")
    assert (answer.status, answer.body["state"], answer.body["cancelled"]) == (200, "cancelled", 2)
    assert api.post(f"runs/{run.pk}/cancel").status == 409


def test_retry_opens_what_failed_and_conflicts_where_nothing_did(api: Api) -> None:
    run = ended(RunState.PARTIAL, cut=10, saved=8, failed=2)
    cut(run, 0, 2, ShardState.FAILED, attempts=3, error="no")
    cut(run, 2, 10, ShardState.SAVED)
    answer = api.post(f"runs/{run.pk}/retry")
    assert (answer.status, answer.body) == (200, {"retried": 2})
    assert api.get(f"runs/{run.pk}").body["state"] == "running"
    assert api.post(f"runs/{run.pk}/retry").status == 409


def test_retry_opens_what_failed_of_chosen_items(api: Api) -> None:
    run = ended(RunState.FAILED, cut=10, failed=8, quarantined=2)
    for at in range(0, 8, 2):
        cut(run, at, at + 2, ShardState.FAILED, error="no")
    cut(run, 8, 10, ShardState.QUARANTINED, error="poison")
    answer = api.post(f"runs/{run.pk}/retry", {"items": [[1, 3], [9, 10]]})
    assert (answer.status, answer.body) == (200, {"retried": 6})
    told = api.get(f"runs/{run.pk}").body
    assert (told["state"], told["failed"], told["quarantined"]) == ("running", 4, 0)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": []}, "items"),
        ({"items": [[3, 3]]}, "items"),
        ({"items": [[1]]}, "items.0"),
        ({"items": [[0, "x"]]}, "items.0.1"),
        ({"items": [[-1, 2]]}, "items.0.0"),
        ({"item": [[0, 1]]}, "item"),
    ],
)
def test_a_wrong_choice_of_items_opens_nothing(api: Api, body: dict[str, Any], field: str) -> None:
    run = ended(RunState.FAILED, cut=2, failed=2)
    cut(run, 0, 2, ShardState.FAILED, error="no")
    answer = api.post(f"runs/{run.pk}/retry", body)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert api.get(f"runs/{run.pk}").body["state"] == "failed"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"runs/{NO_ROW}"),
        ("GET", f"runs/{NO_ROW}/progress"),
        ("POST", f"runs/{NO_ROW}/cancel"),
        ("POST", f"runs/{NO_ROW}/retry"),
        ("GET", f"runs/{NO_ROW}/items"),
        ("GET", f"runs/{NO_ROW}/nodes"),
        ("GET", f"runs/{NO_ROW}/results"),
        ("GET", "runs/abc"),
        ("GET", "runs/99999999999999999999"),
        ("GET", "no/such/thing"),
    ],
)
def test_what_does_not_exist_is_a_404_in_json(api: Api, method: str, path: str) -> None:
    answer = api.send(method, path)
    assert answer.status == 404
    assert answer.body["detail"]


def test_a_run_cannot_be_deleted_or_changed(api: Api) -> None:
    run = submit(type="echo", items=["a"])
    for method in ("DELETE", "PUT", "PATCH"):
        answer = api.send(method, f"runs/{run.pk}", {})
        assert answer.status == 405
        assert answer.body["detail"]


@pytest.fixture
def spoilt() -> Run:
    """Ten items: two failed in one piece, one in another, one quarantined; two nodes had them."""
    run = ended(RunState.PARTIAL, saved=6, failed=3, quarantined=1)
    north, south = (Node.objects.create(name=name) for name in ("north", "south"))
    early = cut(run, 0, 6, ShardState.FAILED, error="too slow", attempts=3)
    tried(early, south, AllocationState.EXPIRED, error="lost")
    tried(early, north, AllocationState.COMPLETED, error="3 of 6 items failed", rows=30, reason="quota 1 of 4 for echo")
    early.stop = 2
    early.save()
    cut(run, 2, 5, ShardState.SAVED)
    cut(run, 5, 6, ShardState.FAILED, error="no such symbol", attempts=1)
    poison = cut(run, 6, 7, ShardState.QUARANTINED, error="killed 3 workers", deaths=3)
    tried(poison, south, AllocationState.FAILED, error="crash")
    rest = cut(run, 7, 10, ShardState.SAVED)
    tried(rest, north, AllocationState.COMPLETED, rows=3, reason="quota 2 of 4 for echo")
    tried(rest, south, AllocationState.COMPLETED, rows=3, reason="free capacity: 3 of 4 slots free, by most_free")
    tried(rest, None, AllocationState.SUPERSEDED)
    return run


def test_failed_items_are_listed_with_error_node_and_attempts(api: Api, spoilt: Run) -> None:
    answer = api.get(f"runs/{spoilt.pk}/items")
    assert answer.status == 200
    assert answer.body["count"] == 4
    found = [tuple(item.values()) for item in answer.body["results"]]
    assert found == [
        (0, "item-0", "failed", "too slow", "north", 3),
        (1, "item-1", "failed", "too slow", "north", 3),
        (5, "item-5", "failed", "no such symbol", "north", 1),
        (6, "item-6", "quarantined", "killed 3 workers", "south", 0),
    ]
    only = api.get(f"runs/{spoilt.pk}/items?state=quarantined").body
    assert [item["index"] for item in only["results"]] == [6]


def test_failed_items_come_in_pages_that_join(api: Api, spoilt: Run) -> None:
    path: str | None = f"runs/{spoilt.pk}/items?limit=1"
    seen = []
    while path:
        body = api.get(path).body
        assert body["count"] == 4
        seen += [item["index"] for item in body["results"]]
        path = body["next"] and body["next"].partition("/api/v1/")[2]
    assert seen == [0, 1, 5, 6]


def test_failed_items_of_many_shards_cost_a_fixed_number_of_queries(
    api: Api, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    run = submit(type="echo", items=list(range(50)))
    node = Node.objects.create(name="north")
    for number in range(50):
        tried(cut(run, number, number + 1, ShardState.FAILED, error="no"), node, AllocationState.FAILED, error="no")
    # session, user, run, shards, allocations, the items, the count
    with django_assert_num_queries(7):
        assert len(api.get(f"runs/{run.pk}/items").body["results"]) == 50


@pytest.mark.parametrize(
    ("query", "field"),
    [("state=nonsense", "state"), ("after=x", "after"), ("limit=0", "limit"), ("sate=failed", "sate")],
)
def test_a_bad_filter_of_items_is_refused(api: Api, spoilt: Run, query: str, field: str) -> None:
    answer = api.get(f"runs/{spoilt.pk}/items?{query}")
    assert (answer.status, answer.body["field"]) == (400, field)


def test_shares_say_what_each_node_did_and_why(api: Api, spoilt: Run) -> None:
    answer = api.get(f"runs/{spoilt.pk}/nodes")
    assert answer.status == 200
    assert answer.body == [
        {"node": "north", "shards": 2, "items": 9, "rows": 33, "reasons": {"quota of 4 for echo": 2}, "leaves": {}},
        {"node": "south", "shards": 1, "items": 3, "rows": 3, "reasons": {"free capacity": 1}, "leaves": {}},
    ]


def test_only_staff_may_see_or_submit_runs(client: Client) -> None:
    api = Api(client)
    assert api.get("runs").status == 401
    assert api.post("runs", ECHO).status == 401
    client.force_login(get_user_model().objects.create_user("guest"))
    assert api.get("runs").status == 403
    assert api.post("runs", ECHO).status == 403
    assert not Run.objects.exists()


def test_a_session_needs_a_csrf_token_to_submit(admin_user: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert Api(client).post("runs", ECHO).status == 403
    assert not Run.objects.exists()


def test_other_bodies_than_json_are_refused(api: Api) -> None:
    response = api.client.post("/api/v1/runs", {"type": "echo"})
    assert response.status_code == 415
    assert response.json()["detail"]


def test_a_body_of_unknown_length_is_refused(api: Api) -> None:
    answer = api.post("runs", ECHO, HTTP_TRANSFER_ENCODING="chunked")
    assert answer.status == 411
    assert "Content-Length" in answer.body["detail"]
    assert not Run.objects.exists()


def test_a_body_above_the_limit_is_refused_before_it_is_read(api: Api, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    answer = api.post("runs", {**ECHO, "items": ["x" * 100] * 100})
    assert (answer.status, answer.body["field"]) == (413, "body")

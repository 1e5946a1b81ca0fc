"""Tasks over the native API."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from dispatch.models import Run, Task
from tests.integration.native import Api

pytestmark = pytest.mark.django_db

NIGHTLY = {"name": "nightly", "type": "echo", "items": ["a", "b"], "params": {"rows": 2}, "labels": {"region": "eu"}}


def test_a_task_is_kept_as_it_was_defined(api: Api) -> None:
    created = api.post("tasks", NIGHTLY)
    assert created.status == 201
    kept = api.get(f"tasks/{created.body['id']}").body
    assert {name: kept[name] for name in NIGHTLY} == NIGHTLY
    assert (kept["priority"], kept["timeout"], kept["balancer"], kept["active"]) == (5, 300.0, "most_free", True)


def test_a_name_in_use_conflicts(api: Api) -> None:
    api.post("tasks", NIGHTLY)
    answer = api.post("tasks", NIGHTLY)
    assert answer.status == 409
    assert "nightly" in answer.body["detail"]
    assert Task.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": "nonsense"}, "type"),
        ({"type": None}, "type"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"params": {"rows": -1}}, "params.rows"),
        ({"params": {"unheard": 1}}, "params.unheard"),
        ({"items": [[]]}, "items[0]"),
        ({"items": {}}, "items"),
        ({"priority": 0}, "priority"),
        ({"timeout": "300"}, "timeout"),
        ({"max_attempts": 2**40}, "max_attempts"),
        ({"balancer": "no_such"}, "balancer"),
        ({"active": "perhaps"}, "active"),
        ({"itmes": []}, "itmes"),
    ],
)
def test_a_task_that_could_never_run_is_refused_naming_the_field(api: Api, change: dict[str, Any], field: str) -> None:
    answer = api.post("tasks", NIGHTLY | change)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert not Task.objects.exists()


def test_patch_changes_what_is_given_and_checks_the_whole(api: Api) -> None:
    path = f"tasks/{api.post('tasks', NIGHTLY).body['id']}"
    assert api.patch(path, {"priority": 9}).body["priority"] == 9
    # Parameters of the type it has cannot belong to another type.
    assert api.patch(path, {"type": "data_import"}).status == 400
    kept = api.get(path).body
    assert (kept["type"], kept["priority"], kept["items"]) == ("echo", 9, ["a", "b"])


def test_what_was_read_can_be_put_back(api: Api) -> None:
    path = f"tasks/{api.post('tasks', NIGHTLY).body['id']}"
    kept = api.get(path).body
    assert api.put(path, kept | {"items": ["z"]}).body == kept | {"items": ["z"]}


def test_a_deleted_task_is_gone_and_its_runs_stay(api: Api) -> None:
    path = f"tasks/{api.post('tasks', NIGHTLY).body['id']}"
    run = api.post(f"{path}/run").body["id"]
    assert api.delete(path).status == 204
    assert api.get(path).status == 404
    assert api.get(f"runs/{run}").body["task"] is None


def test_run_submits_the_task_with_what_shall_differ(api: Api) -> None:
    task = api.post("tasks", NIGHTLY).body["id"]
    answer = api.post(f"tasks/{task}/run", {"priority": 2, "params": {"log": "x"}})
    assert answer.status == 201
    run = Run.objects.get(pk=answer.body["id"])
    assert (run.task_id, run.name, run.count, run.priority) == (task, "nightly", 2, 2)
    assert (run.params["rows"], run.params["log"], run.labels) == (2, "x", {"region": "eu"})


def test_run_is_idempotent_by_its_key_and_refuses_unknown_fields(api: Api) -> None:
    task = api.post("tasks", NIGHTLY).body["id"]
    first = api.post(f"tasks/{task}/run", HTTP_IDEMPOTENCY_KEY="monday")
    again = api.post(f"tasks/{task}/run", HTTP_IDEMPOTENCY_KEY="monday")
    assert (first.status, again.status) == (201, 200)
    assert first.body["id"] == again.body["id"]
    assert api.post(f"tasks/{task}/run", {"type": "echo"}).body["field"] == "type"


def test_a_task_without_items_needs_them_from_its_run(api: Api) -> None:
    task = api.post("tasks", {"name": "adhoc", "type": "echo"}).body["id"]
    assert api.post(f"tasks/{task}/run").body["field"] == "items"
    assert api.post(f"tasks/{task}/run", {"items": ["a"]}).status == 201


def test_the_list_leaves_items_out_and_costs_a_fixed_number_of_queries(
    api: Api, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        Task.objects.create(name=f"task {number}", type="echo", items=["a"] * 100)
    with django_assert_num_queries(4) as captured:
        answer = api.get("tasks")
    assert len(answer.body["results"]) == 20
    assert "items" not in answer.body["results"][0]
    assert not any('"items"' in query["sql"] for query in captured.captured_queries)


def test_the_list_is_filtered(api: Api) -> None:
    api.post("tasks", NIGHTLY)
    api.post("tasks", NIGHTLY | {"name": "weekly", "active": False})

    def names(query: str) -> list[str]:
        return [task["name"] for task in api.get(f"tasks?{query}").body["results"]]

    assert names("active=false") == ["weekly"]
    assert names("name=NIGHT") == ["nightly"]
    assert names("type=data_import") == []
    assert names("ordering=-name") == ["weekly", "nightly"]
    assert api.get("tasks?activ=true").body["field"] == "activ"


def test_tasks_are_for_staff(client: Client) -> None:
    assert Api(client).get("tasks").status == 401
    assert Api(client).post("tasks", NIGHTLY).status == 401
    assert not Task.objects.exists()

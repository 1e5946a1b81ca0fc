"""/api/v1/rates and /api/v1/balancers."""

from __future__ import annotations

import pytest

from dispatch import buckets
from dispatch.models import RateLimit
from tests.integration.factory import child, dispatch, submit
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


def test_a_limit_is_made_read_changed_and_removed(api: Api) -> None:
    made = api.post("rates", {"key": "host:*", "per_second": 2})
    assert made.status == 201
    pk = made.body["id"]
    assert made.body == {"id": pk, "key": "host:*", "per_second": 2.0, "burst": 1, "buckets": []}
    assert made.response["Location"].endswith(f"/api/v1/rates/{pk}")
    assert api.patch(f"rates/{pk}", {"burst": 5}).body["burst"] == 5
    assert api.get(f"rates/{pk}").body["per_second"] == 2.0
    assert api.get("rates?key=host").body["count"] == 1
    assert api.get("rates?key=other").body["count"] == 0
    assert api.delete(f"rates/{pk}").status == 204
    assert api.get(f"rates/{pk}").status == 404
    assert api.delete(f"rates/{pk}").status == 404


def test_what_is_left_is_shown_by_key(api: Api) -> None:
    limit = buckets.set_limit("item:*", 0.001, 3)
    other = buckets.set_limit("item:y", 0.001, 9)
    child("a", 9)
    submit(["x", "x", "y", "z"], rate_key="item:{item}")
    dispatch()
    shown = api.get(f"rates/{limit.pk}").body["buckets"]
    assert [(each["key"], round(each["tokens"])) for each in shown] == [("item:x", 1), ("item:z", 2)]
    assert [each["key"] for each in api.get(f"rates/{other.pk}").body["buckets"]] == ["item:y"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"per_second": 1}, "key"),
        ({"key": "a"}, "per_second"),
        ({"key": "", "per_second": 1}, "key"),
        ({"key": "a", "per_second": 0}, "per_second"),
        ({"key": "a", "per_second": -1}, "per_second"),
        ({"key": "a", "per_second": "2"}, "per_second"),
        ({"key": "a", "per_second": 1e400}, "per_second"),
        ({"key": "a", "per_second": 1, "burst": 0}, "burst"),
        ({"key": "a", "per_second": 1, "burst": 10**9}, "burst"),
        ({"key": "a", "per_second": 1, "tokens": 5}, "tokens"),
        ({"key": "a*b*c*d*e*f*g", "per_second": 1}, "key"),
        ({"key": "a" * 201, "per_second": 1}, "key"),
    ],
)
def test_nonsense_is_refused_by_its_name(api: Api, body: dict[str, object], field: str) -> None:
    answer = api.post("rates", body)
    assert answer.status == 400
    assert answer.body["field"] == field
    assert not RateLimit.objects.exists()


def test_a_key_has_one_limit(api: Api) -> None:
    first = api.post("rates", {"key": "a", "per_second": 1})
    assert api.post("rates", {"key": "a", "per_second": 2}).status == 409
    assert api.post("rates", {"key": "b", "per_second": 2}).status == 201
    assert api.patch(f"rates/{first.body['id']}", {"key": "b"}).status == 409


def test_a_run_that_names_no_limit_there_is_is_refused(api: Api) -> None:
    answer = api.post("runs", {"type": "echo", "items": ["a"], "rate_key": "feeds"})
    assert (answer.status, answer.body["field"]) == (400, "rate_key")
    buckets.set_limit("feeds", 1.0)
    assert api.post("runs", {"type": "echo", "items": ["a"], "rate_key": "feeds"}).status == 201


def test_a_node_s_load_limits_are_set_and_shown(api: Api) -> None:
    a = child("a")
    assert api.patch(f"nodes/{a.id}", {"max_cpu": 80, "max_memory": None}).body["max_cpu"] == 80
    assert api.patch(f"nodes/{a.id}", {"max_cpu": 101}).status == 400
    assert api.get(f"nodes/{a.id}").body["max_memory"] is None


def test_the_balancers_are_listed_with_what_they_do(api: Api) -> None:
    found = {each["name"]: each["help"] for each in api.get("balancers").body}
    assert {"most_free", "least_tasks", "round_robin", "weighted", "random", "health"} <= set(found)
    assert all(found.values())

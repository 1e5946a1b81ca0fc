"""GET runs/{id}/explain: what would be granted now, and why each node takes no more. It changes nothing."""

from __future__ import annotations

import pytest
from django.test import Client

from dispatch.models import Allocation
from tests.integration.factory import child, dispatch, submit
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


def test_a_run_that_waits_says_for_each_node_why(api: Api) -> None:
    child("busy", 1)
    child("other", 1, types=["data_import"])
    child("limited", 2, "echo=0/0")
    run = submit(3)
    dispatch()
    answer = api.get(f"runs/{run.pk}/explain")
    assert answer.status == 200
    assert answer.body["grants"] == []
    assert {refusal["node"]: refusal["code"] for refusal in answer.body["refusals"]} == {
        "busy": "slots",
        "other": "type",
        "limited": "limit",
    }
    assert answer.body["counts"] == {"slots": 1, "type": 1, "limit": 1}


def test_what_would_be_granted_is_told_with_its_reason_and_not_done(api: Api) -> None:
    child("a", 2, "echo=1")
    run = submit(2)
    grants = api.get(f"runs/{run.pk}/explain").body["grants"]
    assert [grant["node"] for grant in grants] == ["a", "a"]
    assert grants[0]["reason"].startswith("quota 1 of 1")
    assert grants[1]["reason"].startswith("free capacity")
    assert not Allocation.objects.exists()


def test_a_run_that_waits_says_its_limit_and_its_place_in_line(api: Api) -> None:
    child("a", 1, "echo=1/1")
    submit(2, name="first")
    run = submit(2)
    dispatch()
    body = api.get(f"runs/{run.pk}/explain").body
    assert body["waits_for"] == "no free slot: 1 of 1 in use on 1 node" or body["waits_for"].startswith("quota limit")
    assert (body["run"], body["state"], body["pending"], body["in_flight"]) == (run.pk, "running", 2, 0)
    # The first run has a slot and one item left: this one, with none, is served before it.
    assert (body["position"]["position"], body["position"]["of"]) == (1, 2)
    assert body["reasons"][0]["nodes"] == 1
    assert body["more_refusals"] == 0


def test_lists_have_limits_and_go_on_behind_them(api: Api) -> None:
    for number in range(5):
        child(f"n{number}", 1, types=["data_import"])
    run = submit(1)
    first = api.get(f"runs/{run.pk}/explain?limit=2").body
    rest = api.get(f"runs/{run.pk}/explain?limit=9&offset=2").body
    assert (len(first["refusals"]), first["more_refusals"]) == (2, 3)
    assert (len(rest["refusals"]), rest["more_refusals"]) == (3, 0)
    assert first["counts"] == {"type": 5}


def test_an_item_says_where_it_is_and_who_had_it(api: Api) -> None:
    a = child("a", 1)
    run = submit(["x", "y"])
    (work,) = a.works()
    by_key = api.get(f"runs/{run.pk}/explain?item=x").body
    assert (by_key["index"], by_key["state"], by_key["attempts"][0]["allocation"]) == (0, "executing", work.allocation)
    by_index = api.get(f"runs/{run.pk}/explain?index=1").body
    assert (by_index["item"], by_index["state"], by_index["waiting"]["position"]["position"]) == ("y", "uncut", 1)
    shard = by_key["shard"]["id"]
    assert api.get(f"shards/{shard}/explain").body["attempts"] == by_key["attempts"]


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("index=9", 400, "index"),
        ("index=-1", 400, "index"),
        ("item=q", 404, None),
        ("item=i0&index=0", 400, "index"),
        ("items=i0", 400, "items"),
        ("limit=0", 400, "limit"),
    ],
)
def test_a_wrong_question_is_refused_by_name(api: Api, query: str, status: int, field: str | None) -> None:
    run = submit(2)
    answer = api.get(f"runs/{run.pk}/explain?{query}")
    assert answer.status == status
    assert answer.body.get("field") == field


def test_a_run_or_shard_that_is_not_there_is_a_404(api: Api) -> None:
    assert api.get("runs/99/explain").status == 404
    assert api.get("shards/99/explain").status == 404


def test_what_if_tells_before_and_after_and_does_nothing(api: Api) -> None:
    child("a", 1, "echo=1/1")
    run = submit(9)
    dispatch()
    made = Allocation.objects.count()
    answer = api.post(
        "what-if",
        {
            "nodes": [{"node": "a", "capacity": 4, "quotas": [{"task_type": "echo", "slots": 2, "limit": 3}]}],
            "add": [{"name": "new", "capacity": 2, "labels": {"region": "eu"}, "types": ["echo"]}],
            "runs": [{"run": run.pk, "priority": 9}],
            "rates": [{"key": "host:*", "per_second": 2, "burst": 4}],
        },
    )
    assert answer.status == 200
    body = answer.body
    assert (body["before"]["shards"], body["after"]["shards"]) == (0, 4)
    assert [(each["node"], each["before"] and each["before"]["free"]) for each in body["nodes"]] == [
        ("a", 0),
        ("new", None),
    ]
    assert {each["node"] for each in body["grants"]} == {"a", "new"}
    assert body["waiting"][0]["items"] == 4
    assert body["looked_at"] == {"runs": 1, "of": 1, "nodes": 2, "complete": True, "limit": ""}
    assert Allocation.objects.count() == made
    cut = api.post("what-if", {"add": [{"name": "new", "capacity": 6, "types": ["echo"]}], "limit": 2}).body
    assert (len(cut["grants"]), cut["more_grants"]) == (2, 4)


def test_a_what_if_without_anything_supposed_is_what_the_next_pass_does(api: Api) -> None:
    child("a", 2)
    submit(2)
    body = api.post("what-if", {}).body
    assert (body["changes"], body["before"], body["after"]["shards"]) == ([], body["after"], 2)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ([], 400, "body"),
        ({"node": []}, 400, "node"),
        ({"nodes": {}}, 400, "nodes"),
        ({"nodes": [{"node": "a", "size": 1}]}, 400, "nodes.0.size"),
        ({"nodes": [{"node": "nobody", "capacity": 1}]}, 400, "nodes.0.node"),
        ({"nodes": [{"node": "a", "capacity": 0}]}, 400, "nodes.0.capacity"),
        ({"nodes": [{"node": "a", "capacity": "8"}]}, 400, "nodes.0.capacity"),
        ({"nodes": [{"node": "a"}, {"node": "a"}]}, 400, "nodes.1.node"),
        ({"nodes": [{"node": "a", "quotas": [{"task_type": "x", "slots": 1}]}]}, 400, "nodes.0.quotas.0.task_type"),
        ({"add": [{"capacity": 1}]}, 400, "add.0.name"),
        ({"add": [{"name": "a"}]}, 409, None),
        ({"runs": [{"run": 99, "priority": 5}]}, 400, "runs.0.run"),
        ({"runs": [{"run": 2**70, "priority": 5}]}, 400, "runs.0.run"),
        ({"rates": [{"key": "r", "per_second": -1}]}, 400, "rates.0.per_second"),
        ({"rates": [{"key": "r", "per_second": None}]}, 400, "rates.0.key"),
        ({"limit": 0}, 400, "limit"),
    ],
)
def test_what_cannot_be_supposed_names_the_field(api: Api, body: object, status: int, field: str | None) -> None:
    child("a", 4)
    answer = api.post("what-if", body)
    assert (answer.status, answer.body.get("field")) == (status, field), answer.body


def test_only_operators_ask(client: Client) -> None:
    stranger = Api(client)
    assert stranger.post("what-if", {}).status == 401
    run = submit(1)
    assert stranger.get(f"runs/{run.pk}/explain").status == 401

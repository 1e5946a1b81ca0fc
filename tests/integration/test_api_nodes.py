"""Nodes and quotas over the native API."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dispatch.lifecycle import submit
from dispatch.states import AllocationState, ShardState
from nodes import registry, signing
from nodes.fields import QuotaSpec
from nodes.models import AccessKey, Node, Quota
from tests.integration.agents import NO_ROW
from tests.integration.native import Api
from tests.integration.records import cut, tried

pytestmark = pytest.mark.django_db


@pytest.fixture
def north() -> Node:
    node, _ = registry.add_node("north", capacity=8, quotas=[QuotaSpec("echo", 4), QuotaSpec("echo", 1, "AAPL", 2)])
    return node


def busy(node: Node, allocations: int = 1) -> None:
    run = submit(type="echo", items=list(range(allocations)))
    for number in range(allocations):
        tried(cut(run, number, number + 1, ShardState.EXECUTING), node, AllocationState.EXECUTING)


def test_a_new_node_comes_with_a_key_whose_secret_is_shown_once(api: Api) -> None:
    body = {
        "name": "east-1",
        "capacity": 6,
        "labels": {"region": "eu"},
        "quotas": [{"task_type": "echo", "slots": 2, "limit": 3}],
    }
    answer = api.post("nodes", body)
    assert answer.status == 201
    node = Node.objects.get(name="east-1")
    assert (answer.body["id"], answer.body["capacity"], answer.body["labels"]) == (node.pk, 6, {"region": "eu"})
    assert answer.body["quotas"] == [{"task_type": "echo", "item": "", "slots": 2, "limit": 3}]
    key = node.keys.get()
    assert answer.body["access_key"] == key.access_key
    assert signing.public_key_of(answer.body["secret_key"]) == key.public_key
    again = api.get(f"nodes/{node.pk}")
    assert answer.body["secret_key"] not in again.response.content.decode()
    assert again.body["state"] == "offline"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "-x"}, "name"),
        ({"name": "a\u202eb"}, "name"),
        ({"name": "x", "capacity": -1}, "capacity"),
        ({"name": "x", "capacity": 0}, "capacity"),
        ({"name": "x", "capacity": "many"}, "capacity"),
        ({"name": "x", "capacity": 10**12}, "capacity"),
        ({"name": "x", "weight": 0}, "weight"),
        ({"name": "x", "role": "boss"}, "role"),
        ({"name": "x", "labels": {"region": None}}, "labels.region"),
        ({"name": "x", "api_url": "ftp://x"}, "api_url"),
        ({"name": "x", "quotas": [{"task_type": "echo", "slots": 5}]}, "quotas.0.slots"),
        ({"name": "x", "quotas": [{"task_type": "nonsense", "slots": 1}]}, "quotas.0.task_type"),
        ({"name": "x", "quotas": [{"task_type": "echo"}]}, "quotas.0.slots"),
        ({"name": "x", "quotas": [{"task_type": "echo", "slots": 1, "lmit": 1}]}, "quotas.0.lmit"),
        ({"name": "x", "quotas": {"echo": 1}}, "quotas"),
        ({"name": "x", "capacitty": 4}, "capacitty"),
    ],
)
def test_a_bad_node_is_refused_naming_the_field(api: Api, body: dict[str, Any], field: str) -> None:
    answer = api.post("nodes", body)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert not Node.objects.exists()


def test_a_name_in_use_conflicts(api: Api, north: Node) -> None:
    assert api.post("nodes", {"name": "north"}).status == 409


def test_patch_changes_what_is_given(api: Api, north: Node) -> None:
    answer = api.patch(f"nodes/{north.pk}", {"capacity": 5, "description": "in the cellar", "active": False})
    assert answer.status == 200
    assert (answer.body["capacity"], answer.body["description"], answer.body["state"]) == (
        5,
        "in the cellar",
        "inactive",
    )
    assert len(answer.body["quotas"]) == 2


def test_a_patch_needs_its_quotas_whole(api: Api, north: Node) -> None:
    answer = api.patch(f"nodes/{north.pk}", {"quotas": [{"slots": 1}]})
    assert (answer.status, answer.body["field"]) == (400, "quotas.0.task_type")


def test_a_capacity_below_a_quota_is_refused_unless_the_quota_goes_down_with_it(api: Api, north: Node) -> None:
    refused = api.patch(f"nodes/{north.pk}", {"capacity": 2})
    assert (refused.status, refused.body["field"]) == (400, "capacity")
    both = api.patch(f"nodes/{north.pk}", {"capacity": 2, "quotas": [{"task_type": "echo", "slots": 2}]})
    assert (both.status, both.body["capacity"]) == (200, 2)


def test_drain_and_resume(api: Api, north: Node) -> None:
    assert api.post(f"nodes/{north.pk}/drain").body["draining"] is True
    assert api.post(f"nodes/{north.pk}/resume").body["draining"] is False


def test_a_node_with_live_work_is_removed_only_by_force(api: Api, north: Node) -> None:
    busy(north)
    refused = api.delete(f"nodes/{north.pk}")
    assert refused.status == 409
    assert "force" in refused.body["detail"]
    assert api.delete(f"nodes/{north.pk}?force=perhaps").body["field"] == "force"
    assert Node.objects.exists()
    assert api.delete(f"nodes/{north.pk}?force=true").status == 204
    assert not Node.objects.exists()
    assert not AccessKey.objects.exists()


def test_quotas_are_replaced_as_a_whole(api: Api, north: Node) -> None:
    new = [{"task_type": "data_import", "item": "", "slots": 3, "limit": None}]
    assert api.put(f"nodes/{north.pk}/quotas", new).body == new
    assert api.get(f"nodes/{north.pk}/quotas").body == new
    assert api.put(f"nodes/{north.pk}/quotas", []).body == []
    assert not Quota.objects.exists()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([{"task_type": "echo", "slots": 9}], "quotas.0.slots"),
        ([{"task_type": "echo", "slots": 1}, {"task_type": "echo", "slots": 2}], "quotas.1.task_type"),
        ([{"task_type": "echo", "slots": -1}], "0.slots"),
        ([{"task_type": "echo", "slots": 2**70}], "0.slots"),
        ([{"task_type": "echo", "slots": 2, "limit": 1}], "quotas.0.slots"),
        ({"echo": 1}, "body"),
        (["echo=1"], "0"),
    ],
)
def test_bad_quotas_change_nothing(api: Api, north: Node, body: Any, field: str) -> None:
    answer = api.put(f"nodes/{north.pk}/quotas", body)
    assert (answer.status, answer.body["field"]) == (400, field)
    assert Quota.objects.count() == 2


def test_the_list_shows_slots_in_use_with_a_fixed_number_of_queries(
    api: Api, north: Node, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    busy(north, 3)
    for number in range(20):
        registry.add_node(f"node {number}", quotas=[QuotaSpec("echo", 1)])
    # session, user, count, nodes, quotas, slots in use
    with django_assert_num_queries(6):
        answer = api.get("nodes")
    assert answer.body["count"] == 21
    shown = {node["name"]: node for node in answer.body["results"]}
    assert shown["north"]["in_use"] == 3
    assert shown["node 7"]["in_use"] == 0
    assert len(shown["north"]["quotas"]) == 2


def test_the_list_is_filtered(api: Api, north: Node) -> None:
    registry.add_node("south")
    registry.drain(north.pk)
    Node.objects.filter(pk=north.pk).update(last_beat_at=timezone.now())

    def names(query: str) -> list[str]:
        return [node["name"] for node in api.get(f"nodes?{query}").body["results"]]

    assert names("online=true") == ["north"]
    assert names("online=false") == ["south"]
    assert names("draining=true") == ["north"]
    assert names("name=OUT") == ["south"]
    assert names("role=relay") == []
    assert names("ordering=-name") == ["south", "north"]
    assert api.get("nodes?role=boss").body["field"] == "role"


def test_quotas_of_all_nodes_are_listed_and_filtered(
    api: Api, north: Node, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    south, _ = registry.add_node("south", quotas=[QuotaSpec("data_import", 2)])
    with django_assert_num_queries(4):
        answer = api.get("quotas")
    assert [(quota["node_name"], quota["task_type"], quota["item"]) for quota in answer.body["results"]] == [
        ("north", "echo", ""),
        ("north", "echo", "AAPL"),
        ("south", "data_import", ""),
    ]
    assert api.get(f"quotas?node={south.pk}").body["count"] == 1
    assert api.get("quotas?task_type=echo").body["count"] == 2
    assert api.get("quotas?node=x").body["field"] == "node"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"nodes/{NO_ROW}"),
        ("PATCH", f"nodes/{NO_ROW}"),
        ("DELETE", f"nodes/{NO_ROW}"),
        ("POST", f"nodes/{NO_ROW}/drain"),
        ("POST", f"nodes/{NO_ROW}/resume"),
        ("GET", f"nodes/{NO_ROW}/quotas"),
        ("PUT", f"nodes/{NO_ROW}/quotas"),
        ("GET", f"nodes/{NO_ROW}/keys"),
        ("POST", f"nodes/{NO_ROW}/keys"),
        ("POST", f"nodes/{NO_ROW}/rotate"),
    ],
)
def test_an_unknown_node_is_a_404(api: Api, method: str, path: str) -> None:
    answer = api.send(method, path, [] if method == "PUT" else {})
    assert answer.status == 404
    assert answer.body["detail"]


def test_nodes_are_for_staff(client: Client, north: Node) -> None:
    api = Api(client)
    for method, path in (("GET", "nodes"), ("POST", "nodes"), ("DELETE", f"nodes/{north.pk}"), ("GET", "quotas")):
        assert api.send(method, path, {}).status == 401
    assert Node.objects.exists()


def test_executors_and_providers_are_listed_with_their_parameters(api: Api) -> None:
    executors = {each["type"]: each for each in api.get("executors").body}
    rows = next(param for param in executors["echo"]["params"] if param["name"] == "rows")
    assert (rows["kind"], rows["required"], rows["default"], rows["minimum"]) == ("integer", False, 1, 0)
    source = next(param for param in executors["data_import"]["params"] if param["name"] == "source")
    assert (source["required"], source["default"]) == (True, None)
    assert "sample" in source["choices"]
    assert executors["data_import"]["dataset"]["table"] == "kline"
    assert executors["data_import"]["dataset"]["key"] == ["symbol", "freq", "datetime"]
    providers = {each["name"]: each for each in api.get("providers").body}
    assert "D" in providers["sample"]["freqs"]
    assert any(param["required"] for param in providers["files"]["params"])


def test_what_a_client_of_another_dialect_is_can_be_seen_in_short(api: Api) -> None:
    said = {"device_name": "Crawler", "ip_address": "10.0.0.1", "capabilities": {"much": "x" * 900}}
    node, _ = registry.add_node("crawler", dialect="distribution", facts=said)
    found = api.get(f"nodes/{node.pk}").body
    assert found["dialect"] == "distribution"
    assert found["facts"] == {"device_name": "Crawler", "ip_address": "10.0.0.1"}
    assert api.get("nodes").body["results"][0]["dialect"] == "distribution"


def test_the_servers_own_worker_gets_no_key_and_stays_what_it_is(api: Api, north: Node) -> None:
    own = registry.own_node(2)
    assert api.post(f"nodes/{own.pk}/keys").status == 409
    assert api.post(f"nodes/{own.pk}/rotate").status == 409
    assert not own.keys.exists()
    assert api.patch(f"nodes/{own.pk}", {"role": "child"}).status == 400
    assert api.patch(f"nodes/{north.pk}", {"role": "standalone"}).status == 400
    assert api.post("nodes", {"name": "second", "role": "standalone"}).status == 400
    assert api.patch(f"nodes/{own.pk}", {"role": "standalone", "description": "mine"}).status == 200
    assert [node.pk for node in Node.objects.all() if node.embedded] == [own.pk]


def test_the_servers_own_worker_is_removed_only_when_there_is_none_any_more(api: Api) -> None:
    own = registry.own_node(2)
    registry.record_beat(own.pk, at=timezone.now())
    assert api.delete(f"nodes/{own.pk}").status == 409
    assert api.delete(f"nodes/{own.pk}?force=true").status == 409
    registry.record_beat(own.pk, at=timezone.now(), leaving=True)
    assert api.delete(f"nodes/{own.pk}").status == 204

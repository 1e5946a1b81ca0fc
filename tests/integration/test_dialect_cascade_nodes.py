"""The ``cascade`` dialect's nodes: made, changed, given keys, removed; what they show is what native ones show."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from nodes import registry
from nodes.fields import QuotaSpec
from nodes.models import AccessKey, Node, Quota
from tests.integration.factory import Clock
from tests.integration.feeds import Child, Speaker, begun
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(admin_client: Client) -> Speaker:
    return Speaker(admin_client)


def test_a_node_that_is_made_here_is_a_native_node(operator: Speaker, api: Api) -> None:
    body = {"node_type": 1, "name": "子节点1", "description": "first", "api_url": "http://child:8001", "more": 1}
    made = operator.post("nodes", body).good()
    assert set(made) == {"node_id", "node_type", "name", "is_active", "created_at"}
    assert (made["node_type"], made["name"], made["is_active"]) == (1, "子节点1", True)
    assert isinstance(made["node_id"], str)
    assert made["created_at"].endswith("Z")
    native = api.get(f"nodes/{made['node_id']}").body
    assert (native["name"], native["role"]) == ("子节点1", "child")
    assert Node.objects.get(pk=made["node_id"]).dialect == "cascade"
    assert native["description"] == "first"
    assert native["api_url"] == "http://child:8001"


def test_no_key_is_valid_before_credentials_are_asked_for(operator: Speaker) -> None:
    operator.post("nodes", {"name": "kid"}).good()
    assert not AccessKey.objects.filter(revoked_at=None).exists()


def test_the_list_has_each_key_of_the_contract(operator: Speaker) -> None:
    operator.post("nodes", {"node_type": 0, "name": "above"}).good()
    made = operator.post("nodes", {"name": "below"}).good()
    registry.add_node("a native one")
    listed = operator.get("nodes").good()
    assert [each["name"] for each in listed] == ["above", "below"]
    assert listed[1] == {
        "id": made["node_id"],
        "node_type": 1,
        "name": "below",
        "description": "",
        "api_url": "",
        "api_key": "",
        "parent_id": None,
        "status": 0,
        "is_active": True,
        "sync_config": {"max_capacity": 4, "feed_quota": {}},
        "last_sync_at": None,
        "last_heartbeat_at": None,
        "created_at": made["created_at"],
        "updated_at": listed[1]["updated_at"],
    }
    assert [each["name"] for each in operator.get("nodes?node_type=0").good()] == ["above"]
    assert [each["name"] for each in operator.get("nodes?node_type=1").good()] == ["below"]
    assert "2" in operator.get("nodes?node_type=2").why


def test_a_node_that_beats_is_online_and_one_silent_for_three_minutes_is_not(operator: Speaker, clock: Clock) -> None:
    child = Child()
    assert operator.get(f"nodes/{child.id}").good()["status"] == 1
    assert operator.get(f"nodes/{child.id}").good()["last_heartbeat_at"].endswith("Z")
    clock.forward(181)
    assert operator.get(f"nodes/{child.id}/").good()["status"] == 0


def test_credentials_let_the_child_in_and_the_key_before_stays_for_the_change(operator: Speaker) -> None:
    made = operator.post("nodes", {"name": "kid"}).good()
    address = f"nodes/{made['node_id']}/credentials"
    issued = [operator.post(address).good() for _ in range(3)]
    assert {each["node_id"] for each in issued} == {made["node_id"]}
    assert all(each["api_key"].startswith("CN") and each["api_secret"].startswith("CS") for each in issued)
    tried = [
        Speaker(Client(), f"AK-SK {each['api_key']}:{each['api_secret']}").post("heartbeat").status for each in issued
    ]
    assert tried == [401, 200, 200]
    assert operator.get(f"nodes/{made['node_id']}").good()["api_key"] == issued[-1]["api_key"]


def test_sync_config_is_capacity_and_quotas(operator: Speaker) -> None:
    config = {"max_capacity": 20, "feed_quota": {"mp_1": 5, "feed_update": 10, "data_import": 0}}
    made = operator.post("nodes", {"name": "kid", "sync_config": config}).good()
    node = Node.objects.get(pk=made["node_id"])
    assert node.capacity == 20
    quotas = {(each.task_type, each.item): each.slots for each in node.quotas.all()}
    assert quotas == {("feed_update", "mp_1"): 5, ("feed_update", ""): 10, ("data_import", ""): 0}
    assert operator.get(f"nodes/{node.pk}").good()["sync_config"] == config
    changed = {"max_capacity": 6, "feed_quota": {"mp_2": 6}}
    assert operator.put(f"nodes/{node.pk}", {"sync_config": changed}).good()["sync_config"] == changed
    # As a text, and in part.
    assert operator.put(f"nodes/{node.pk}", {"sync_config": '{"max_capacity": 7}'}).good()["sync_config"] == {
        "max_capacity": 7,
        "feed_quota": {"mp_2": 6},
    }


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"max_capacity": 0}, "sync_config.max_capacity"),
        ({"max_capacity": "20"}, "sync_config.max_capacity"),
        ({"max_capacity": 1}, "sync_config.max_capacity"),
        ({"feed_quota": {"mp_1": 5}}, "sync_config.feed_quota.mp_1"),
        ({"feed_quota": {"mp_1": -1}}, "sync_config.feed_quota.mp_1"),
        ({"feed_quota": {"mp_1": None}}, "sync_config.feed_quota.mp_1"),
        ({"feed_quota": [1]}, "sync_config.feed_quota"),
        ([1], "sync_config"),
        ("{", "sync_config"),
    ],
)
def test_a_sync_config_that_cannot_be_names_its_field_and_changes_nothing(
    operator: Speaker, config: Any, field: str
) -> None:
    before = {"max_capacity": 4, "feed_quota": {"mp_9": 2}}
    made = operator.post("nodes", {"name": "kid", "sync_config": before}).good()
    answer = operator.put(f"nodes/{made['node_id']}", {"description": "new", "sync_config": config})
    assert answer.status == 400
    assert answer.why.startswith(f"{field}: ")
    shown = operator.get(f"nodes/{made['node_id']}").good()
    assert (shown["sync_config"], shown["description"]) == (before, "")


def test_limits_and_quotas_that_the_dialect_cannot_say_stay(operator: Speaker) -> None:
    child = Child(quotas=[QuotaSpec("data_import", 1, "AAPL"), QuotaSpec("feed_update", 1, "mp_1", limit=2)])
    operator.put(f"nodes/{child.id}", {"sync_config": {"feed_quota": {"mp_1": 2}}}).good()
    quotas = set(Quota.objects.filter(node=child.id).values_list("task_type", "item", "slots", "limit"))
    assert quotas == {("data_import", "AAPL", 1, None), ("feed_update", "mp_1", 2, 2)}


def test_what_is_not_named_or_null_stays(operator: Speaker) -> None:
    made = operator.post("nodes", {"name": "kid", "description": "old", "api_url": "http://a:1"}).good()
    changed = operator.put(f"nodes/{made['node_id']}", {"name": None, "description": "new", "is_active": 0}).good()
    assert (changed["name"], changed["description"], changed["is_active"]) == ("kid", "new", False)
    assert changed["api_url"] == "http://a:1"
    assert operator.put(f"nodes/{made['node_id']}", {"is_active": "perhaps"}).status == 400


def test_a_node_with_live_work_is_not_removed_and_an_idle_one_is(operator: Speaker) -> None:
    child = Child()
    begun("a")
    package = child.claim()
    assert operator.delete(f"nodes/{child.id}").status == 409
    child.status(package, "completed").good()
    assert operator.delete(f"nodes/{child.id}").good()["name"] == "kid"
    assert operator.get(f"nodes/{child.id}").status == 404
    assert operator.get("nodes/7000000000000000000000").status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "name"), ({"name": 5}, "name"), ({"name": ""}, "name"), ({"name": "a", "node_type": 3}, "node_type")],
)
def test_a_node_that_cannot_be_names_the_field(operator: Speaker, body: Any, field: str) -> None:
    answer = operator.post("nodes", body)
    assert answer.status == 400
    assert field in answer.why


def test_a_name_in_use_is_a_conflict(operator: Speaker) -> None:
    registry.add_node("kid")
    assert operator.post("nodes", {"name": "kid"}).status == 409


def test_a_native_node_is_none_of_the_dialect(operator: Speaker) -> None:
    native, _ = registry.add_node("native")
    assert operator.get(f"nodes/{native.pk}").status == 404
    assert operator.put(f"nodes/{native.pk}", {"description": "x"}).status == 404


def test_only_staff_gets_in(client: Client, browser: Client, django_user_model: type[User]) -> None:
    assert Speaker(Client()).get("nodes").status == 401
    assert Speaker(browser).get("nodes").status == 200
    plain = django_user_model.objects.create_user("bert", password="pw")
    visitor = Client()
    visitor.force_login(plain)
    assert Speaker(visitor).get("nodes").status == 403


def test_a_session_without_its_csrf_token_changes_nothing(staff: User) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(staff)
    assert Speaker(strict).post("nodes", {"name": "kid"}).status == 403
    assert not Node.objects.exists()


@pytest.mark.parametrize(
    "change",
    [{"description": "new"}, {"sync_config": {"max_capacity": 9}}, {"sync_config": {"feed_quota": {"mp_1": 1}}}],
)
def test_each_change_is_a_later_updated_at(operator: Speaker, change: Any) -> None:
    made = operator.post("nodes", {"name": "kid"}).good()["node_id"]
    before = operator.get(f"nodes/{made}").good()
    after = operator.put(f"nodes/{made}", change).good()
    assert after["updated_at"] > before["updated_at"]
    assert after["created_at"] == before["created_at"]

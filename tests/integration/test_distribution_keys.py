"""Who may speak the distribution dialect, and for which device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api import authentication
from nodes import keys, registrations, registry
from nodes.keys import Caller as NodeCaller
from nodes.models import AccessKey, Node, RegistrationKey
from nodes.protocol import Unauthenticated
from tests.integration.devices import Caller, device_key, operator

pytestmark = pytest.mark.django_db

ROUTES = [
    ("POST", "devices/register"),
    ("GET", "devices"),
    ("GET", "devices/w1"),
    ("POST", "devices/w1/heartbeat"),
    ("PUT", "devices/w1/status"),
    ("GET", "devices/w1/stats"),
    ("POST", "tasks"),
    ("GET", "tasks"),
    ("GET", "tasks/1"),
    ("POST", "tasks/assign"),
    ("PUT", "tasks/1/assign"),
    ("PUT", "tasks/status"),
    ("PUT", "tasks/1/status"),
    ("GET", "tasks/w1/pull"),
    ("GET", "tasks/pull"),
    ("GET", "tasks/stats"),
    ("GET", "stats/overview"),
    ("GET", "system/overview"),
    ("GET", "stats/devices"),
    ("GET", "stats/performance/w1"),
    ("GET", "stats/devices/w1/performance"),
    ("POST", "management/rebalance"),
    ("POST", "management/cleanup"),
    ("GET", "management/scheduler/status"),
]


@pytest.fixture(autouse=True)
def _fresh_guesses() -> Iterator[None]:
    authentication.guesses.forget()
    yield
    authentication.guesses.forget()


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_route_wants_a_key_and_answers_with_and_without_a_slash(method, path, slash):
    answer = Caller("").send(method, path + slash, {})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert set(answer.body) == {"detail"}


def test_an_unknown_route_and_a_wrong_method_are_said_so():
    by = device_key()
    for nowhere in ("nothing/here", "", "tasks/1/nothing"):
        assert "does not exist" in by.get(nowhere, 404)["detail"]
    # No redirect either, with which a client would drop what it sends.
    assert by.client.post("/api/distribution").status_code == 404
    answer = by.send("DELETE", "devices")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


def test_wrong_keys_are_refused_then_throttled_and_a_known_key_still_works():
    good = device_key()
    good.register()
    for number in range(authentication.guesses.limit):
        assert Caller(f"CR{number:040}").send("GET", "devices").status == 401
    answer = Caller("CR" + "x" * 40).send("GET", "devices")
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) > 0
    # From an address where it was right before, others' guesses do not lock it out.
    good.get("devices")


def test_wrong_access_keys_are_throttled_as_well():
    _, key = registry.add_node("w1")
    for _ in range(authentication.guesses.limit):
        assert Caller(f"{key.access_key}:CSwrong").send("GET", "devices").status == 401
    assert Caller(f"{key.access_key}:CSwrong").send("GET", "devices").status == 429


def test_the_key_is_not_kept_only_its_digest():
    issued = registrations.issue("crawlers")
    assert issued.key.startswith("CR")
    assert len(issued.key) == registrations.KEY_LENGTH
    kept = RegistrationKey.objects.values().get()
    assert issued.key not in map(str, kept.values())
    assert registrations.find(issued.key) == issued.registration
    assert registrations.find(issued.key[:-1]) is None
    assert issued.key not in repr(issued)


def test_a_device_id_of_another_key_is_a_conflict_and_changes_nothing():
    device_key("one").register("w1", 2)
    answer = device_key("two").post("devices/register", {"device_id": "w1", "max_concurrent_tasks": 9}, 409)
    assert "another key" in answer["detail"]
    assert Node.objects.get(name="w1").capacity == 2


def test_a_native_node_is_not_taken_over_by_a_device_of_its_name():
    registry.add_node("w1")
    device_key().post("devices/register", {"device_id": "w1"}, 409)
    operator().post("devices/register", {"device_id": "w1"}, 409)
    assert Node.objects.get(name="w1").dialect == Node.Dialect.NATIVE


def test_a_key_for_one_device_registers_no_second_one_and_a_key_for_many_does():
    by = device_key()
    by.register("w1")
    by.register("w1")
    assert "registers one device, and that is w1" in by.post("devices/register", {"device_id": "w2"}, 403)["detail"]
    many = device_key("many", many=True)
    many.register("m1")
    many.register("m2")
    assert [each["device_id"] for each in many.get("devices")["devices"]] == ["m1", "m2"]


def test_a_device_of_another_key_is_not_there():
    device_key("one").register("w1")
    operator().create()
    other = device_key("two")
    other.register("w2")
    other.get("devices/w1", 404)
    other.post("devices/w1/heartbeat", {}, 404)
    other.put("devices/w1/status", {"status": "disabled"}, 404)
    other.get("devices/w1/stats", 404)
    other.get("tasks/w1/pull", 404)
    other.get("tasks/pull?device_id=w1", 404)
    other.get("stats/performance/w1", 404)
    other.put("tasks/status", {"task_id": 1, "device_id": "w1", "status": "running"}, 404)
    other.get("tasks?device_id=w1", 404)
    assert [each["device_id"] for each in other.get("devices")["devices"]] == ["w2"]
    assert not Node.objects.get(name="w1").draining


def test_a_revoked_key_changes_nothing_more():
    issued = registrations.issue("crawlers")
    by = Caller(issued.key)
    by.register()
    task = by.create()
    assert by.pull() == [task]
    caller = registrations.caller(issued.registration, Node.objects.get(name="w1"))
    registrations.revoke(issued.registration.pk)
    for method, path in ROUTES:
        authentication.guesses.forget()
        assert by.send(method, path, {"device_id": "w1", "status": "completed"}).status == 401
    # Also for a request that was let in before.
    with pytest.raises(Unauthenticated):
        keys.check_live(caller)
    assert operator().status(task) == "assigned"


def test_a_pair_of_access_and_secret_key_speaks_for_its_own_node_only():
    _, key = registry.add_node("w1")
    registry.add_node("w2")
    by = Caller(f"{key.access_key}:{key.secret_key}")
    by.post("devices/register", {"device_id": "w2"}, 409)
    by.register("w1", 3)
    node = Node.objects.get(name="w1")
    assert (node.dialect, node.capacity, node.registration) == (Node.Dialect.DISTRIBUTION, 3, None)
    task = by.create()
    assert by.get("tasks/pull")["tasks"][0]["id"] == task
    by.say(task, "completed")
    keys.revoke(key.access_key)
    assert by.send("GET", "devices").status == 401


def test_a_node_that_works_natively_does_not_change_its_dialect():
    node, key = registry.add_node("w1")
    registry.record_beat(node.pk, at=node.created_at)
    Caller(f"{key.access_key}:{key.secret_key}").post("devices/register", {"device_id": "w1"}, 403)


def test_a_device_that_registers_itself_leaves_no_key_that_works():
    device_key().register()
    assert not AccessKey.objects.filter(revoked_at=None).exists()


def test_an_operator_acts_for_any_device():
    device_key().register("w1")
    by = operator()
    by.post("devices/w1/heartbeat", {"cpu_usage": 50})
    task = by.create()
    assert by.pull("w1") == [task]
    by.say(task, "completed", "w1", result_data={"a": 1})
    assert by.status(task) == "completed"


def test_a_user_who_is_no_staff_is_refused(django_user_model):
    from rest_framework_simplejwt.tokens import AccessToken

    user = django_user_model.objects.create_user("eve")
    Caller(str(AccessToken.for_user(user))).get("devices", 403)


def test_a_caller_of_an_inactive_device_is_refused():
    by = device_key()
    by.register()
    registry.update_node(Node.objects.get(name="w1").pk, active=False)
    by.post("devices/w1/heartbeat", {}, 401)
    assert not keys.is_live(NodeCaller(0, 0, ""))


@pytest.mark.parametrize("token", ["a.b.c", "two words"])
def test_a_token_that_is_none_is_refused_in_plain_words(token):
    told = Caller(token).get("devices", 401)["detail"]
    assert "ErrorDetail" not in told
    assert told.strip()

"""The write door for nodes, quotas, keys and beats."""

from __future__ import annotations

import datetime as dt
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, transaction
from django.utils import timezone

from dispatch.models import Allocation
from dispatch.states import LIVE, AllocationState
from nodes import keys, registry, signing
from nodes.fields import QuotaSpec, parse_quota
from nodes.keys import Caller
from nodes.models import AccessKey, Heartbeat, Node, Nonce, Quota
from nodes.protocol import Conflict, FieldError, NotFound, Unauthenticated
from tests.integration.records import hold

pytestmark = pytest.mark.django_db

NOW = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)


@pytest.fixture
def node() -> Node:
    return registry.add_node("alpha", capacity=8, quotas=[QuotaSpec("data_import", 4)])[0]


def caller_of(node: Node) -> Caller:
    key = node.keys.get(revoked_at=None)
    return Caller(node.pk, key.pk, key.access_key)


# Nodes


def test_adding_a_node_gives_its_first_key_and_keeps_only_the_public_half():
    node, key = registry.add_node(
        "beta",
        capacity=6,
        quotas=[QuotaSpec("data_import", 2, "AAPL", 3)],
        description="in the cellar",
        role="relay",
        labels={"region": "eu"},
        weight=2,
        api_url="http://10.0.0.7:8001",
    )
    stored = Node.objects.get(name="beta")
    assert (stored.capacity, stored.role, stored.labels, stored.weight) == (6, "relay", {"region": "eu"}, 2.0)
    assert [str(quota) for quota in stored.quotas.all()] == ["data_import[AAPL]=2 (limit 3)"]
    row = AccessKey.objects.get(access_key=key.access_key)
    assert row.public_key == signing.public_key_of(key.secret_key)
    assert key.secret_key[2:] not in str(vars(row))
    assert key.secret_key not in repr(key)
    assert key.node == node == stored


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"name": ""}, "name", "''"),
        ({"name": "a/b"}, "name", "'a/b'"),
        ({"name": "x" * 101}, "name", "101"),
        ({"name": "a\x00b"}, "name", "control"),
        ({"name": "a\u202eb"}, "name", "text-direction"),
        ({"name": "\ud800"}, "name", "control"),
        ({"name": 7}, "name", "7"),
        ({"capacity": 0}, "capacity", "0"),
        ({"capacity": -3}, "capacity", "-3"),
        ({"capacity": 10_001}, "capacity", "10000"),
        ({"capacity": 2.5}, "capacity", "2.5"),
        ({"capacity": True}, "capacity", "True"),
        ({"capacity": "4"}, "capacity", "'4'"),
        ({"weight": 0}, "weight", "0"),
        ({"weight": math.nan}, "weight", "nan"),
        ({"weight": math.inf}, "weight", "inf"),
        ({"role": "king"}, "role", "child"),
        ({"role": ["child"]}, "role", "child"),
        ({"api_url": "file:///etc/passwd"}, "api_url", "http://"),
        ({"api_url": "http://u:p@host/"}, "api_url", "password"),
        ({"api_url": "http://["}, "api_url", "http://"),
        ({"api_url": "http://host:99999/"}, "api_url", "http://"),
        ({"labels": {"region": 1}}, "labels.region", "1"),
        ({"labels": {"": "x"}}, "labels", "''"),
        ({"labels": ["eu"]}, "labels", "object"),
        ({"description": "x" * 501}, "description", "500"),
        ({"last_beat_at": None}, "last_beat_at", "cannot be set"),
        ({"quotas": [QuotaSpec("echo", 1), QuotaSpec("nosuch", 1)]}, "quotas.1.task_type", "data_import"),
        ({"quotas": [QuotaSpec("echo", 5)]}, "quotas.0.slots", "capacity, 4"),
        ({"quotas": [QuotaSpec("echo", -1)]}, "quotas.0.slots", "-1"),
        ({"quotas": [QuotaSpec("echo", 3, limit=2)]}, "quotas.0.slots", "limit, 2"),
        ({"quotas": [QuotaSpec("echo", 0, limit=-1)]}, "quotas.0.limit", "-1"),
        ({"quotas": [QuotaSpec("echo", 1, "x" * 201)]}, "quotas.0.item", "201"),
        ({"quotas": [QuotaSpec("echo", 1), QuotaSpec("echo", 2)]}, "quotas.1.task_type", "twice"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_nothing_is_stored(fields, field, said):
    with pytest.raises(FieldError) as raised:
        registry.add_node(**({"name": "beta"} | fields))
    assert raised.value.field == field
    assert said in raised.value.message
    assert not Node.objects.exists()


def test_a_very_long_value_is_not_sent_back_whole():
    with pytest.raises(FieldError) as raised:
        registry.add_node("beta", capacity="9" * 100_000)  # type: ignore[arg-type]
    assert len(raised.value.message) < 300


def test_a_name_in_use_is_a_conflict(node):
    with pytest.raises(Conflict, match="alpha"):
        registry.add_node("alpha")
    other, _ = registry.add_node("beta")
    with pytest.raises(Conflict, match="alpha"):
        registry.update_node(other.pk, name="alpha")
    assert registry.update_node(node.pk, name="alpha").name == "alpha"


def test_capacity_cannot_fall_below_a_quota_unless_the_quota_falls_with_it(node):
    with pytest.raises(FieldError) as raised:
        registry.update_node(node.pk, capacity=3)
    assert raised.value.field == "capacity"
    assert "data_import=4" in raised.value.message
    registry.update_node(node.pk, capacity=3, quotas=[QuotaSpec("data_import", 3)])
    node.refresh_from_db()
    assert (node.capacity, node.quotas.get().slots) == (3, 3)


def test_capacity_and_quota_can_rise_together(node):
    registry.update_node(node.pk, capacity=20, quotas=[QuotaSpec("data_import", 20)])
    assert node.quotas.get().slots == 20


def test_setting_quotas_replaces_them_and_keeps_what_stays(node):
    kept = node.quotas.get()
    registry.set_quotas(node.pk, [QuotaSpec("data_import", 5, limit=6), QuotaSpec("echo", 1)])
    assert [str(quota) for quota in node.quotas.all()] == ["data_import=5 (limit 6)", "echo=1"]
    assert node.quotas.get(task_type="data_import").pk == kept.pk
    registry.set_quotas(node.pk, [])
    assert not Quota.objects.exists()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("data_import=4", QuotaSpec("data_import", 4)),
        ("data_import[AAPL]=2", QuotaSpec("data_import", 2, "AAPL")),
        ("echo=2/4", QuotaSpec("echo", 2, "", 4)),
        ("echo=0/0", QuotaSpec("echo", 0, "", 0)),
        ("echo[a=b]=1/1", QuotaSpec("echo", 1, "a=b", 1)),
    ],
)
def test_a_quota_can_be_written_as_text(text, spec):
    assert parse_quota(text) == spec


@pytest.mark.parametrize("text", ["", "echo", "echo=", "echo=x", "echo=-1", "=1", "echo[]=1", "echo[a=1", "echo=1/2/3"])
def test_a_quota_that_cannot_be_read_says_how_one_looks(text):
    with pytest.raises(FieldError) as raised:
        parse_quota(text)
    assert raised.value.field == "quota"


def test_drain_and_resume_can_be_said_twice(node):
    assert registry.drain(node.pk).draining
    assert registry.drain(node.pk).draining
    assert not registry.resume(node.pk).draining
    assert not Node.objects.get().draining


def test_a_change_leaves_what_it_does_not_name_as_it_is(node):
    seen = Node.objects.get(pk=node.pk)
    registry.record_beat(node.pk, at=NOW, cpu=5)
    registry.update_node(seen.pk, description="moved")
    assert Node.objects.get().cpu == 5


def test_a_node_with_live_work_is_removed_only_by_force(node):
    hold(node, 2)
    hold(node, 1, AllocationState.COMPLETED)
    with pytest.raises(Conflict, match="2 live allocations"):
        registry.remove_node(node.pk)
    registry.remove_node(node.pk, force=True)
    assert not Node.objects.exists()
    assert not AccessKey.objects.exists()
    assert Allocation.objects.filter(node=None).count() == 3


def test_a_node_whose_work_has_ended_can_be_removed(node):
    hold(node, 1, AllocationState.EXPIRED)
    registry.remove_node(node.pk)
    assert not Node.objects.exists()


@pytest.mark.parametrize(
    "verb",
    [
        registry.remove_node,
        registry.drain,
        registry.resume,
        keys.issue,
        keys.rotate,
        keys.revoke_all,
        lambda pk: registry.set_quotas(pk, []),
        lambda pk: registry.record_beat(pk, at=NOW),
    ],
)
def test_an_unknown_node_is_not_found(verb):
    with pytest.raises(NotFound, match="4711"):
        verb(4711)


def test_looking_for_a_name_that_is_not_there_names_those_that_are(node):
    assert registry.find_node("alpha") == node
    with pytest.raises(NotFound, match="alpha"):
        registry.find_node("alhpa")


def test_live_allocations_are_counted_by_the_states_of_the_dispatch_floor(node):
    idle, _ = registry.add_node("idle")
    for state in AllocationState:
        hold(node, 1, state)
    assert registry.in_use([node, idle]) == {node.pk: len(LIVE), idle.pk: 0}
    assert set(registry.LIVE_ALLOCATION) == {str(state) for state in LIVE}


# Keys


def test_a_node_has_at_most_two_live_keys(node):
    second = keys.issue(node.pk)
    with pytest.raises(Conflict, match="2 live keys"):
        keys.issue(node.pk)
    keys.revoke(second.access_key)
    keys.issue(node.pk)
    assert node.keys.filter(revoked_at=None).count() == 2


def test_rotation_keeps_the_newest_old_key_until_the_child_has_changed_over(node):
    first = node.keys.get().access_key
    second = keys.rotate(node.pk).access_key
    assert set(node.keys.filter(revoked_at=None).values_list("access_key", flat=True)) == {first, second}
    third = keys.rotate(node.pk).access_key
    assert set(node.keys.filter(revoked_at=None).values_list("access_key", flat=True)) == {second, third}


def test_revoking_twice_keeps_the_first_time(node):
    key = node.keys.get().access_key
    first = keys.revoke(key).revoked_at
    assert first is not None
    assert keys.revoke(key).revoked_at == first
    with pytest.raises(NotFound, match="CNnone"):
        keys.revoke("CNnone")


def test_revoking_all_keys_says_how_many_there_were(node):
    keys.issue(node.pk)
    assert keys.revoke_all(node.pk) == 2
    assert keys.revoke_all(node.pk) == 0


def test_a_live_caller_gets_its_node_as_it_is_now(node):
    caller = caller_of(node)
    registry.update_node(node.pk, capacity=9)
    with transaction.atomic():
        assert keys.check_live(caller).capacity == 9


@pytest.mark.parametrize(
    "ended",
    [
        lambda node, caller: keys.revoke(caller.access_key),
        lambda node, caller: keys.revoke_all(node.pk),
        lambda node, caller: registry.update_node(node.pk, active=False),
        lambda node, caller: registry.remove_node(node.pk),
    ],
)
def test_a_caller_whose_key_or_node_is_gone_is_refused_inside_the_transaction(node, ended):
    caller = caller_of(node)
    ended(node, caller)
    with transaction.atomic(), pytest.raises(Unauthenticated):
        keys.check_live(caller)


def test_a_caller_cannot_pass_for_another_node(node):
    other, _ = registry.add_node("beta")
    caller = caller_of(node)
    with pytest.raises(Unauthenticated):
        keys.check_live(Caller(other.pk, caller.key_id, caller.access_key))


# Beats


def test_a_beat_is_what_makes_a_node_online(node, settings):
    assert not registry.is_online(node, NOW)
    registry.record_beat(
        node.pk,
        at=NOW,
        boot="b1",
        cpu=12.5,
        memory=103,
        disk=-1,
        held=3,
        running=2,
        version="1.2",
        executors=["echo", "data_import", "echo"],
        carrier="push",
    )
    node.refresh_from_db()
    assert (node.cpu, node.memory, node.disk) == (12.5, 100, 0)
    assert (node.boot, node.version, node.carrier, node.executors) == ("b1", "1.2", "push", ["echo", "data_import"])
    last = NOW + dt.timedelta(seconds=settings.CASCADE.offline_seconds)
    after = last + dt.timedelta(seconds=1)
    for moment, online in [(NOW, True), (last, True), (after, False)]:
        assert registry.is_online(node, moment) is online
        assert Node.objects.filter(registry.online_filter(moment)).exists() is online
    registry.update_node(node.pk, active=False)
    node.refresh_from_db()
    assert not registry.is_online(node, NOW)
    assert not Node.objects.filter(registry.online_filter(NOW)).exists()


def test_what_a_beat_leaves_out_stays_as_it_was(node):
    registry.record_beat(node.pk, at=NOW, boot="b1", version="1.2", executors=["echo"], carrier="push")
    registry.record_beat(node.pk, at=NOW, boot="", version="", executors=None, carrier="")
    node.refresh_from_db()
    assert (node.boot, node.version, node.executors, node.carrier) == ("b1", "1.2", ["echo"], "push")


def test_a_node_that_leaves_is_offline_at_once(node):
    registry.record_beat(node.pk, at=NOW)
    registry.record_beat(node.pk, at=NOW, leaving=True)
    node.refresh_from_db()
    assert registry.state_of(node, NOW) == "offline"


def test_history_has_a_row_every_fifteen_seconds_at_most(node):
    other, _ = registry.add_node("beta")
    for seconds in range(0, 61, 5):
        for each in (node, other):
            registry.record_beat(each.pk, at=NOW + dt.timedelta(seconds=seconds), held=seconds, running=1)
    rows = [(row.held, row.running) for row in node.heartbeats.order_by("at")]
    assert rows == [(0, 1), (15, 1), (30, 1), (45, 1), (60, 1)]
    assert other.heartbeats.count() == 5


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"cpu": math.nan}, "cpu"),
        ({"memory": "12"}, "memory"),
        ({"disk": True}, "disk"),
        ({"held": -1}, "held"),
        ({"running": 1.5}, "running"),
        ({"version": "x" * 41}, "version"),
        ({"version": "1\x00"}, "version"),
        ({"boot": "x" * 65}, "boot"),
        ({"carrier": "pigeon"}, "carrier"),
        ({"executors": "echo"}, "executors"),
        ({"executors": ["echo"] * 101}, "executors"),
        ({"executors": ["echo", "No Such"]}, "executors.1"),
        ({"executors": [None]}, "executors.0"),
    ],
)
def test_a_beat_with_a_bad_value_changes_nothing(node, sent, field):
    with pytest.raises(FieldError) as raised:
        registry.record_beat(node.pk, at=NOW, **sent)
    assert raised.value.field == field
    node.refresh_from_db()
    assert node.last_beat_at is None
    assert not Heartbeat.objects.exists()


def test_pruning_forgets_what_is_out_of_date_and_says_how_much(node, settings):
    days = settings.CASCADE.heartbeat_days
    for age in (days + 1, days + 2, days - 1):
        Heartbeat.objects.create(node=node, at=NOW - dt.timedelta(days=age))
    Nonce.objects.create(value="old", expires_at=NOW - dt.timedelta(seconds=1))
    Nonce.objects.create(value="new", expires_at=NOW + dt.timedelta(seconds=1))
    assert registry.prune(NOW) == {"nonces": 1, "heartbeats": 2}
    assert Nonce.objects.get().value == "new"
    assert Heartbeat.objects.count() == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s ago"),
        (3, "3 s ago"),
        (119, "119 s ago"),
        (120, "2 min ago"),
        (7200, "2 h ago"),
        (200_000, "2 d ago"),
    ],
)
def test_a_time_is_told_as_people_tell_it(seconds, text):
    assert registry.ago(NOW - dt.timedelta(seconds=seconds), NOW) == text
    assert registry.ago(None, timezone.now()) == "never"


@pytest.mark.django_db(transaction=True)
def test_keys_issued_at_the_same_time_do_not_exceed_two():
    node, _ = registry.add_node("alpha")

    def issue() -> bool:
        try:
            keys.issue(node.pk)
        except Conflict:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(6) as pool:
        issued = [pool.submit(issue) for _ in range(6)]
        assert sum(each.result() for each in issued) == 1
    assert node.keys.filter(revoked_at=None).count() == 2


def test_servers_that_share_a_database_have_a_worker_each_and_keep_it() -> None:
    first = registry.own_node(2, "here")
    second = registry.own_node(3, "there")
    assert (first.name, second.name) == ("local", "local-2")
    again = registry.own_node(4, "here")
    assert (again.pk, again.capacity) == (first.pk, 4)
    assert Node.objects.filter(role="standalone").count() == 2

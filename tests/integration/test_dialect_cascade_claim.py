"""Beats and claims of the ``cascade`` dialect: who gets what, as which package, and how long a lease lasts."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from dispatch import lifecycle
from dispatch.models import Allocation, Source, Task
from dispatch.states import AllocationState
from nodes import keys, registry
from nodes.models import Node
from tests.integration.factory import Clock, at_once, fresh
from tests.integration.feeds import Child, Speaker, allocation, article, begun, feed, message_task

pytestmark = pytest.mark.django_db


def test_a_package_has_each_key_of_the_contract_and_nothing_is_null() -> None:
    feed("mp_1", name="One", extra={"faker_id": "f1", "mp_cover": None, "mp_intro": "intro", "status": 3})
    feed("mp_2", active=False)
    task = message_task(
        "news", "mp_1", "mp_2", "gone", cron="*/5 * * * *", extra={"cookies": {"a": 1}, "headers": None}
    )
    lifecycle.submit_task(task, shard_size=3, params={"message_type": 2, "message_template": "t", "web_hook_url": "w"})
    package = Child().claim()
    at = Allocation.objects.get().granted_at
    assert package == {
        "allocation_id": str(Allocation.objects.get().pk),
        "task_id": str(task.pk),
        "task_name": "news",
        "message_type": 2,
        "message_template": "t",
        "web_hook_url": "w",
        "cron_exp": "*/5 * * * *",
        "headers": "",
        "cookies": '{"a": 1}',
        "feeds": [
            {"id": "mp_1", "faker_id": "f1", "mp_name": "One", "mp_cover": "", "mp_intro": "intro", "status": 3},
            {"id": "mp_2", "faker_id": "", "mp_name": "mp_2", "mp_cover": "", "mp_intro": "", "status": 0},
            {"id": "gone", "faker_id": "", "mp_name": "gone", "mp_cover": "", "mp_intro": "", "status": 1},
        ],
        "dispatched_at": at.replace(tzinfo=None).isoformat() + "Z",
    }


def test_a_run_without_a_task_can_be_claimed_too() -> None:
    run = lifecycle.submit(type="feed_update", items=[{"key": "x", "mp_name": "X"}], name="by hand")
    package = Child().claim()
    assert (package["task_id"], package["task_name"]) == (f"run-{run.pk}", "by hand")
    assert (package["feeds"][0]["id"], package["feeds"][0]["mp_name"]) == ("x", "X")
    assert [package[name] for name in ("message_type", "headers", "cron_exp")] == [0, "", ""]


@pytest.mark.parametrize("how", ["pending-tasks", "pending-tasks?limit=10", "pending-tasks/?limit=what"])
def test_one_package_is_given_whatever_the_limit_and_null_when_there_is_none(how: str) -> None:
    child = Child()
    begun("a", "b", shard_size=1)
    first, second = child.get(how).good(), child.get(how).good()
    assert {first["feeds"][0]["id"], second["feeds"][0]["id"]} == {"a", "b"}
    assert child.get(how).good() is None
    assert child.post("claim-task").good() is None


def test_two_children_never_get_the_same_allocation() -> None:
    children = [Child("one"), Child("two")]
    begun("a", "b", "c", "d", shard_size=1)
    got = []
    for _ in range(4):
        for child in children:
            if (package := child.post("claim-task").good()) is not None:
                got.append(package["feeds"][0]["id"])
    assert sorted(got) == ["a", "b", "c", "d"]


@pytest.mark.django_db(transaction=True)
def test_one_child_with_many_hands_gets_each_allocation_once() -> None:
    child = Child(capacity=8)
    begun(*"abcdefgh", shard_size=1)
    hands = [Speaker(Client(), child.headers["HTTP_AUTHORIZATION"]) for _ in range(4)]

    def grab(hand: Speaker) -> list[str]:
        return [package["allocation_id"] for _ in range(3) if (package := hand.post("claim-task").good())]

    each = at_once(*(lambda hand=hand: grab(hand) for hand in hands))
    got = [id for ids in each for id in ids]
    assert len(got) == len(set(got)) == 8


def test_a_claim_is_shown_as_claimed_until_the_child_says_executing() -> None:
    child = Child()
    begun("a")
    package = child.claim()
    mine = allocation(package)
    assert (mine.state, mine.delivered) == (AllocationState.PENDING, True)
    assert mine.delivered_at is not None
    assert mine.started_at is None
    child.status(package, "executing").good()
    assert allocation(package).state == AllocationState.EXECUTING
    assert allocation(package).started_at is not None


def test_a_worker_that_only_claims_and_is_silent_for_minutes_keeps_its_lease(clock: Clock) -> None:
    child = Child()
    begun("a", timeout=600.0)
    package = child.claim()
    clock.forward(590)
    lifecycle.expire(timezone.now())
    child.upload(package, article("a")).good()
    child.report(package).good()
    assert allocation(package).state == AllocationState.COMPLETED


@pytest.mark.parametrize("path", ["claim-task", "heartbeat"])
def test_any_request_renews_all_leases(clock: Clock, path: str) -> None:
    child = Child()
    begun("a", timeout=300.0)
    package = child.claim()
    for _ in range(3):
        clock.forward(290)
        child.post(path).good()
        lifecycle.expire(timezone.now())
    assert child.report(package).status == 200


def test_what_a_restarted_child_forgot_goes_to_others_although_it_polls_on(clock: Clock) -> None:
    child = Child(capacity=1)
    begun("a", timeout=300.0)
    package = child.claim()
    for _ in range(11):
        clock.forward(110)
        assert child.get("pending-tasks").good() is None
        lifecycle.expire(timezone.now())
    assert allocation(package).state == AllocationState.EXPIRED
    assert child.claim()["feeds"][0]["id"] == "a"


def test_a_parent_that_was_away_takes_no_lease_back(clock: Clock) -> None:
    child = Child()
    begun("a", timeout=300.0)
    package = child.claim()
    clock.forward(100_000)
    lifecycle.forgive(timezone.now())
    child.get("pending-tasks").good()
    lifecycle.expire(timezone.now())
    assert child.report(package).status == 200


def test_a_lease_without_a_word_is_lost_after_the_time_out(clock: Clock) -> None:
    child = Child()
    run = begun("a", timeout=300.0, max_attempts=1)
    package = child.claim()
    clock.forward(301)
    lifecycle.expire(timezone.now())
    for answer in (
        child.status(package, "executing"),
        child.upload(package, article("a")),
        child.report(package),
        child.post("report-result", {"task_id": package["task_id"], "results": []}),
    ):
        assert answer.status == 409, answer
        assert package["allocation_id"] in answer.why
    assert fresh(run).rows == 0


def test_a_heartbeat_may_be_empty_and_tells_the_load() -> None:
    child = Child()
    assert child.post("heartbeat", b"").good() == {"status": "alive"}
    assert child.post("heartbeat/", {"cpu": 40, "memory": 30.5, "running": [1], "odd": {}}).good() == {
        "status": "alive"
    }
    child.get("pending-tasks").good()
    assert (child.node.cpu, child.node.memory) == (40, 30.5)
    assert child.node.executors == ["feed_update"]
    answer = child.post("heartbeat", {"cpu": "much"})
    assert answer.status == 400
    assert answer.why.startswith("cpu: ")


def test_a_callback_address_is_kept_unless_an_operator_has_set_one() -> None:
    child, settled = Child(), Child("settled", api_url="http://set:1")
    for address in ("http://me:1", "http://me:2"):
        for each in (child, settled):
            each.post("heartbeat", {"callback_url": address}).good()
        assert child.node.api_url == address
    assert settled.node.api_url == "http://set:1"
    assert child.post("heartbeat", {"callback_url": "javascript:1"}).status == 400


def test_wrong_keys_and_nodes_of_other_dialects_stay_out() -> None:
    child = Child()
    native, key = registry.add_node("native")
    begun("a")
    assert Speaker(Client()).post("claim-task").status == 401
    assert Speaker(Client(), "AK-SK CNa:CSb").post("claim-task").status == 401
    refusal = Speaker(Client(), f"AK-SK {key.access_key}:{key.secret_key}").post("claim-task")
    assert refusal.status == 403
    assert "native" in refusal.why
    keys.revoke_all(child.id)
    assert child.get("pending-tasks").status == 401
    assert not Allocation.objects.exists()
    assert Node.objects.get(pk=native.pk).last_beat_at is None


def test_a_child_lists_feeds_and_message_tasks() -> None:
    child = Child()
    feed("mp_1", name="One", extra={"faker_id": "f", "mp_cover": "c", "mp_intro": "i"})
    Source.objects.create(kind="symbol", key="AAPL")
    (listed,) = child.get("feeds").good()
    assert listed.pop("created_at").endswith("Z")
    assert listed.pop("updated_at").endswith("Z")
    assert listed == {
        "id": "mp_1",
        "faker_id": "f",
        "mp_name": "One",
        "mp_cover": "c",
        "mp_intro": "i",
        "status": 1,
    }
    own = message_task("own", "mp_1", "mp_7", params={"message_type": 1, "headers": "h"}, cron="0 * * * *")
    message_task("all", source_kind="feed", active=False)
    Task.objects.create(name="other", type="echo", items=["x"])
    first, second = child.get("message-tasks").good()
    assert first.pop("created_at").endswith("Z")
    assert first.pop("updated_at").endswith("Z")
    assert json.loads(first.pop("mps_id")) == [{"id": "mp_1"}, {"id": "mp_7"}]
    assert first == {
        "id": str(own.pk),
        "name": "own",
        "message_type": 1,
        "message_template": "",
        "web_hook_url": "",
        "cron_exp": "0 * * * *",
        "status": 1,
        "headers": "h",
        "cookies": "",
    }
    assert (second["name"], second["status"], json.loads(second["mps_id"])) == ("all", 0, [{"id": "mp_1"}])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "claim-task", "POST"), ("POST", "task-status", "PUT"), ("PUT", "feeds", "GET")],
)
def test_another_method_is_refused_in_the_envelope(method: str, path: str, allowed: str) -> None:
    child = Child()
    answer: Any = child.client.generic(method, f"/api/v1/wx/cascade/{path}", b"", **child.headers)
    assert (answer.status_code, answer["Allow"], answer.json()["code"]) == (405, allowed, 405)


def test_times_are_in_utc_with_z() -> None:
    from api.dialects.cascade_shapes import moment

    east = dt.timezone(dt.timedelta(hours=8))
    assert moment(dt.datetime(2026, 1, 1, 8, tzinfo=east)) == "2026-01-01T00:00:00Z"

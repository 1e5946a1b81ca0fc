"""Tasks of the distribution dialect: given in, pulled, reported, looked at."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.utils import timezone

from dispatch import lifecycle
from dispatch.lifecycle import answered
from dispatch.models import Allocation, Run
from dispatch.results.saver import Saver
from dispatch.states import AllocationState, RunState
from nodes import executors
from nodes.models import Node
from tests.integration.agents import NO_ROW
from tests.integration.devices import Caller, device_key, operator
from tests.integration.factory import at_once, dispatch, save, saver

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder")]

SUBJECT = {"username": "u1", "app_id": "77", "start_date": "2026-01-01", "end_date": "2026-01-31"}


@pytest.fixture
def by() -> Caller:
    made = device_key()
    made.register("w1", 2)
    return made


def rows(made: Saver) -> list[tuple[Any, ...]]:
    made.store.ensure(executors.get("external").dataset)
    with made.store.reader() as reading:
        found = reading.execute('SELECT task, "number", type, data FROM external_rows ORDER BY ALL').fetchall()
    return [(task, number, kind, json.loads(data)) for task, number, kind, data in found]


# Given in


def test_a_task_is_a_native_run(by, api):
    data = {"depth": 2, "tags": ["a"]}
    body = {"task_type": "crawl", **SUBJECT, "priority": 9, "task_data": data, "timestamp": 1, "unknown": {}}
    answer = by.post("tasks", {**body, "execution_timeout": 120, "max_retry_count": 2})
    assert set(answer) == {"status", "message", "task_id"}
    assert isinstance(answer["task_id"], int)
    run = api.get(f"runs/{answer['task_id']}").body
    assert (run["type"], run["priority"], run["timeout"], run["max_attempts"]) == ("external", 9, 120, 3)
    assert run["params"] == {"task_type": "crawl", "task_data": {**data, **SUBJECT}}
    assert run["count"] == 1


@pytest.mark.parametrize("nothing", [{}, {"priority": 0}, {"priority": None, "execution_timeout": None}])
def test_what_clients_leave_out_or_send_as_zero_is_the_default(by, nothing):
    run = Run.objects.get(pk=by.create(**nothing, max_retry_count=None, task_data=None))
    assert (run.priority, run.timeout, run.max_attempts) == (5, 3600, 4)


def test_what_the_operator_has_set_is_the_default(by, settings):
    made = {"default_timeout": 90.0, "default_max_attempts": 7, "default_priority": 4}
    settings.CASCADE = settings.CASCADE.model_copy(update=made)
    run = Run.objects.get(pk=by.create())
    assert (run.priority, run.timeout, run.max_attempts) == (4, 90, 7)


def test_no_retries_is_one_attempt(by):
    assert Run.objects.get(pk=by.create(max_retry_count=0)).max_attempts == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "task_type"),
        ({"task_type": 3}, "task_type"),
        ({"task_type": ""}, "task_type"),
        ({"task_type": "x" * 201}, "task_type"),
        ({"task_type": "a\x00"}, "task_type"),
        ({"task_type": "a", "task_data": [1]}, "task_data"),
        ({"task_type": "a", "task_data": {"a": "\x00"}}, "task_data"),
        ({"task_type": "a", "task_data": {"a": float("nan")}}, "task_data"),
        ({"task_type": "a", "username": "\ud800"}, "task_data"),
        ({"task_type": "a", "priority": 11}, "priority"),
        ({"task_type": "a", "priority": "high"}, "priority"),
        ({"task_type": "a", "execution_timeout": -1}, "execution_timeout"),
        ({"task_type": "a", "execution_timeout": "1h"}, "execution_timeout"),
        ({"task_type": "a", "max_retry_count": 1.5}, "max_retry_count"),
        ({"task_type": "a", "max_retry_count": 100}, "max_retry_count"),
    ],
)
def test_a_task_that_cannot_be_names_the_key(by, body, field):
    assert by.post("tasks", body, 400)["detail"].startswith(f"{field}: ")
    assert not Run.objects.exists()


@pytest.mark.parametrize("text", ["[]", "{", "1", "[" * 100_000, '"x"'])
def test_a_body_that_is_no_object_is_refused(by, text):
    headers = {"HTTP_AUTHORIZATION": f"Bearer {by.bearer}"}
    for method, path in (("POST", "tasks"), ("PUT", "tasks/status"), ("POST", "devices/register")):
        response = by.client.generic(method, f"/api/distribution/{path}", text, **headers)
        assert response.status_code == 400
        assert response.json()["detail"].startswith("body: ")


# Repeated


def test_two_equal_tasks_are_two(by):
    assert by.create("crawl", **SUBJECT) != by.create("crawl", **SUBJECT)


def test_an_idempotency_key_makes_one_task_whatever_else_is_sent(by):
    def create(key: str, **body: Any) -> int:
        return by.send("POST", "tasks", {"task_type": "crawl", **body}, HTTP_IDEMPOTENCY_KEY=key).body["task_id"]

    assert create("k1", timestamp=1) == create("k1", timestamp=2) != create("k2")
    assert by.send("POST", "tasks", {"task_type": "other"}, HTTP_IDEMPOTENCY_KEY="k1").status == 422
    # Another key's word is its own.
    other = operator().send("POST", "tasks", {"task_type": "crawl"}, HTTP_IDEMPOTENCY_KEY="k1")
    assert other.body["task_id"] not in (create("k1"), create("k2"))


@pytest.fixture
def fails_after_commit(monkeypatch):
    """The next submission is committed, and its answer is a 500."""

    def arm() -> None:
        real = lifecycle.submit

        def submit(**given: Any) -> Run:
            monkeypatch.setattr(lifecycle, "submit", real)
            real(**given)
            raise OSError("the answer cannot be made")

        monkeypatch.setattr(lifecycle, "submit", submit)

    return arm


def test_what_is_repeated_after_a_5xx_is_one_task(by, fails_after_commit):
    fails_after_commit()
    assert by.send("POST", "tasks", {"task_type": "crawl", **SUBJECT, "timestamp": 1}).status == 500
    first = Run.objects.get().pk
    assert by.create("crawl", **SUBJECT, timestamp=2) == first
    # Answered now: the next equal one is meant.
    assert by.create("crawl", **SUBJECT, timestamp=3) != first


def test_another_key_or_another_body_is_no_repetition(by, fails_after_commit):
    fails_after_commit()
    assert by.send("POST", "tasks", {"task_type": "crawl"}).status == 500
    first = Run.objects.get().pk
    assert operator().create("crawl") != first
    assert by.create("crawl", app_id="1") != first
    assert by.create("crawl") == first


def test_after_a_minute_the_same_body_is_another_task(by, fails_after_commit, clock):
    fails_after_commit()
    assert by.send("POST", "tasks", {"task_type": "crawl"}).status == 500
    first = Run.objects.get().pk
    clock.forward(answered.REPEATED_SECONDS + 1)
    assert by.create("crawl") != first


@pytest.mark.django_db(transaction=True)
def test_equal_tasks_side_by_side_are_different_ones():
    by = device_key()
    bearers = [Caller(by.bearer) for _ in range(4)]
    made = at_once(*((lambda each=each: each.create("crawl")) for each in bearers))
    assert len(set(made)) == 4


# Pulled


def test_a_pull_brings_what_workers_read(by):
    task = by.create("crawl", **SUBJECT, priority=8, execution_timeout=60, task_data={"depth": 1})
    (pulled,) = by.get("tasks/pull?device_id=w1&limit=3")["tasks"]
    assert pulled["id"] == task
    assert (pulled["status"], pulled["priority"], pulled["execution_timeout"]) == ("assigned", 8, 60)
    assert pulled["task_type"] == "crawl"
    assert pulled["task_data"] == {"depth": 1, **SUBJECT}


def test_task_data_is_never_null(by):
    by.create(task_data=None, username="u1")
    (pulled,) = by.get("tasks/w1/pull")["tasks"]
    assert pulled["task_data"] == {"username": "u1", "app_id": None, "start_date": None, "end_date": None}


def test_a_task_is_pulled_once_and_never_above_what_a_device_takes(by):
    tasks = {by.create() for _ in range(5)}
    first = by.pull()
    assert len(first) == 2
    assert set(first) < tasks
    assert by.pull() == []
    by.say(first[0], "completed")
    assert len(by.pull()) == 1


def test_a_device_that_takes_less_from_now_on_is_given_less(by):
    by.register("w1", 4)
    for _ in range(4):
        by.create()
    dispatch()
    by.register("w1", 1)
    assert len(by.pull()) == 1
    assert by.pull() == []


def test_a_pull_takes_no_more_than_it_asks_for(by):
    by.create()
    by.create()
    assert by.pull(limit=0) == []
    assert len(by.pull(limit=1)) == 1
    by.get("tasks/w1/pull?limit=some", 400)


def test_the_id_may_be_left_out_where_the_key_has_one_device(by):
    task = by.create()
    assert by.get("tasks/pull")["tasks"][0]["id"] == task
    operator().get("tasks/pull", 400)


def test_types_that_a_device_does_not_list_come_too():
    by = device_key()
    by.register("w1", capabilities={"max_concurrent_tasks": 1, "supported_task_types": ["something else"]})
    task = by.create("crawl")
    assert by.pull() == [task]


def test_higher_priority_goes_first():
    by = device_key()
    low, high = by.create(priority=2), by.create(priority=9)
    by.register("w1", 1)
    assert by.pull() == [high]
    by.say(high, "completed")
    assert by.pull() == [low]


@pytest.mark.django_db(transaction=True)
def test_pulls_at_once_never_give_the_same_task():
    by = device_key(many=True)
    tasks = sorted(by.create() for _ in range(12))
    for name in ("w1", "w2"):
        by.register(name, 6)
    pulls = [(Caller(by.bearer), name) for name in ("w1", "w2") * 4]
    found = at_once(*((lambda who=who, name=name: who.pull(name, 4)) for who, name in pulls))
    found += [by.pull(name) for name in ("w1", "w2")]
    assert sorted(task for some in found for task in some) == tasks


def test_a_part_of_a_larger_native_run_says_which(by):
    run = lifecycle.submit(type="external", items=["a", "b"], params={"task_type": "t"}, shard_size=1, backoff=0.0)
    pulled = by.get("tasks/w1/pull")["tasks"]
    assert [(each["id"], each["task_data"]["items"]) for each in pulled] == [(run.pk, ["a"]), (run.pk, ["b"])]
    with saver() as made:
        by.say(run.pk, "completed", result_data={"first": 1})
        by.say(run.pk, "completed", result_data={"second": 2})
        save(made)
        found = rows(made)
        assert sorted(row[3].popitem()[0] for row in found) == ["first", "second"]
        # With the task it is the rows' key.
        assert len({row[1] for row in found}) == 2
    assert Run.objects.get(pk=run.pk).state == RunState.COMPLETED


# Reported


def test_a_completed_tasks_rows_are_in_the_native_table_and_its_run_is_completed(by, api):
    task = by.create()
    by.pull()
    by.say(task, "running")
    assert by.status(task) == "running"
    with saver() as made:
        assert by.say(task, "completed", result_data={"rows": [{"a": 1}, {"b": "ü"}]}) == {"status": "success"}
        assert by.status(task) == "completed"
        save(made)
        assert rows(made) == [(str(task), 0, "crawl", {"a": 1}), (str(task), 1, "crawl", {"b": "ü"})]
    assert api.get(f"runs/{task}").body["state"] == "completed"
    assert by.status(task) == "completed"


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        ({"count": 3}, [{"count": 3}]),
        ({"rows": 7}, [{"rows": 7}]),
        ({"rows": [1, 2]}, [{"rows": [1, 2]}]),
        ({"rows": []}, []),
        (None, []),
    ],
)
def test_one_object_is_one_row(by, result, kept):
    task = by.create()
    by.pull()
    with saver() as made:
        by.put("tasks/status", {"task_id": task, "device_id": "w1", "status": "completed", "result_data": result})
        save(made)
        assert [row[3] for row in rows(made)] == kept
    assert Run.objects.get(pk=task).state == RunState.COMPLETED


def test_a_repeated_report_is_answered_as_before_whatever_its_timestamp(by):
    task = by.create()
    by.pull()
    with saver() as made:
        for stamp in (1, 2):
            result = {"a": 1, "timestamp": stamp}
            assert by.say(task, "completed", result_data=result, timestamp=stamp) == {"status": "success"}
            save(made)
        assert [row[3] for row in rows(made)] == [{"a": 1, "timestamp": 1}]
    by.say(task, "completed", result_data={"a": 2}, answered=422)


def test_a_failed_task_is_tried_again_until_its_retries_are_used_up(by, clock):
    task = by.create(max_retry_count=1)
    assert by.pull() == [task]
    by.say(task, "failed", error_message="the site is down")
    by.say(task, "failed", error_message="the site is down")
    assert by.status(task) == "pending"
    clock.forward(5)
    by.post("devices/w1/heartbeat", {})
    assert by.pull() == [task]
    by.say(task, "failed", error_message="still down")
    found = by.get(f"tasks/{task}")
    assert (found["status"], found["error_message"]) == ("failed", "still down")
    assert [each["error_message"] for each in found["assignments"]] == ["the site is down", "still down"]
    assert Run.objects.get(pk=task).state == RunState.FAILED


def test_a_failure_told_again_is_not_the_next_attempts(by, clock):
    task = by.create()
    by.pull()
    by.say(task, "failed", error_message="no")
    clock.forward(5)
    by.post("devices/w1/heartbeat", {})
    dispatch()
    by.say(task, "failed", error_message="no")
    assert by.pull() == [task]
    by.say(task, "completed")
    assert [each["status"] for each in by.get(f"tasks/{task}")["assignments"]] == ["failed", "completed"]


def test_a_late_report_after_reassignment_saves_nothing(clock):
    by = device_key(many=True)
    by.register("w1", 1)
    task = by.create()
    assert by.pull("w1") == [task]
    clock.forward(181)
    by.register("w2", 1)
    lifecycle.expire(timezone.now())
    assert by.pull("w2") == [task]
    by.say(task, "running", "w1", answered=409)
    by.say(task, "completed", "w1", answered=409, result_data={"from": "w1"})
    by.say(task, "failed", "w1", answered=409)
    with saver() as made:
        by.say(task, "completed", "w2", result_data={"from": "w2"})
        save(made)
        assert [row[3] for row in rows(made)] == [{"from": "w2"}]


def test_a_device_that_beats_keeps_its_task_until_its_time_is_up(by, clock):
    task = by.create(execution_timeout=600, max_retry_count=0)
    by.pull()
    for _ in range(4):
        clock.forward(150)
        by.post("devices/w1/heartbeat", {})
        assert lifecycle.expire(timezone.now()) == 0
    for _ in range(3):
        clock.forward(100)
        by.post("devices/w1/heartbeat", {})
        lifecycle.expire(timezone.now())
    assert Allocation.objects.get(run=task).state == AllocationState.EXPIRED
    found = by.get(f"tasks/{task}")
    assert (found["status"], found["error_message"]) == ("failed", "not reported within its time-out")


def test_a_stranger_and_an_unknown_task_are_404(by):
    task = by.create()
    by.say(task, "completed", answered=404)
    by.say(NO_ROW, "completed", answered=404)
    by.pull()
    other = device_key("two")
    other.register("w2")
    other.say(task, "completed", "w2", answered=404)
    for wrong in ("x", "0", "-1", "9" * 30, "1.0", "%00"):
        by.get(f"tasks/{wrong}", 404)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "status"),
        ({"status": "done"}, "status"),
        ({"status": "completed"}, "task_id"),
        ({"status": "completed", "task_id": 1, "result_data": [1]}, "result_data"),
        ({"status": "completed", "task_id": 1, "result_data": {"a": float("inf")}}, "result_data"),
    ],
)
def test_a_report_that_cannot_be_names_the_key(by, body, field):
    by.create()
    by.pull()
    first = Run.objects.get().pk
    if "task_id" in body:
        body = {**body, "task_id": first}
    assert by.put("tasks/status", {"device_id": "w1", **body}, 400)["detail"].startswith(f"{field}: ")
    assert Allocation.objects.get().state == AllocationState.PENDING


def test_a_cancelled_run_is_failed_and_takes_no_report(by):
    task = by.create()
    by.pull()
    lifecycle.cancel(task)
    by.say(task, "completed", answered=409)
    assert by.status(task) == "failed"


# Looked at


def test_lists_are_filtered(by):
    done, held, waiting, other = by.create(priority=9), by.create(priority=8), by.create(), by.create("other")
    assert sorted(by.pull()) == [done, held]
    by.say(done, "completed")

    def listed(query: str = "") -> list[int]:
        return [each["id"] for each in by.get(f"tasks?{query}")["tasks"]]

    assert listed() == [other, waiting, held, done]
    assert listed("limit=2") == [other, waiting]
    assert listed("task_type=other") == [other]
    assert listed("status=completed") == [done]
    assert listed("status=running") == []
    assert listed("status=assigned&device_id=w1") == [held]
    assert listed("status=pending") == [other, waiting]
    by.say(held, "running")
    assert listed("status=running") == [held]
    assert listed("device_id=w1") == [held, done]
    by.get("tasks?status=lost", 400)
    by.get("tasks?limit=x", 400)
    found = by.get("tasks/stats")
    assert {word: found[word] for word in ("total", "pending", "running", "completed")} == {
        "total": 4,
        "pending": 2,
        "running": 1,
        "completed": 1,
    }
    assert found["by_type"]["other"] == {"total": 1, "pending": 1}


def test_a_task_has_its_assignments(by):
    task = by.create(**SUBJECT)
    by.pull()
    found = by.get(f"tasks/{task}")
    assert found["task_id"] == task
    assert found["created_at"].endswith("Z")
    (assignment,) = found["assignments"]
    assert (assignment["device_id"], assignment["status"]) == ("w1", "assigned")
    by.get(f"tasks/{NO_ROW}", 404)


def test_runs_of_other_types_are_no_tasks_here(by):
    run = lifecycle.submit(type="echo", items=["a"])
    by.get(f"tasks/{run.pk}", 404)
    assert by.get("tasks")["tasks"] == []
    assert by.get("tasks/stats")["total"] == 0


# Assigned


@pytest.mark.parametrize("spelling", ["post", "put"])
def test_an_operator_assigns_a_task_to_a_device(spelling):
    by = device_key(many=True)
    by.register("w1", 1)
    by.register("w2", 1)
    task = by.create()
    if spelling == "post":
        answer = operator().post("tasks/assign", {"task_id": task, "device_id": "w2"})
    else:
        answer = operator().put(f"tasks/{task}/assign", {"device_id": "w2"})
    assert answer["status"] == "success"
    assert Allocation.objects.filter(pk=answer["assignment_id"], node__name="w2").exists()
    assert by.pull("w1") == []
    assert by.pull("w2") == [task]


def test_a_device_that_is_not_available_is_a_400(by):
    task = by.create()
    Node.objects.filter(name="w1").update(draining=True)
    assert operator().put(f"tasks/{task}/assign", {"device_id": "w1"}, 400)["detail"]
    operator().put(f"tasks/{task}/assign", {"device_id": "w9"}, 404)
    operator().put(f"tasks/{NO_ROW}/assign", {"device_id": "w1"}, 404)
    operator().post("tasks/assign", {"device_id": "w1"}, 400)
    operator().post("tasks/assign", {"task_id": task}, 400)


def test_an_assignment_that_is_repeated_is_the_same_one():
    by = device_key(many=True)
    by.register("w1", 1)
    task = by.create()
    first = operator().put(f"tasks/{task}/assign", {"device_id": "w1"})
    assert operator().put(f"tasks/{task}/assign", {"device_id": "w1"}) == first
    assert by.pull("w1") == [task]
    assert operator().post("tasks/assign", {"task_id": task, "device_id": "w1"}) == first
    assert Allocation.objects.count() == 1


def test_what_another_device_has_not_fetched_is_assigned_away_from_it_and_what_it_has_is_not():
    by = device_key(many=True)
    by.register("w1", 2)
    task, other = by.create(), by.create()
    dispatch()
    by.register("w2", 1)
    answer = operator().put(f"tasks/{task}/assign", {"device_id": "w2"})
    assert by.pull("w1") == [other]
    assert Allocation.objects.filter(run=other).count() == 1
    assert by.pull("w2") == [task]
    operator().put(f"tasks/{task}/assign", {"device_id": "w1"}, 400)
    by.say(task, "completed", "w2")
    attempts = by.get(f"tasks/{task}")["assignments"]
    assert [each["device_id"] for each in attempts] == ["w1", "w2"]
    assert (attempts[1]["assignment_id"], attempts[1]["attempt"]) == (answer["assignment_id"], 1)


def test_an_assignment_to_a_device_that_is_not_available_leaves_the_task_where_it_was():
    by = device_key(many=True)
    by.register("w1", 1)
    task = by.create()
    dispatch()
    by.register("w2", 1)
    by.put("devices/w2/status", {"status": "disabled"})
    operator().put(f"tasks/{task}/assign", {"device_id": "w2"}, 400)
    assert by.pull("w1") == [task]
    assert Allocation.objects.count() == 1

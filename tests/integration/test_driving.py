"""Nodes that the parent calls: what their answers, and their silence, do to allocations; and who is knocked at."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.utils import timezone

from dispatch import driven, lifecycle
from dispatch.driven import Driven
from dispatch.knocking import Doorbell
from dispatch.models import Allocation, Receipt, Run
from nodes import registry
from nodes.models import Node
from tests.integration.factory import (
    Clock,
    assert_partition,
    child,
    dispatch,
    fresh,
    save,
    saver,
    shards,
    state,
    stored,
)
from tests.integration.factory import submit as submit_run

pytestmark = pytest.mark.django_db

HEALTHY = {"status": "healthy", "cpu_percent": 1, "memory_percent": 2, "active_tasks": 0, "capabilities": ["ECHO", "x"]}
Reply = tuple[int, Any]


class Peer:
    """A node that a test words: by the last part of the address what it answers, and what it was asked."""

    def __init__(self) -> None:
        self.health: Reply | Callable[[str], Reply] = (200, HEALTHY)
        self.stats: Reply = (404, {})
        self.execute: Reply = (200, {"status": "running"})
        self.status: Reply | Callable[[str], Reply] = (200, {"status": "running"})
        self.cancel: Reply = (200, {})
        self.notify: Reply = (200, {})
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                what = self.path.rpartition("/")[2]
                outer.asked.append((what, self.path, json.loads(body) if body else {}))
                outer.keys.add(self.headers.get("X-API-Key"))
                reply = getattr(outer, what)
                code, content = reply(self.path.split("/")[-2]) if callable(reply) else reply
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                if 300 <= code < 400:
                    self.send_header("Location", "/api/v1/health")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def bodies(self, what: str) -> list[dict[str, Any]]:
        return [body for name, _, body in self.asked if name == what]

    def paths(self, what: str) -> list[str]:
        return [path for name, path, _ in self.asked if name == what]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


class Driving:
    """One driven node, visited by the test; ``soon`` makes everything due."""

    def __init__(self, peer: Peer) -> None:
        node, _ = registry.add_node("far", capacity=2, carrier="http", api_url=peer.url, api_key="secret")
        self.peer = peer
        self.id = node.pk
        self.driven = Driven(node)
        self.visit()

    @property
    def node(self) -> Node:
        return Node.objects.get(pk=self.id)

    def visit(self, *, health: bool = True) -> None:
        self.driven._paused_until = 0.0
        if health:
            self.driven._health_due = 0.0
        for task in self.driven.tasks.values():
            task.due = 0.0
        self.driven.visit()

    def give(self, count: int = 1, **fields: Any) -> Run:
        """A run of which it has been given what it can take."""
        run = submit_run(count, **fields)
        dispatch()
        self.visit()
        return run


@pytest.fixture
def driving(peer: Peer, folder: Any) -> Driving:
    return Driving(peer)


def done(driving: Driving) -> Callable[[str], Reply]:
    """The node's answer about tasks that ended well, as a node of ours words it."""

    def status(task_id: str) -> Reply:
        data = next(b["task_data"] for b in driving.peer.bodies("execute") if b["task_id"] == task_id)
        rows = [[item, 0, f"{item}:0"] for item in data["items"]]
        result = {"ranges": [[0, len(rows), len(rows)]], "item_errors": [], "rows": rows}
        return 200, {"status": "completed", "result": result, "execution_time": 0.1}

    return status


def allocations(run: Run) -> list[str]:
    return list(Allocation.objects.filter(run=run).order_by("pk").values_list("state", flat=True))


def test_its_health_is_its_beat_and_tells_what_it_can_do(driving):
    node = driving.node
    assert registry.is_online(node, timezone.now())
    assert (node.executors, node.cpu, node.memory, node.carrier) == (["echo"], 1.0, 2.0, "http")
    assert driving.peer.keys == {"secret"}


def test_what_is_granted_is_posted_asked_for_and_saved_once(driving):
    run = driving.give(3)
    assert [(body["task_type"], body["task_data"]["items"]) for body in driving.peer.bodies("execute")] == [
        ("echo", ["i0"]),
        ("echo", ["i1"]),
    ]
    assert allocations(run) == ["executing", "executing"]
    driving.peer.status = done(driving)
    driving.visit()
    dispatch()
    driving.visit()
    driving.visit()
    with saver() as made:
        save(made)
        assert stored(made).items == {"i0": 1, "i1": 1, "i2": 1}
    assert state(run) == "completed"
    assert_partition(run)
    names = [body["task_id"] for body in driving.peer.bodies("execute")]
    assert len(set(names)) == 3
    # Not the allocation's number alone: a node may serve several parents, and outlive their databases.
    assert all(re.fullmatch(r"allocation-\d+-[0-9a-f]{12,}", name) for name in names)


def test_many_rows_go_into_the_spool_as_a_segment(driving):
    run = driving.give()
    rows = [["i0", number, f"i0:{number}"] for number in range(2_001)]
    driving.peer.status = (
        200,
        {
            "status": "completed",
            "result": {"ranges": [[0, 1, 2_001]], "item_errors": [], "rows": rows},
        },
    )
    driving.visit()
    receipt = Receipt.objects.get()
    assert (receipt.rows, receipt.payload) == (2_001, None)
    assert receipt.segment
    with saver() as made:
        save(made)
        assert stored(made).items == {"i0": 2_001}
    assert state(run) == "completed"


def test_while_it_is_silent_its_leases_are_not_renewed(driving, clock: Clock, settings):
    run = driving.give()
    driving.peer.health = (500, {})
    driving.peer.status = (500, {})
    clock.forward(settings.CASCADE.lease_seconds - 1)
    driving.visit()
    clock.forward(2)
    lifecycle.expire(timezone.now())
    assert allocations(run) == ["expired"]
    driving.peer.health = (200, HEALTHY)
    driving.visit()
    assert driving.peer.paths("cancel")  # it must not go on with what is somebody else's now


def test_answers_about_health_alone_do_not_keep_a_task_for_ever(driving, clock: Clock, settings):
    """Its task route is broken: what it was given goes to others when the lease is over."""
    run = driving.give()
    driving.peer.status = (500, {})
    for task in driving.driven.tasks.values():
        task.heard -= settings.CASCADE.lease_seconds
    clock.forward(settings.CASCADE.lease_seconds - 1)
    driving.visit()
    clock.forward(2)
    lifecycle.expire(timezone.now())
    assert allocations(run) == ["expired"]


def test_a_healthy_node_keeps_what_it_runs_for_as_long_as_it_takes(driving, clock: Clock, settings):
    run = driving.give()
    for _ in range(3):
        clock.forward(settings.CASCADE.lease_seconds - 1)
        driving.visit()
        lifecycle.expire(timezone.now())
    assert allocations(run) == ["executing"]


def test_a_full_node_gives_it_back_and_is_given_nothing_for_a_moment(driving):
    driving.peer.execute = (503, {"detail": "all workers are busy"})
    run = driving.give(2)
    assert allocations(run) == ["cancelled", "cancelled"]
    assert len(driving.peer.bodies("execute")) == 1
    assert not dispatch()  # nothing goes round in circles
    driving.peer.execute = (200, {"status": "running"})
    driving.visit()
    dispatch()
    driving.visit()
    assert allocations(run) == ["cancelled", "cancelled", "executing", "executing"]
    assert [shard[2] for shard in shards(run)] == ["executing", "executing"]


@pytest.mark.parametrize("told", [(200, {"data": {"node_info": {"max_workers": 1}}}), None])
def test_it_is_given_no_more_than_it_has_workers(peer, folder, told):
    if told:
        peer.stats = told
    else:
        peer.health = (200, {**HEALTHY, "max_workers": 1})
    driving = Driving(peer)
    run = driving.give(4)
    assert len(peer.bodies("execute")) == 1
    assert allocations(run) == ["executing"]


def test_workers_that_others_keep_busy_are_not_counted_on(driving):
    driving.peer.health = (200, {**HEALTHY, "max_workers": 3, "active_tasks": 2})
    driving.visit()
    run = driving.give(4)
    assert allocations(run) == ["executing"]


def test_an_overloaded_node_gets_nothing_new_but_keeps_what_it_has(driving):
    run = driving.give(1)
    driving.peer.health = (200, {**HEALTHY, "status": "overloaded", "max_workers": 2})
    driving.visit()
    more = driving.give(1)
    assert allocations(run) == ["executing"]
    assert allocations(more) == []


def test_a_node_that_came_back_without_its_task_loses_it_at_once(driving):
    run = driving.give()
    driving.peer.status = (404, {"detail": "no such task"})
    driving.visit()
    assert allocations(run)[0] == "expired"
    assert "came back without it" in Allocation.objects.filter(run=run).earliest("pk").error


def test_a_restarted_parent_asks_for_what_runs_there_and_gives_nothing_twice(driving):
    run = driving.give()
    posted = len(driving.peer.bodies("execute"))
    driving.driven = Driven(driving.node)
    driving.peer.status = done(driving)
    driving.visit()
    assert len(driving.peer.bodies("execute")) == posted
    assert allocations(run) == ["completed"]


def test_what_did_not_get_there_before_the_parent_ended_is_posted_by_the_same_name(driving):
    run = driving.give()
    first = driving.peer.bodies("execute")[0]
    driving.driven = Driven(driving.node)
    driving.peer.status = (404, {})
    driving.visit()
    assert driving.peer.bodies("execute") == [first, first]
    assert allocations(run) == ["executing"]


def test_a_cancel_goes_to_the_node(driving):
    run = driving.give()
    name = driving.peer.bodies("execute")[0]["task_id"]
    lifecycle.cancel(run.pk)
    driving.visit(health=False)
    assert driving.peer.paths("cancel") == [f"/api/v1/task/{name}/cancel"]
    assert not driving.driven.tasks


def test_what_was_cancelled_on_the_node_goes_to_somebody_else_with_no_attempt_counted(driving):
    run = driving.give(max_attempts=1)
    driving.peer.status = (200, {"status": "cancelled"})
    driving.visit()
    assert allocations(run)[0] == "cancelled"
    assert state(run) == "running"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {"detail": "what is that?"}), "what is that?"),
        ((422, {"detail": [{"loc": ["body"]}]}), "422"),
    ],
)
def test_what_it_refuses_is_an_attempt_that_failed(driving, answer, words):
    driving.peer.execute = answer
    run = driving.give(max_attempts=1)
    assert state(run) == "failed"
    assert words in Allocation.objects.get(run=run).error


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"ranges": [[0, 2, 1]], "item_errors": [], "rows": [["a", 0, "a:0"]]},
        {"ranges": [[0, 1, 5]], "item_errors": [], "rows": [["a", 0, "a:0"]]},
        {"ranges": [[0, 1, 1]], "item_errors": [], "rows": [["a", "no number", "a:0"]]},
        {"ranges": "all", "rows": 5},
        {"ranges": [], "item_errors": [], "rows": []},
        {"ranges": [[0, 1, 3000]], "item_errors": [], "rows": [["a", "no number", "a:0"]] * 3000},
    ],
)
def test_a_result_that_makes_no_sense_is_an_attempt_that_failed(driving, result):
    run = driving.give(max_attempts=1)
    driving.peer.status = (200, {"status": "completed", "result": result})
    driving.visit()
    assert allocations(run) == ["failed"]
    assert fresh(run).failed == 1
    assert_partition(run)


@pytest.mark.parametrize(
    "answer", [(200, b"<html>"), (200, b"[1]"), (200, b"[" * 100_000), (302, {}), (401, {}), (200, {"status": None})]
)
def test_a_node_whose_health_cannot_be_understood_is_not_online(peer, folder, answer):
    peer.health = answer
    assert not registry.is_online(Driving(peer).node, timezone.now())


def test_a_node_that_sends_us_elsewhere_is_not_followed(peer, folder):
    answers: Iterator[Reply] = iter([(302, {})])
    peer.health = lambda _: next(answers, (200, HEALTHY))
    driving = Driving(peer)
    assert len(peer.paths("health")) == 1
    assert not registry.is_online(driving.node, timezone.now())


def test_what_takes_far_longer_than_its_time_out_is_taken_away(driving):
    run = driving.give(max_attempts=1, timeout=1.0)
    for task in driving.driven.tasks.values():
        task.began -= driven.LEAST_TIMEOUT + driven.GRACE_SECONDS
    driving.visit()
    assert driving.peer.paths("cancel")
    assert state(run) == "failed"


def test_a_node_that_is_not_active_any_more_is_let_go(driving):
    driving.give()
    registry.update_node(driving.id, active=False)
    driving.visit()
    driving.driven.leave()
    assert len(driving.peer.paths("cancel")) == 1


# Knocking


@pytest.fixture
def bell(peer: Peer) -> Doorbell:
    """Of a node that has said hello by itself, and is told nothing else."""
    return Doorbell(child("near", capacity=4, api_url=peer.url, api_key="secret").node)


def test_it_is_knocked_at_once_for_all_that_waits(bell, peer):
    submit_run(["a", "b", "c", "d"], shard_size=2)
    dispatch()
    for _ in range(3):
        bell.visit()
    (knock,) = peer.bodies("notify")
    assert peer.paths("notify") == ["/api/v1/cascade/notify"]
    first = Allocation.objects.earliest("pk")
    assert (knock["type"], knock["allocation_id"], knock["feed_count"]) == ("new_task", str(first.pk), 2)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", knock["timestamp"])
    assert peer.keys == {"secret"}


def test_it_is_knocked_at_again_for_what_came_later_only(bell, peer):
    submit_run(["a"])
    dispatch()
    bell.visit()
    later = submit_run(["b"])
    dispatch()
    bell.hear(Allocation.objects.latest("pk").pk)
    assert bell.due < float("inf")
    bell.visit()
    assert peer.bodies("notify")[1]["allocation_id"] == str(Allocation.objects.get(run=later).pk)


def test_it_is_not_knocked_at_for_what_it_has_fetched(peer, bell):
    near = Node.objects.get(name="near")
    submit_run(["a"])
    dispatch()
    from nodes import keys, messages

    lifecycle.claim(keys.inside(near.pk), messages.Claim("b1", 4, 0.0, ()))
    bell.visit()
    assert peer.bodies("notify") == []


def test_one_that_does_not_open_is_left_alone_for_longer_and_longer(bell, peer):
    peer.notify = (500, {})
    submit_run(["a"])
    dispatch()
    waits = []
    for _ in range(3):
        bell.visit()
        bell.urge()
        waits.append(bell.due)
    assert waits[2] - waits[1] > 2
    peer.notify = (200, {})
    bell.visit()
    assert len(peer.bodies("notify")) == 4
    bell.visit()
    assert len(peer.bodies("notify")) == 4

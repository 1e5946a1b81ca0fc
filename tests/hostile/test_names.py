"""NUL, bidi, SQL, half surrogates and the like in every text of every door: refused with the field's name, or stored as
text; never a 5xx, and nothing of it is executed. On whatever database the parent has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from tests.hostile.victim import Victim, victim
from tests.integration.agents import SOON, Agent

NAMES = (
    "a\x00b", "\x00", "\ud800", "a\u202eb", "\u2066x\u2069", "a\nb", "\x1b[31m", "\x7f", "\u200b", "\ufeff",
    "\U0010ffff",
    "'; DROP TABLE nodes_node; --", '" OR 1=1 --', "x'||(SELECT 1)||'", "%s%n%(x)s", "{0.__class__}",
    "../../etc/passwd", "$(id)", "`id`", "-rf", "null", "NaN", "true", "0", " ", "", "x" * 300,
    "x" * 100_000, "İ", "ß" * 150,
    "a" + "\u0301" * 300,
)  # fmt: skip
TEXTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "node name": ("POST", "/api/v1/nodes", {"name": ...}),
    "node description": ("POST", "/api/v1/nodes", {"name": "n", "description": ...}),
    "node address": ("POST", "/api/v1/nodes", {"name": "n", "api_url": ...}),
    "label": ("POST", "/api/v1/nodes", {"name": "n", "labels": {"by": ...}}),
    "quota's item": (
        "POST",
        "/api/v1/nodes",
        {"name": "n", "quotas": [{"task_type": "echo", "slots": 1, "item": ...}]},
    ),
    "run name": ("POST", "/api/v1/runs", {"type": "echo", "items": ["a"], "name": ..., "labels": {"only": "nobody"}}),
    "item": ("POST", "/api/v1/runs", {"type": "echo", "items": [...], "labels": {"only": "nobody"}}),
    "type": ("POST", "/api/v1/runs", {"type": ..., "items": ["a"]}),
    "balancer": ("POST", "/api/v1/runs", {"type": "echo", "items": ["a"], "balancer": ...}),
    "rate key": (
        "POST",
        "/api/v1/runs",
        {"type": "echo", "items": ["a"], "rate_key": ..., "labels": {"only": "nobody"}},
    ),
    "param": (
        "POST",
        "/api/v1/runs",
        {"type": "echo", "items": ["a"], "params": {"log": ...}, "labels": {"only": "x"}},
    ),
    "column": ("POST", "/api/v1/runs", {"type": "echo", "items_column": ...}),
    "task name": ("POST", "/api/v1/tasks", {"type": "echo", "name": ...}),
    "cron": ("POST", "/api/v1/tasks", {"type": "echo", "name": "t", "cron": ...}),
    "zone": ("POST", "/api/v1/tasks", {"type": "echo", "name": "t", "cron": "* * * * *", "time_zone": ...}),
    "webhook": ("POST", "/api/v1/tasks", {"type": "echo", "name": "t", "webhook_url": ...}),
    "template": ("POST", "/api/v1/tasks", {"type": "echo", "name": "t", "webhook_template": ...}),
    "header": ("POST", "/api/v1/tasks", {"type": "echo", "name": "t", "webhook_headers": {"X": ...}}),
    "source key": ("POST", "/api/v1/sources", {"kind": "symbol", "key": ...}),
    "source name": ("POST", "/api/v1/sources", {"kind": "symbol", "key": "k", "name": ...}),
    "source address": ("POST", "/api/v1/sources", {"kind": "feed", "key": "f", "address": ...}),
    "source extra": ("POST", "/api/v1/sources", {"kind": "symbol", "key": "e", "extra": {"a": ...}}),
    "limit": ("POST", "/api/v1/rates", {"key": ..., "per_second": 1}),
    "user name": ("POST", "/api/v1/token", {"username": ..., "password": "x"}),
    "cascade node": ("POST", "/api/v1/cascade/nodes", {"name": ..., "description": ...}),
    "cascade task": ("POST", "/api/v1/cascade/dispatch-task", {"feed_ids": [...], "name": ...}),
    "distribution task": ("POST", "/api/distribution/tasks", {"name": ..., "type": ..., "params": {"a": ...}}),
    "distribution device": ("POST", "/api/distribution/devices/register", {"device_id": ..., "device_name": ...}),
}
QUERIES = (
    "/api/v1/tables/{}/rows", "/api/v1/tables/echo/rows?columns={}", "/api/v1/tables/echo/rows?order={}",
    "/api/v1/tables/echo/rows?item={}", "/api/v1/tables/echo/rows?{}=1", "/api/v1/runs?name={}",
    "/api/v1/runs?ordering={}",
    "/api/v1/nodes?name={}", "/api/v1/sources?search={}", "/api/v1/executors/{}/schema", "/api/v1/keys/{}",
    "/api/v1/runs/1/results?format={}", "/admin/dispatch/run/?q={}", "/admin/nodes/node/?o={}",
    "/api/v1/cascade/feeds?x={}",
    "/api/v1/cascade/nodes/{}", "/api/distribution/tasks/{}", "/api/distribution/devices/{}",
)  # fmt: skip


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """On SQLite; among the tests on PostgreSQL, on a server of its own."""
    with ExitStack() as stack:
        env = {}
        if os.environ.get("TEST_DATABASE_URL"):
            from tests.servers import postgresql

            env["DATABASE_URL"] = stack.enter_context(postgresql())
        yield stack.enter_context(victim(tmp_path_factory.mktemp("parent"), **env))


def some(door: int) -> tuple[str, ...]:
    """A sixth of the names, others for each door: neighbours have the same reader."""
    return NAMES[door % 6 :: 6]


def filled(body: Any, name: str) -> Any:
    if body is ...:
        return name
    if isinstance(body, dict):
        return {key: filled(value, name) for key, value in body.items()}
    return [filled(value, name) for value in body] if isinstance(body, list) else body


def test_every_text_of_every_door_is_refused_by_its_name_or_stored_as_it_is(parent: Victim) -> None:
    for door, (what, (method, path, body)) in enumerate(TEXTS.items()):
        for name in some(door):
            answer = parent.tree.request(method, path, json=filled(body, name))
            assert answer.status_code < 500, (what, name[:50], answer.text[:300])
            if answer.status_code == 400 and path.startswith("/api/v1/") and "cascade" not in path:
                assert answer.json()["field"], (what, name[:50], answer.text[:300])
    assert parent.tree.json("GET", "/api/v1/nodes")["count"] >= 2  # the tables are still there
    assert parent.faults == []


def test_addresses_and_queries_of_such_words_are_answered_with_what_is_wrong(parent: Victim) -> None:
    for door, pattern in enumerate(QUERIES):
        for name in some(door):
            path = pattern.format(requests.utils.quote(name.encode("utf-8", "surrogatepass")[:2000], safe=""))
            answer = parent.tree.request("GET", path, allow_redirects=False)
            assert answer.status_code < 500, (path[:200], answer.text[:300])
    assert parent.faults == []


def test_what_a_child_says_of_itself_and_of_its_work_is_refused_or_stored_as_it_is(parent: Victim) -> None:
    for name in NAMES[::3]:
        child = Agent(parent.tree)
        _, ((allocation, _, start, stop, *_),) = child.work("x")
        child.say("beat", {"boot": name, "version": name, "executors": ["echo", name]})
        entry = {"allocation": allocation, "ranges": [[start, stop, 1]], "rows": [[name, 0, name]], "log": name}
        said = child.say("report", {"reports": [entry]})
        assert said.status_code in (200, 400, 422), (name[:50], said.text[:300])
        if said.status_code != 200:
            failed = {"allocation": allocation, "failure": {"kind": "error", "message": name}, "log": name}
            assert child.ask("report", {"reports": [failed]})
        child.say("release", {"allocations": [allocation], "detail": name})
    parent.tree.json("GET", "/api/v1/runs")
    assert parent.faults == []


@pytest.mark.parametrize(
    "attack",
    [
        "read_csv('/etc/passwd')", "read_text('/etc/passwd')", "echo; ATTACH '/tmp/evil.db'", "duckdb_settings()",
        "ledger", "_datasets", "information_schema.tables", "echo_rows", "sqlite_master",
        'echo"; DROP TABLE echo_rows; --',
        "main.echo",
    ],
)  # fmt: skip
def test_no_file_no_setting_and_no_table_but_results_is_read_by_a_name(parent: Victim, attack: str) -> None:
    quoted = requests.utils.quote(attack, safe="")
    for path in (
        f"tables/{quoted}/rows",
        f"tables/echo/rows?columns={quoted}",
        f"tables/echo/rows?order={quoted}",
        f"tables/echo/rows?{quoted}=1",
    ):
        answer = parent.tree.request("GET", f"/api/v1/{path}", timeout=SOON)
        assert answer.status_code in (400, 404), (path, answer.text[:200])
    assert len(parent.tree.json("GET", "/api/v1/tables/echo/rows")) > 0

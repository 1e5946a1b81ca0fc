"""Deployed clients of the ``cascade`` dialect against a real parent: the life of two, and what can go wrong in it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cascade.local import LocalTree
from tests.acceptance.polling import Reply, Wire, article, child_of
from tests.acceptance.trees import until


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("polling")) as made:
        yield made


@pytest.fixture
def operator(tree: LocalTree) -> Wire:
    token = tree.json("POST", "/api/v1/token", json={"username": tree.username, "password": tree.password})["access"]
    return Wire(tree.port, f"Bearer {token}")


def message_task(tree: LocalTree, name: str, feeds: list[str], **fields: Any) -> str:
    made = tree.json("POST", "/api/v1/tasks", json={"name": name, "type": "feed_update", "items": feeds, **fields})
    return str(made["id"])


def run_of(tree: LocalTree, task: str) -> int:
    return int(tree.json("GET", "/api/v1/runs", params={"task": task})["results"][0]["id"])


def retire(tree: LocalTree, *names: str) -> None:
    """Later tests have nodes of their own."""
    for name in names:
        tree.json("PATCH", f"/api/v1/nodes/{tree.nodes()[name]['id']}", json={"active": False})


def test_two_children_live_through_a_task_and_it_shows_like_native_work(tree: LocalTree, operator: Wire) -> None:
    first = child_of(operator, "first", sync_config={"max_capacity": 20, "feed_quota": {"mp_1": 5}})
    second = child_of(operator, "second", base="/api/v1/cascade", sync_config={"max_capacity": 20})
    feeds = [f"mp_{number}" for number in range(6)]
    params = {"message_type": 1, "message_template": "{{title}}", "headers": '{"a": 1}'}
    task = message_task(tree, "morning", feeds, params=params, shard_size=3)

    dispatched = operator.post(f"/dispatch-task?task_id={task}").good()
    assert dispatched["online_nodes"] == 2
    assert dispatched["tasks"] == [{"id": task, "name": "morning", "mp_count": 6}]
    assert dispatched["allocations_created"] >= 2

    packages: list[tuple[Wire, dict[str, Any]]] = []
    for child in (first, second):
        while (package := child.get("/pending-tasks?limit=5").good()) is not None:
            packages.append((child, package))
    ids = [package["allocation_id"] for _, package in packages]
    assert len(set(ids)) == len(ids) == dispatched["allocations_created"]
    assert sorted(feed["id"] for _, package in packages for feed in package["feeds"]) == feeds
    one = packages[0][1]
    assert (one["task_id"], one["task_name"], one["message_type"]) == (task, "morning", 1)
    assert (one["message_template"], one["headers"], one["cookies"]) == ("{{title}}", '{"a": 1}', "")
    assert {row["status"] for row in operator.get(f"/allocations?task_id={task}").good()["list"]} == {"claimed"}

    for number, (child, package) in enumerate(packages):
        key = {"allocation_id": package["allocation_id"], "unheard_of": [1]}
        named = [feed["id"] for feed in package["feeds"]]
        child.put("/task-status", {**key, "status": "executing", "timestamp": "1"}).good()
        articles = [article(feed, number) for feed in named for number in range(3)]
        half = child.post("/upload-articles", {**key, "articles": articles[:2]}).good()
        assert half == {"received": 2, "new_count": 2}
        again = child.post("/upload-articles", {**key, "articles": articles}).good()
        assert again == {"received": len(articles), "new_count": len(articles) - 2}
        if number % 2:
            results = [{"feed_id": feed, "success": True, "new_article_count": 3} for feed in named]
        else:
            results = [{"mp_id": feed, "mp_name": feed, "status": "success", "article_count": 3} for feed in named]
        report = {**key, "task_id": task, "results": results, "article_count": len(articles)}
        child.post("/report-completion", {**report, "timestamp": "10:00:00"}).good()
        # The same again, as after a 5xx, and the upload with it.
        child.post("/report-completion", {**report, "timestamp": "10:00:07"}).good()
        assert child.post("/upload-articles", {**key, "articles": articles}).good()["new_count"] == 0
        child.put("/task-status", {**key, "status": "completed", "timestamp": "2"}).good()

    progress = tree.wait(run_of(tree, task))
    assert (progress["state"], progress["saved"], progress["rows"]) == ("completed", 6, 18)
    assert len(tree.json("GET", "/api/v1/tables/articles/rows", params={"raw": "true"})) == 18
    shown = operator.get(f"/allocations?task_id={task}&status=completed").good()
    assert shown["total"] == len(packages)
    assert sum(row["article_count"] for row in shown["list"]) == 18
    native = tree.json("GET", "/api/v1/allocations", params={"run": run_of(tree, task)})["results"]
    assert {each["state"] for each in native} == {"completed"}
    assert {each["node_name"] for each in native} == {"first", "second"}
    retire(tree, "first", "second")


def test_children_that_poll_at_once_never_get_the_same_allocation(tree: LocalTree, operator: Wire) -> None:
    names = [f"racer-{number}" for number in range(3)]
    children = [child_of(operator, name, sync_config={"max_capacity": 20}) for name in names]
    feeds = [f"race_{number}" for number in range(24)]
    task = message_task(tree, "race", feeds, shard_size=1)
    operator.post(f"/dispatch-task?task_id={task}").good()
    got: list[dict[str, Any]] = []

    def poll(child: Wire) -> None:
        while (package := child.send("POST", "/claim-task", raw=b"").good()) is not None:
            got.append(package)

    # Two at once for each child: one key may serve several processes.
    threads = [threading.Thread(target=poll, args=(child,)) for child in children * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [package["allocation_id"] for package in got]
    assert len(set(ids)) == len(ids)
    assert sorted(feed["id"] for package in got for feed in package["feeds"]) == sorted(feeds)
    tree.json("POST", f"/api/v1/runs/{run_of(tree, task)}/cancel")
    retire(tree, *names)


def test_what_is_wrong_is_refused_in_the_envelope_and_nothing_is_lost(tree: LocalTree, operator: Wire) -> None:
    mine = child_of(operator, "mine")
    task = message_task(tree, "errors", ["x"])
    operator.post(f"/dispatch-task?task_id={task}").good()
    package = until(lambda: mine.post("/claim-task").good())
    other = child_of(operator, "other")
    key = {"allocation_id": package["allocation_id"]}

    def refused(reply: Reply, status: int, *words: str) -> None:
        assert reply.status == status, reply
        assert all(word in reply.body["message"] for word in words), reply

    refused(Wire(tree.port, "AK-SK CNnobody:CSnothing").post("/heartbeat"), 401)
    refused(Wire(tree.port, mine.authorization[:-4] + "AAAA").get("/pending-tasks"), 401)
    refused(Wire(tree.port, "Bearer nonsense").get("/nodes"), 401)
    refused(Wire(tree.port, mine.authorization).get("/nodes"), 401)
    for method, path in (("PUT", "/task-status"), ("POST", "/upload-articles"), ("POST", "/report-completion")):
        body = {**key, "status": "failed", "articles": [article("x", 1)], "results": []}
        refused(other.send(method, path, body), 404, package["allocation_id"])
        refused(mine.send(method, path, {**body, "allocation_id": None}), 400, "allocation_id")
    refused(mine.put("/task-status", key), 400, "status")
    refused(mine.put("/task-status", {**key, "status": "asleep"}), 400, "asleep")
    refused(mine.post("/upload-articles", key), 400, "articles")
    refused(mine.post("/upload-articles", {**key, "articles": [article("x", 1), 5]}), 400, "articles[1]")
    bad = article("x", 1, publish_time="yesterday")
    refused(mine.post("/upload-articles", {**key, "articles": [article("x", 2), bad]}), 400, "publish_time")
    refused(mine.post("/report-result", {"results": []}), 400, "task_id")
    refused(mine.send("POST", "/report-completion", raw=b"{"), 400, "body")
    refused(mine.get("/nothing-here"), 404)
    refused(mine.get("/claim-task"), 405)

    # Half an upload: the line is cut in the middle of the body.
    content = b'{"allocation_id": "' + package["allocation_id"].encode() + b'", "articles": ['
    with socket.create_connection(("127.0.0.1", tree.port)) as line:
        head = f"POST {mine.base}/upload-articles HTTP/1.1\r\nHost: 127.0.0.1:{tree.port}\r\n"
        head += f"Authorization: {mine.authorization}\r\nContent-Length: {len(content) + 500}\r\n\r\n"
        line.sendall(head.encode() + content)

    assert mine.post("/upload-articles/", {**key, "articles": [article("x", 1)]}).good()["new_count"] == 1
    assert mine.post("/report-result/", {"task_id": task, "results": [{"mp_id": "x", "status": "success"}]}).good()
    assert tree.wait(run_of(tree, task))["rows"] == 1
    retire(tree, "mine", "other")


def test_a_lost_lease_is_a_409_and_its_feeds_go_to_somebody_else(tree: LocalTree, operator: Wire) -> None:
    slow = child_of(operator, "slow")
    task = message_task(tree, "lost", ["y"], timeout=0.5, backoff=0)
    operator.post(f"/dispatch-task?task_id={task}").good()
    package = until(lambda: slow.post("/claim-task").good())
    key = {"allocation_id": package["allocation_id"]}
    assert slow.post("/upload-articles", {**key, "articles": [article("y", 1)]}).good()["new_count"] == 1
    quick = child_of(operator, "quick")
    # Otherwise it would be offered its own again.
    tree.json("PATCH", f"/api/v1/nodes/{tree.nodes()['slow']['id']}", json={"draining": True})
    listed = f"/allocations?task_id={task}&status=timeout"
    until(lambda: operator.get(listed).good()["total"])
    for reply in (
        slow.post("/upload-articles", {**key, "articles": [article("y", 1)]}),
        slow.post("/report-completion", {**key, "results": [{"mp_id": "y", "status": "success"}]}),
        slow.put("/task-status", {**key, "status": "executing"}),
    ):
        assert reply.status == 409, reply
    again = until(lambda: quick.post("/claim-task").good())
    assert [feed["id"] for feed in again["feeds"]] == ["y"]
    quick.post("/upload-articles", {"allocation_id": again["allocation_id"], "articles": [article("y", 1)]}).good()
    quick.put("/task-status", {"allocation_id": int(again["allocation_id"]), "status": "completed"}).good()
    assert tree.wait(run_of(tree, task))["rows"] == 1
    retire(tree, "slow", "quick")

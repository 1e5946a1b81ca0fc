"""Forty feeds over two children: read whole once, then asked conditionally, by memories that the parent carries."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import QUICK, executing, rows, until, workers
from tests.feed_server import FeedServer, serving
from tests.unit.feed_writing import item, rss

FEEDS = 40
ARTICLES = 3


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 4, carrier="push"), Child("puller", 4, carrier="pull")]
    env = {**QUICK, "CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8"}
    with LocalTree(tmp_path_factory.mktemp("feeds"), children=children, env=env) as tree:
        yield tree


@pytest.fixture
def tree(started: LocalTree) -> LocalTree:
    for name in started.children:
        if not started.alive(name):
            started.restart(name)
    return started


@pytest.fixture
def server() -> Iterator[FeedServer]:
    with serving() as server:
        yield server


def feed(number: int, **titles: str) -> str:
    """Its articles, of which ``t0``, ``t1``, … have other titles than they mostly have."""
    every = [titles.get(f"t{at}", f"Title {at}") for at in range(ARTICLES)]
    return rss(*(item(title, f"{number}-{at}") for at, title in enumerate(every)))


def published(server: FeedServer, name: str) -> list[dict[str, str]]:
    """The items of a run over all feeds of ``server``."""
    addresses = [server.put(f"/{number}.xml", feed(number)) for number in range(FEEDS)]
    return [{"key": f"{name}-{number}", "url": url} for number, url in enumerate(addresses)]


def run(tree: LocalTree, items: list[dict[str, str]], **fields: Any) -> int:
    run = tree.submit("feed_update", items, **fields)
    progress = tree.wait(run)
    assert (progress["state"], progress["saved"]) == ("completed", len(items)), progress
    return run


def every_article(items: list[dict[str, str]]) -> Counter[tuple[str, str]]:
    return Counter((each["key"], f"{number}-{at}") for number, each in enumerate(items) for at in range(ARTICLES))


def saved(found: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((row["feed"], row["id"]) for row in found)


def test_a_second_run_costs_one_conditional_request_each_and_an_edited_article_is_one_row(
    tree: LocalTree, server: FeedServer
) -> None:
    items = published(server, "news")
    first = rows(tree, run(tree, items, shard_size=2))
    assert saved(first) == every_article(items)
    assert len({row["_node"] for row in first}) == 2
    assert [asked.etag for asked in server.taken()] == [None] * FEEDS

    assert rows(tree, run(tree, items, shard_size=3)) == []
    asked = server.taken()
    assert Counter(each.path for each in asked) == Counter(f"/{number}.xml" for number in range(FEEDS))
    assert all((each.status, each.etag) == (304, server.documents[each.path].etag) for each in asked)

    server.put("/7.xml", feed(7, t1="Title 1, corrected"))
    (row,) = rows(tree, run(tree, items))
    assert (row["feed"], row["id"], row["title"]) == ("news-7", "7-1", "Title 1, corrected")
    assert Counter(each.status for each in server.taken()) == {304: FEEDS - 1, 200: 1}
    now = tree.json("GET", "/api/v1/tables/articles/rows", params={"limit": 1000})
    mine = {(each["feed"], each["id"]): each["title"] for each in now if each["feed"].startswith("news-")}
    assert len(mine) == FEEDS * ARTICLES, "the view shows each article once"
    assert mine["news-7", "7-1"] == "Title 1, corrected"


def test_feeds_are_sources_and_each_says_how_it_went(tree: LocalTree, server: FeedServer) -> None:
    good = server.put("/good.xml", feed(1))
    page = server.put("/page", "<html><head></head></html>", kind="text/html")
    for key, url in (("good", good), ("page", page), ("gone", f"{server.url}/gone")):
        tree.json("POST", "/api/v1/sources", json={"kind": "feed", "key": key, "address": url, "name": key.title()})
    task = tree.json(
        "POST", "/api/v1/tasks", json={"name": "feeds", "type": "feed_update", "source_kind": "feed", "max_attempts": 1}
    )
    progress = tree.wait(tree.json("POST", f"/api/v1/tasks/{task['id']}/run", json={})["id"])
    assert (progress["state"], progress["saved"], progress["failed"], progress["rows"]) == ("partial", 1, 2, ARTICLES)
    found = tree.json("GET", "/api/v1/sources", params={"kind": "feed"})["results"]
    last = {each["key"]: each["last"] for each in found}
    assert (last["good"]["status"], last["good"]["counts"]["new"]) == ("ok", ARTICLES)
    assert "is an HTML page, not a feed" in last["page"]["status"]
    assert "answered 404" in last["gone"]["status"]
    assert [last[key]["failed"] for key in ("good", "page", "gone")] == [False, True, True]


def test_all_feeds_are_saved_once_though_worker_processes_are_killed(tree: LocalTree, server: FeedServer) -> None:
    items = published(server, "killed")
    server.gate.clear()
    number = tree.submit("feed_update", items, shard_size=2, backoff=0)
    until(lambda: executing(tree, number, "pusher") and len(server.waiting) >= 5)
    victims = workers(tree, "pusher")
    assert victims
    for victim in victims:
        victim.kill()
    server.gate.set()
    progress = tree.wait(number)
    assert (progress["state"], progress["saved"]) == ("completed", FEEDS)
    assert saved(rows(tree, number)) == every_article(items)
    assert len(server.taken()) > FEEDS, "what the killed ones had asked was asked again"
    assert rows(tree, run(tree, items)) == []
    assert {each.status for each in server.taken()} == {304}


def test_a_feed_that_hangs_costs_itself_only_and_a_cancel_ends_it(tree: LocalTree, server: FeedServer) -> None:
    items = published(server, "hanging")
    done = threading.Event()
    server.put("/3.xml", b"", answers=lambda request: done.wait(60))
    try:
        number = tree.submit("feed_update", items, shard_size=1, timeout=2, max_attempts=1)
        progress = tree.wait(number)
        assert (progress["state"], progress["saved"], progress["failed"]) == ("partial", FEEDS - 1, 1)
        assert {key for key, _ in saved(rows(tree, number))} == {each["key"] for each in items} - {"hanging-3"}

        number = tree.submit("feed_update", items, shard_size=1)
        tree.wait(number, until=lambda progress: progress["saved"] >= FEEDS / 2)
        tree.json("POST", f"/api/v1/runs/{number}/cancel")
        progress = tree.wait(number, timeout=20)
        assert progress["state"] == "cancelled"
        assert progress["cancelled"] >= 1
        assert progress["saved"] + progress["cancelled"] == FEEDS
    finally:
        done.set()
    server.put("/3.xml", feed(3))
    assert {row["feed"] for row in rows(tree, run(tree, items))} == {"hanging-3"}

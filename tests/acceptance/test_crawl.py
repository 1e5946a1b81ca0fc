"""A whole site, crawled by three children: each page fetched once, politely, at the run's pace over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.sites import Site, serving
from tests.acceptance.trees import QUICK, alive, allocations, rows, until, workers

NAMES = ("north", "east", "south")
PAGES = 1_050


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    env = {**QUICK, "CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8"}
    with LocalTree(tmp_path_factory.mktemp("crawl"), children=[Child(name) for name in NAMES], env=env) as tree:
        yield tree


def crawl(tree: LocalTree, site: Site, **params: Any) -> int:
    body = {"type": "crawl", "items": [site.address], "params": {"follow": True, "max_depth": 50, **params}}
    return int(tree.json("POST", "/api/v1/runs", json=body)["id"])


def check_rows(tree: LocalTree, run: int, site: Site) -> list[dict[str, Any]]:
    """Each page has one row, and there are no others."""
    found = rows(tree, run)
    assert Counter(row["url"] for row in found) == {f"{site.address}{path}": 1 for path in site.pages()}
    return found


def test_a_site_is_fetched_once_per_page_at_the_pace_of_the_run(tree: LocalTree) -> None:
    per_second, at_once = 200, 8
    with serving(Site(PAGES)) as site, serving(Site(1), "127.0.0.2", int(site.address.rpartition(":")[2])) as other:
        run = crawl(tree, site, per_second=per_second, at_once=at_once, max_pages=5 * PAGES)
        progress = tree.wait(run, timeout=60)
        assert progress["state"] == "completed"
        assert progress["count"] == len(site.pages()) > 1_000
        asked = site.asked()
        assert asked.pop("/robots.txt") <= len(NAMES)
        assert asked == dict.fromkeys(site.pages(), 1), "each once, and nothing that robots.txt forbids"
        assert other.log == [], "links to another host are not gone on to"
    for seconds in (0.25, 1.0, 3.0):
        # A tenth more for messages that were under way for longer than others.
        assert site.most_within(seconds) <= at_once + 1.1 * per_second * seconds
    assert {each["node_name"] for each in allocations(tree, run)} == set(NAMES)
    found = {row["url"].removeprefix(site.address): row for row in check_rows(tree, run, site)}
    assert found["/page/7"]["title"] == "Page 7"
    assert "Grüße von Seite 7" in found["/page/7"]["text"]
    assert found["/page/7"]["blocked"] == 2
    assert (found["/old/50"]["status"], found["/old/50"]["target"]) == (301, f"{site.address}/page/50")
    assert found["/page/0"]["depth"] == 1
    links = tree.json("GET", "/api/v1/tables/pages_links/rows", params={"limit": 50_000})
    mine = {row["link"] for row in links if row["url"] == f"{site.address}/page/50"}
    assert {f"{site.address}/old/50", f"{site.address}/private/50"} < mine


def test_a_worker_that_is_killed_costs_no_page_and_no_row_twice(tree: LocalTree) -> None:
    with serving(Site(300, seconds=0.01)) as site:
        run = crawl(tree, site, per_second=1000, at_once=32, max_pages=5_000)
        until(lambda: len(site.log) > 60, what="the crawl's beginning")
        killed = until(lambda: workers(tree, NAMES[0]), what="a worker")
        for process in killed:
            process.kill()
        at = len(site.log)
        progress = tree.wait(run, timeout=60)
        assert progress["state"] == "completed"
        assert at < len(site.pages()), "it was killed in the middle"
        assert site.asked().keys() - {"/robots.txt"} == site.pages()
    check_rows(tree, run, site)
    assert alive(killed) == []


def test_a_site_without_end_ends_at_the_most_pages(tree: LocalTree) -> None:
    with serving(Site(100_000)) as site:
        run = crawl(tree, site, per_second=1000, at_once=32, max_pages=100)
        assert tree.wait(run, timeout=60)["count"] == 100
        assert len(site.log) <= 100 + len(NAMES)

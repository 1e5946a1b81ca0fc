"""Two levels of relays above a leaf: rows to work over come down, what items bring beside rows goes up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance import sites
from tests.acceptance.sites import Site
from tests.acceptance.trees import until
from tests.feed_server import serving
from tests.unit.feed_writing import item, rss

pytestmark = pytest.mark.trees

ENV = {
    "CASCADE_FALLBACK_WORKERS": "0",
    "CASCADE_LEASE_SECONDS": "6",
    "CASCADE_BEAT_SECONDS": "0.5",
    "CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8",
}
SYMBOLS = ["AAPL", "FB", "GOOG", "IBM", "MSFT"]


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalTree]]:
    """The root, a relay, a relay below it with the leaf."""
    folder = tmp_path_factory.mktemp("levels")
    with ExitStack() as stack:
        trees = [stack.enter_context(LocalTree(folder / "root", env={**ENV, "CASCADE_NODE_NAME": "root"}))]
        for name in ("eu", "paris"):
            key = json.loads(trees[-1].manage("node", "add", name, "--capacity", "8", "--json").stdout)
            leaves = [Child("leaf", capacity=2)] if name == "paris" else []
            env = {**ENV, "CASCADE_NODE_NAME": name}
            tree = LocalTree(folder / name, children=leaves, env=env, above=(trees[-1].url, key))
            trees.append(stack.enter_context(tree))
        yield trees


def done(root: LocalTree, run: int) -> list[dict[str, object]]:
    """The rows of a run that must end well."""
    progress = root.wait(run, timeout=90)
    assert progress["state"] == "completed", progress
    rows = list(root.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"}))
    assert {row["_node"] for row in rows} <= {"eu/paris/leaf"}
    return rows


def test_work_over_the_roots_tables_gets_its_rows_through_both(levels: list[LocalTree]) -> None:
    root, eu, paris = levels
    bars = done(root, root.submit("data_import", SYMBOLS, params={"source": "sample"}, shard_size=2))
    assert len(bars) == 12_154
    run = root.submit("analysis", SYMBOLS, params={"rows": "latest"}, shard_size=1)
    assert Counter(row["symbol"] for row in done(root, run)) == Counter(SYMBOLS)
    folders = [relay.folder("parent") / "spool" / "inputs" for relay in (eu, paris)]
    assert all(folder.exists() for folder in folders)
    until(lambda: not [file for folder in folders for file in folder.iterdir()], what="the end of their rows")


def test_what_items_find_below_becomes_items_of_the_root_and_of_no_relay(levels: list[LocalTree]) -> None:
    root, eu, paris = levels
    with sites.serving(Site(30)) as site:
        params = {"follow": True, "max_depth": 50, "per_second": 500, "at_once": 8}
        body = {"type": "crawl", "items": [site.address], "params": params}
        run = int(root.json("POST", "/api/v1/runs", json=body)["id"])
        found = done(root, run)
        assert Counter(row["url"] for row in found) == {f"{site.address}{path}": 1 for path in site.pages()}
        assert root.progress(run)["count"] == len(site.pages())
        for relay in (eu, paris):
            below = relay.json("GET", "/api/v1/runs", params={"limit": 1000})["results"]
            grown = [each for each in below if each["type"] == "crawl"]
            assert sum(each["count"] for each in grown) == len(site.pages()), "each page once, in runs that do not grow"


def test_what_items_remember_is_kept_by_the_root_and_comes_down_with_the_next_run(levels: list[LocalTree]) -> None:
    root = levels[0]
    with serving() as server:
        url = server.put("/news.xml", rss(item("One", "1"), item("Two", "2")))
        feed = [{"key": "news", "url": url}]
        assert len(done(root, root.submit("feed_update", feed))) == 2
        assert [asked.etag for asked in server.taken()] == [None]
        assert done(root, root.submit("feed_update", feed)) == []
        (asked,) = server.taken()
        assert asked.etag is not None

"""A child that fetches its work itself, from a parent that lets nobody wait: knocked at, it comes at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.drivable import ours
from tests.acceptance.trees import QUICK, until

RUNS = 6


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    settings = {**QUICK, "CASCADE_LONG_POLL_SECONDS": "0", "CASCADE_FALLBACK_WORKERS": "0"}
    with LocalTree(tmp_path_factory.mktemp("knock"), env=settings) as tree:
        tree.introduce(Child("served"))
        key = tree.keys["served"]
        port = ours(
            tree,
            "served",
            CASCADE_PARENT=tree.url,
            CASCADE_CARRIER="pull",
            CASCADE_ACCESS_KEY=key["access_key"],
            CASCADE_SECRET_KEY=key["secret_key"],
        )
        address = {"api_url": f"http://127.0.0.1:{port}"}
        tree.json("PATCH", f"/api/v1/nodes/{tree.nodes()['served']['id']}", json=address)
        until(lambda: tree.nodes()["served"]["state"] == "online")
        tree.wait(tree.submit("echo", ["warm"]))
        yield tree


def test_work_is_fetched_at_once_because_of_the_knock(tree):
    """It would come by itself once a second; six runs one after the other would take about as many seconds."""
    began = time.monotonic()
    for number in range(RUNS):
        run = tree.submit("echo", [f"i{number}"])
        assert tree.wait(run, every=0.01)["state"] == "completed"
    assert time.monotonic() - began < 0.6 * RUNS

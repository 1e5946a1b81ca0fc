"""A small herd on the real wire: claims that wait hold no threads, and all children are back after a parent's death."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from cascade.local import LocalTree
from tests.chaos.herd import ENV, Herd

pytestmark = pytest.mark.long

CHILDREN = 60


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("herd"), env={**ENV, "CASCADE_BEAT_SECONDS": "1"}) as tree:
        yield tree


def test_a_herd_waits_without_threads_works_and_survives_its_parents_death(tree):
    with Herd(tree, CHILDREN, processes=1) as herd:
        seen = herd.wait(60)
        assert len(seen.back) == CHILDREN
        # A third of them hold a claim that waits for work, none of them a thread.
        assert psutil.Process(tree.pid("parent")).num_threads() < CHILDREN / 2
        run = tree.submit("echo", [f"i{number}" for number in range(3 * CHILDREN)], shard_size=1)
        tree.wait(run, timeout=150, until=lambda progress: progress["saved"] >= CHILDREN)
        herd.seen(clear=True)
        tree.kill("parent")
        tree.start_parent()
        assert len(herd.wait(60).back) == CHILDREN
        assert tree.wait(run, timeout=150)["state"] == "completed"
        seen = herd.seen()
        assert seen.gone == 0, "leases were lost"
        assert not [status for status in seen.statuses if status >= 500]
    rows = tree.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"})
    assert len(rows) == len({row["item"] for row in rows}) == 3 * CHILDREN

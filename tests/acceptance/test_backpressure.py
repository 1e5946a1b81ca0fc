"""A parent that is behind says so before it takes anything: children keep their results, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, allocations, numbered, until

LIMIT = 100_000
ROWS = 3000
"""Beyond what travels inside a report, so that segments are uploaded."""
CHILDREN = [Child("push", 2, carrier="push"), Child("pull", 2, carrier="pull")]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[LocalTree]:
    """Its saver stands still in its first batch while the file ``held`` is there."""
    (tmp_path / "held").touch()
    held = {"CASCADE_FAILPOINTS": "store.rows=hold", "FAILPOINTS_HOLD": str(tmp_path / "held")}
    env = {**QUICK, **held, "CASCADE_SPOOL_LIMIT": str(LIMIT), "CASCADE_FALLBACK_WORKERS": "0"}
    with LocalTree(tmp_path / "tree", children=CHILDREN, env=env) as tree:
        yield tree
        (tmp_path / "held").unlink(missing_ok=True)


def spooled(tree: LocalTree) -> int:
    return sum(file.stat().st_size for file in (tree.data_dir / "spool").glob("*.arrow"))


def kept(tree: LocalTree, name: str) -> int:
    """Segments in a child's outbox."""
    return len(list(tree.folder(name).glob("*.arrow")))


def test_uploads_stop_at_the_limit_while_the_saver_stands_still_and_go_on_afterwards(tree, tmp_path):
    items = numbered(30)
    run = tree.submit("echo", items, params={"rows": ROWS}, shard_size=1)
    until(lambda: all("wait to be saved" in tree.tail(child.name, 200) for child in CHILDREN), what="a 429")
    size = spooled(tree)
    assert LIMIT / 2 < size < 2 * LIMIT
    assert tree.progress(run)["saved"] == 0
    # What is done meanwhile stays with the children, which go on beating.
    until(lambda: kept(tree, "push") and kept(tree, "pull"))
    assert {node["state"] for node in tree.nodes().values()} == {"online"}
    refused = tree.request("POST", "/api/v1/runs", json={"type": "echo", "items": ["more"]})
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    (tmp_path / "held").unlink()
    assert tree.wait(run, timeout=90)["state"] == "completed"
    assert account(tree, run, items, rows_each=ROWS) == EVEN
    # Nobody gave up: what was asked to wait was reported by whom it was given to.
    assert {each["state"] for each in allocations(tree, run)} <= {"completed", "superseded"}
    assert until(lambda: not kept(tree, "push") and not kept(tree, "pull"))

"""A parent on PostgreSQL and Redis instead of SQLite and memory, by two settings: the same promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cascade.local import PARENT, Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, executing, numbered, until
from tests.servers import postgresql, redis


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    with postgresql() as database_url, redis() as redis_url:
        env = {**QUICK, "CASCADE_DATABASE_URL": database_url, "CASCADE_REDIS_URL": redis_url}
        folder = tmp_path_factory.mktemp("servers")
        with LocalTree(folder, children=children, env=env) as tree:
            assert not (folder / "cascade.sqlite3").exists()
            yield tree


def test_a_run_over_both_carriers_saves_every_row_once(tree: LocalTree) -> None:
    items = numbered(120)
    run = tree.submit("echo", items, shard_size=1)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN


def test_a_parent_killed_in_the_middle_goes_on_where_it_was(tree: LocalTree) -> None:
    items = numbered(40, "killed")
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1)
    until(lambda: executing(tree, run))
    tree.kill(PARENT)
    tree.restart(PARENT)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN


def test_a_child_killed_in_the_middle_loses_nothing(tree: LocalTree) -> None:
    items = numbered(40, "child")
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1)
    until(lambda: executing(tree, run, "puller"))
    tree.kill("puller", machine=True)
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN

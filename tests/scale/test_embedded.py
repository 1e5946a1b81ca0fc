"""Two `runserver` processes and PostgreSQL, nothing else: no Redis, dispatcher or child; the leader works itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cascade.local import LocalTree, free_port
from tests.acceptance.trees import EVEN, account, numbered, until
from tests.scale.trees import ScaleTree
from tests.servers import postgresql_server

pytestmark = pytest.mark.long

EMBEDDED = {"CASCADE_DISPATCHER": "embedded", "CASCADE_FALLBACK_WORKERS": "2", "CASCADE_FALLBACK_SECONDS": "0"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScaleTree]:
    folder = tmp_path_factory.mktemp("embedded")
    with postgresql_server() as postgresql, ScaleTree(folder, postgresql, dispatchers=(), env=EMBEDDED) as tree:
        until(tree.leader, what="a leader")
        yield tree


def test_a_server_of_another_make_hears_of_work_and_leaves_leading_to_others(tree):
    """``daphne cascade.asgi:application``, which no command of ours starts."""
    port = free_port()
    argv = [tree.python, "-m", "daphne", "-p", str(port), "cascade.asgi:application"]
    tree.spawn("other", argv)
    until(lambda: tree.answers(port), what="an answer of daphne")
    listens = f"application_name LIKE 'cascade % {tree.pid('other')} %' AND query LIKE 'LISTEN%'"
    until(lambda: tree.sessions(listens), what="daphne in the talk between processes")
    run = tree.submit("echo", numbered(4))
    assert tree.wait(run)["state"] == "completed"
    assert tree.leader() in ("web1", "web2")


def test_one_of_them_leads_and_when_it_is_killed_the_other_one_ends_the_run(tree):
    items = numbered(40)
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["saved"] >= 4)
    first = tree.leader()
    told = tree.manage_json("dispatcher", "--status")["leader"]
    assert told["pid"] == tree.pid(first)
    assert tree.manage_json("status")["leader"]["pid"] == tree.pid(first)
    tree.kill(first, machine=True)
    assert tree.another_leader(first) in ("web1", "web2")
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN


def test_without_postgresql_there_is_nothing_to_lead(tmp_path):
    alone = LocalTree(tmp_path)
    done = alone.manage("dispatcher", check=False)
    assert done.returncode == 2
    assert "database_url" in done.stderr

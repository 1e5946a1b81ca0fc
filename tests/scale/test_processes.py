"""A parent of several processes: whichever of them is killed or comes back, each item is saved once.

Longer, and with more at once, this is a part of ``make chaos`` (``tests.chaos.scale``).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from cascade.local import Child
from nodes import signing
from tests.acceptance.trees import EVEN, numbered, until
from tests.scale.trees import ScaleTree, saved
from tests.servers import postgresql_server, redis_server


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScaleTree]:
    children = [Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull")]
    with (
        postgresql_server() as postgresql,
        redis_server() as redis,
        ScaleTree(tmp_path_factory.mktemp("scale"), postgresql, redis, children=children) as tree,
    ):
        yield tree


def begun(tree: ScaleTree, name: str, count: int = 60) -> tuple[int, list[str]]:
    """A run of which some is saved and most is to come."""
    items = numbered(count, name)
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1)
    tree.wait(run, until=lambda progress: progress["saved"] >= 4)
    return run, items


def test_a_signed_request_that_one_process_took_is_refused_by_the_other(tree):
    headers = signing.sign("GET", f"{tree.url}/api/v1/agent/config", **tree.keys["puller"])
    # The same request to each of them; what was signed is the balancer's address, as children have it.
    headers["Host"] = f"127.0.0.1:{tree.port}"
    first, second = (
        requests.get(f"http://127.0.0.1:{port}/api/v1/agent/config", headers=headers, timeout=30)
        for port in tree.ports.values()
    )
    assert first.status_code == 200, first.text
    assert second.status_code == 401
    assert "replayed" in second.text


def test_when_the_leader_is_killed_the_other_goes_on(tree):
    run, items = begun(tree, "leader")
    killed = tree.leader()
    tree.kill(killed)
    tree.another_leader(killed)
    assert tree.wait(run)["state"] == "completed"
    tree.start_dispatcher(killed)
    assert saved(tree, run, items) == EVEN


def test_when_a_web_process_is_killed_its_children_go_on_at_the_other(tree):
    run, items = begun(tree, "web")
    tree.kill("web1")
    assert tree.wait(run)["state"] == "completed"
    tree.start_web("web1")
    until(lambda: tree.answers(tree.ports["web1"]), what="the web process that was killed")
    assert saved(tree, run, items) == EVEN


def test_while_redis_is_away_work_goes_on_and_afterwards_too(tree):
    run, items = begun(tree, "redis")
    tree.redis.kill()
    others = begun(tree, "away")
    tree.redis.start()
    assert tree.wait(run)["state"] == "completed"
    assert tree.wait(others[0])["state"] == "completed"
    assert saved(tree, run, items) == EVEN
    assert saved(tree, *others) == EVEN


def test_a_restart_of_postgresql_loses_nothing(tree):
    run, items = begun(tree, "database")
    tree.postgresql.stop()
    tree.postgresql.start()
    until(tree.leader, what="a leader")
    assert tree.wait(run)["state"] == "completed"
    assert saved(tree, run, items) == EVEN

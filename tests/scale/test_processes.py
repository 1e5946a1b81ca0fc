"""A parent of several processes: whichever of them is killed or comes back, each item is saved once.

Longer, and with more at once, this is a part of ``make chaos`` (``tests.chaos.scale``).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from cascade.local import Child
from nodes import signing
from tests.acceptance.trees import EVEN, account, numbered, until
from tests.integration.agents import Agent, opened
from tests.scale.trees import ScaleTree
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


def test_a_relay_is_asked_and_answers_whichever_process_its_socket_is_at(tree):
    relay = Agent(tree)
    counts = {"nodes": 1, "leaves": 1, "online": 1, "capacity": 2, "used": 0, "queued": 0, "depth": 1}
    said = {"role": "relay", "id": "ab" * 16, "slots": 2, "types": {}, "branches": [], "subtree": counts}
    with opened(relay) as socket, ThreadPoolExecutor() as pool:
        socket.beat(hello=True, **said)
        for port in tree.ports.values():
            address = f"http://127.0.0.1:{port}/api/v1/nodes/{relay.id}/below"
            asked = pool.submit(tree._session.get, address, timeout=30)
            (question,) = socket.next(lambda frame: frame["type"] == "ask")["ask"]
            about = {"node": "eu", "live": True, "children": [{"name": "berlin"}]}
            socket.ask("tell", {"answers": [{"id": question["id"], "body": about}]})
            answer = asked.result()
            assert answer.status_code == 200, answer.text
            assert [child["name"] for child in answer.json()["children"]] == ["berlin"]


def test_what_shards_print_is_seen_at_every_process_whichever_it_came_to(tree):
    run = tree.submit("echo", numbered(8, "said"), params={"seconds": 0.4, "log": "said"}, shard_size=4)
    addresses = [f"http://127.0.0.1:{port}/api/v1/runs/{run}/logs" for port in tree.ports.values()]

    def lines() -> list[list[dict[str, Any]]]:
        return [tree._session.get(address, timeout=30).json()["results"] for address in addresses]

    until(lambda: all(lines()), what="what is printed")
    assert tree.wait(run)["state"] == "completed"
    first, second = lines()
    assert first == second
    assert [line["number"] for line in first] == list(range(1, 9))
    assert {line["text"] for line in first} == {"said"}


def test_the_leader_and_a_web_process_are_killed_and_others_go_on(tree):
    run, items = begun(tree, "killed")
    leader = tree.leader()
    tree.kill(leader)
    tree.another_leader(leader)
    tree.kill("web1")  # its children come to the other one through the balancer
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    tree.start_web("web1")
    tree.start_dispatcher(leader)
    until(lambda: tree.answers(tree.ports["web1"]), what="the web process that was killed")


def test_redis_and_postgresql_go_and_come_back_and_nothing_is_lost(tree):
    run, items = begun(tree, "away")
    tree.redis.kill()
    beside = tree.submit("echo", ["without Redis"])
    assert tree.wait(beside)["state"] == "completed"
    tree.postgresql.stop()
    tree.redis.start()
    tree.postgresql.start()
    until(tree.leader, what="a leader")
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert account(tree, beside, ["without Redis"]) == EVEN

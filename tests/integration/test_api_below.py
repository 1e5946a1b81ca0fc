"""GET /api/v1/nodes/<id>/below and its page against a real parent; the relays are the test itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import requests

from cascade.local import LocalTree
from tests.integration import agents
from tests.integration.agents import NO_ROW, SOON, Agent, Socket, opened

SAID = {"nodes": 1, "leaves": 1, "online": 1, "capacity": 4, "used": 3, "queued": 1, "depth": 1}
CHILD = {"name": "p1", "role": "child", "state": "online", "capacity": 4, "used": 3, "queued": 1}
THERE = {"node": "paris", "live": True, "seconds_ago": 0.0, "below": SAID, "children": [{**CHILD, "id": 7}], "more": 0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with agents.parent(tmp_path_factory.mktemp("parent"), LONG_POLL_SECONDS="10") as tree:
        tree.sign_in()
        yield tree


@pytest.fixture
def relay(tree: LocalTree) -> Agent:
    agent = Agent(tree)
    beat(agent, hello=True)
    return agent


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def beat(agent: Agent, **more: Any) -> dict[str, Any]:
    said = {"role": "relay", "id": f"{agent.id:032x}", "slots": 4, "types": {"echo": 4}, "branches": [{}]}
    return agent.beat(**said, subtree={**SAID, "children": [CHILD], "more": 0}, **more)


def below(agent: Agent, path: str = "") -> requests.Response:
    return agent.tree.request("GET", f"/api/v1/nodes/{agent.id}/below", params={"path": path} if path else {})


def got(asked: Future[requests.Response]) -> dict[str, Any]:
    answer = asked.result(SOON)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_relay_that_pulls_is_asked_by_its_claim(relay: Agent, elsewhere: ThreadPoolExecutor) -> None:
    claimed = elsewhere.submit(relay.ask, "claim", {"slots": 1, "wait": SOON})
    asked = elsewhere.submit(below, relay, "paris")
    (question,) = claimed.result(SOON)["ask"]
    assert question["path"] == ["paris"]
    assert relay.ask("tell", {"answers": [{"id": question["id"], "body": THERE}]}) == {"taken": [question["id"]]}
    (child,) = got(asked)["children"]
    assert (child["name"], child["id"], child["used"], child["labels"]) == ("p1", 7, 3, None)


def test_a_relay_that_pushes_is_asked_on_its_socket(relay: Agent, elsewhere: ThreadPoolExecutor) -> None:
    with opened(relay) as socket:
        asked = elsewhere.submit(below, relay)
        (question,) = asked_on(socket)
        reply = socket.ask("tell", {"answers": [{"id": question["id"], "body": THERE}]})
        assert reply["body"] == {"taken": [question["id"]]}
    assert got(asked)["node"] == "paris"


def asked_on(socket: Socket) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = socket.next(lambda frame: frame["type"] == "ask")["ask"]
    return found


def test_nonsense_is_refused_and_whoever_asked_is_told_that_there_was_no_answer(
    relay: Agent, elsewhere: ThreadPoolExecutor
) -> None:
    other = Agent(relay.tree)
    asked = elsewhere.submit(below, relay)
    (question,) = agents.until(lambda: beat(relay).get("ask"))
    nonsense = {"id": question["id"], "body": {**THERE, "children": [{**CHILD, "capacity": "many"}]}}
    answer = relay.say("tell", {"answers": [nonsense]})
    assert (answer.status_code, answer.json()["field"]) == (400, "answers[0].body.children[0].capacity")
    assert other.ask("tell", {"answers": [{**nonsense, "body": THERE}]}) == {"taken": []}
    answer = asked.result(SOON)
    assert (answer.status_code, answer.json()["detail"].partition(":")[0]) == (504, f"{relay.name} does not answer")
    # Too late: nobody waits for it any more.
    assert relay.ask("tell", {"answers": [{**nonsense, "body": THERE}]}) == {"taken": []}


def test_who_is_no_relay_or_not_there_is_not_found(tree: LocalTree) -> None:
    plain = Agent(tree)
    answer = below(plain)
    assert (answer.status_code, answer.json()) == (404, {"detail": f"{plain.name} is no relay: nothing hangs below it"})
    assert tree.request("GET", f"/api/v1/nodes/{NO_ROW}/below").status_code == 404


def test_a_wrong_path_and_a_misspelt_parameter_are_named(relay: Agent) -> None:
    for path, what in (("a//b", "''"), ("../x", "'..'"), ("/".join("a" * 65), "65 names")):
        answer = below(relay, path)
        assert (answer.status_code, answer.json()["field"]) == (400, "path")
        assert what in answer.json()["detail"]
    answer = relay.tree.request("GET", f"/api/v1/nodes/{relay.id}/below", params={"pth": "x"})
    assert (answer.status_code, answer.json()["field"]) == (400, "pth")


def test_only_members_of_the_staff_are_told(relay: Agent) -> None:
    address = f"{relay.tree.url}/api/v1/nodes/{relay.id}/below"
    assert requests.get(address, timeout=SOON).status_code == 401
    assert relay.tree.request("POST", f"/api/v1/nodes/{relay.id}/below").status_code == 405
    page = requests.get(f"{relay.tree.url}/nodes/{relay.id}/below", allow_redirects=False, timeout=SOON)
    assert (page.status_code, page.headers["Location"]) == (302, f"/admin/login/?next=/nodes/{relay.id}/below")
    fragment = requests.get(f"{relay.tree.url}/nodes/{relay.id}/below?fragment", allow_redirects=False, timeout=SOON)
    assert fragment.status_code == 403


def test_a_relays_node_shows_its_branch_in_the_list(relay: Agent) -> None:
    node = relay.tree.nodes()[relay.name]
    assert node["subtree"] == {**SAID, "children": [{**CHILD, "below": None}], "more": 0}
    assert node["role"] == "relay"

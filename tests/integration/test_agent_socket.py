"""The agent's verbs over WebSocket against a real parent: the upgrade, frames, offers, cancels, a revoked key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cascade.local import LocalTree
from nodes import signing
from nodes.protocol import FRAME_BYTES_LIMIT
from tests.integration import agents
from tests.integration.agents import NO_ROW, Agent, Socket, done, opened, until


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with agents.parent(tmp_path_factory.mktemp("parent")) as tree:
        yield tree


@pytest.fixture
def agent(tree: LocalTree) -> Agent:
    return Agent(tree)


@pytest.fixture
def socket(agent: Agent) -> Iterator[Socket]:
    with opened(agent) as socket:
        yield socket


def refused(agent: Agent, headers: dict[str, str]) -> int:
    with pytest.raises(InvalidStatus) as raised, opened(agent, headers):
        pass
    return raised.value.response.status_code


# The upgrade


def test_a_signed_upgrade_opens_a_socket(agent):
    with opened(agent) as socket:
        assert socket.beat()["node"] == agent.name


def test_a_plain_key_opens_a_socket_where_it_is_allowed(tree):
    agent = Agent(tree, plain=True)
    with opened(agent) as socket:
        assert socket.beat()["node"] == agent.name
    agent.tree.json("PATCH", f"/api/v1/nodes/{agent.id}", json={"allow_plain_key": False})
    assert refused(agent, agent.headers("GET", "/ws/agent")) == 403


def test_an_upgrade_that_is_not_signed_is_refused(agent):
    assert refused(agent, {}) == 403


def test_a_replayed_upgrade_is_refused(agent):
    headers = agent.headers("GET", "/ws/agent")
    with opened(agent, headers):
        pass
    assert refused(agent, headers) == 403


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret_key": signing.new_key()[1]},
        {"access_key": signing.new_key()[0]},
        {"created": 1_000_000_000},
    ],
    ids=["another secret", "an unknown key", "an old signature"],
)
def test_an_upgrade_with_a_wrong_signature_is_refused(agent, wrong):
    assert refused(agent, agent.headers("GET", "/ws/agent", **wrong)) == 403


def test_a_signature_for_another_address_opens_no_socket(agent):
    assert refused(agent, agent.headers("GET", "/api/v1/agent/beat")) == 403


def test_a_revoked_key_opens_no_socket(agent):
    agent.tree.json("DELETE", f"/api/v1/keys/{agent.key['access_key']}")
    assert refused(agent, agent.headers("GET", "/ws/agent")) == 403


# Frames


@pytest.mark.parametrize("text", ["{", "nul", "", "[" * 20_000, b"\x00\x01"])
def test_a_frame_that_is_not_json_is_answered_and_the_socket_stays(socket, agent, text):
    socket.say(text)
    reply = socket.next(lambda frame: frame["type"] == "reply")
    assert reply["status"] == 400
    assert reply["body"]["detail"] == "is not JSON"
    assert socket.beat()["node"] == agent.name


@pytest.mark.parametrize(
    "frame",
    [[], 1, None, {}, {"type": "claim", "body": {}}, {"type": "offer"}, {"type": "node.close"}, {"type": ["beat"]}],
)
def test_a_frame_of_another_kind_is_answered_and_the_socket_stays(socket, agent, frame):
    socket.say(frame)
    reply = socket.next(lambda frame: frame["type"] == "reply")
    assert reply["status"] == 400
    assert reply["body"]["field"] == "type"
    assert "accept, beat, log, release, report, tell" in reply["body"]["detail"]
    assert socket.beat()["node"] == agent.name


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("accept", {}, "allocations"),
        ("beat", {"cpu": "hot"}, "cpu"),
        ("release", {"allocations": "all"}, "allocations"),
        ("report", {"reports": [{}]}, "reports[0].allocation"),
        ("report", None, "body"),
        ("log", {"logs": [[1, 0, "x" * 16_001]]}, "logs[0]"),
        ("beat", [], "body"),
    ],
)
def test_a_wrong_value_names_its_field_in_the_reply(socket, agent, verb, body, field):
    reply = socket.ask(verb, body)
    assert (reply["status"], reply["body"]["field"]) == (400, field)
    assert socket.beat()["node"] == agent.name


def test_replies_are_to_their_messages_in_any_number(socket):
    for number in range(20):
        socket.say({"type": "accept", "id": f"m{number}", "body": {"allocations": [NO_ROW + number]}})
    replies = [socket.next(lambda frame: frame["type"] == "reply") for _ in range(20)]
    assert {reply["re"]: reply["body"]["gone"] for reply in replies} == {
        f"m{number}": [NO_ROW + number] for number in range(20)
    }


def test_a_frame_of_the_largest_size_passes(socket):
    ids = list(range(NO_ROW, NO_ROW + 19_000))
    padding = "x" * (FRAME_BYTES_LIMIT - 19_000 * 14 - 200)
    reply = socket.ask("accept", {"allocations": ids, "padding": padding})
    assert reply["body"]["gone"] == ids


# Work


def test_work_is_offered_accepted_and_reported(socket, agent):
    socket.beat(hello=True)
    run = agent.submit("a", "b")
    work = socket.offered(2)
    ids = [parcel[0] for parcel in work]
    assert not any(agent.allocation(id)["delivered"] for id in ids)
    assert socket.ask("accept", {"allocations": ids})["body"] == {"gone": []}
    assert all(agent.allocation(id)["delivered"] for id in ids)
    reply = socket.ask("report", {"reports": [done(parcel) for parcel in work]})
    assert [result["status"] for result in reply["body"]["results"]] == [200, 200]
    assert agent.tree.wait(run)["state"] == "completed"
    assert sorted(row["item"] for row in agent.rows(run)) == ["a", "b"]


def test_logs_come_over_a_socket_and_over_rest_one_after_the_other(socket, agent):
    run, (parcel,) = agent.work("a")
    for number in range(10):
        body = {"logs": [[parcel[0], 2 * number, f"{number}\n"]]}
        assert (socket.ask("log", body)["body"] if number % 2 else agent.ask("log", body)) == {"gone": []}
    page = agent.tree.json("GET", f"/api/v1/runs/{run}/logs")
    assert [(line["text"], line["missing"]) for line in page["results"]] == [(str(number), 0) for number in range(10)]


def test_an_offer_carries_all_that_is_needed_to_run_it(socket, agent):
    socket.beat(hello=True)
    run = agent.submit("a", params={"rows": 3}, timeout=5, priority=9)
    offer = socket.next(lambda frame: frame["type"] == "offer")
    assert offer["runs"] == {
        str(run): {"type": "echo", "params": {"rows": 3, "seconds": 0.0}, "timeout": 5, "priority": 9}
    }
    ((_, of, start, stop, attempt, items),) = offer["work"]
    assert (of, start, stop, attempt, items) == (run, 0, 1, 1, ["a"])


def test_what_waits_already_is_offered_when_the_socket_opens(agent):
    agent.beat(hello=True)
    run = agent.submit("a")
    until(lambda: agent.tree.progress(run)["in_flight"])
    with opened(agent) as socket:
        assert socket.offered(1)[0][1] == run


def test_an_offer_is_made_once_a_socket_and_again_on_the_next(agent):
    with opened(agent) as first:
        first.beat(hello=True)
        agent.submit("a")
        (parcel,) = first.offered(1)
        agent.submit("b")
        assert first.offered(1)[0][0] != parcel[0]
    with opened(agent) as second:
        assert parcel[0] in [each[0] for each in second.offered(2)]


def test_what_was_offered_may_be_claimed_and_reported_by_rest(agent):
    with opened(agent) as socket:
        socket.beat(hello=True)
        run = agent.submit("a")
        (parcel,) = socket.offered(1)
    assert agent.granted(1)[0][0] == parcel[0]
    agent.ask("report", {"reports": [done(parcel)]})
    assert agent.tree.wait(run)["rows"] == 1


def test_a_report_may_come_before_the_accept(socket, agent):
    socket.beat(hello=True)
    run = agent.submit("a")
    (parcel,) = socket.offered(1)
    assert socket.ask("report", {"reports": [done(parcel)]})["body"]["results"][0]["status"] == 200
    assert socket.ask("accept", {"allocations": [parcel[0]]})["body"] == {"gone": [parcel[0]]}
    assert agent.tree.wait(run)["rows"] == 1


def test_a_refused_report_says_so_in_its_result(socket, agent):
    other = Agent(agent.tree)
    _, (theirs,) = other.work("a")
    reply = socket.ask("report", {"reports": [done(theirs)]})
    assert reply["status"] == 200
    assert reply["body"]["results"][0]["status"] == 404


def test_what_is_handed_back_is_offered_again_under_another_number(socket, agent):
    socket.beat(hello=True)
    run = agent.submit("a", max_attempts=1)
    (parcel,) = socket.offered(1)
    assert socket.ask("release", {"allocations": [parcel[0]]})["body"] == {"released": [parcel[0]]}
    (again,) = socket.offered(1)
    assert again[0] != parcel[0]
    socket.ask("report", {"reports": [done(again)]})
    assert agent.tree.wait(run)["state"] == "completed"


def test_a_cancel_is_a_frame(socket, agent):
    socket.beat(hello=True)
    run = agent.submit("a", "b")
    work = socket.offered(2)
    socket.ask("accept", {"allocations": [work[0][0]]})
    cancelled = time.monotonic()
    agent.tree.json("POST", f"/api/v1/runs/{run}/cancel")
    frame = socket.next(lambda frame: frame["type"] == "cancel")
    assert time.monotonic() - cancelled < 2
    assert sorted(frame["ids"]) == [parcel[0] for parcel in work]
    reply = socket.ask("report", {"reports": [done(work[0])]})
    assert reply["body"]["results"][0]["status"] == 409


def test_work_is_not_offered_to_a_drained_node(socket, agent):
    socket.beat(hello=True)
    agent.tree.json("POST", f"/api/v1/nodes/{agent.id}/drain")
    run = agent.submit("a")
    with pytest.raises(TimeoutError):
        socket.next(lambda frame: frame["type"] == "offer", seconds=1.5)
    agent.tree.json("POST", f"/api/v1/nodes/{agent.id}/resume")
    assert socket.offered(1)[0][1] == run


# A key that ends


def test_after_a_revocation_a_message_saves_nothing_and_the_socket_closes(socket, agent):
    socket.beat(hello=True)
    run = agent.submit("a")
    (parcel,) = socket.offered(1)
    agent.tree.json("DELETE", f"/api/v1/keys/{agent.key['access_key']}")
    with suppress(ConnectionClosed):  # it is closed at once, mostly before the message arrives
        socket.say({"type": "report", "id": 99, "body": {"reports": [done(parcel)]}})
    assert socket.closed() == 4401
    assert agent.tree.progress(run)["saved"] == 0
    assert agent.rows(run) == []


def test_after_a_revocation_nothing_is_offered(socket, agent):
    socket.beat(hello=True)
    agent.tree.json("DELETE", f"/api/v1/keys/{agent.key['access_key']}")
    agent.submit("a")
    with pytest.raises((TimeoutError, ConnectionClosed)):
        socket.next(lambda frame: frame["type"] == "offer", seconds=1.5)


def test_a_deactivated_node_is_answered_401_and_its_socket_closes(socket, agent):
    socket.beat(hello=True)
    agent.tree.json("PATCH", f"/api/v1/nodes/{agent.id}", json={"active": False})
    reply = socket.ask("beat", {})
    assert reply["status"] == 401
    assert "not active" in reply["body"]["detail"]
    assert socket.closed() == 4401


def test_the_nodes_other_key_keeps_its_socket(socket, agent):
    second = agent.tree.json("POST", f"/api/v1/nodes/{agent.id}/rotate")
    first, agent.key = agent.key, {name: second[name] for name in ("access_key", "secret_key")}
    with opened(agent) as other:
        agent.tree.json("DELETE", f"/api/v1/keys/{first['access_key']}")
        assert other.beat()["node"] == agent.name
        assert socket.closed() == 4401


def test_a_peer_too_old_is_told_which_versions_fit_over_a_socket_too(agent):
    with opened(agent) as socket:
        reply = socket.ask("beat", {"hello": True, "boot": "one", "protocol": 0})
        assert reply["status"] == 426
        assert "this server 1 to 1" in reply["body"]["detail"]
        assert socket.beat(hello=True, protocol=9, of_tomorrow={})["protocol"] == 1


def test_a_message_for_another_server_is_421_over_a_socket_too(agent):
    with opened(agent) as socket:
        assert socket.ask("beat", {"held": [1], "parent": "e" * 32})["status"] == 421
        assert socket.ask("report", {"reports": [], "parent": "e" * 32})["status"] == 421

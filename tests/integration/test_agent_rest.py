"""The agent's verbs over plain HTTP against a real parent: signed, and with the plain key that curl would send."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cascade.local import LocalTree
from nodes import signing
from tests.integration import agents
from tests.integration.agents import NO_ROW, UPLOAD_LIMIT, Agent, done, echo_segment, until

VERBS = ["accept", "beat", "claim", "log", "release", "report", "tell"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with agents.parent(tmp_path_factory.mktemp("parent"), LONG_POLL_SECONDS="3") as tree:
        yield tree


@pytest.fixture(params=["signed", "plain"])
def either(request: pytest.FixtureRequest, tree: LocalTree) -> Agent:
    """The same node twice: once it signs, once it shows its plain key."""
    return Agent(tree, plain=request.param == "plain")


@pytest.fixture
def agent(tree: LocalTree) -> Agent:
    return Agent(tree)


def problem(answer: Any, status: int, field: str | None = None) -> str:
    """What a refusal says, which names ``field``."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.get("field") == field
    return str(body["detail"])


# The whole way


def test_a_run_goes_through_all_verbs(either):
    reply = either.beat(hello=True)
    assert reply["node"] == either.name
    run = either.submit("a", "b", "c")
    work = either.granted(3)
    held = [parcel[0] for parcel in work]
    assert either.beat(held=held, running=held)["cancel"] == []
    assert either.ask("release", {"allocations": held[2:], "detail": "too much"}) == {"released": held[2:]}
    reply = either.ask("report", {"reports": [done(parcel) for parcel in work[:2]]})
    assert [result["status"] for result in reply["results"]] == [200, 200]
    again = either.granted(1)
    assert again[0][2:4] == work[2][2:4]
    assert again[0][0] != work[2][0]
    either.ask("report", {"reports": [done(again[0])]})
    assert either.tree.wait(run)["state"] == "completed"
    assert sorted((row["item"], row["_node"]) for row in either.rows(run)) == [
        (item, either.name) for item in ("a", "b", "c")
    ]


def test_what_a_shard_prints_is_in_its_runs_log_while_it_runs(either):
    run, (parcel,) = either.work("a")
    assert either.beat(held=[parcel[0]], running=[parcel[0]])["logs"] is True
    assert either.ask("log", {"logs": [[parcel[0], 0, "begins\n"], [NO_ROW, 0, "?"]]}) == {"gone": [NO_ROW]}
    page = either.tree.json("GET", f"/api/v1/runs/{run}/logs")
    assert [(line["text"], line["node_name"]) for line in page["results"]] == [("begins", either.name)]
    either.ask("report", {"reports": [{**done(parcel), "log": "begins\nends\n"}]})
    later = either.tree.json("GET", page["next"].removeprefix(either.tree.url))
    assert [line["text"] for line in later["results"]] == ["ends"]


# Beat


def test_a_beat_tells_what_the_parent_shows(agent):
    before = time.time()
    reply = agent.beat(cpu=12.5, memory=150.0, disk=None, carrier="push", version="9.9")
    node = agent.tree.nodes()[agent.name]
    assert (node["cpu"], node["memory"], node["disk"]) == (12.5, 100.0, None)
    assert (node["carrier"], node["version"], node["state"]) == ("push", "9.9", "online")
    assert reply["capacity"] == node["capacity"]
    assert reply["lease_seconds"] == 60
    assert reply["long_poll_seconds"] == 3
    assert before - 1 <= reply["time"] <= time.time() + 1
    assert reply["drain"] is False


def test_a_drained_node_hears_it_with_its_next_beat(agent):
    agent.beat()
    agent.tree.json("POST", f"/api/v1/nodes/{agent.id}/drain")
    assert agent.beat()["drain"] is True
    assert agent.ask("claim", {"slots": 1})["drain"] is True


def test_a_beat_renews_the_lease_of_what_it_names_and_no_other(agent):
    _, (first, second) = agent.work("a", "b")
    before = [agent.allocation(parcel[0])["deadline"] for parcel in (first, second)]
    agent.beat(held=[first[0]])
    after = [agent.allocation(parcel[0])["deadline"] for parcel in (first, second)]
    assert after[0] > before[0]
    assert after[1] == before[1]


def test_a_beat_brings_back_what_is_not_live_here(agent):
    other = Agent(agent.tree)
    _, (mine,) = agent.work("a")
    _, (theirs,) = other.work("b")
    assert agent.beat(held=[mine[0], theirs[0], NO_ROW])["cancel"] == [theirs[0], NO_ROW]
    assert other.beat(held=[theirs[0]])["cancel"] == []


def test_progress_and_what_runs_are_shown(agent):
    _, (parcel,) = agent.work("a")
    agent.beat(held=[parcel[0]], running=[parcel[0]], progress={str(parcel[0]): 1})
    shown = agent.allocation(parcel[0])
    assert (shown["state"], shown["progress"]) == ("executing", 1)


def test_a_hello_hands_back_what_the_node_lost_at_once(agent):
    run, (kept, lost) = agent.work("a", "b")
    agent.beat(hello=True, boot="two", held=[kept[0]])
    assert agent.allocation(lost[0])["state"] == "expired"
    (again,) = agent.granted(1)
    assert again[2:4] == lost[2:4]
    agent.ask("report", {"reports": [done(kept), done(again)]})
    assert agent.tree.wait(run)["rows"] == 2


def test_a_beat_without_hello_hands_nothing_back(agent):
    _, (parcel,) = agent.work("a")
    agent.beat(held=[])
    assert agent.allocation(parcel[0])["state"] in ("pending", "executing")


def test_a_leaving_node_gets_nothing_more_but_keeps_its_leases(agent):
    _, (parcel,) = agent.work("a")
    agent.beat(held=[parcel[0]], leaving=True)
    assert agent.tree.nodes()[agent.name]["state"] == "offline"
    assert agent.allocation(parcel[0])["state"] in ("pending", "executing")
    agent.submit("b")
    assert agent.ask("claim", {"slots": 1, "wait": 1.5})["work"] == []


# Claim


def test_work_carries_all_that_is_needed_to_run_it(agent):
    agent.beat(hello=True)
    items = ["a", {"symbol": "B", "n": 1}]
    run = agent.submit(*items, params={"rows": 2}, timeout=12.5, shard_size=2, priority=7)
    reply = until(lambda: (reply := agent.ask("claim", {"slots": 1, "wait": 5}))["work"] and reply)
    assert reply["runs"] == {
        str(run): {"type": "echo", "params": {"rows": 2, "seconds": 0.0}, "timeout": 12.5, "priority": 7}
    }
    ((_, of, start, stop, attempt, got),) = reply["work"]
    assert (of, start, stop, attempt, got) == (run, 0, 2, 1, items)


def test_what_was_claimed_is_not_claimed_again(agent):
    agent.work("a", "b")
    assert agent.ask("claim", {"slots": 4})["work"] == []


def test_two_claims_at_once_share_the_work_without_a_double(agent):
    agent.beat(hello=True)
    agent.submit(*[f"i{number}" for number in range(4)])
    with ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda _: agent.ask("claim", {"slots": 4, "wait": 0.5}), range(12)))
    claimed = [parcel[0] for reply in replies for parcel in reply["work"]]
    assert len(claimed) == len(set(claimed)) == 4


def test_a_waiting_claim_is_woken_by_new_work(agent):
    agent.beat(hello=True)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(agent.ask, "claim", {"slots": 1, "wait": 30})
        threading.Event().wait(0.3)  # it shall be waiting; were it not, the test would be easier, not wrong
        assert not waiting.done()
        submitted = time.monotonic()
        agent.submit("a")
        reply = waiting.result(agents.SOON)
        assert len(reply["work"]) == 1
        assert time.monotonic() - submitted < 3


def test_a_waiting_claim_brings_a_cancel(agent):
    run, (parcel,) = agent.work("a")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(agent.ask, "claim", {"slots": 0, "wait": 30, "held": [parcel[0]]})
        threading.Event().wait(0.3)
        cancelled = time.monotonic()
        agent.tree.json("POST", f"/api/v1/runs/{run}/cancel")
        assert waiting.result(agents.SOON)["cancel"] == [parcel[0]]
        assert time.monotonic() - cancelled < 2


def test_a_claim_ends_empty_when_its_time_is_up(agent):
    agent.beat(hello=True)
    began = time.monotonic()
    assert agent.ask("claim", {"slots": 1, "wait": 0.6})["work"] == []
    assert 0.6 <= time.monotonic() - began < 4


def test_a_claim_waits_no_longer_than_the_parent_allows(agent):
    agent.beat(hello=True)
    began = time.monotonic()
    assert agent.ask("claim", {"slots": 1, "wait": 1e9})["work"] == []
    assert 3 <= time.monotonic() - began < 10


# Accept


def test_accepting_starts_the_lease_and_names_what_is_gone(agent):
    _, (parcel, gone) = agent.work("a", "b")
    agent.ask("release", {"allocations": [gone[0]]})
    before = agent.allocation(parcel[0])["deadline"]
    assert agent.ask("accept", {"allocations": [parcel[0], gone[0], NO_ROW]}) == {"gone": [gone[0], NO_ROW]}
    # It was delivered by the claim already, so nothing begins anew.
    assert agent.allocation(parcel[0])["deadline"] == before


# Release


def test_what_is_handed_back_goes_to_somebody_else_without_an_attempt_counted(agent):
    run, (parcel,) = agent.work("a", max_attempts=1)
    agent.ask("release", {"allocations": [parcel[0]], "detail": "the node stops"})
    shown = agent.allocation(parcel[0])
    assert shown["state"] == "cancelled"
    assert "the node stops" in shown["error"]
    (again,) = agent.granted(1)
    agent.ask("report", {"reports": [done(again)]})
    assert agent.tree.wait(run)["state"] == "completed"


def test_another_nodes_work_cannot_be_handed_back_or_accepted(agent):
    other = Agent(agent.tree)
    _, (theirs,) = other.work("a")
    assert agent.ask("release", {"allocations": [theirs[0]]}) == {"released": []}
    assert agent.ask("accept", {"allocations": [theirs[0]]}) == {"gone": [theirs[0]]}
    assert other.beat(held=[theirs[0]])["cancel"] == []


# Report


def statuses(reply: dict[str, Any]) -> list[int]:
    return [result["status"] for result in reply["results"]]


def test_the_same_report_again_has_the_same_receipt_and_saves_nothing_more(agent):
    run, (parcel,) = agent.work("a")
    first = agent.ask("report", {"reports": [done(parcel)]})["results"][0]
    agent.tree.wait(run)
    second = agent.ask("report", {"reports": [done(parcel, seconds=9, log="later")]})["results"][0]
    assert second["receipt"] == first["receipt"]
    assert second["repeated"] is True
    assert len(agent.rows(run)) == 1


def test_another_report_of_the_same_allocation_is_refused(agent):
    run, (parcel,) = agent.work("a")
    agent.ask("report", {"reports": [done(parcel)]})
    other = done(parcel, rows=[["a", 0, "other"]])
    answer = agent.say("report", {"reports": [other]})
    assert answer.status_code == 422
    assert "another content" in answer.json()["results"][0]["detail"]
    agent.tree.wait(run)
    assert [row["value"] for row in agent.rows(run)] == ["a:0"]


def test_a_report_after_a_cancel_saves_nothing(agent):
    run, (parcel,) = agent.work("a")
    agent.tree.json("POST", f"/api/v1/runs/{run}/cancel")
    answer = agent.say("report", {"reports": [done(parcel)]})
    assert answer.status_code == 409
    assert "cancelled" in answer.json()["results"][0]["detail"]
    assert agent.rows(run) == []


def test_another_nodes_allocation_cannot_be_reported(agent):
    other = Agent(agent.tree)
    run, (theirs,) = other.work("a")
    answer = agent.say("report", {"reports": [done(theirs)]})
    assert answer.status_code == 404
    assert str(theirs[0]) in answer.json()["results"][0]["detail"]
    other.ask("report", {"reports": [done(theirs)]})
    assert [row["_node"] for row in until(lambda: other.rows(run))] == [other.name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranges": [], "rows": []}, "exactly once"),
        ({"ranges": [[5, 6, 1]]}, "exactly once"),
        ({"errors": [[0, "also failed", False]]}, "exactly once"),
        ({"rows": [["a", "no number", "x"]]}, "number"),
        ({"rows": [["a", 0]]}, "3"),
    ],
)
def test_a_report_that_contradicts_the_record_is_refused_and_a_right_one_still_accepted(agent, change, says):
    run, (parcel,) = agent.work("a")
    answer = agent.say("report", {"reports": [done(parcel, **change)]})
    assert answer.status_code == 422
    assert says in answer.json()["results"][0]["detail"]
    assert statuses(agent.ask("report", {"reports": [done(parcel)]})) == [200]
    assert agent.tree.wait(run)["rows"] == 1


def test_one_bad_entry_does_not_cost_the_others(agent):
    run, (good, bad) = agent.work("a", "b")
    reply = agent.ask("report", {"reports": [done(good), done(bad, ranges=[], rows=[]), {"allocation": NO_ROW}]})
    assert statuses(reply) == [200, 422, 404]
    until(lambda: len(agent.rows(run)) == 1)


def test_failed_items_are_named_and_the_others_saved(agent):
    agent.beat(hello=True)
    run = agent.submit("a", "b", "c", shard_size=3)
    (parcel,) = agent.granted(1)
    report = done(parcel, ranges=[[0, 1, 1], [2, 3, 1]], errors=[[1, "no such symbol", False]])
    report["rows"] = [report["rows"][0], report["rows"][2]]
    agent.ask("report", {"reports": [report]})
    assert agent.tree.wait(run)["state"] == "partial"
    (failed,) = agent.tree.json("GET", f"/api/v1/runs/{run}/items")["results"]
    assert (failed["index"], failed["item"], failed["node"]) == (1, "b", agent.name)
    assert "no such symbol" in failed["error"]
    assert sorted(row["item"] for row in agent.rows(run)) == ["a", "c"]


def test_a_failure_of_the_whole_shard_is_tried_again_until_attempts_run_out(agent):
    run, (parcel,) = agent.work("a", max_attempts=2, backoff=0)
    failure = {"kind": "error", "message": "no licence"}
    agent.ask("report", {"reports": [{"allocation": parcel[0], "failure": failure, "log": "Traceback"}]})
    (again,) = agent.granted(1)
    assert again[4] == 2
    agent.ask("report", {"reports": [{"allocation": again[0], "failure": failure}]})
    assert agent.tree.wait(run)["state"] == "failed"
    shown = agent.allocation(parcel[0])
    assert (shown["state"], shown["error"], shown["log"]) == ("failed", "no licence", "Traceback")


# Segments


def test_rows_may_come_as_a_segment_which_several_reports_share(either):
    run, (first, second) = either.work("a", "b")
    sha256 = either.upload(echo_segment("a", "b"))
    reports = [done(parcel, rows=None, segment=sha256, offset=at) for at, parcel in enumerate((first, second))]
    assert statuses(either.ask("report", {"reports": reports})) == [200, 200]
    either.tree.wait(run)
    assert sorted((row["item"], row["_allocation"]) for row in either.rows(run)) == [
        ("a", first[0]),
        ("b", second[0]),
    ]


def test_a_segment_may_be_larger_than_other_bodies(agent):
    large = echo_segment(*[f"{hashlib.sha256(str(number).encode()).hexdigest()}" for number in range(9000)])
    assert len(large) > 2 * UPLOAD_LIMIT
    agent.upload(large)


def test_the_same_segment_again_does_no_harm(agent):
    content = echo_segment("twice")
    assert agent.upload(content) == agent.upload(content)


def test_a_report_of_a_segment_that_is_not_here_asks_for_it(agent):
    run, (parcel,) = agent.work("a")
    content = echo_segment("a", "never uploaded before")
    report = done(parcel, rows=None, segment=hashlib.sha256(content).hexdigest())
    answer = agent.say("report", {"reports": [report]})
    assert answer.status_code == 412
    assert "upload it" in answer.json()["results"][0]["detail"]
    agent.upload(content)
    assert statuses(agent.ask("report", {"reports": [report]})) == [200]
    assert agent.tree.wait(run)["rows"] == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no Arrow file at all", "segment"),
        (b"", "segment"),
        (echo_segment(), "not in the segment"),
    ],
)
def test_a_segment_that_cannot_hold_the_rows_is_refused_with_its_report(agent, content, says):
    _, (parcel,) = agent.work("a")
    sha256 = agent.upload(content)
    answer = agent.say("report", {"reports": [done(parcel, rows=None, segment=sha256)]})
    assert answer.status_code == 422
    assert says in answer.json()["results"][0]["detail"]


def test_a_segment_under_another_hash_is_refused(either):
    content = echo_segment("a", either.name)
    other = hashlib.sha256(b"other").hexdigest()
    detail = problem(either.send("PUT", f"segments/{other}", content), 400, "sha256")
    assert other in detail
    assert hashlib.sha256(content).hexdigest() in detail


@pytest.mark.parametrize("name", ["short", "G" * 64, "A" * 64, "a" * 63, "..%2F..%2Fetc%2Fpasswd"])
def test_a_segment_whose_name_is_no_hash_is_refused(agent, name):
    answer = agent.send("PUT", f"segments/{name}", b"x")
    assert answer.status_code in (400, 404)


def test_a_segment_altered_on_its_way_is_refused(agent):
    content = echo_segment("as signed", agent.name)
    altered = echo_segment("altered!!", agent.name)
    for name in (content, altered):
        path = f"/api/v1/agent/segments/{hashlib.sha256(name).hexdigest()}"
        headers = agent.headers("PUT", path, content)
        answer = agent.send("PUT", path.removeprefix("/api/v1/agent/"), altered, headers)
        assert "Content-Digest" in problem(answer, 401)


def test_a_segment_from_a_stranger_is_refused(agent):
    assert agent.send("PUT", f"segments/{'a' * 64}", b"x", {}).status_code == 401


# What is wrong with a request


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"nul", b"[" * 50_000, b'{"a":' + b"1" * 5000 + b"}"])
def test_what_is_not_json_is_a_400(agent, verb, content):
    problem(agent.send("POST", verb, content), 400, "body")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("body", [[], "text", 1, None, True])
def test_what_is_no_object_is_a_400(agent, verb, body):
    problem(agent.say(verb, body), 400, "body")


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("accept", {}, "allocations"),
        ("accept", {"allocations": 7}, "allocations"),
        ("accept", {"allocations": [-1]}, "allocations"),
        ("accept", {"allocations": [2**63]}, "allocations"),
        ("release", {}, "allocations"),
        ("release", {"allocations": [True]}, "allocations"),
        ("release", {"allocations": [1], "detail": 5}, "detail"),
        ("claim", {"slots": -1}, "slots"),
        ("claim", {"slots": "many"}, "slots"),
        ("claim", {"wait": -0.1}, "wait"),
        ("claim", {"wait": 10**400}, "wait"),
        ("claim", {"held": {}}, "held"),
        ("beat", {"cpu": "hot"}, "cpu"),
        ("beat", {"carrier": "pigeon"}, "carrier"),
        ("beat", {"progress": {"x": 1}}, "progress"),
        ("beat", {"progress": []}, "progress"),
        ("beat", {"executors": ["Echo!"]}, "executors.0"),
        ("beat", {"boot": 7}, "boot"),
        ("log", {}, "logs"),
        ("log", {"logs": [[1, 0, "x" * 16_001]]}, "logs[0]"),
        ("report", {}, "reports"),
        ("report", {"reports": {}}, "reports"),
        ("report", {"reports": [{}]}, "reports[0].allocation"),
        ("report", {"reports": [{"allocation": 1}, {"allocation": 1}]}, "reports[1].allocation"),
        ("report", {"reports": [{"allocation": 1, "ranges": [[0, 1, 2]]}]}, "reports[0].rows"),
        ("report", {"reports": [{"allocation": 1, "ranges": [[1, 0, 0]]}]}, "reports[0].ranges"),
        ("report", {"reports": [{"allocation": 1, "errors": [[0, "x"]]}]}, "reports[0].errors"),
        ("report", {"reports": [{"allocation": 1, "segment": "../x"}]}, "reports[0].segment"),
        ("report", {"reports": [{"allocation": 1, "seconds": -1}]}, "reports[0].seconds"),
        ("report", {"reports": [{"allocation": 1, "failure": {"kind": "bad luck"}}]}, "reports[0].failure.kind"),
    ],
)
def test_a_wrong_value_is_a_400_that_names_its_field(agent, verb, body, field):
    detail = problem(agent.say(verb, body), 400, field)
    assert detail


@pytest.mark.parametrize("verb", VERBS)
def test_a_body_above_the_limit_is_a_413(agent, verb):
    content = json.dumps({"allocations": [], "reports": [], "padding": "x" * UPLOAD_LIMIT}).encode()
    assert str(UPLOAD_LIMIT) in problem(agent.send("POST", verb, content), 413, "body")


@pytest.mark.parametrize("verb", ["nothing", "Beat", "execute", "x" * 500])
def test_an_unknown_verb_is_a_404_that_lists_the_known_ones(agent, verb):
    detail = problem(agent.say(verb, {}), 404)
    assert all(known in detail for known in VERBS)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_a_405_that_says_which_is_allowed(agent, verb, method):
    answer = agent.send(method, verb)
    problem(answer, 405)
    assert answer.headers["Allow"] == "POST"


def test_a_segment_is_put(agent):
    answer = agent.send("POST", f"segments/{'a' * 64}", b"x")
    problem(answer, 405)
    assert answer.headers["Allow"] == "PUT"


# Who is it?


@pytest.mark.parametrize("verb", VERBS)
def test_a_request_without_a_key_changes_nothing_and_says_how_to_show_one(agent, verb):
    answer = agent.send("POST", verb, b"{}", {})
    assert "AK-SK" in problem(answer, 401)
    assert answer.headers["WWW-Authenticate"].startswith("AK-SK")


def test_an_operators_token_is_no_childs_key(agent):
    token = agent.tree.json(
        "POST", "/api/v1/token", json={"username": agent.tree.username, "password": agent.tree.password}
    )["access"]
    problem(agent.send("POST", "beat", b"{}", {"Authorization": f"Bearer {token}"}), 401)


def test_a_childs_key_opens_nothing_else(either):
    answer = either.session.get(
        f"{either.tree.url}/api/v1/nodes", headers=either.headers("GET", "/api/v1/nodes"), timeout=30
    )
    assert answer.status_code == 401


def test_a_signed_request_is_accepted_once(agent):
    headers = agent.headers("POST", "/api/v1/agent/beat", b"{}")
    assert agent.send("POST", "beat", b"{}", headers).status_code == 200
    assert "replayed" in problem(agent.send("POST", "beat", b"{}", headers), 401)


def test_a_signature_is_for_one_address_method_and_body(agent):
    def signed(method: str = "POST", path: str = "/api/v1/agent/release", content: bytes = b'{"allocations":[1]}'):
        return agent.headers(method, path, content)

    content = b'{"allocations":[1]}'
    assert agent.send("POST", "release", content, signed()).status_code == 200
    for headers in (signed(method="PUT"), signed(path="/api/v1/agent/accept"), signed(content=b'{"allocations":[2]}')):
        problem(agent.send("POST", "release", content, headers), 401)
    problem(agent.send("POST", "release?more=1", content, signed()), 401)


def test_a_wrong_clock_is_told_the_time(agent):
    headers = agent.headers("POST", "/api/v1/agent/beat", b"{}", created=int(time.time()) - 600)
    answer = agent.send("POST", "beat", b"{}", headers)
    assert "s behind the server's time" in problem(answer, 401)
    assert abs(float(answer.json()["time"]) - time.time()) < 5


def test_a_wrong_secret_is_refused(either):
    either.key["secret_key"] = signing.new_key()[1]
    problem(either.say("beat", {}), 401)


def test_a_revoked_key_changes_nothing(either):
    run, (parcel,) = either.work("a")
    either.tree.json("DELETE", f"/api/v1/keys/{either.key['access_key']}")
    for verb, body in [
        ("report", {"reports": [done(parcel)]}),
        ("release", {"allocations": [parcel[0]]}),
        ("accept", {"allocations": [parcel[0]]}),
        ("beat", {"held": [parcel[0]]}),
        ("claim", {"slots": 1}),
    ]:
        problem(either.say(verb, body), 401)
    assert either.send("PUT", f"segments/{'a' * 64}", b"x").status_code == 401
    assert either.tree.progress(run)["in_flight"] == 1
    assert either.allocation(parcel[0])["state"] in ("pending", "executing")


def test_a_revocation_ends_a_claim_that_waits(agent):
    agent.beat(hello=True)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(agent.say, "claim", {"slots": 1, "wait": 30})
        threading.Event().wait(0.3)
        agent.tree.json("DELETE", f"/api/v1/keys/{agent.key['access_key']}")
        run = agent.submit("a")
        answer = waiting.result(agents.SOON)
    assert answer.status_code == 401 or answer.json()["work"] == []
    assert agent.tree.progress(run)["saved"] == 0


def test_plain_keys_can_be_switched_off(agent):
    agent.tree.json("PATCH", f"/api/v1/nodes/{agent.id}", json={"allow_plain_key": False})
    plain = {"Authorization": "AK-SK {access_key}:{secret_key}".format(**agent.key)}
    assert "sign requests" in problem(agent.send("POST", "beat", b"{}", plain), 403)
    agent.beat()


def test_a_deactivated_node_is_refused_and_says_why(either):
    either.tree.json("PATCH", f"/api/v1/nodes/{either.id}", json={"active": False})
    assert "not active" in problem(either.say("beat", {}), 401)


# Peers of other versions

STRANGE = {"of_tomorrow": {"deep": [1, 2]}, "flags": None}


def test_a_peer_too_old_is_told_which_versions_fit_and_gets_nothing(agent):
    refusal = agent.say("beat", {"hello": True, "boot": "one", "protocol": 0, "executors": ["echo"]})
    told = problem(refusal, 426)
    assert f"{agent.name} speaks version 0 of the protocol, this server 1 to 1: update {agent.name}" in told
    assert agent.tree.nodes()[agent.name]["state"] != "online"


def test_a_newer_peer_is_answered_in_the_version_that_both_speak(agent):
    assert agent.beat(hello=True, protocol=9)["protocol"] == 1


def test_fields_that_this_version_does_not_know_are_ignored_in_every_verb(agent):
    agent.beat(hello=True, protocol=9, role="of_tomorrow", **STRANGE)
    run = agent.submit("a", "b")
    work: list[list[Any]] = []

    def claimed() -> bool:
        work.extend(agent.ask("claim", {"slots": 2, "wait": 1, **STRANGE})["work"])
        return len(work) == 2

    until(claimed)
    assert agent.ask("accept", {"allocations": [work[0][0]], **STRANGE}) == {"gone": []}
    assert agent.ask("release", {"allocations": [work[1][0]], **STRANGE}) == {"released": [work[1][0]]}
    work += agent.granted(1)
    for parcel in (work[0], work[2]):
        reply = agent.ask("report", {"reports": [done(parcel, **STRANGE)], **STRANGE})
        assert [each["status"] for each in reply["results"]] == [200]
    assert agent.tree.wait(run)["state"] == "completed"


def test_a_relay_of_tomorrow_is_understood_as_far_as_it_goes(agent):
    told = {"role": "relay", "id": "f" * 32, "slots": 3, "types": {"echo": 3}, "branches": [{}], "racks": 7}
    reply = agent.beat(hello=True, protocol=9, **told, **STRANGE)
    assert [name for _, name in reply["path"]]
    node = agent.tree.nodes()[agent.name]
    assert (node["state"], node["role"]) == ("online", "relay")


def test_a_message_for_another_server_is_421_on_every_verb(agent):
    for name in VERBS:
        body = {"allocations": [1], "reports": [], "slots": 1, "parent": "e" * 32}
        assert agent.say(name, body).status_code == 421

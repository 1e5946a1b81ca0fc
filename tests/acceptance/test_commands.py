"""The commands an operator types against a running tree: what they say, and their exit statuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from cascade.local import Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, until


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("worker", 2, ["echo=1"])]
    with LocalTree(tmp_path_factory.mktemp("commands"), children=children, env=QUICK) as tree:
        yield tree


# submit


def test_submit_waits_for_a_run_that_completes_and_ends_with_0(tree):
    done = tree.manage("submit", "echo", "--item", "a", "--item", '{"key": "b"}', "--param", "rows=2", "--wait")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    begun = re.fullmatch(r"run (\d+): 2 items of echo", lines[0])
    assert begun is not None
    number = begun[1]
    assert lines[1] == f"run {number} completed: 2 of 2 items saved, 4 rows"
    assert done.stderr == ""


def test_submit_ends_with_1_for_a_run_that_does_not_and_names_what_failed(tree):
    done = tree.manage(
        "submit", "data_import", "--item", "IBM", "--item", "NOPE", "--param", "source=sample", "--wait", check=False
    )
    assert done.returncode == 1
    assert re.search(r"run \d+ partial: 1 of 2 items saved, \d+ rows, 1 failed", done.stdout)
    assert "'NOPE' is not in the sample" in done.stdout
    assert re.search(r"run \d+ ended partial", done.stderr)


def test_submit_without_wait_returns_at_once_and_json_is_for_programs(tree, tmp_path):
    (tmp_path / "items").write_text("c\nd\n\n")
    done = tree.manage("submit", "echo", "--items-file", str(tmp_path / "items"), "--name", "nightly", "--json")
    run = json.loads(done.stdout)
    assert (run["count"], run["state"]) == (2, "running")
    assert tree.wait(run["run"])["state"] == "completed"
    assert tree.json("GET", f"/api/v1/runs/{run['run']}")["name"] == "nightly"
    assert account(tree, run["run"], ["c", "d"]) == EVEN


WRONG = [
    (["submit", "nothing", "--item", "a"], 2, "'nothing' is not a task type; known are: data_import, echo"),
    (["submit", "echo"], 2, "items: is empty"),
    (["submit", "echo", "--item", "a", "--param", "rows=many"], 2, "params.rows: 'many' is not a whole number"),
    (["submit", "echo", "--item", "a", "--param", "rows"], 2, "--param 'rows' is not NAME=VALUE"),
    (["submit", "echo", "--item", "a", "--priority", "11"], 2, "priority: 11"),
    (["submit", "echo", "--item", "a", "--split", "year"], 2, "split: 'year': echo items cannot be split"),
    (["submit", "echo", "--items-file", "/no/such/file"], 2, "--items-file: "),
    (["node", "add", "worker"], 1, "a node called 'worker' exists already"),
    (["node", "add", "small", "--capacity", "2", "--quota", "echo=3"], 1, "--quota echo=3: 3 is above the node's"),
    (["node", "add", "small", "--quota", "nothing=1"], 1, "--quota nothing=1: 'nothing' is not a task type"),
    (["node", "drain", "nobody"], 1, "no node is called 'nobody'; there are: worker"),
    (["node", "revoke", "worker", "--key", "CN123"], 1, "worker has no key CN123"),
    (["signin", "nobody"], 1, "member of the staff"),
]


def test_wrong_input_is_refused_in_one_line_with_its_own_status(tree):
    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(lambda wrong: tree.manage(*wrong[0], check=False), WRONG))
    for (arguments, status, says), done in zip(WRONG, ended, strict=True):
        assert says in done.stderr, (arguments, done.stderr)
        assert done.returncode == status, arguments
        assert "Traceback" not in done.stderr
    assert set(tree.nodes()) == {"worker"}


# node and status


def test_a_node_added_at_the_terminal_works_drains_rotates_and_goes(tree):
    done = tree.manage("node", "add", "fresh", "--capacity", "3", "--quota", "echo=2", "--url", tree.url)
    access, secret = re.findall(r"(?:access|secret) key  (\S+)", done.stdout)
    command = f"CASCADE_ACCESS_KEY={access} CASCADE_SECRET_KEY={secret} python -m nodes.agent --parent {tree.url}"
    assert command in done.stdout
    argv = [tree.python, *command.split(" python ")[1].split(), "--data-dir", str(tree.folder("fresh"))]
    tree.spawn("fresh", argv, {"CASCADE_ACCESS_KEY": access, "CASCADE_SECRET_KEY": secret})
    until(lambda: tree.nodes()["fresh"]["state"] == "online")

    assert "fresh is draining: it holds 0 live allocations" in tree.manage("node", "drain", "fresh").stdout
    listed = {each["name"]: each for each in json.loads(tree.manage("node", "list", "--json").stdout)}
    assert listed["fresh"]["state"] == "draining"
    assert listed["fresh"]["keys"] == [access]
    assert listed["worker"]["state"] == "online"
    tree.manage("node", "resume", "fresh")

    rotated = json.loads(tree.manage("node", "rotate", "fresh", "--json").stdout)
    assert "Revoked" in tree.manage("node", "revoke", "fresh", "--key", access).stdout
    until(lambda: "401: " in tree.tail("fresh"))
    assert tree.terminate("fresh") == 0
    tree.spawn(
        "fresh",
        argv,
        {"CASCADE_ACCESS_KEY": rotated["access_key"], "CASCADE_SECRET_KEY": rotated["secret_key"]},
    )
    until(lambda: tree.tail("fresh").count("we are 'fresh' with 3 slots") == 2)
    assert tree.terminate("fresh") == 0
    assert "Removed fresh." in tree.manage("node", "remove", "fresh").stdout
    assert "fresh" not in tree.nodes()


def test_status_shows_nodes_and_runs_to_people_and_to_programs(tree):
    run = tree.submit("echo", ["s"], name="shown")
    tree.wait(run)
    text, told = tree.manage("status").stdout, json.loads(tree.manage("status", "--json").stdout)
    assert re.search(r"worker\s.*online.*push.*0/2.*echo=1", text)
    assert re.search(rf"{run} shown.*echo.*completed.*1/1 saved", text)
    (worker,) = [node for node in told["nodes"] if node["name"] == "worker"]
    assert (worker["state"], worker["capacity"], worker["in_use"]) == ("online", 2, 0)
    assert run in [each["run"] for each in told["runs"]]


# signin


def test_a_sign_in_link_opens_the_page_once(tree):
    link = tree.manage("signin", tree.username, "--url", tree.url).stdout.strip()
    assert link.startswith(tree.url)
    with requests.Session() as browser:
        browser.trust_env = False
        page = browser.get(link, timeout=30)
        assert page.status_code == 200
        assert "worker" in page.text
    with requests.Session() as other:
        other.trust_env = False
        again = other.get(link, timeout=30)
        assert "worker" not in again.text

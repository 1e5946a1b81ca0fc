"""A wrong or revoked key: the agent says so clearly and goes on trying, and nothing of the parent's changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cascade.local import Child, LocalTree
from nodes import signing
from tests.acceptance.trees import EVEN, QUICK, account, executing, label, numbered, rows, until

CARRIERS = ["push", "pull", "auto"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    children = [Child("revoked", 2, carrier="push"), Child("good", 2, carrier="pull")]
    with LocalTree(tmp_path_factory.mktemp("keys"), children=children, env=QUICK) as tree:
        yield tree


def test_a_wrong_secret_is_said_clearly_whatever_the_carrier_and_changes_nothing(tree):
    made = {by: tree.json("POST", "/api/v1/nodes", json={"name": f"wrong-{by}"}) for by in CARRIERS}
    label(tree, *(f"wrong-{by}" for by in CARRIERS))
    secret = signing.new_key()[1]
    for by in CARRIERS:
        argv = [tree.python, "-m", "nodes.agent", "--parent", tree.url, "--carrier", by]
        env = {"CASCADE_ACCESS_KEY": made[by]["access_key"], "CASCADE_SECRET_KEY": secret}
        tree.spawn(f"wrong-{by}", [*argv, "--data-dir", str(tree.folder(f"wrong-{by}"))], env)
    runs = [tree.submit("echo", ["x"], labels={"by": f"wrong-{by}"}) for by in CARRIERS]
    until(lambda: all("401: " in tree.tail(f"wrong-{by}") for by in CARRIERS))
    for by in CARRIERS:
        said = tree.log(f"wrong-{by}").read_text()
        assert "another key made it" in said
        assert secret not in said
        assert "Traceback" not in said
        assert tree.alive(f"wrong-{by}")
    for by in CARRIERS:
        node = tree.nodes()[f"wrong-{by}"]
        assert (node["last_beat_at"], node["version"], node["state"]) == (None, "", "offline")
        assert tree.terminate(f"wrong-{by}") == 0
    for run in runs:
        assert tree.progress(run)["pending"] == 1
        tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_after_a_revocation_in_mid_run_a_child_changes_nothing_and_others_take_its_work(tree):
    items = numbered(12)
    run = tree.submit("echo", items, params={"seconds": 0.6}, shard_size=1)
    until(lambda: executing(tree, run, "revoked"))
    tree.json("DELETE", f"/api/v1/keys/{tree.keys['revoked']['access_key']}")
    late = executing(tree, run, "revoked")
    assert late
    revoked_at = tree.json("GET", f"/api/v1/nodes/{tree.nodes()['revoked']['id']}/keys")[0]["revoked_at"]
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    saved_late = [row for row in rows(tree, run) if row["_node"] == "revoked" and row["_saved_at"] + "Z" > revoked_at]
    assert saved_late == []
    states = {tree.json("GET", f"/api/v1/allocations/{id}")["state"] for id in late}
    assert states == {"expired"}
    until(lambda: "401: " in tree.tail("revoked"))
    assert tree.alive("revoked")
    assert tree.nodes()["revoked"]["state"] == "offline"
    assert "Traceback" not in tree.log("revoked").read_text()


def test_with_its_new_key_the_child_works_again(tree):
    key = tree.json("POST", f"/api/v1/nodes/{tree.nodes()['revoked']['id']}/rotate")
    if tree.alive("revoked"):
        tree.kill("revoked", machine=True)
    tree.keys["revoked"] = {name: key[name] for name in ("access_key", "secret_key")}
    tree.restart("revoked")
    label(tree, "revoked")
    run = tree.submit("echo", ["again"], labels={"by": "revoked"})
    assert tree.wait(run)["state"] == "completed"


def test_two_agents_do_not_share_a_folder(tree):
    argv = [tree.python, "-m", "nodes.agent", "--parent", tree.url, "--data-dir", str(tree.folder("good"))]
    key = tree.keys["good"]
    tree.spawn("second", argv, {"CASCADE_ACCESS_KEY": key["access_key"], "CASCADE_SECRET_KEY": key["secret_key"]})
    until(lambda: not tree.alive("second"))
    assert "another agent uses" in tree.tail("second")
    assert "Traceback" not in tree.tail("second")
    assert tree.nodes()["good"]["state"] == "online"

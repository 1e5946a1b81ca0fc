"""Keys that change while everything runs: rotated by the child itself, killed in the middle of it, and revoked; and
clocks that are wrong, or that somebody in between says are.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from cascade.local import ROOT, LocalTree
from nodes import signing
from nodes.agent import clock as clocks
from nodes.agent.carriers import Refused, Rest
from nodes.agent.clock import ParentClock
from nodes.agent.config import AgentConfig
from tests.acceptance.trees import EVEN, QUICK, account, label, numbered, until

SOCKET_SECONDS = 5.0
"""Promised: so soon after a revocation the child's socket is closed."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    # Slow beats: what is seen sooner was not noticed by one.
    env = {**QUICK, "CASCADE_BEAT_SECONDS": "30", "CASCADE_LEASE_SECONDS": "90", "CASCADE_OFFLINE_SECONDS": "90"}
    with LocalTree(tmp_path_factory.mktemp("rotation"), env=env) as tree:
        yield tree


class Node:
    """A node with its keys in a file."""

    def __init__(self, tree: LocalTree, name: str) -> None:
        self.tree, self.name = tree, name
        made = tree.json("POST", "/api/v1/nodes", json={"name": name})
        self.id: int = made["id"]
        self.file = tree.data_dir / f"{name}.key"
        self.file.touch(mode=0o600)
        self.file.write_text(f"{made['access_key']}\n{made['secret_key']}\n")

    @property
    def pair(self) -> dict[str, str]:
        lines = self.file.read_text().split()
        return {"access_key": lines[0], "secret_key": lines[1]}

    def live(self) -> set[str]:
        keys = self.tree.json("GET", f"/api/v1/nodes/{self.id}/keys")
        return {key["access_key"] for key in keys if not key["revoked_at"]}

    @property
    def argv(self) -> list[str]:
        return [self.tree.python, "-m", "nodes.agent", "--parent", self.tree.url, "--key-file", str(self.file)]

    def rotate(self, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.tree._environment(), **env, "HOME": str(self.tree.data_dir)}
        return subprocess.run(
            [*self.argv, "--rotate"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90
        )

    def works(self) -> bool:
        """Whether the key in the file is taken by the parent."""
        url, body = f"{self.tree.url}/api/v1/agent/release", b'{"allocations": []}'
        pair = self.pair
        headers = signing.sign("POST", url, body, access_key=pair["access_key"], secret_key=pair["secret_key"])
        return bool(self.tree._session.post(url, data=body, headers=headers, timeout=30).status_code == 200)


def test_a_child_rotates_its_key_while_its_agent_works_and_the_old_one_is_worth_nothing(tree):
    node = Node(tree, "steady")
    label(tree, "steady")
    old = node.pair
    env = {"HOME": str(tree.data_dir)}
    tree.spawn("steady", node.argv, env)
    until(lambda: tree.nodes()["steady"]["state"] == "online")
    items = numbered(30)
    run = tree.submit("echo", items, params={"seconds": 0.1}, shard_size=1, labels={"by": "steady"})
    done = node.rotate()
    assert done.returncode == 0, done.stderr
    fresh = node.pair
    assert fresh["access_key"] != old["access_key"]
    assert fresh["secret_key"] not in done.stdout + done.stderr
    assert node.live() == {fresh["access_key"]}
    assert node.file.stat().st_mode & 0o777 == 0o600
    assert not node.file.with_name("steady.key.next").exists()
    assert tree.wait(run)["state"] == "completed"
    assert account(tree, run, items) == EVEN
    assert tree.terminate("steady") == 0
    # The folder where results wait is the one that it had: none are left behind in a rotation.
    assert [path.name for path in (tree.data_dir / "agent").iterdir()] == [old["access_key"]]
    tree.spawn("again", node.argv, env)
    run = tree.submit("echo", ["x"], labels={"by": "steady"})
    assert tree.wait(run)["state"] == "completed"
    assert tree.terminate("again") == 0
    assert [path.name for path in (tree.data_dir / "agent").iterdir()] == [old["access_key"]]


@pytest.mark.parametrize("point", ["rotate.accepted", "rotate.replaced"])
def test_a_rotation_killed_in_the_middle_leaves_a_key_that_works_and_is_finished_by_the_next(tree, point):
    node = Node(tree, point)
    old = node.pair
    killed = node.rotate(CASCADE_FAILPOINTS=f"{point}=kill")
    assert killed.returncode < 0, killed.stderr
    assert len(node.live()) == 2
    assert (node.pair == old) is (point == "rotate.accepted")
    assert node.works()
    assert node.rotate().returncode == 0
    assert node.live() == {node.pair["access_key"]}
    assert node.pair != old
    assert node.works()


def test_a_key_that_is_not_in_a_file_cannot_be_rotated_and_one_that_is_refused_stays(tree):
    node = Node(tree, "refused")
    before = node.file.read_text()
    tree.json("DELETE", f"/api/v1/keys/{node.pair['access_key']}")
    done = node.rotate()
    assert (done.returncode, "401" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert node.file.read_text() == before
    argv = [tree.python, "-m", "nodes.agent", "--parent", tree.url, "--rotate"]
    env = {**tree._environment(), "CASCADE_ACCESS_KEY": node.pair["access_key"]}
    env["CASCADE_SECRET_KEY"] = node.pair["secret_key"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)
    assert (done.returncode, "key_file" in done.stderr) == (1, True)


@pytest.mark.parametrize("by", ["this server", "another process"])
def test_the_socket_of_a_revoked_key_closes_within_seconds_and_the_other_keys_stays(tree, by):
    node = Node(tree, f"socket of {by}".replace(" ", "-"))
    other = tree.json("POST", f"/api/v1/nodes/{node.id}/keys")
    url = f"{tree.url}/ws/agent"
    address = url.replace("http", "ws", 1)
    pairs = [node.pair, {name: other[name] for name in ("access_key", "secret_key")}]
    first, second = (
        connect(address, additional_headers=signing.sign("GET", url, **pair), proxy=None, open_timeout=30)
        for pair in pairs
    )
    with first, second:
        if by == "this server":
            tree.json("DELETE", f"/api/v1/keys/{node.pair['access_key']}")
        else:
            tree.manage("node", "revoke", node.name, "--key", node.pair["access_key"])
        assert _closed(first, SOCKET_SECONDS) == 4401
        second.send('{"type": "release", "id": 1, "body": {"allocations": []}}')
        assert '"status":200' in str(second.recv(timeout=30))


def _closed(socket: Any, seconds: float) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=seconds)
    assert closed.value.rcvd is not None
    return int(closed.value.rcvd.code)


# Clocks

YEARS = 10 * 365 * 86_400


def rest(node: Node, parent: str, clock: ParentClock) -> Rest:
    pair = node.pair
    return Rest(AgentConfig(parent=parent, access_key=pair["access_key"], secret_key=pair["secret_key"]), clock)


def ask(line: Rest) -> Any:
    return asyncio.run(line.call("release", {"allocations": []}))


@pytest.mark.parametrize("off", [600, -600, YEARS, -YEARS])
def test_a_child_whose_clock_is_wrong_by_minutes_or_years_is_understood_at_its_second_try(tree, off, monkeypatch):
    node = Node(tree, f"off-by-{off}")
    shown = SimpleNamespace(time=lambda: time.time() + off, monotonic=time.monotonic)
    monkeypatch.setattr(clocks, "time", shown)
    clock = ParentClock()
    line = rest(node, tree.url, clock)
    assert ask(line) == {"released": []}
    assert abs(clock.offset + off) < 60
    # Learnt: from now on the first try is right, which the parent's log would tell otherwise.
    offset = clock.offset
    assert ask(line) == {"released": []}
    assert clock.offset == offset


def test_somebody_in_between_who_tells_ever_other_times_gets_few_requests_and_is_soon_forgotten(tree):
    node = Node(tree, "lied-to")
    heard: list[int] = []

    class Liar(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            heard.append(int(re.findall(r"created=(\d+)", self.headers["Signature-Input"])[0]))
            body = json.dumps({"detail": "no", "time": str(2_000_000_000 + 1_000_000 * len(heard))}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    clock = ParentClock()
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        line = rest(node, f"http://127.0.0.1:{server.server_port}", clock)
        for _ in range(12):
            with pytest.raises(Refused, match="401"):
                ask(line)
        server.shutdown()
        thread.join()
    ahead = [created for created in heard if created > time.time() + 3600]
    assert len(heard) <= 24
    assert len(ahead) <= clocks.TRIALS
    assert ask(rest(node, tree.url, clock)) == {"released": []}
    assert clock.offset == 0


def test_the_file_of_a_key_is_never_half_written(tmp_path: Path):
    from nodes.agent.rotation import write_whole

    file = tmp_path / "key"
    file.write_text("old")
    (tmp_path / "key.part").write_text("left behind by a crash")
    write_whole(file, "new")
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]

"""A tree of three levels as real processes: seen from the root in short always, in full when asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import until

pytestmark = pytest.mark.trees

ENV = {
    "CASCADE_FALLBACK_WORKERS": "0",
    "CASCADE_LEASE_SECONDS": "4",
    "CASCADE_BEAT_SECONDS": "0.5",
    "CASCADE_OFFLINE_SECONDS": "4",
}


class Levels:
    """root > eu > paris > p1, p2. eu pulls, paris pushes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        def below(above: LocalTree, name: str, *children: Child, **env: str) -> LocalTree:
            key = json.loads(above.manage("node", "add", name, "--capacity", "8", "--json").stdout)
            env = {**ENV, "CASCADE_NODE_NAME": name, **env}
            return stack.enter_context(LocalTree(folder / name, children=children, env=env, above=(above.url, key)))

        self.root = stack.enter_context(LocalTree(folder / "root", env={**ENV, "CASCADE_NODE_NAME": "root"}))
        self.eu = below(self.root, "eu", CASCADE_CARRIER="pull")
        self.paris = below(self.eu, "paris", Child("p1", capacity=2), Child("p2", capacity=3))
        until(lambda: self.branch().get("online") == 3)

    def branch(self) -> dict[str, Any]:
        return self.root.nodes()["eu"]["subtree"] or {}

    def below(self, path: str = "") -> dict[str, Any]:
        node = self.root.nodes()["eu"]["id"]
        found: dict[str, Any] = self.root.json("GET", f"/api/v1/nodes/{node}/below", params={"path": path})
        return found


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Levels]:
    with ExitStack() as stack:
        yield Levels(tmp_path_factory.mktemp("levels"), stack)


def test_the_root_sees_the_whole_tree_and_what_is_far_when_it_asks(levels: Levels) -> None:
    branch = levels.branch()
    assert {name: branch[name] for name in ("nodes", "leaves", "capacity", "depth")} == {
        "nodes": 3,
        "leaves": 2,
        "capacity": 5,
        "depth": 2,
    }
    # In full, level by level, down both carriers.
    assert [child["name"] for child in levels.below()["children"]] == ["paris"]
    far = {child["name"]: child for child in levels.below("paris")["children"]}
    assert {name: (child["state"], child["allowed"]) for name, child in far.items()} == {
        "p1": ("online", 2),
        "p2": ("online", 3),
    }
    assert far["p1"]["version"]
    # At a terminal.
    shown = levels.root.manage("tree", "--depth", "3").stdout
    lines = [re.sub(r"\s+", " ", line) for line in shown.splitlines()]
    assert lines[0] == "root: 4/4 nodes online, 0/5 slots in use, 3 levels"
    assert [line.partition(" child")[0].partition(" relay")[0] for line in lines[2:]] == [
        "└── eu",
        " └── paris",
        " ├── p1",
        " └── p2",
    ]
    asked = json.loads(levels.root.manage("tree", "--below", "eu/paris", "--json").stdout)
    assert [child["name"] for child in asked["nodes"]] == ["p1", "p2"]
    unknown = levels.root.manage("tree", "--below", "eu/rome", check=False)
    assert (unknown.returncode, "below eu: no node is called 'rome'; there are: paris" in unknown.stderr) == (3, True)
    # Each shard says which leaf ran it.
    run = levels.root.submit("echo", [f"i{number}" for number in range(20)], shard_size=1)
    assert levels.root.wait(run)["state"] == "completed"
    shards = levels.root.json("GET", "/api/v1/shards", params={"run": run})["results"]
    ways = {way for shard in shards for way in shard["ran_by"]}
    assert ways
    assert ways <= {"eu/paris/p1", "eu/paris/p2"}
    assert all(shard["ran_by"] for shard in shards)
    # A relay that is gone: what it said last. One below it cannot be asked.
    levels.eu.kill("parent")
    node = levels.root.nodes()["eu"]["id"]
    until(lambda: levels.root.nodes()["eu"]["state"] == "offline")
    kept = levels.below()
    assert (kept["live"], kept["below"]["nodes"], [child["name"] for child in kept["children"]]) == (
        False,
        3,
        ["paris"],
    )
    assert kept["seconds_ago"] > 0
    answer = levels.root.request("GET", f"/api/v1/nodes/{node}/below", params={"path": "paris"})
    assert (answer.status_code, "eu is offline" in answer.json()["detail"]) == (504, True)
    assert levels.root.manage("tree").stdout.startswith("root: 0/4 nodes online")

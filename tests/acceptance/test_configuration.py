"""Children have the parent's tasks, sources and settings within a beat, and run them when the parent is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cascade.local import PARENT, ROOT, Child, LocalTree
from nodes.agent.configuration import FILE, Damaged, Store
from tests.acceptance.trees import QUICK, until

BARS = {
    "name": "day bars",
    "type": "data_import",
    "params": {"start_date": "2010-01-01", "end_date": "2010-03-31"},
    "items": ["AAPL", "IBM"],
}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[LocalTree]:
    children = [Child("pusher", carrier="push"), Child("puller", carrier="pull")]
    with LocalTree(tmp_path, children=children, env={**QUICK, "CASCADE_FALLBACK_WORKERS": "0"}) as made:
        yield made


def agent(tree: LocalTree, child: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m nodes.agent`` on the child's machine, without keys."""
    command = [sys.executable, "-m", "nodes.agent", *arguments, "--data-dir", str(tree.folder(child))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def here(tree: LocalTree, child: str) -> dict[str, Any]:
    """What the child has, and {} for nothing whole."""
    try:
        version, content = Store(tree.folder(child)).read()
    except Damaged:
        return {}
    return {"version": version.number, **content}


def task_names(tree: LocalTree, child: str) -> list[str]:
    return [task["name"] for task in here(tree, child).get("tasks", [])]


def items(tree: LocalTree, child: str) -> list[Any]:
    """Of the first task that the child has."""
    found: list[Any] = next(iter(here(tree, child).get("tasks", [])), {"items": []})["items"]
    return found


def told(tree: LocalTree, child: str) -> int:
    """The version that the parent shows for the child."""
    return int(tree.nodes()[child]["config_version"] or 0)


def same(look: Callable[[LocalTree, str], Any], tree: LocalTree, child: str, wanted: Any) -> bool:
    return bool(look(tree, child) == wanted)


def put(tree: LocalTree) -> int:
    tree.json("PUT", "/api/v1/executors/data_import/settings", json={"source": "sample"})
    return int(tree.json("POST", "/api/v1/tasks", json=BARS)["id"])


def test_a_changed_task_is_with_every_child_and_runs_there_without_the_parent(tree: LocalTree, tmp_path: Path) -> None:
    task = put(tree)
    for child in tree.children:
        until(partial(same, task_names, tree, child, ["day bars"]), what=f"{child}'s list")
    first = here(tree, "puller")["version"]
    tree.json("PATCH", f"/api/v1/tasks/{task}", json={"items": ["AAPL"]})
    for child in tree.children:
        until(partial(same, items, tree, child, ["AAPL"]), what=f"{child}'s change")
        newest = here(tree, child)["version"]
        assert newest > first
        until(partial(same, told, tree, child, newest), what=f"the version of {child}")
    logged = tree.json("GET", "/api/v1/sync-logs", params={"operation": "config", "direction": "pull"})["results"]
    assert {entry["node_name"] for entry in logged} == set(tree.children)
    tree.kill(PARENT)

    listed = json.loads(agent(tree, "puller", "tasks", "--json").stdout)
    assert [(each["name"], each["items"]) for each in listed["tasks"]] == [("day bars", 1)]
    out = tmp_path / "out"
    done = agent(tree, "puller", "run", "day bars", "--out", str(out), "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    folder = Path(summary["folder"])
    assert (summary["done"], summary["failed"], summary["version"]) == (1, 0, newest)
    assert json.loads((folder / "summary.json").read_text())["rows"] == summary["rows"] > 50
    rows = pq.read_table(folder / summary["files"][0])
    assert rows.num_rows == summary["rows"]
    assert set(rows.column("symbol").to_pylist()) == {"AAPL"}
    assert not list(folder.glob("*.tmp"))

    unknown = agent(tree, "puller", "run", "no such task", "--out", str(out))
    assert (unknown.returncode, "day bars" in unknown.stderr) == (1, True)


def test_a_child_killed_while_it_wrote_fetches_again(tree: LocalTree) -> None:
    put(tree)
    until(lambda: task_names(tree, "pusher") == ["day bars"])
    tree.kill("pusher", machine=True)
    file = tree.folder("pusher") / FILE
    whole = file.read_bytes()
    # As a kill leaves them: a temporary file cut off, and (a disk that lied) the file itself cut off, too.
    file.with_suffix(".tmp").write_bytes(whole[: len(whole) // 3])
    file.write_bytes(whole[: len(whole) // 2])
    refused = agent(tree, "pusher", "run", "day bars")
    assert (refused.returncode, "not whole" in refused.stderr) == (1, True)
    tree.restart("pusher")
    until(lambda: task_names(tree, "pusher") == ["day bars"])
    assert file.read_bytes() == whole
    assert not file.with_suffix(".tmp").exists()


def test_a_machine_without_a_configuration_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nodes.agent", "run", "day bars", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no configuration" in done.stderr
    assert "Traceback" not in done.stderr

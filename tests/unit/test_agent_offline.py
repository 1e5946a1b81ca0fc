"""A task of the last configuration on this machine alone: what is done, what is tried again, what is left behind."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nodes.agent import offline, offline_run
from nodes.agent.configuration import Store

TASK = {
    "name": "echoes",
    "type": "echo",
    "params": {},
    "items": ["a", "b", "c"],
    "source_kind": "",
    "shard_size": 0,
    "timeout": 30.0,
    "max_attempts": 2,
    "backoff": 0.0,
    "cron": "",
}


def configure(folder: Path, *tasks: dict[str, Any], **content: Any) -> None:
    made = {"tasks": list(tasks), "sources": [], "settings": {}, "left_out": {"tasks": [], "sources": 0}, **content}
    text = json.dumps(made).encode()
    header = {"version": 4, "mark": "m", "digest": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    Store(folder).take(gzip.compress(json.dumps(header).encode() + b"\n" + text))


class Machine:
    """An agent's folder, and commands given beside it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.out = folder / "out"
        self._capsys = capsys

    def command(self, *arguments: str) -> tuple[int, str, str]:
        status = offline.main([*arguments, "--data-dir", str(self.folder)])
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def run(self, task: str = "echoes") -> dict[str, Any]:
        """Its summary, with the exit status."""
        status, out, err = self.command("run", task, "--out", str(self.out), "--workers", "2", "--json")
        assert out, err
        return {**json.loads(out), "status": status}

    def values(self, summary: dict[str, Any]) -> list[str]:
        files = [Path(summary["folder"]) / name for name in summary["files"]]
        return sorted(value for file in files for value in pq.read_table(file).column("value").to_pylist())


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path, capsys)


def test_all_items_are_done_once_and_their_rows_are_in_files(machine: Machine) -> None:
    configure(machine.folder, {**TASK, "shard_size": 1, "params": {"rows": 2}})
    done = machine.run()
    assert (done["status"], done["done"], done["failed"], done["rows"], done["version"]) == (0, 3, 0, 6, 4)
    assert machine.values(done) == sorted(f"{item}:{number}" for item in "abc" for number in (0, 1))
    assert sorted(file.name for file in Path(done["folder"]).iterdir()) == ["part-1.parquet", "summary.json"]


def test_rows_too_many_to_travel_inline_are_there_too_also_where_two_shards_have_the_same(machine: Machine) -> None:
    configure(machine.folder, {**TASK, "items": ["a", "a"], "shard_size": 1, "params": {"rows": 3000}})
    done = machine.run()
    assert (done["status"], done["rows"]) == (0, 6000)
    assert pq.read_table(Path(done["folder"]) / "part-1.parquet").num_rows == 6000


def test_a_crash_costs_its_item_and_no_other(machine: Machine) -> None:
    configure(machine.folder, {**TASK, "shard_size": 3, "params": {"crash_items": ["b"]}})
    done = machine.run()
    assert (done["status"], done["done"], done["failed"]) == (1, 2, 1)
    assert [(each["index"], each["item"]) for each in done["errors"]] == [(1, "b")]
    assert "died" in done["errors"][0]["error"]
    assert machine.values(done) == ["a:0", "c:0"]


def test_a_time_out_ends_a_shard(machine: Machine) -> None:
    configure(machine.folder, {**TASK, "items": ["a"], "timeout": 0.3, "max_attempts": 1, "params": {"seconds": 60}})
    done = machine.run()
    assert (done["status"], done["files"]) == (1, [])
    assert "time-out, 0.3 s" in done["errors"][0]["error"]


def test_what_may_end_otherwise_is_tried_again_with_back_off_and_what_may_not_is_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    fill = offline_run.OfflineRun._failed

    def count(self: Any, shard: Any, message: str, retry: bool) -> None:
        tries.append(shard.attempt)
        fill(self, shard, message, retry)

    monkeypatch.setattr(offline_run.OfflineRun, "_failed", count)
    configure(machine.folder, {**TASK, "items": ["a"], "max_attempts": 3, "backoff": 0.05, "params": {"fail": "no"}})
    done = machine.run()
    assert (tries, done["errors"][0]["error"]) == ([1, 2, 3], "no")
    assert done["seconds"] >= 0.15
    tries.clear()
    configure(machine.folder, {**TASK, "items": ["a"], "max_attempts": 3, "params": {"fail_items": ["a"]}})
    machine.run()
    assert tries == [1]


def test_items_are_the_active_sources_of_its_kind_and_settings_hold(machine: Machine) -> None:
    sources = [{"kind": "feed", "key": "f"}, {"kind": "symbol", "key": "s"}]
    task = {**TASK, "items": [], "source_kind": "symbol"}
    configure(machine.folder, task, sources=sources, settings={"echo": {"rows": 2}})
    assert machine.values(machine.run()) == ["s:0", "s:1"]


def test_two_runs_in_one_second_have_a_folder_each(machine: Machine) -> None:
    configure(machine.folder, {**TASK, "name": "../a b/ü"})
    folders = {machine.run("../a b/ü")["folder"] for _ in range(2)}
    assert len(folders) == 2
    assert {Path(folder).parent for folder in folders} == {machine.out}


def test_many_rows_are_in_several_files(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_run, "PART_ROWS", 100)
    configure(machine.folder, {**TASK, "shard_size": 1, "params": {"rows": 150}})
    done = machine.run()
    assert done["files"] == ["part-1.parquet", "part-2.parquet", "part-3.parquet"]
    assert len(set(machine.values(done))) == 450


def test_tasks_are_listed_with_the_version(machine: Machine) -> None:
    left_out = {"tasks": ["huge"], "sources": 0}
    configure(machine.folder, TASK, {**TASK, "name": "other", "type": "external"}, left_out=left_out)
    status, out, _ = machine.command("tasks")
    assert (status, out.splitlines()[0]) == (0, "configuration 4, 2 tasks, 0 sources")
    assert ("echoes" in out, "huge: too large" in out) == (True, True)
    assert [each["name"] for each in json.loads(machine.command("tasks", "--json")[1])["tasks"]] == ["echoes", "other"]


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({**TASK, "name": "other"}, "no active task 'echoes'; there are: other"),
        ({**TASK, "type": "external"}, "cannot be run here"),
        ({**TASK, "type": "unheard_of"}, "cannot be run here"),
        ({**TASK, "params": {"unheard": 1}}, "params.unheard"),
        ({**TASK, "items": []}, "items"),
    ],
)
def test_what_cannot_be_run_is_said(machine: Machine, task: dict[str, Any], says: str) -> None:
    configure(machine.folder, task)
    status, out, err = machine.command("run", "echoes", "--out", str(machine.out))
    assert (status, out) == (1, "")
    assert says in err
    assert not machine.out.exists()


def test_a_folder_that_cannot_be_written_is_named(machine: Machine) -> None:
    configure(machine.folder, TASK)
    machine.out.write_text("a file")
    status, _, err = machine.command("run", "echoes", "--out", str(machine.out))
    assert (status, str(machine.out) in err) == (1, True)

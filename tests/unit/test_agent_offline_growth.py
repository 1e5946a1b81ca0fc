"""A task of the last configuration whose items find further ones, and what only a parent can plan."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nodes import surroundings
from nodes.agent import offline
from nodes.agent.configuration import Store
from tests.acceptance.sites import Site, serving

PACE: dict[str, Any] = {"per_second": 1000, "at_once": 32}
WORKERS = 2
OPEN = "127.0.0.0/8"
TASK: dict[str, Any] = {
    "name": "site",
    "type": "crawl",
    "params": {"follow": True, "max_depth": 50, **PACE},
    "items": [],
    "source_kind": "",
    "shard_size": 0,
    "timeout": 30.0,
    "max_attempts": 1,
    "backoff": 0.0,
    "cron": "",
}
SEARCH = {"source": "sample", "symbols": ["AAPL"], "strategy": "ma_cross"}


class Machine:
    """An agent's folder, and commands given beside it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def run(self, task: dict[str, Any], **content: Any) -> tuple[dict[str, Any], str]:
        """The summary of ``task``, empty where it was refused, and what was said of errors."""
        made = {"tasks": [task], "sources": [], "settings": {}, "left_out": {"tasks": [], "sources": 0}, **content}
        text = json.dumps(made).encode()
        header = {"version": 1, "mark": "m", "digest": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
        Store(self.folder).take(gzip.compress(json.dumps(header).encode() + b"\n" + text))
        asked = ["run", task["name"], "--out", str(self.folder / "out"), "--workers", str(WORKERS), "--json"]
        status = offline.main([*asked, "--data-dir", str(self.folder)])
        said = self._capsys.readouterr()
        return ({**json.loads(said.out), "status": status} if said.out else {}), said.err

    def urls(self, summary: dict[str, Any]) -> list[str]:
        files = [Path(summary["folder"]) / name for name in summary["files"]]
        return sorted(value for file in files for value in pq.read_table(file).column("url").to_pylist())


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("CASCADE_ALLOWED_NETWORKS", OPEN)
    before = surroundings.current()
    yield Machine(tmp_path, capsys)
    surroundings.settle(before)


def test_what_items_find_is_done_too_and_each_once(machine: Machine) -> None:
    with serving(Site(30)) as site:
        done, _ = machine.run({**TASK, "items": [site.address, f"{site.address}/page/3"]})
        asked, pages = site.asked(), site.pages()
        assert 1 <= asked.pop("/robots.txt") <= WORKERS
        assert asked == dict.fromkeys(pages, 1)
    assert (done["status"], done["items"], done["done"], done["failed"]) == (0, len(pages), len(pages), 0)
    assert machine.urls(done) == sorted(site.address + path for path in pages)


def test_a_run_ends_at_the_most_items_that_its_params_allow(machine: Machine) -> None:
    with serving(Site(30)) as site:
        done, _ = machine.run({**TASK, "items": [site.address], "params": {**TASK["params"], "max_pages": 5}})
        assert len(site.log) <= 5 + WORKERS
    assert (done["status"], done["items"], done["done"], done["rows"]) == (0, 5, 5, 5)


def test_what_a_found_item_went_wrong_with_is_said_of_it(machine: Machine) -> None:
    class Broken(Site):
        def answer(self, path: str) -> tuple[int, str, str]:
            return (404, "text/html", "") if path == "/page/2" else super().answer(path)

    with serving(Broken(5)) as site:
        done, _ = machine.run({**TASK, "items": [site.address]})
    assert (done["status"], done["failed"]) == (1, 1)
    assert done["done"] == done["items"] - 1
    (error,) = done["errors"]
    assert error["item"] == f"{site.address}/page/2"
    assert "404" in error["error"]


def test_sources_are_fetched_from_their_addresses(machine: Machine) -> None:
    with serving(Site(1)) as site:
        kinds = ("url", "url", "feed")
        sources = [
            {"kind": kind, "key": f"s{number}", "name": f"S{number}", "address": f"{site.address}/page/0?{number}"}
            for number, kind in enumerate(kinds)
        ]
        still = {**TASK, "params": PACE}
        done, said = machine.run({**still, "source_kind": "url"}, sources=sources)
        assert done, said
        assert machine.urls(done) == [f"{site.address}/page/0?0", f"{site.address}/page/0?1"]
        done, _ = machine.run({**still, "items": ["s1"]}, sources=sources)
        assert machine.urls(done) == [f"{site.address}/page/0?1"]


def test_without_the_setting_nothing_on_this_machine_is_fetched(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASCADE_ALLOWED_NETWORKS")
    with serving(Site(1)) as site:
        done, _ = machine.run({**TASK, "items": [site.address]})
        assert site.log == []
    assert (done["status"], done["failed"]) == (1, 1)
    assert "allowed_networks" in done["errors"][0]["error"]


def test_a_search_that_learns_from_its_trials_is_left_to_a_parent(machine: Machine) -> None:
    task = {
        **TASK,
        "name": "search",
        "type": "optimization",
        "params": {**SEARCH, "space": {"fast": {"low": 2, "high": 90}}, "search": "tpe", "trials": 50},
    }
    done, said = machine.run(task)
    assert done == {}
    assert "planned by a parent" in said
    assert not (machine.folder / "out").exists()


def test_a_search_that_knows_its_trials_beforehand_makes_them_here(machine: Machine) -> None:
    task = {
        **TASK,
        "name": "search",
        "type": "optimization",
        "params": {**SEARCH, "space": {"fast": [5, 10]}, "search": "grid"},
    }
    done, said = machine.run(task)
    assert done, said
    assert (done["status"], done["items"], done["rows"]) == (0, 2, 2)


def test_items_of_a_table_are_left_to_the_parent_who_has_it(machine: Machine) -> None:
    done, said = machine.run({**TASK, "items_column": "pages.url"})
    assert done == {}
    assert "items_column" in said

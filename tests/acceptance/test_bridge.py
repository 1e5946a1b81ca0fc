"""A main program shares a task over nodes: none, one, several, and one that dies. Each row is there once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from cascade.client import Bridge, TaskResult
from cascade.local import ROOT, LocalTree
from nodes.protocol import FieldError
from tests.acceptance.drivable import SYMBOLS, active, all_bars, answers, as_rows, foreign, ours, yearly
from tests.acceptance.trees import QUICK, until

SAMPLE = {"source": "sample"}
IMPORT = {"symbols": SYMBOLS, "data_source": "sample"}


class Nodes:
    """A parent, two nodes of ours and two foreign ones; a bridge has those that a test names."""

    def __init__(self, tree: LocalTree) -> None:
        self.tree = tree
        self.ports = {name: ours(tree, name) for name in ("one", "two")}
        self.ports |= {name: foreign(tree, name, "--seconds", "0.2") for name in ("slow", "slower")}

    def join(self, bridge: Bridge, *names: str) -> Bridge:
        for name in names:
            bridge.add_node(name, "127.0.0.1", self.ports[name])
        return bridge

    def kill_when_busy(self, *names: str) -> threading.Thread:
        """kill -9 of nodes as soon as they work."""

        def kill() -> None:
            for name in names:
                until(partial(active, self.ports[name]))
            for name in names:
                self.tree.kill(name, machine=True)

        thread = threading.Thread(target=kill)
        thread.start()
        return thread

    def wake(self, *names: str) -> None:
        for name in names:
            self.tree.restart(name)
            answers(self.ports[name])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with LocalTree(tmp_path_factory.mktemp("bridge"), env={**QUICK, "CASCADE_FALLBACK_SECONDS": "0"}) as tree:
        yield Nodes(tree)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "results.duckdb"


def saved(store: Path, table: str = "kline") -> list[tuple[Any, ...]]:
    """Every row in the file, replaced ones too."""
    names = {
        "kline": "symbol, datetime, freq, open, high, low, close, volume, data_source",
        "echo": "item, number, value",
    }
    with duckdb.connect(str(store), read_only=True) as reading:
        rows = reading.execute(f"SELECT {names[table]} FROM {table}_rows").fetchall()
        (counted,) = reading.execute("SELECT sum(rows) FROM ledger").fetchone() or (0,)
    assert counted == len(rows)
    return sorted(tuple(cell.isoformat() if hasattr(cell, "isoformat") else cell for cell in row) for row in rows)


def assert_whole(result: TaskResult, store: Path) -> None:
    """All of the sample, in the answer and in the file, each bar once."""
    assert (result.status, result.error) == ("completed", None)
    assert result.result["symbols_count"] == result.result["imported_count"] == len(SYMBOLS)
    assert result.result["total_records"] == len(all_bars())
    assert result.result["errors"] == {}
    assert result.result["saved_to_db"] is True
    assert as_rows(result.result["kdata"]) == all_bars()
    assert saved(store) == all_bars()


def test_with_no_node_the_work_is_done_here(store):
    with Bridge(store=store) as bridge:
        result = bridge.run_task("none", "data_import", IMPORT)
    assert_whole(result, store)
    assert (result.result["distributed"], result.result["nodes_used"]) == (False, [])


def test_one_node_does_it_all(nodes, store):
    with nodes.join(Bridge(store=store, local_workers=0), "one") as bridge:
        result = bridge.run_task("one", "data_import", IMPORT)
    assert_whole(result, store)
    assert (result.result["distributed"], result.result["nodes_used"]) == (True, ["one"])


def test_several_nodes_share_it(nodes, store):
    with nodes.join(Bridge(store=store, local_workers=0), "one", "slow", "slower") as bridge:
        result = bridge.run_task("several", "data_import", {"items": yearly(), "params": SAMPLE})
    assert_whole(result, store)
    assert result.result["nodes_used"][-2:] == ["slow", "slower"]
    assert result.result["failed_nodes"] == []


def test_a_node_killed_in_the_middle_costs_no_row_and_doubles_none(nodes, store):
    with nodes.join(Bridge(store=store, local_workers=0), "slow", "slower") as bridge:
        bridge.get_available_nodes()
        killing = nodes.kill_when_busy("slower")
        result = bridge.run_task("killed", "data_import", {"items": yearly(), "params": SAMPLE})
        killing.join()
        assert [node.node_id for node in bridge.get_available_nodes()] == ["slow"]
    assert_whole(result, store)
    assert result.result["failed_nodes"] == ["slower"]
    nodes.wake("slower")


def test_where_every_node_dies_the_rest_is_done_here(nodes, store):
    items = [f"i{number}" for number in range(40)]
    with nodes.join(Bridge(store=store), "one", "two") as bridge:
        bridge.get_available_nodes()
        killing = nodes.kill_when_busy("one", "two")
        result = bridge.run_task("all", "echo", {"items": items, "params": {"seconds": 0.1}})
        killing.join()
    assert (result.status, result.error) == ("completed", None)
    assert result.result["failed_nodes"] == ["one", "two"]
    assert sorted(saved(store, "echo")) == sorted((item, 0, f"{item}:0") for item in items)
    assert sorted(map(tuple, result.result["rows"])) == saved(store, "echo")
    nodes.wake("one", "two")


def test_a_node_that_is_gone_already_is_not_asked(nodes, store):
    with nodes.join(Bridge(store=store, local_workers=0), "one") as bridge:
        bridge.add_node("nobody", "127.0.0.1", 9)
        result = bridge.run_task("gone", "data_import", IMPORT)
        assert [node.node_id for node in bridge.get_available_nodes()] == ["one"]
    assert_whole(result, store)
    assert result.result["failed_nodes"] == []


def test_a_node_that_hangs_does_not_hold_up_the_others(nodes, store):
    """It answers nothing for good; what it had goes to whoever is idle after some seconds."""
    with nodes.join(Bridge(store=store, local_workers=0), "one", "slow") as bridge:
        bridge.get_available_nodes()
        nodes.tree.pause("slow")
        try:
            result = bridge.run_task("hangs", "data_import", IMPORT, timeout=60)
        finally:
            nodes.tree.resume("slow")
    assert_whole(result, store)
    assert result.result["nodes_used"] == ["one"]
    assert result.execution_time < 30


def test_what_a_node_never_ends_is_given_to_an_idle_one_as_well(nodes, store):
    """It says running for ever, and is healthy; the first answer counts, and the other is called off."""
    port = foreign(nodes.tree, "stuck", "--seconds", "1000")
    with nodes.join(Bridge(store=store, local_workers=0), "one") as bridge:
        bridge.add_node("stuck", "127.0.0.1", port)
        result = bridge.run_task("stuck", "data_import", IMPORT, timeout=60)
    assert_whole(result, store)
    assert (result.result["nodes_used"], result.result["failed_nodes"]) == (["one"], [])
    until(lambda: not active(port))


def test_a_symbol_that_fails_costs_itself_and_is_named(nodes, store):
    data = {"symbols": ["FB", "NOPE", "FB"], "data_source": "sample"}
    with nodes.join(Bridge(store=store, local_workers=0), "slow") as bridge:
        result = bridge.run_task("part", "data_import", data)
    assert result.status == "completed"
    assert result.result["errors"] == {"NOPE": "NOPE is unknown here"}
    assert (result.result["symbols_count"], result.result["imported_count"]) == (2, 1)
    assert saved(store) == all_bars(["FB"])


def test_the_same_task_again_is_done_again_and_each_bar_stays_once(nodes, store):
    with nodes.join(Bridge(store=store, local_workers=0), "one") as bridge:
        for _ in range(2):
            assert bridge.run_task("daily", "data_import", IMPORT).result["saved_to_db"] is True
    with duckdb.connect(str(store), read_only=True) as reading:
        assert reading.execute("SELECT count(*) FROM kline").fetchone() == (len(all_bars()),)
        assert reading.execute("SELECT count(*) FROM kline_rows").fetchone() == (2 * len(all_bars()),)


async def test_async_programs_await_it_and_may_have_several_at_once(nodes, store):
    with nodes.join(Bridge(store=store, local_workers=0), "one", "two") as bridge:
        results = await asyncio.gather(
            *(
                bridge.execute_task(f"task {symbol}", "data_import", {**IMPORT, "symbols": [symbol]})
                for symbol in SYMBOLS
            )
        )
    assert [result.status for result in results] == ["completed"] * len(SYMBOLS)
    assert all(result.result["saved_to_db"] for result in results)
    assert saved(store) == all_bars()


async def test_a_task_that_is_cancelled_is_cancelled_on_its_nodes(nodes):
    with nodes.join(Bridge(local_workers=0), "slow") as bridge:
        waiting = asyncio.ensure_future(
            bridge.execute_task("cancelled", "data_import", {"items": yearly(), "params": SAMPLE})
        )
        await asyncio.to_thread(until, lambda: active(nodes.ports["slow"]))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(until, lambda: not active(nodes.ports["slow"]), 5)


def test_a_time_out_ends_it_with_what_is_done_and_the_rest_named(nodes, store):
    items = ["a", "b"]
    with Bridge(store=store, local_workers=2) as bridge:
        result = bridge.run_task("late", "echo", {"items": items, "params": {"seconds": 30}}, timeout=1.5)
    assert result.status == "failed"
    assert result.result["errors"] == dict.fromkeys(items, "not done within 1.5 s")
    assert result.execution_time < 10


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("type", {"task_type": "nonsense"}),
        ("task_data.symbols", {"task_data": {"data_source": "sample"}}),
        ("task_data.data_source", {"task_data": {"symbols": ["A"], "data_source": "nobody"}}),
        ("params.start_date", {"task_data": {**IMPORT, "start_date": "soon"}}),
        ("priority", {"priority": 11}),
        ("timeout", {"timeout": float("nan")}),
        ("task_id", {"task_id": ""}),
    ],
)
def test_what_could_never_be_run_is_refused_with_the_field(field, given):
    with Bridge() as bridge, pytest.raises(FieldError) as refused:
        bridge.run_task(**{"task_id": "t", "task_type": "data_import", "task_data": IMPORT, **given})
    assert refused.value.field == field


def test_rows_that_cannot_be_saved_are_in_the_answer_which_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with Bridge(store=tmp_path / "file" / "results.duckdb") as bridge:
        result = bridge.run_task("lost", "echo", {"items": ["a"]})
    assert result.result["saved_to_db"] is False
    assert "not saved" in (result.error or "")
    assert result.result["rows"] == [["a", 0, "a:0"]]


def test_through_a_parent_its_nodes_do_it_and_its_store_keeps_it(nodes):
    tree = nodes.tree
    with Bridge(parent=tree.url, username=tree.username, password=tree.password) as bridge:
        result = bridge.run_task("handed over", "data_import", {**IMPORT, "symbols": [*SYMBOLS, "NOPE"]})
    assert result.status == "completed"
    assert result.result["total_records"] == len(all_bars())
    assert (result.result["symbols_count"], result.result["imported_count"]) == (6, 5)
    assert list(result.result["errors"]) == ["NOPE"]
    assert result.result["saved_to_db"] is True
    assert as_rows(result.result["kdata"]) == all_bars()
    assert as_rows(tree.json("GET", f"/api/v1/runs/{result.result['run']}/results")) == all_bars()


PROGRAM = """
import json, os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "cascade.settings"
import django
django.setup()
from cascade.client import Bridge
with Bridge() as bridge:
    bridge.add_node("one", "127.0.0.1", int(sys.argv[1]))
    result = bridge.run_task("inside", "data_import", {"symbols": ["IBM", "FB", "NOPE"], "data_source": "sample"})
print(json.dumps([result.status, result.result["saved_to_db"], result.result["nodes_used"], result.result["run"]]))
"""


def test_inside_a_parents_django_it_is_a_run_like_every_other(nodes):
    """The running parent owns the store and saves it; this program brings the rows through the same door."""
    tree = nodes.tree
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(nodes.ports["one"])],
        cwd=ROOT,
        env=tree._environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    status, was_saved, used, run = json.loads(done.stdout)
    assert (status, was_saved, used) == ("completed", True, ["one"])
    progress = tree.progress(run)
    assert (progress["state"], progress["saved"], progress["failed"]) == ("partial", 2, 1)
    raw = tree.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"})
    assert as_rows(raw) == all_bars(["FB", "IBM"])
    assert {row["_node"] for row in raw} == {"bridge"}

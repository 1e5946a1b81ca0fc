"""Tasks handed directly to an agent, on a real one without a parent, with real workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from nodes.agent import direct
from nodes.agent.config import AgentConfig
from nodes.agent.direct import Busy, Order, Task, read_order
from nodes.agent.loop import Agent
from nodes.protocol import Conflict, FieldError, NotFound


@asynccontextmanager
async def running(folder: Path, workers: int = 2) -> AsyncIterator[Agent]:
    agent = Agent(AgentConfig(data_dir=folder, workers=workers, drain_seconds=5))
    life = asyncio.create_task(agent.run())
    await asyncio.sleep(0)  # it has begun
    try:
        yield agent
    finally:
        agent.stop()
        await asyncio.wait_for(life, 20)


def order(task_id: str, *, timeout: float = 60, **params: Any) -> Order:
    return Order(task_id, "echo", params, ["a", "b"], timeout, f"{task_id} {params}")


async def ended(agent: Agent, task: Task) -> Task:
    """``task`` with its worker's slot free again."""
    async with asyncio.timeout(20):
        while task.state == "running" or task in agent.direct._futures:
            await asyncio.sleep(0.01)
    return task


def result(task: Task) -> Any:
    assert task.result is not None
    return json.loads(task.result.read_text())


async def test_a_result_is_a_file_until_it_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        task = await ended(agent, agent.direct.submit(order("one", rows=2)))
        assert task.state == "completed"
        assert result(task)["rows"] == [["a", 0, "a:0"], ["a", 1, "a:1"], ["b", 0, "b:0"], ["b", 1, "b:1"]]
        assert result(task)["ranges"] == [[0, 2, 4]]
        assert (agent.tally.executed, agent.tally.failed) == (1, 0)


async def test_a_task_that_takes_too_long_is_failed_as_a_timeout(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        task = await ended(agent, agent.direct.submit(order("slow", timeout=0.3, seconds=60)))
        assert (task.state, task.error) == ("failed", "took longer than its time-out, 0.3 s")
        assert result(task)["failure"]["kind"] == "timeout"
        assert agent.tally.failed == 1


async def test_a_crash_of_its_worker_is_a_failure_of_that_kind(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        begun = tmp_path / "direct" / "1.tmp"
        begun.parent.mkdir()
        begun.touch()  # as if it had died while it wrote
        task = await ended(agent, agent.direct.submit(order("crash", crash_items=["a"])))
        assert task.state == "failed"
        assert not begun.exists()
        assert result(task)["failure"]["kind"] == "crash"


async def test_slots_are_never_exceeded_and_come_back(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as agent:
        first, second = (agent.direct.submit(order(name, seconds=60)) for name in ("a", "b"))
        with pytest.raises(Busy):
            agent.direct.submit(order("c"))
        with pytest.raises(NotFound):
            agent.direct.get("c")
        agent.direct.cancel("a")
        assert agent.active == 2  # its worker is not gone yet
        await ended(agent, first)
        assert agent.active == 1
        assert (await ended(agent, agent.direct.submit(order("c")))).state == "completed"
        agent.direct.cancel("b")
        await ended(agent, second)
        assert list((tmp_path / "direct").iterdir()) == [agent.direct.get("c").result]


async def test_the_same_order_is_the_same_task_even_when_all_workers_are_busy(tmp_path: Path) -> None:
    async with running(tmp_path, workers=1) as agent:
        task = agent.direct.submit(order("a", seconds=60))
        assert agent.direct.submit(order("a", seconds=60)) is task
        with pytest.raises(Conflict, match="'a'"):
            agent.direct.submit(order("a", seconds=61))


@pytest.mark.parametrize("limit", ["KEPT_TASKS", "KEPT_BYTES", "KEPT_SECONDS"])
async def test_what_has_ended_is_forgotten_by_number_bytes_and_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    async with running(tmp_path) as agent:
        for name in ("a", "b", "c"):
            await ended(agent, agent.direct.submit(order(name)))
        size = agent.direct.get("c").size
        kept = {"KEPT_TASKS": 1, "KEPT_BYTES": size + size // 2, "KEPT_SECONDS": 0}[limit]
        monkeypatch.setattr(direct, limit, kept)
        agent.direct.forget()
        left = [] if limit == "KEPT_SECONDS" else ["c"]
        assert list(agent.direct._tasks) == left
        assert agent.direct.kept == len(list((tmp_path / "direct").iterdir())) == len(left)


async def test_what_runs_is_never_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("KEPT_TASKS", "KEPT_BYTES", "KEPT_SECONDS"):
        monkeypatch.setattr(direct, limit, 0)
    async with running(tmp_path) as agent:
        task = agent.direct.submit(order("a", seconds=60))
        agent.direct.forget()
        assert agent.direct.get("a") is task


async def test_a_stop_ends_what_was_handed_over(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        task = agent.direct.submit(order("a", seconds=60))
        async with asyncio.timeout(20):
            while not agent._pool or not agent._pool._workers:
                await asyncio.sleep(0.01)
        worker = agent._pool._workers[0].process.pid
        async with asyncio.timeout(20):
            # Beats and answers about this node come first.
            while psutil.Process(worker).nice() <= psutil.Process().nice():
                await asyncio.sleep(0.01)
    assert task.state == "cancelled"
    assert not psutil.pid_exists(worker)
    with pytest.raises(Busy):
        agent.direct.submit(order("b"))


async def test_a_drain_waits_for_what_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        task = agent.direct.submit(order("a", seconds=0.3))
        await agent.drain()
        assert task.state == "completed"
        with pytest.raises(Busy, match="stop"):
            agent.direct.submit(order("b"))


def test_an_order_is_the_same_whatever_else_the_client_stamps_on_it() -> None:
    body = {"task_id": "a", "task_type": "echo", "task_data": {"items": ["a"], "rows": 2}}
    read = read_order(body)
    assert (read.type, read.params["rows"], read.items, read.timeout) == ("echo", 2, ["a"], 300)
    assert read_order({**body, "timestamp": 3, "priority": 5, "timeout": 300.0}).digest == read.digest
    for change in ({"priority": 6}, {"timeout": 11}, {"task_data": {"items": ["b"]}}):
        assert read_order({**body, **change}).digest != read.digest


@pytest.mark.parametrize("task_type", ["external", "word_count"])
def test_only_types_that_this_package_has_code_for_are_taken(task_type: str) -> None:
    with pytest.raises(FieldError) as error:
        read_order({"task_id": "a", "task_type": task_type, "task_data": {"items": ["a"]}})
    assert error.value.field == "task_type"
    assert "data_import" in error.value.message


def test_a_search_makes_its_trials_of_its_params_and_one_that_is_planned_as_it_goes_needs_a_parent() -> None:
    search = {
        "symbols": ["AAPL"], "source": "sample", "strategy": "ma_cross",
        "space": {"fast": [5, 10], "slow": [30]}, "search": "grid",
    }  # fmt: skip
    order = read_order({"task_id": "a", "task_type": "optimization", "task_data": search})
    assert [item["params"] for item in order.items if isinstance(item, dict)] == [
        {"fast": 5, "slow": 30},
        {"fast": 10, "slow": 30},
    ]
    with pytest.raises(FieldError, match="parent") as error:
        read_order(
            {
                "task_id": "a",
                "task_type": "optimization",
                "task_data": {**search, "search": "tpe", "trials": 50, "space": {"fast": {"low": 2, "high": 90}}},
            }
        )
    assert error.value.field.startswith("task_data")


@pytest.mark.parametrize("task_type", ["analysis", "backtest"])
def test_kinds_of_work_over_bars_take_symbols_as_their_items(task_type: str) -> None:
    data = {"symbols": ["AAPL", "IBM"], "source": "sample"} | (
        {"strategy": "ma_cross"} if task_type == "backtest" else {}
    )
    order = read_order({"task_id": "a", "task_type": task_type, "task_data": data})
    assert order.items == ["AAPL", "IBM"]
    assert order.params["source"] == "sample"

"""Worker processes, real ones: what a crash, a time-out, a cancel and a kill cost."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from nodes.agent.pool import Cancelled, Crashed, Pool, TimedOut

ROOT = Path(__file__).resolve().parents[2]
SOON = 20.0
"""Seconds after which what should have happened will not."""


@pytest.fixture
def told() -> queue.Queue[tuple[int, int]]:
    return queue.Queue()


@pytest.fixture
def pool(tmp_path: Path, told: queue.Queue[tuple[int, int]]) -> Iterator[Pool]:
    pool = Pool(2, str(tmp_path), lambda *progress: told.put(progress))
    yield pool
    pool.stop()


def shard(*items, allocation=1, **params):
    return {"allocation": allocation, "type": "echo", "params": params, "start": 0, "items": list(items)}


def result(future: Future) -> list[dict]:
    wait_for([future], SOON)
    return future.result()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.01)


def workers() -> list[psutil.Process]:
    """Processes below ours that a fork server has forked."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.ppid() != os.getpid():
                found.append(process)
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_bundle_goes_in_and_entries_come_out(pool):
    entries = result(pool.start([shard("a"), shard("b", "c", allocation=2)], 10))
    assert [entry["allocation"] for entry in entries] == [1, 2]
    assert [entry["ranges"] for entry in entries] == [[[0, 1, 1]], [[0, 2, 2]]]


def test_a_worker_that_dies_costs_its_bundle_only(pool):
    beside = pool.start([shard("b", seconds=0.3, allocation=2)], 10)
    crashing = pool.start([shard("a", crash_items=["a"])], 10)
    with pytest.raises(Crashed, match="died"):
        result(crashing)
    assert result(beside)[0]["ranges"] == [[0, 1, 1]]
    assert result(pool.start([shard("c")], 10))[0]["ranges"] == [[0, 1, 1]]


def test_ten_deaths_in_a_row_leave_a_pool_that_works(pool):
    for _ in range(10):
        with pytest.raises(Crashed):
            result(pool.start([shard("a", crash_items=["a"])], 10))
    assert result(pool.start([shard("b")], 10))[0]["ranges"] == [[0, 1, 1]]


def test_a_worker_killed_in_the_middle_is_a_crash_that_names_the_signal(pool, told):
    running = pool.start([shard("a", "b", seconds=0.6)], 30)
    told.get(timeout=SOON)
    for process in workers():
        process.kill()
    with pytest.raises(Crashed, match="signal 9"):
        result(running)


def test_a_worker_killed_while_idle_costs_nothing(pool):
    result(pool.start([shard("a")], 10))
    killed = workers()
    for process in killed:
        process.kill()
    # Quite gone, not only a zombie: its second thread may hold the pipe a moment longer than its first.
    until(lambda: not any(process.is_running() for process in killed))
    assert result(pool.start([shard("b")], 10))[0]["ranges"] == [[0, 1, 1]]


def test_workers_without_work_for_a_while_end_and_new_ones_come_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("nodes.agent.workers.IDLE_SECONDS", 0.2)
    pool = Pool(2, str(tmp_path), lambda *_: None)
    longer_than_idle = [pool.start([shard("a", seconds=0.5, allocation=number)], 10) for number in range(2)]
    assert [result(future)[0]["ranges"] for future in longer_than_idle] == [[[0, 1, 1]]] * 2
    until(lambda: not alive(workers()))
    assert result(pool.start([shard("b")], 10))[0]["ranges"] == [[0, 1, 1]]
    pool.stop()


def test_the_fork_server_outlives_a_signal_that_is_meant_for_the_agent(pool):
    (server,) = fork_servers()
    server.terminate()
    assert result(pool.start([shard("a")], 10))[0]["ranges"] == [[0, 1, 1]]
    assert alive([server])


def fork_servers() -> list[psutil.Process]:
    """Of this process. One that has ended and that nobody has asked about has no command line any more."""
    found = []
    for each in psutil.Process().children():
        with suppress(psutil.Error):
            if "forkserver" in " ".join(each.cmdline()):
                found.append(each)
    return found


def test_a_fork_server_that_is_killed_costs_no_bundle(pool):
    running = pool.start([shard("a", seconds=0.5)], 10)
    until(workers)
    (server,) = fork_servers()
    server.kill()
    later = [pool.start([shard("b", allocation=number)], 10) for number in range(4)]
    assert [result(future)[0]["ranges"] for future in [running, *later]] == [[[0, 1, 1]]] * 5


def test_a_time_out_ends_the_bundle_and_frees_the_worker(pool):
    began = time.monotonic()
    hanging = [pool.start([shard("a", seconds=60, allocation=number)], 0.3) for number in range(2)]
    for future in hanging:
        with pytest.raises(TimedOut):
            result(future)
    assert time.monotonic() - began < 10
    assert result(pool.start([shard("b")], 10))[0]["ranges"] == [[0, 1, 1]]


def test_the_time_counts_from_the_start_not_from_the_queue(pool):
    futures = [pool.start([shard("a", seconds=0.4, allocation=number)], 1.0) for number in range(6)]
    assert [result(future)[0]["errors"] for future in futures] == [[]] * 6


def test_a_cancel_kills_the_running_worker(pool, told):
    running = pool.start([shard("a", "b", seconds=0.6)], 60)
    told.get(timeout=SOON)
    before = workers()
    began = time.monotonic()
    running.cancel()
    until(lambda: len(alive(before)) < len(before))
    assert time.monotonic() - began < 2
    with pytest.raises(Cancelled):
        result(running)
    assert result(pool.start([shard("b")], 10))[0]["ranges"] == [[0, 1, 1]]


def test_a_cancel_of_what_has_not_begun_stops_it_from_beginning(pool, tmp_path):
    blocking = [pool.start([shard("a", seconds=0.4)], 10) for _ in range(2)]
    waiting = pool.start([shard("b", rows=1000)], 10)
    waiting.cancel()
    with pytest.raises(Cancelled):
        result(waiting)
    for future in blocking:
        result(future)
    result(pool.start([shard("c")], 10))
    assert list(tmp_path.glob("*.arrow")) == []


def test_progress_is_told_while_items_run(pool, told):
    running = pool.start([shard("a", "b", "c", seconds=0.6, allocation=5)], 30)
    assert told.get(timeout=SOON) == (5, 1)
    assert told.get(timeout=SOON) == (5, 2)
    result(running)


def test_a_closed_pool_finishes_what_runs_and_its_workers_end(tmp_path):
    pool = Pool(2, str(tmp_path), lambda *_: None)
    running = pool.start([shard("a", seconds=0.3)], 10)
    own = workers()
    pool.close()
    assert result(running)[0]["ranges"] == [[0, 1, 1]]
    until(lambda: not alive(own))


def test_stop_ends_running_workers_at_once(tmp_path, told):
    pool = Pool(2, str(tmp_path), lambda *progress: told.put(progress))
    pool.start([shard("a", "b", seconds=0.6), shard("c", seconds=60)], 100)
    told.get(timeout=SOON)
    own = workers()
    began = time.monotonic()
    pool.stop()
    until(lambda: not alive(own))
    assert time.monotonic() - began < 3


# An agent in a process of its own

_AGENT = """
import sys
from nodes.agent.pool import Pool
pool = Pool(2, sys.argv[1], lambda *progress: print("running", flush=True))
shard = {"allocation": 1, "type": "echo", "params": {"seconds": 0.6}, "start": 0, "items": ["a", "b", "c"]}
future = pool.start([shard], 60)
print(future.result()[0]["ranges"], flush=True)
pool.stop()
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a pool, in a group of its own, whose first shard is running."""
    popen = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{_AGENT}",
            str(tmp_path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert popen.stdout is not None
    assert popen.stdout.readline() == "running\n"
    yield popen
    popen.kill()
    popen.wait()
    popen.stdout.close()


def test_workers_of_a_killed_agent_are_gone_within_seconds_with_all_that_served_them(agent):
    family = psutil.Process(agent.pid).children(recursive=True)
    assert len(family) >= 3
    agent.kill()
    began = time.monotonic()
    until(lambda: not alive(family))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_the_whole_group_leaves_the_shard_to_the_agents_decision(agent, number):
    family = psutil.Process(agent.pid).children(recursive=True)
    for process in family:
        os.kill(process.pid, number)
    out, _ = agent.communicate(timeout=SOON)
    assert out.splitlines()[-1] == "[[0, 3, 3]]"
    assert agent.returncode == 0
    until(lambda: not alive(family))

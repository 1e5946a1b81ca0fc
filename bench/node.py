"""A node as a server, without a parent: how quickly its health route answers, and what it keeps in memory."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import requests

from bench.report import Sample, Table
from cascade.local import ROOT

WORKERS = 4
ASKED = 400
IDLE_MS, BUSY_MS = 10.0, 50.0
IDLE_MB, BUSY_MB = 90.0, 450.0
SYMBOLS = ["AAPL", "IBM", "MSFT", "GOOG", "FB"] * 600
"""Enough to keep a worker busy for as long as this measures; a month of bars of each."""


def measure(rounds: int) -> list[Table]:
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with node() as (port, pid):
            ask(port, 50)
            time.sleep(2)
            found.setdefault("health p99, idle", []).append(p99(ask(port, ASKED)))
            found.setdefault("memory, idle", []).append(proportional(pid))
            keep_busy(port)
            time.sleep(3)
            found.setdefault("health p99, all workers busy", []).append(p99(ask(port, ASKED)))
            found.setdefault("memory, all workers busy", []).append(proportional(pid))
            assert status(port)["active_tasks"] == WORKERS, "the workers were not busy all the time"
    table = Table(
        f"node: a child's server with {WORKERS} workers; memory of all its processes, shared pages counted once",
        ["measured", "median", "unit", "floor", "reached"],
    )
    floors = {
        "health p99, idle": (IDLE_MS, "ms"),
        "health p99, all workers busy": (BUSY_MS, "ms"),
        "memory, idle": (IDLE_MB, "MB"),
        "memory, all workers busy": (BUSY_MB, "MB"),
    }
    for name, (floor, unit) in floors.items():
        sample = Sample(tuple(found[name]))
        reached = table.judge(f"node, {name}: {sample.median:.1f} {unit}", sample.median <= floor)
        table.add(name, sample.text(1), unit, f"<= {floor:g}", reached)
    return [table]


@contextmanager
def node() -> Iterator[tuple[int, int]]:
    """(port, process id) of a child that has no parent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryDirectory(prefix="cascade-bench-") as folder:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CASCADE_")}
        env = {**clean, "CASCADE_DATA_DIR": folder, "CASCADE_CONFIG": "", "CASCADE_WORKERS": str(WORKERS)}
        argv = [sys.executable, "manage.py", "runserver", str(port), "--role", "child"]
        with open(Path(folder) / "log", "wb") as log:
            served = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=log)
            try:
                until = time.monotonic() + 60
                while not up(port):
                    if served.poll() is not None or time.monotonic() > until:
                        raise RuntimeError((Path(folder) / "log").read_text()[-2000:])
                    time.sleep(0.1)
                yield port, served.pid
            finally:
                served.terminate()
                try:
                    served.wait(30)
                except subprocess.TimeoutExpired:
                    served.kill()


def up(port: int) -> bool:
    try:
        return bool(status(port))
    except (OSError, http.client.HTTPException):
        return False


def status(port: int) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"http://127.0.0.1:{port}/api/v1/health", timeout=30).json()
    return found


def ask(port: int, times: int) -> list[float]:
    """Milliseconds of each of so many requests, one after the other on a connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        connection.request("GET", "/api/v1/health")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        taken.append((time.perf_counter() - began) * 1000)
        # Drivers ask now and then; back to back, they would measure their own load.
        time.sleep(0.005)
    connection.close()
    return taken


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def keep_busy(port: int) -> None:
    """A task of real bars for every worker."""
    for number in range(WORKERS):
        task = {"symbols": SYMBOLS, "data_source": "sample", "start_date": "2012-12-01", "end_date": "2012-12-31"}
        body: dict[str, Any] = {"task_id": f"busy-{number}", "task_type": "data_import", "task_data": task}
        address = f"http://127.0.0.1:{port}/api/v1/task/execute"
        answer = requests.post(address, json={**body, "timeout": 600}, timeout=30)
        answer.raise_for_status()


def proportional(pid: int) -> float:
    """MB (10^6 bytes) of the process and all it started; a page that several share is counted once in all."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(process.memory_full_info().pss for process in family)) / 1e6

"""Nodes that are called at their own address: servers of ours without a parent, and a foreign one."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import requests

from cascade.local import ROOT, LocalTree, free_port
from nodes import executors
from nodes.executors.rows import inline
from tests.acceptance.trees import until

SYMBOLS = ["AAPL", "FB", "GOOG", "IBM", "MSFT"]
BARS = 12_154


def ours(tree: LocalTree, name: str, *, workers: int = 2, **env: str) -> int:
    """``manage.py runserver --role child`` without a parent; its port."""
    port = free_port()
    again = {**env, "CASCADE_WORKERS": str(workers), "CASCADE_DATA_DIR": str(tree.data_dir / "servers" / name)}
    argv = [sys.executable, "manage.py", "runserver", "--noreload", "--role", "child", f"127.0.0.1:{port}"]
    tree.spawn(name, argv, again)
    answers(port)
    assert tree.alive(name), tree.tail(name)
    return port


def foreign(tree: LocalTree, name: str, *options: str) -> int:
    """``tests/foreign.py``; its port."""
    port = free_port()
    tree.spawn(name, [sys.executable, str(ROOT / "tests" / "foreign.py"), str(port), *options])
    answers(port)
    return port


def answers(port: int) -> None:
    until(lambda: _asked(port) is not None, 60, f"the node on port {port}")


def active(port: int, api_key: str = "") -> int:
    """Tasks that the node runs now."""
    return int((_asked(port, api_key) or {}).get("active_tasks", 0))


def _asked(port: int, api_key: str = "") -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = requests.get(
            f"http://127.0.0.1:{port}/api/v1/health", headers={"X-API-Key": api_key}, timeout=5
        ).json()
        return found
    except requests.RequestException:
        return None


def drive(tree: LocalTree, name: str, port: int, capacity: int = 2, **fields: Any) -> None:
    """Makes the node known to the tree's parent, which calls it from then on."""
    tree.json(
        "POST",
        "/api/v1/nodes",
        json={"name": name, "carrier": "http", "api_url": f"http://127.0.0.1:{port}", "capacity": capacity, **fields},
    )
    until(lambda: tree.nodes()[name]["state"] == "online", what=f"{name} to be online")


@cache
def provider_bars(symbol: str) -> list[list[Any]]:
    """What the source itself has, as rows of the dataset; nothing of what is tested lies in between."""
    executor = executors.get("data_import")
    rows = executor(executor.check({"source": "sample"})).run(symbol)
    return inline(executor.dataset, rows, 1_000_000) or []


def all_bars(symbols: list[str] = SYMBOLS) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for symbol in symbols for row in provider_bars(symbol))


def as_rows(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Records in the dataset's column order, sorted; a missing freq is that of the sample."""
    names = executors.get("data_import").dataset.names
    return sorted(tuple({"freq": "D", **record}[name] for name in names) for record in records)


def yearly(symbols: list[str] = SYMBOLS) -> list[dict[str, str]]:
    """Each symbol's years as items of their own: enough of them to be interrupted in the middle."""
    years = range(2000, 2014)
    return [
        {"symbol": symbol, "start_date": f"{year}-01-01", "end_date": f"{year}-12-31"}
        for symbol in symbols
        for year in years
    ]

"""A node of somebody else's make: speaks the ``node`` dialect as its contract words it, and shares no code with us.

    python tests/foreign.py PORT [--workers 4] [--seconds 0.1] [--api-key KEY] [--ill WORD]

It knows ``data_import`` only, of the sample's bars, and answers with ``kdata`` and errors by symbol.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NUMBERS = ("open", "high", "low", "close", "volume")


def bars() -> dict[str, list[dict[str, Any]]]:
    """Records by symbol, from the package's own file."""
    spec = find_spec("bokeh_sampledata")
    assert spec is not None
    assert spec.submodule_search_locations
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with gzip.open(Path(spec.submodule_search_locations[0], "_data", "stocks.csv.gz"), "rt") as lines:
        for row in csv.DictReader(lines):
            numbers = {name: float(row[name.capitalize()]) for name in NUMBERS}
            record = {"symbol": row["Ticker"], "datetime": row["Date"], **numbers, "data_source": "sample"}
            found[row["Ticker"]].append(record)
    return found


class Node:
    """Its tasks, in threads."""

    def __init__(self, workers: int, seconds: float, ill: str) -> None:
        self.workers = workers
        self.seconds = seconds
        self.ill = ill
        self.tasks: dict[str, dict[str, Any]] = {}
        self.executed = 0
        self.turn = threading.Lock()
        self.bars = bars()

    @property
    def active(self) -> int:
        return sum(task["status"] == "running" for task in self.tasks.values())

    def execute(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.turn:
            if self.active >= self.workers:
                return 503, {"detail": "all workers are busy"}
            now = time.strftime("%Y-%m-%dT%H:%M:%S")
            task = {"task_id": body["task_id"], "status": "running", "started_at": now, "completed_at": None}
            self.tasks[body["task_id"]] = task
            self.executed += 1
        threading.Thread(target=self.run, args=(task, body["task_data"]), daemon=True).start()
        return 200, {**task, "message": "started"}

    def run(self, task: dict[str, Any], data: dict[str, Any]) -> None:
        began = time.monotonic()
        kdata: list[dict[str, Any]] = []
        errors: dict[str, str] = {}
        for symbol in data["symbols"]:
            time.sleep(self.seconds)
            first, last = data.get("start_date", ""), data.get("end_date", "9999")
            if symbol not in self.bars:
                errors[symbol] = f"{symbol} is unknown here"
            kdata += [each for each in self.bars.get(symbol, ()) if first <= each["datetime"] <= last]
        result = {
            "task_type": "data_import",
            "symbols_count": len(data["symbols"]),
            "imported_count": len(data["symbols"]) - len(errors),
            "total_records": len(kdata),
            "data_source": data.get("data_source"),
            "status": "success",
            "first_symbol": data["symbols"][0],
            "kdata": kdata,
            "errors": errors,
        }
        with self.turn:
            if task["status"] == "running":
                task.update(status="completed", result=result, execution_time=time.monotonic() - began)

    def health(self) -> dict[str, Any]:
        return {
            "node_id": "foreign",
            "node_name": "foreign",
            "status": self.ill or "active",
            "cpu_percent": 5.0,
            "memory_percent": 5.0,
            "active_tasks": self.active,
            "completed_tasks": 0,
            "failed_tasks": 0,
            "uptime_seconds": 1.0,
            "last_heartbeat": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "capabilities": ["data_import", "analysis"],
        }


def handler(node: Node, api_key: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = self.path.strip("/").split("/")
            if parts == ["api", "v1", "health"]:
                self.say(200, node.health())
            elif parts == ["executed"]:  # for tests alone
                self.say(200, {"executed": node.executed, "tasks": {k: v["status"] for k, v in node.tasks.items()}})
            elif parts[:3] == ["api", "v1", "task"] and parts[-1] == "status":
                self.task(parts[3])
            else:
                self.say(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            parts = self.path.strip("/").split("/")
            if api_key and self.headers.get("X-API-Key") != api_key:
                self.say(401, {"detail": "Invalid API key"})
            elif parts == ["api", "v1", "task", "execute"]:
                self.say(*node.execute(body))
            elif parts[:3] == ["api", "v1", "task"] and parts[-1] == "cancel":
                if parts[3] in node.tasks:
                    with node.turn:
                        if node.tasks[parts[3]]["status"] == "running":
                            node.tasks[parts[3]]["status"] = "cancelled"
                self.task(parts[3])
            else:
                self.say(404, {"detail": "Not Found"})

        def task(self, task_id: str) -> None:
            found = node.tasks.get(task_id)
            self.say(200, found) if found else self.say(404, {"detail": "no such task"})

        def say(self, code: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("port", type=int)
    arguments.add_argument("--workers", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=0.05)
    arguments.add_argument("--api-key", default="")
    arguments.add_argument("--ill", default="")
    given = arguments.parse_args()
    node = Node(given.workers, given.seconds, given.ill)
    ThreadingHTTPServer(("127.0.0.1", given.port), handler(node, given.api_key)).serve_forever()


if __name__ == "__main__":
    main()

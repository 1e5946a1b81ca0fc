"""A fire time missed while the parent was down makes one run, and its end is told, through kills of the parent."""

from __future__ import annotations

import datetime as dt
import json
import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cascade.local import PARENT, Child, LocalTree
from tests.acceptance.trees import QUICK, SOON, until

NEW_YEAR = f"{dt.datetime.now(dt.UTC).year}-01-01T00:00:00"


@pytest.fixture
def tree(tmp_path: Any) -> Iterator[LocalTree]:
    with LocalTree(tmp_path, children=[Child("one", 2)], env=QUICK) as tree:
        yield tree


@pytest.fixture
def calls() -> Iterator[tuple[str, queue.Queue[tuple[str, Any]]]]:
    """An address that says 503 to the first call, and (id, body) of each."""
    heard: queue.Queue[tuple[str, Any]] = queue.Queue()
    answers = iter([503])

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(next(answers, 200))
            self.send_header("Content-Length", "0")
            self.end_headers()
            heard.put((self.headers["X-Cascade-Delivery"], body))

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", heard
        server.shutdown()


def missed(tree: LocalTree, task: int) -> None:
    """As if the parent had been down since before new year."""
    with closing(sqlite3.connect(tree.data_dir / "cascade.sqlite3")) as database, database:
        database.execute("UPDATE dispatch_task SET next_fire_at = ? WHERE id = ?", (NEW_YEAR.replace("T", " "), task))


def test_one_run_of_a_missed_fire_time_and_its_end_is_told_until_it_is_heard(
    tree: LocalTree, calls: tuple[str, queue.Queue[tuple[str, Any]]]
) -> None:
    url, heard = calls
    about = {"name": "yearly", "type": "echo", "items": ["a", "b"], "cron": "0 0 1 1 *", "webhook_url": url}
    task = tree.json("POST", "/api/v1/tasks", json=about)["id"]
    tree.kill(PARENT)
    missed(tree, task)
    tree.restart(PARENT)
    (run,) = until(lambda: tree.json("GET", f"/api/v1/runs?task={task}")["results"], what="the run")
    assert run["fire_time"].startswith(NEW_YEAR)
    first, told = heard.get(timeout=SOON)
    assert (told["run"]["id"], told["run"]["state"], told["counts"]["rows"]) == (run["id"], "completed", 2)

    # Noted, so that the next try is due in seconds; a call without its end on record waits for its lease.
    until(lambda: tree.json("GET", "/api/v1/deliveries")["results"][0]["status"] == 503, what="the 503")
    tree.kill(PARENT)
    missed(tree, task)  # the clock goes back, and the same fire time comes again
    tree.restart(PARENT)
    again, _ = heard.get(timeout=SOON)
    assert again == first
    until(lambda: tree.json("GET", "/api/v1/deliveries")["results"][0]["state"] == "delivered", what="the delivery")
    until(
        lambda: not tree.json("GET", f"/api/v1/tasks/{task}")["next_fire_at"].startswith(NEW_YEAR), what="the next time"
    )
    assert [each["id"] for each in tree.json("GET", f"/api/v1/runs?task={task}")["results"]] == [run["id"]]
    assert heard.empty()

"""Feeds wait as threads of one worker process: its death and a cancel beside them cost nobody anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cascade.local import Child, LocalTree
from tests.acceptance.trees import QUICK, alive, executing, until, workers

SLOTS = 8
FEED = (
    """<rss version="2.0"><channel><title>{0}</title><item><title>{0}</title><guid>{0}</guid></item></channel></rss>"""
)


class Slow:
    """A server of feeds that answers when its gate is open; the path ``/now/…`` always."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[str] = []
        slow = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                slow.asked.append(self.path)
                if not self.path.startswith("/now/"):
                    slow.gate.wait(60)
                content = FEED.format(self.path).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/rss+xml")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # who asked was killed
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def feeds(self, kind: str, count: int) -> list[str]:
        return [f"http://127.0.0.1:{self._server.server_port}/{kind}/{number}" for number in range(count)]

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Slow]:
    server = Slow()
    yield server
    server.close()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    env = {**QUICK, "CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8"}
    with LocalTree(tmp_path_factory.mktemp("threads"), children=[Child("node", SLOTS)], env=env) as tree:
        yield tree


def articles(tree: LocalTree, run: int) -> list[str]:
    rows = tree.json("GET", f"/api/v1/runs/{run}/results", params={"raw": "true"})
    return sorted(row["feed"] for row in rows)


def test_the_death_of_their_one_process_is_nobodys_fault(tree, server):
    feeds = server.feeds("death", SLOTS)
    run = tree.submit("feed_update", feeds, shard_size=1, max_attempts=1)
    until(lambda: len(server.asked) == SLOTS, what="all feeds at once")
    (worker,) = workers(tree, "node")
    worker.kill()
    until(lambda: len(server.asked) == 2 * SLOTS, what="all feeds again")
    server.gate.set()
    ended = tree.wait(run)
    assert (ended["state"], ended["saved"], ended["quarantined"]) == ("completed", SLOTS, 0)
    assert articles(tree, run) == sorted(feeds)
    allocations = tree.json("GET", "/api/v1/allocations", params={"run": run})["results"]
    assert [each["state"] for each in allocations] == ["completed"] * SLOTS


def test_a_cancel_frees_its_slots_while_the_others_in_the_process_go_on(tree, server):
    kept = tree.submit("feed_update", server.feeds("kept", SLOTS // 2), shard_size=1)
    until(lambda: len(executing(tree, kept)) == SLOTS // 2)
    cancelled = tree.submit("feed_update", server.feeds("cancelled", SLOTS // 2), shard_size=1)
    until(lambda: len(server.asked) == SLOTS, what="all feeds at once")
    shared = [each for each in workers(tree, "node") if each.num_threads() > SLOTS]
    assert len(shared) == 1
    assert tree.json("POST", f"/api/v1/runs/{cancelled}/cancel")["state"] == "cancelled"
    after = tree.submit("feed_update", server.feeds("now", SLOTS), shard_size=1)
    assert tree.wait(after)["state"] == "completed"
    assert alive(shared)
    server.gate.set()
    assert tree.wait(kept)["state"] == "completed"
    assert len(server.asked) == 2 * SLOTS, "nothing was fetched twice"
    assert articles(tree, kept) == sorted(server.feeds("kept", SLOTS // 2))
    assert articles(tree, cancelled) == []

"""Pages that stay open while much happens: fifty nodes that beat without a pause, runs, a tab that sleeps."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, CDPSession, Page, WebSocket, expect

from api.live import LOOK_SECONDS
from cascade.local import Child, LocalTree
from tests.acceptance.trees import QUICK, numbered
from tests.browser.crowd import Crowd
from tests.browser.watching import Watched

NODES = 50
FRAMES = int(os.environ.get("LIVE_FRAMES", "15"))
"""Frames after which the heap is looked at; LIVE_FRAMES=7200 is half an hour."""
HIDDEN_SECONDS = float(os.environ.get("HIDDEN_SECONDS", "0"))
"""How long a tab sleeps beyond the end of the run that it shows; the server gives up nothing in 60."""
MOST_GROWTH = 10e6
LIVE = "#liveness[data-state=live]"
ORDER = "['nodes', 'runs'].map(list => [...document.getElementById(list).children].map(row => row.id))"
LOADS = "[...document.querySelectorAll('#nodes [data-cell=cpu]')].map(cell => cell.textContent)"
MODULE = """
import time
def work(item, seconds=0, text=""):
    time.sleep(seconds)
    return {"length": len(item)}
"""


class Socket:
    """The live socket of a page: when each frame came, and what it brought."""

    def __init__(self, page: Page) -> None:
        self.frames: list[tuple[float, dict[str, Any]]] = []
        self._begun = ""
        page.on("websocket", self._opened)

    def _opened(self, socket: WebSocket) -> None:
        socket.on("framereceived", self._came)

    def _came(self, content: str | bytes) -> None:
        text = str(content)
        if text[0] == "+":
            self._begun += text[1:]
            return
        frame = json.loads(self._begun + text.removeprefix("="))
        self._begun = ""
        self.frames.append((time.monotonic(), frame))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    folder = tmp_path_factory.mktemp("live")
    (folder / "slow.py").write_text(MODULE)
    env = {**QUICK, "CASCADE_CUSTOM": "work=slow:work", "PYTHONPATH": str(folder), "CASCADE_FALLBACK_WORKERS": "0"}
    env |= {"CASCADE_OFFLINE_SECONDS": "30", "CASCADE_LEASE_SECONDS": "30"}
    with LocalTree(folder / "tree", children=[Child("east", 2, env=env)], env=env) as made:
        yield made


@pytest.fixture(scope="module")
def crowd(tree: LocalTree) -> Iterator[Crowd]:
    with Crowd(tree, NODES) as made:
        yield made


@pytest.fixture(scope="module")
def window(browser: Browser, tree: LocalTree) -> Iterator[Watched]:
    made = Watched(browser, tree, viewport={"width": 1280, "height": 800})
    made.sign_in("/runs")
    yield made
    made.close()


@pytest.fixture
def page(window: Watched) -> Iterator[Page]:
    yield window.page
    window.still_well()


@pytest.fixture(scope="module")
def client(window: Watched) -> CDPSession:
    found = window.context.new_cdp_session(window.page)
    found.send("Performance.enable")
    return found


def going(tree: LocalTree, count: int, seconds: float = 0.2) -> int:
    """A run of so many items, which only the one real child takes."""
    params = {"callable": "work", "arguments": {"seconds": seconds}}
    return tree.submit("custom", numbered(count), params=params, shard_size=1)


def after(page: Page, socket: Socket, count: int) -> list[tuple[float, dict[str, Any]]]:
    """The next ``count`` frames, when the page has taken them in."""
    first = len(socket.frames)
    while len(socket.frames) < first + count:
        page.wait_for_timeout(1000 * LOOK_SECONDS)
    return socket.frames[first:]


def measured(client: CDPSession) -> dict[str, float]:
    """Bytes of the heap, elements, listeners, after the garbage was collected."""
    client.send("HeapProfiler.collectGarbage")
    return {each["name"]: each["value"] for each in client.send("Performance.getMetrics")["metrics"]}


def test_of_a_thousand_events_a_second_at_most_four_frames_reach_a_page_and_no_row_moves(
    tree: LocalTree, crowd: Crowd, page: Page
) -> None:
    runs = [going(tree, 200) for _ in range(3)]
    socket = Socket(page)
    page.goto("/")
    page.locator(LIVE).wait_for()
    expect(page.locator("#nodes tr")).to_have_count(NODES + 1)
    expect(page.locator("#runs tr")).to_have_count(3)
    order = page.evaluate(ORDER)
    beats = crowd.beats
    seen: list[tuple[float, dict[str, Any]]] = []
    while len(seen) < 12:
        seen += after(page, socket, 1)
        assert page.evaluate(ORDER) == order
    # From one frame to the last: one that was late arrives after its time, none before.
    assert len(seen) - 1 <= (seen[-1][0] - seen[0][0]) / LOOK_SECONDS + 1
    assert crowd.beats - beats > 10 * len(seen)
    # Beats do not draw rows anew.
    assert not {part for _, frame in seen for part in frame["parts"] if part.startswith("node-")} - {
        f"node-{tree.nodes()['east']['id']}"
    }
    assert sum(len(frame["cells"]) for _, frame in seen) > len(seen)
    for run in runs:
        tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_a_paused_page_stands_still_and_counts(tree: LocalTree, crowd: Crowd, page: Page) -> None:
    socket = Socket(page)
    page.goto("/")
    page.locator(LIVE).wait_for()
    page.click("#pause")
    held = [page.evaluate(LOADS), page.locator("#totals").inner_html(), page.evaluate(ORDER)]
    run = going(tree, 2, 0)
    tree.wait(run)
    after(page, socket, 3)
    expect(page.locator("#live-text")).to_contain_text("(+")
    first = page.locator("#live-text").inner_text()
    after(page, socket, 2)
    expect(page.locator("#live-text")).not_to_have_text(first)
    assert [page.evaluate(LOADS), page.locator("#totals").inner_html(), page.evaluate(ORDER)] == held
    page.click("#pause")
    expect(page.locator(f"#run-{run} .state")).to_contain_text("completed")
    page.wait_for_function(f"before => JSON.stringify({LOADS}) !== JSON.stringify(before)", arg=held[0])


def test_rows_that_change_together_are_laid_out_together(
    tree: LocalTree, crowd: Crowd, page: Page, client: CDPSession
) -> None:
    socket = Socket(page)
    page.goto("/")
    page.locator(LIVE).wait_for()
    page.click("#pause")
    nodes = tree.nodes()
    rows = {f"node-{nodes[name]['id']}" for name in crowd.names}
    for name in crowd.names:
        tree.json("PATCH", f"/api/v1/nodes/{nodes[name]['id']}", json={"capacity": 7})
    while not rows <= {part for _, frame in socket.frames[1:] for part in frame["parts"]}:
        after(page, socket, 1)
    before = measured(client)["LayoutCount"]
    page.click("#pause")
    expect(page.locator("#nodes tr", has_text="0/7")).to_have_count(NODES)
    assert measured(client)["LayoutCount"] - before < NODES / 2


def test_rows_that_are_selected_stay_and_catch_up_afterwards(crowd: Crowd, page: Page) -> None:
    socket = Socket(page)
    page.goto("/")
    page.locator(LIVE).wait_for()
    row = page.locator("#nodes tr").nth(5)
    cell = row.locator("[data-cell=cpu]")
    row.evaluate("row => getSelection().selectAllChildren(row)")
    said = cell.inner_text()
    after(page, socket, 4)
    assert cell.inner_text() == said
    page.evaluate("getSelection().removeAllRanges()")
    expect(cell).not_to_have_text(said)


def test_the_heap_does_not_grow_with_what_comes(crowd: Crowd, page: Page, client: CDPSession) -> None:
    socket = Socket(page)
    page.goto("/")
    page.locator(LIVE).wait_for()
    after(page, socket, 5)
    before = measured(client)
    after(page, socket, FRAMES)
    now = measured(client)
    assert now["JSHeapUsedSize"] - before["JSHeapUsedSize"] < MOST_GROWTH
    assert now["JSEventListeners"] - before["JSEventListeners"] < 50
    assert now["Nodes"] - before["Nodes"] < 2_000


def test_a_page_longer_than_one_message_may_be_stays_live(tree: LocalTree, page: Page) -> None:
    arguments = {"text": "long " * 250_000}
    run = tree.submit("custom", ["x"], params={"callable": "work", "arguments": arguments}, labels={"only": "nobody"})
    socket = Socket(page)
    page.goto(f"/runs/{run}")
    page.locator(LIVE).wait_for()
    assert len(socket.frames[0][1]["parts"]["head"]) > 2**20
    tree.json("POST", f"/api/v1/runs/{run}/cancel")
    expect(page.locator("#head .state")).to_contain_text("cancelled")


def test_a_tab_that_slept_shows_what_the_api_says(tree: LocalTree, page: Page, client: CDPSession) -> None:
    for _ in range(ASLEEP_TRIES):
        # Sometimes a page that is told to sleep wakes by itself.
        if slept_through(tree, page, client):
            return
    pytest.fail("the page did not stay asleep")


ASLEEP_TRIES = 6


def slept_through(tree: LocalTree, page: Page, client: CDPSession) -> bool:
    """A run's page sleeps from its start to its end, and then shows what became of it. Whether it did sleep."""
    east = f"/api/v1/nodes/{tree.nodes()['east']['id']}"
    tree.json("POST", f"{east}/drain")  # so that nothing begins before the tab sleeps
    run = going(tree, 40, 0.1)
    page.goto(f"/runs/{run}")
    page.locator(LIVE).wait_for()
    page.evaluate("window.stayed = true")
    client.send("Page.setWebLifecycleState", {"state": "frozen"})
    tree.json("POST", f"{east}/resume")
    tree.wait(run)
    slept = "40/40" not in page.evaluate("document.querySelector('#head .progress').textContent")
    time.sleep(HIDDEN_SECONDS if slept else 0)
    client.send("Page.setWebLifecycleState", {"state": "active"})
    began = time.monotonic()
    expect(page.locator("#head .state")).to_contain_text("completed")
    expect(page.locator("#head .progress")).to_contain_text("40/40")
    print(f"{time.monotonic() - began:.2f} s after its return")
    assert page.evaluate("window.stayed")
    return slept

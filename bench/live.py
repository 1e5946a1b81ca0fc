"""What a live page costs, in a real Chromium over a real server: the overview over a thousand nodes that beat, its heap
while it stays open, and the strip of a run of 10,000 items.

Times are of CPU, as the browser and the system count it, but for what is said to be of the wall.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from bench.leaves import Crowd, _cpu
from bench.report import Sample, Table
from cascade.local import LocalTree
from tests.browser import strewn
from tests.browser.conftest import CHROMIUM
from tests.chaos import herd

NODES, BEATS_A_SECOND = 1_000, 200
SECONDS = 20.0
"""Of each measurement; those with the page open and without it take turns."""
OPEN_SECONDS = float(os.environ.get("LIVE_SECONDS", "60"))
"""For how long the heap is watched; LIVE_SECONDS=1800 is half an hour."""
MOST_BUSY, MOST_COST, MOST_FRAMES, MOST_GROWTH = 50.0, 10.0, 4.0, 10.0
"""Per cent of the page's main thread, and of a core of the server beyond what it does without the page; frames a
second; MB of heap."""
MOST_PAINT, LONGEST_TASK = 200.0, 50.0
"""Milliseconds of the wall."""
LOADS = 5
ENV = {"CASCADE_FALLBACK_WORKERS": "0", "CASCADE_LEASE_SECONDS": "60", "CASCADE_OFFLINE_SECONDS": "60"}
LIVE = "#liveness[data-state=live]"
LONG_TASKS = """window.tasks = [];
new PerformanceObserver(list => window.tasks.push(...list.getEntries().map(each => each.duration)))
    .observe({type: "longtask", buffered: true});"""
PAINT = """() => new Promise(painted => {
    const old = document.getElementById("strip"), html = old.outerHTML, made = document.createElement("template");
    requestAnimationFrame(() => {
        const began = performance.now();
        made.innerHTML = html;
        old.replaceWith(made.content.firstElementChild);
        // The message is handled when the frame that this callback belongs to is on its way to the screen.
        const {port1, port2} = new MessageChannel();
        port1.onmessage = () => painted(performance.now() - began);
        port2.postMessage(null);
    });
})"""
"""Milliseconds from a strip's HTML, as the socket brings it, to its being laid out and painted."""


class Steady(herd.Child):
    """Beats as often as it is to, whatever the parent would like; each of its beats says another load."""

    async def _beating(self) -> None:
        await self._opened.wait()
        while True:
            said = {"boot": self.boot, "held": [], "running": [], "version": "0.0-herd", "executors": ["echo"]}
            load = {"cpu": float(random.randrange(100)), "memory": float(random.randrange(100)), "disk": 30.0}
            began = time.monotonic()
            await self._call("beat", {**said, **load, "carrier": "push", "hello": self.hello})
            self.hello = False
            self.seen.beats.append((began, time.monotonic() - began))
            await asyncio.sleep(max(0.0, began + NODES / BEATS_A_SECOND - time.monotonic()))


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server", "--disable-dev-shm-usage"]
        )
        yield made
        made.close()


def signed_in(browser: Browser, root: LocalTree) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{root.url}/admin/login/?next=/runs")
    page.fill("input[name=username]", root.username)
    page.fill("input[name=password]", root.password)
    page.press("input[name=password]", "Enter")
    page.wait_for_url("**/runs")
    return page


@dataclass
class Frames:
    """What the socket of a page brought."""

    count: int = 0
    size: int = 0

    def follow(self, page: Page) -> None:
        page.on("websocket", lambda socket: socket.on("framereceived", self._take))

    def _take(self, content: str | bytes) -> None:
        self.count += content[:1] != "+"
        self.size += len(content)


@dataclass
class Found:
    """Values of each round."""

    busy: list[float] = field(default_factory=list)
    costs: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    frames: list[float] = field(default_factory=list)
    kilobytes: list[float] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    growth: float = 0.0


def _metrics(client: CDPSession) -> dict[str, float]:
    return {each["name"]: each["value"] for each in client.send("Performance.getMetrics")["metrics"]}


def _heap(client: CDPSession) -> float:
    """MB in use, after the garbage was collected."""
    client.send("HeapProfiler.collectGarbage")
    return _metrics(client)["JSHeapUsedSize"] / 1e6


def _look(root: LocalTree, page: Page, client: CDPSession, seen: herd.Seen, rounds: int) -> Found:
    found, counted = Found(), Frames()
    counted.follow(page)
    for _ in range(rounds):
        for looking in (False, True):
            page.goto(f"{root.url}/" if looking else "about:blank")
            if looking:
                page.locator(LIVE).wait_for(timeout=120_000)
            page.wait_for_timeout(3_000)
            seen.beats.clear()
            counted.count = counted.size = 0
            before, cpu, began = _metrics(client), _cpu(root), time.monotonic()
            page.wait_for_timeout(1_000 * SECONDS)
            took, after = time.monotonic() - began, _metrics(client)
            found.costs[looking].append(100 * (_cpu(root) - cpu) / took)
            if looking:
                found.busy.append(100 * (after["TaskDuration"] - before["TaskDuration"]) / took)
                found.frames.append(counted.count / took)
                found.kilobytes.append(counted.size / took / 1_000)
                found.beats.append(len(seen.beats) / took)
    before_heap = _heap(client)
    page.wait_for_timeout(1_000 * OPEN_SECONDS)
    found.growth = _heap(client) - before_heap
    return found


def overview(rounds: int) -> Table:
    """The overview over NODES that beat: what it costs the page's main thread, and the server beside the beats."""
    with (
        TemporaryDirectory(prefix="cascade-bench-") as folder,
        LocalTree(Path(folder), env=ENV) as root,
        chromium() as browser,
    ):
        seen = herd.Seen()
        clients = [Steady(root.url, key, seen, push=True) for key in herd._nodes(root, NODES)]
        page = signed_in(browser, root)
        client = page.context.new_cdp_session(page)
        client.send("Performance.enable", {"timeDomain": "threadTicks"})
        with Crowd(clients):
            found = _look(root, page, client, seen, rounds)
    table = Table(
        f"live: the overview over {NODES:,} nodes, {BEATS_A_SECOND} beats a second, each with another load",
        ["measured", "median", "unit", "at most", "reached"],
    )

    def row(what: str, values: list[float], unit: str, most: float | None = None, decimals: int = 1) -> None:
        sample = Sample(tuple(values))
        judged = table.judge(f"live, {what}: {sample.median:.1f} {unit}", most is None or sample.median <= most)
        table.add(
            what, sample.text(decimals), unit, "" if most is None else f"{most:g}", "" if most is None else judged
        )

    row("beats that came", found.beats, "a second")
    row("frames", found.frames, "a second", MOST_FRAMES)
    row("on the socket", found.kilobytes, "KB a second")
    row("the page's main thread", found.busy, "% of its time", MOST_BUSY)
    row("server, nobody looks", found.costs[False], "% of a core")
    row("server, the page is open", found.costs[True], "% of a core")
    more = Sample(tuple(found.costs[True])).median - Sample(tuple(found.costs[False])).median
    row("server, for the page", [more], "% of a core", MOST_COST)
    row(f"the page's heap has grown in {OPEN_SECONDS:g} s", [found.growth], "MB", MOST_GROWTH, 2)
    return table


def strip(rounds: int) -> Table:
    """A run of 10,000 items in states that change every few: painting its strip, and the longest task of the page."""
    painted: list[float] = []
    longest: list[float] = []
    strokes = 0
    with (
        TemporaryDirectory(prefix="cascade-bench-") as folder,
        LocalTree(Path(folder), env=ENV) as root,
        chromium() as browser,
    ):
        run = strewn.add(root)
        page = signed_in(browser, root)
        page.add_init_script(LONG_TASKS)
        for _ in range(rounds * LOADS):
            page.goto(f"{root.url}/runs/{run}")
            page.locator(LIVE).wait_for()
            strokes = page.locator("#strip .cells rect").count()
            painted.append(page.evaluate(PAINT))
            longest.append(max(page.evaluate("window.tasks"), default=0.0))
    table = Table(
        f"live: a strip of {strewn.ITEMS:,} items, {strokes} strokes; of the wall, so a busy machine says too much",
        ["measured", "median", "unit", "at most", "reached"],
    )
    kinds: list[tuple[str, list[float], float]] = [
        ("from its HTML until it is painted", painted, MOST_PAINT),
        ("the longest task of loading the page and keeping it live (0: none of 50)", longest, LONGEST_TASK),
    ]
    for what, values, most in kinds:
        sample = Sample(tuple(values))
        judged = table.judge(f"live, {what}: {sample.median:.0f} ms", sample.median <= most)
        table.add(what, sample.text(0), "ms", f"{most:g}", judged)
    return table


def measure(rounds: int) -> list[Table]:
    return [overview(rounds), strip(rounds)]

"""``make pictures``: takes the pictures of the pages that the documentation shows, of a parent that really works.

Needs the system's Chromium. A parent and four children are started in a temporary folder. They import bars, analyse,
backtest, search, read a feed of this machine, and are in the middle of a run with failures and a hard limit, one child
gone, when the pictures are taken.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

    from cascade.local import LocalTree

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "pictures"
CHROMIUM = Path("/usr/bin/chromium")
LARGEST = 150_000
"""Bytes of a picture."""
WIDE, PHONE = (1280, 860), (375, 760)
SETTINGS = {
    "CASCADE_FALLBACK_WORKERS": "0",
    "CASCADE_BEAT_SECONDS": "1",
    "CASCADE_LEASE_SECONDS": "6",
    "CASCADE_OFFLINE_SECONDS": "6",
    "CASCADE_ALLOWED_NETWORKS": "127.0.0.0/8",
    "CASCADE_CUSTOM": "prices=tests.pictures:prices",
    "CASCADE_SQL_SECONDS": "20",
}


@dataclass(frozen=True)
class Shot:
    """A picture: its name, the address, what is there when it is taken, its size; how much of its height is kept."""

    name: str
    path: str
    ready: str
    size: tuple[int, int] = WIDE
    press: Sequence[str] = ()
    """Names of buttons that are clicked first."""
    typed: Sequence[tuple[str, str]] = ()
    """Fields that are filled before that."""
    look_at: str = ""
    """What is scrolled to the top."""


def prices(item: str, seconds: float = 0.7) -> dict[str, Any]:
    """What the children's run does: pages of a price list, some of which are not there."""
    pages = 3 + len(item) % 3
    for page in range(1, pages + 1):
        print(f"{item}: page {page} of {pages}")
        time.sleep(seconds)
    if item.endswith("7"):
        raise ValueError(f"{item}: no table on page {pages}")
    return {"pages": pages}


FEED = """<?xml version="1.0" encoding="utf-8"?>
<rss version="2.0"><channel><title>The harbour paper</title><link>https://paper.example/</link>{items}</channel></rss>"""
NEWS = (
    ("Ferries run every ten minutes again", "After the repairs at the eastern quay the summer timetable is back."),
    ("A lighthouse for sale", "The tower of 1871 has not been lit since 1988; its keeper's garden goes with it."),
    ("Herring are late this year", "Fishers blame the cold spring, researchers the counting."),
    ("The old crane will stay", "The council has voted for a coat of paint instead of the scrapyard."),
    ("Two whales seen off the mole", "Both were minke whales, says the museum, and in no hurry."),
    ("Library opens on Sundays", "From May on, with the reading room that looks over the basin."),
)


def feed() -> str:
    items = "".join(
        f"<item><guid>n{number}</guid><title>{title}</title><link>https://paper.example/{number}</link>"
        f"<description>{text}</description><pubDate>Mon, {12 - number:02} Jan 2026 07:30:00 GMT</pubDate></item>"
        for number, (title, text) in enumerate(NEWS)
    )
    return FEED.format(items=items)


# ---- a parent with work ------------------------------------------------------------------------------------------


@contextmanager
def working() -> Iterator[tuple[LocalTree, dict[str, Any]]]:
    """A tree in the middle of its work, and the numbers that addresses of pages need."""
    from cascade.local import Child, LocalTree
    from tests import feed_server

    limited = [{"task_type": "custom", "slots": 2, "limit": 3}, {"task_type": "data_import", "slots": 2}]
    children = [
        Child("frankfurt-1", 6, quotas=limited, carrier="push", env=SETTINGS),
        Child("frankfurt-2", 4, quotas=[{"task_type": "custom", "slots": 2}], carrier="push", env=SETTINGS),
        Child("lisbon-1", 4, carrier="pull", env=SETTINGS),
        Child("oslo-1", 2, carrier="push", env=SETTINGS),
    ]
    with (
        tempfile.TemporaryDirectory(prefix="pictures-") as folder,
        feed_server.serving() as feeds,
        LocalTree(Path(folder) / "parent", env=SETTINGS, children=children) as tree,
    ):
        yield tree, _work(tree, feeds.put("/paper.xml", feed()))


def _work(tree: LocalTree, feed_address: str) -> dict[str, Any]:
    from nodes.providers.sample import Sample

    def done(kind: str, items: Sequence[Any], name: str, **fields: Any) -> int:
        run = tree.submit(kind, items, name=name, **fields)
        tree.wait(run, timeout=180)
        return run

    sample = {"source": "sample"}
    symbols = Sample({}).symbols()
    done("data_import", symbols, "daily bars by year", params=sample, split="year", shard_size=1)
    done("analysis", symbols, "indicators")
    done("feed_update", [feed_address], "feeds")
    crossing = {"strategy": "ma_cross", "commission": 0.1}
    done("backtest", symbols, "crossing averages", params=crossing)
    space = {"fast": {"low": 5, "high": 50, "step": 5}, "slow": [50, 100, 150, 200]}
    search = {"symbols": "AAPL,IBM", "strategy": "ma_cross", "trials": 40, "search": "grid", "space": space}
    done("optimization", [], "averages of AAPL and IBM", params=search)
    shops = [f"shop-{number}" for number in range(1, 400)]
    night = tree.submit(
        "custom", shops, name="price lists of the night", params={"callable": "prices"}, shard_size=1, max_attempts=1
    )
    tree.submit(
        "custom", shops[:40], name="price lists, Norway", params={"callable": "prices"}, labels={"region": "no"}
    )
    tree.wait(night, timeout=120, until=lambda progress: progress["failed"] >= 2)
    tree.kill("oslo-1")
    tree.wait(night, timeout=120, until=lambda progress: progress["failed"] >= 4)
    nodes = {name: node["id"] for name, node in tree.nodes().items()}
    return {"night": night, "norway": night + 1, "node": nodes["frankfurt-1"], "feed": feed_address}


def shots(of: dict[str, Any]) -> list[Shot]:
    night, node = of["night"], of["node"]
    return [
        Shot("overview", "/", "#journal tr", (1280, 790)),
        Shot("run", f"/runs/{night}", "#log-lines > *"),
        Shot("node", f"/nodes/{node}", "#allocations tr", (1280, 820)),
        Shot("items", f"/runs/{night}/items?index=6", "main table tr", (1280, 520)),
        Shot("explain", f"/runs/{of['norway']}", "#waits ul", (1280, 480)),
        Shot(
            *("what-if", f"/what-if?n{node}.capacity=12&add.name=bergen-1&add.labels=region%3Dno"),
            *("#answer-title", (1280, 700)),
            look_at="[aria-labelledby=answer-title]",
        ),
        Shot(
            *("submit", "/submit?type=echo", "#preview table", (1280, 1000)),
            press=("Preview",),
            typed=(("#items", "one\ntwo\nthree"),),
        ),
        Shot("table", "/tables/kline?symbol=AAPL&ordering=-datetime", "main table tr", (1280, 600)),
        Shot("candles", "/tables/analysis/chart?symbol=AAPL&indicator=rsi&signals=1&bars=160", "#chart[data-drawn]"),
        Shot("backtest", "/tables/backtest/chart?symbol=AAPL", "#chart canvas", (1280, 720)),
        Shot("optimization", "/tables/optimization/chart", ".heat", (1280, 760)),
        Shot("articles", "/articles", "#articles-title", (1280, 520)),
        Shot("journal", "/journal", "#journal tr", (1280, 600)),
        Shot("admin", "/admin/nodes/node/", "#result_list", (1280, 560)),
        Shot("phone", "/", "#nodes tr", PHONE),
    ]


# ---- the pictures ------------------------------------------------------------------------------------------------


def _signed_in(context: BrowserContext, tree: LocalTree) -> Page:
    page = context.new_page()
    page.goto(f"{tree.url}/admin/login/?next=/journal")
    page.fill("input[name=username]", tree.username)
    page.fill("input[name=password]", tree.password)
    page.press("input[name=password]", "Enter")
    page.locator("#journal").wait_for(state="attached")
    return page


def _take(page: Page, url: str, shot: Shot, folder: Path) -> Path:
    page.set_viewport_size({"width": shot.size[0], "height": shot.size[1]})
    page.goto(url + shot.path)
    for field, text in shot.typed:
        page.fill(field, text)
    for name in shot.press:
        page.get_by_role("button", name=name, exact=True).last.click()
    page.locator(shot.ready).first.wait_for()
    page.wait_for_load_state("networkidle")
    if shot.look_at:
        page.locator(shot.look_at).first.evaluate("element => scrollBy(0, element.getBoundingClientRect().top - 60)")
    file = folder / f"{shot.name}.png"
    page.screenshot(path=file, animations="disabled")
    return file


def take(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The pictures, or those that ``only`` names, as files in ``folder``."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with working() as (tree, numbers), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server", "--disable-dev-shm-usage"]
        )
        context = browser.new_context(color_scheme="light", locale="en-GB", timezone_id="UTC", device_scale_factor=1)
        page = _signed_in(context, tree)
        wanted = [shot for shot in shots(numbers) if not only or shot.name in only]
        files = [_take(page, tree.url, shot, folder) for shot in wanted]
        browser.close()
    return files


def named() -> set[str]:
    """Names of the pictures in ``docs/pictures`` that the documentation shows."""
    pages = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    return {name for page in pages for name in re.findall(r"\]\((?:docs/)?pictures/([^)\s]+)\)", page.read_text())}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("only", nargs="*", help="names of pictures; all of them without any")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    if not CHROMIUM.exists():
        print(f"{CHROMIUM} is not here: the pictures need the Chromium that Debian packages", file=sys.stderr)
        return 5
    large = []
    for file in take(given.folder, given.only):
        size = file.stat().st_size
        print(f"{file}  {size // 1000} kB")
        large += [file.name] if size > LARGEST else []
    if large:
        print(f"larger than {LARGEST // 1000} kB: {', '.join(large)}", file=sys.stderr)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())

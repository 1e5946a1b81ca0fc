"""Pages for everybody: what axe-core finds on each page in light and dark, states without colours, keys alone."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Locator, Page, expect

from cascade.local import LocalTree
from dispatch.states import AllocationState, RunState, ShardState
from nodes.executors.feed_update import FeedUpdate
from tests.browser import scenes
from tests.browser.watching import Watched
from tests.integration.agents import Agent

SEARCH = {"strategy": "ma_cross", "space": {"fast": [5, 10], "slow": [50, 100]}, "search": "grid"}
ABOUT_COLOURS = ("color-contrast", "link-in-text-block")


class Place:
    """A tree with something on every page, and its scene."""

    def __init__(self, tree: LocalTree) -> None:
        self.tree = tree
        self.scene = scenes.add(tree)
        agent = Agent(tree)
        told = {"id": "1", "feed": "f", "title": scenes.HOSTILE, "author": scenes.SCRIPT, "url": "http://x/"}
        told |= {"text": scenes.HOSTILE, "summary": scenes.HOSTILE, "published": "2024-01-01T00:00:00"}
        row = [told.get(name) for name in FeedUpdate.dataset.names]
        run, ((allocation, _, start, stop, *_),) = agent.work("https://example.org/", type="feed_update")
        report = {"allocation": allocation, "ranges": [[start, stop, 1]], "errors": [], "rows": [row], "seconds": 0.1}
        agent.ask("report", {"reports": [report]})
        tree.json("PATCH", f"/api/v1/nodes/{agent.id}", json={"active": False})
        sample = {"source": "sample", "start_date": "2004-01-01", "end_date": "2005-12-31"}
        runs = [
            tree.submit("data_import", ["AAPL"], params=sample),
            tree.submit("backtest", ["AAPL"], params={**sample, "strategy": "ma_cross"}),
            tree.submit("optimization", [], params={**sample, **SEARCH, "symbols": ["AAPL"], "study": "s"}),
        ]
        for each in [*runs, run]:
            assert tree.wait(each)["state"] == "completed"

    def addresses(self) -> list[str]:
        return [
            *scenes.addresses(self.scene),
            "/tables/backtest/chart",
            "/tables/optimization/chart",
            "/articles/text?feed=f&id=1",
        ]


@pytest.fixture(scope="module")
def place(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with LocalTree(tmp_path_factory.mktemp("axe"), env=scenes.ENV) as tree:
        yield Place(tree)


@pytest.fixture(scope="module")
def window(browser: Browser, place: Place) -> Iterator[Watched]:
    made = Watched(browser, place.tree)
    made.sign_in()
    yield made
    advice = ("the server responded with a status of 40", "[DOM] Input elements should have autocomplete")
    made.said = [each for each in made.said if not any(known in each for known in advice)]
    made.close()


@pytest.fixture
def page(window: Watched) -> Page:
    window.page.set_viewport_size({"width": 1280, "height": 800})
    return window.page


def found(page: Page, **options: Any) -> list[tuple[str, str, str]]:
    """Each violation: how bad, which rule, where first."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    told = page.evaluate("options => axe.run(document, options)", {"resultTypes": ["violations"], **options})
    return [(each["impact"], each["id"], each["nodes"][0]["html"][:200]) for each in told["violations"]]


def test_axe_finds_nothing_on_any_page_in_light_and_dark_and_no_page_scrolls_sideways(place: Place, page: Page) -> None:
    problems: dict[str, Any] = {}
    for address in place.addresses():
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 375, "height": 800})
        page.goto(address)
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 375:
            problems[f"{address} is wide"] = width
        page.set_viewport_size({"width": 1280, "height": 800})
        if address == "/api/docs":  # of the many alike, the first
            page.evaluate("document.querySelectorAll('section + section, nav ul').forEach((each) => each.remove())")
        if light := found(page):
            problems[f"{address} in light"] = light
        page.emulate_media(color_scheme="dark")
        # What is no matter of colours is the same.
        if dark := found(page, runOnly=list(ABOUT_COLOURS)):
            problems[f"{address} in dark"] = dark
        assert page.evaluate("window.__pwned") is None
    page.emulate_media(color_scheme="light")
    assert problems == {}


@pytest.mark.parametrize("language", ["en", "zh-CN"])
def test_no_window_is_scrolled_sideways_whatever_its_width(browser: Browser, place: Place, language: str) -> None:
    window = Watched(browser, place.tree, locale=language)
    window.sign_in()
    page, wide = window.page, []
    for address in ("/", f"/runs/{place.scene.run}", f"/nodes/{place.scene.node}"):
        page.goto(address)
        page.locator("#liveness[data-state=live]").wait_for()
        page.click("#pause")
        for width in (320, 430, 577, 768, 961, 1024, 1200):
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                wide.append((address, width))
    assert wide == []
    window.close()


def test_the_admin_is_no_wider_than_a_phone_whatever_things_are_called(place: Place, page: Page) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    there = place.scene
    for path in ("nodes/node", "dispatch/run", "dispatch/task", "dispatch/allocation", "dispatch/shard"):
        numbers = {"nodes/node": there.node, "dispatch/run": there.run, "dispatch/task": there.task}
        for address in (f"/admin/{path}/", f"/admin/{path}/{numbers.get(path, there.allocation)}/change/"):
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") <= 375, address
            assert page.evaluate("window.__pwned") is None, address


def test_axe_does_find_what_is_wrong(page: Page) -> None:
    page.goto("/runs")
    page.evaluate("""() => {
        document.querySelector("main").append(document.createElement("input"));
        Object.assign(document.querySelector("th").style, {color: "#ddd", background: "#eee"});
    }""")
    assert {"color-contrast", "label"} <= {rule for _, rule, _ in found(page)}


SHOWN = """() => {
    const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = colour => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).map(Number).map(channel);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    return [...document.querySelectorAll(".state")].map(each => {
        const glyph = each.querySelector(".glyph"), style = getComputedStyle(glyph);
        const [low, high] = [style.color, style.backgroundColor].map(luminance).sort((one, other) => one - other);
        return {
            tone: each.classList[1], glyph: glyph.textContent.trim(), contrast: (high + 0.05) / (low + 0.05),
            word: each.textContent.replace(glyph.textContent, "").trim(),
        };
    });
}"""
"""Of each state on the page: its word, its glyph, and how the glyph stands out from its ground."""
STATES = {*RunState, *ShardState, *AllocationState, "online", "draining", "offline", "inactive", "retrying"}


def test_every_state_has_a_word_and_a_glyph_of_its_own_that_stands_out_without_colours(
    place: Place, page: Page
) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for address in ("/", "/runs", f"/runs/{place.scene.run}", f"/runs/{place.scene.run}/items"):
            page.goto(address)
            for each in page.evaluate(SHOWN):
                assert each["contrast"] >= 4.5, (scheme, each)
                assert each["glyph"]
                assert seen.setdefault(each["word"], (each["tone"], each["glyph"])) == (each["tone"], each["glyph"])
    assert STATES - set(seen) == set()
    looks = set(seen.values())
    assert len(looks) == len({tone for tone, _ in looks}) == len({glyph for _, glyph in looks}) == 8
    page.emulate_media(color_scheme="light")


GREYS = """async ([picture, boxes]) => {
    const bytes = Uint8Array.from(atob(picture), each => each.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes]));
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    canvas.drawImage(bitmap, 0, 0);
    return boxes.map(([x, y, width, height]) => {
        const {data} = canvas.getImageData(x, y, width, height);
        return Array.from({length: height}, (_, row) => Array.from({length: width}, (_, column) => {
            const at = 4 * (row * width + column);
            return (data[at] + data[at + 1] + data[at + 2]) / 3;
        }));
    });
}"""
CELLS = """svg => {
    const ground = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("rect")].map(each => {
        const box = each.getBoundingClientRect();
        return [each.getAttribute("class"), box.x - ground.x, box.width];
    }).filter(([, , width]) => width > 30);
}"""
LEAST_APART = 20.0
"""Of 255 greys: in the mean, or in how strongly it is striped in one of four directions."""


def greyscale(page: Page, drawing: Locator) -> dict[str, Any]:
    """Of each tone drawn, as one sees it who sees no colours: its grey, and its stripes in four directions."""
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setEmulatedVisionDeficiency", {"type": "achromatopsia"})
    picture = base64.b64encode(drawing.screenshot()).decode()
    session.send("Emulation.setEmulatedVisionDeficiency", {"type": "none"})
    session.detach()
    cells = drawing.evaluate(CELLS)
    boxes = [[round(x) + 2, 2, 28, 9] for _, x, _ in cells]
    told = {}
    for (tone, *_), grey in zip(cells, page.evaluate(GREYS, [picture, boxes]), strict=True):
        pixels = np.array(grey)
        rows, columns = np.indices(pixels.shape)
        stripes = [
            np.std([pixels[along == at].mean() for at in np.unique(along) if (along == at).sum() > 4])
            for along in (rows, columns, rows + columns, rows - columns)
        ]
        told[tone] = np.array([pixels.mean(), *stripes])
    return told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_drawn_of_a_run_is_told_apart_without_colours_and_has_a_key(
    place: Place, page: Page, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(f"/runs/{place.scene.run}")
    page.evaluate("document.getElementById('pause')?.click()")
    tones: dict[str, Any] = {}
    lanes = page.locator("#lanes svg.cells")
    for drawing in [page.locator("#strip svg.cells"), *lanes.all()]:
        drawing.scroll_into_view_if_needed()
        tones |= greyscale(page, drawing)
    assert len(tones) == 8
    alike = [
        (one, other, float(np.linalg.norm(tones[one] - tones[other])))
        for one, other in itertools.combinations(sorted(tones), 2)
        if np.linalg.norm(tones[one] - tones[other]) < LEAST_APART
    ]
    assert alike == []
    for part in ("#strip", "#lanes"):
        drawn = page.eval_on_selector_all(
            f"{part} svg.cells rect", "all => all.map(each => each.getAttribute('class'))"
        )
        key = page.eval_on_selector_all(f"{part} .key rect", "all => all.map(each => each.getAttribute('class'))")
        assert set(drawn) <= set(key)
    page.emulate_media(color_scheme="light")


def test_what_is_to_come_is_not_said_to_have_been(place: Place, page: Page) -> None:
    for address in (f"/submit?scheduled={place.scene.task}", f"/runs/{place.scene.run}/items?index=4"):
        page.goto(address)
        ahead = page.locator("main time").filter(has_text=re.compile(r"^in (23|24) h$"))
        expect(ahead).to_have_count(1)


WHERE = """() => {
    const at = document.activeElement;
    if (!at || at === document.body) return null;
    const box = at.getBoundingClientRect();
    const style = getComputedStyle(at);
    return {
        is: at.outerHTML.slice(0, 120),
        seen: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight && box.left < innerWidth,
        outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1,
        order: [...document.querySelectorAll("*")].indexOf(at),
    };
}"""
REACHABLE = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
    .filter((each) => each.checkVisibility({visibilityProperty: true}) && !each.disabled && each.tabIndex >= 0
        && !(each.type === "radio" && !each.checked)).length"""


def walked(page: Page, most: int = 400) -> list[dict[str, Any]]:
    """What Tab stops at, from the top of the page to its end."""
    page.evaluate("() => { getSelection().removeAllRanges(); document.activeElement?.blur(); scrollTo(0, 0); }")
    stops: list[dict[str, Any]] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        at = page.evaluate(WHERE)
        if at is None or (stops and at["order"] == stops[0]["order"]):
            return stops
        stops.append(at)
    raise AssertionError(f"Tab goes on after {most} stops")


@pytest.mark.parametrize("address", ["/", "/runs/{run}", "/submit?type=data_import"])
def test_tab_reaches_everything_in_the_pages_order_and_shows_where_it_is(
    place: Place, page: Page, address: str
) -> None:
    page.goto(address.format(run=place.scene.run))
    page.evaluate("document.getElementById('pause')?.click()")  # so that no row comes while we walk
    stops = walked(page)
    assert len(stops) == page.evaluate(REACHABLE)
    assert [each["order"] for each in stops] == sorted(each["order"] for each in stops)
    assert [each for each in stops if not (each["seen"] and each["outlined"])] == []


def test_the_keyboard_alone_opens_and_closes_the_menu_and_the_help_and_goes_places(place: Place, page: Page) -> None:
    page.goto("/runs")
    sheet = page.locator(".menu .sheet")
    page.locator(".menu summary").focus()
    page.keyboard.press("Enter")
    expect(sheet).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.sheet') !== null")
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    assert page.evaluate("document.activeElement.matches('.menu summary')")
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Tab")
    expect(sheet).to_be_hidden()  # it covers nothing that is being used

    page.keyboard.press("?")
    help = page.locator("#keys-help")
    expect(help).to_be_visible()
    assert page.evaluate("document.activeElement.closest('#keys-help') !== null")
    page.keyboard.press("Escape")
    expect(help).to_be_hidden()
    page.keyboard.press("?")
    page.keyboard.press("?")
    expect(help).to_be_hidden()
    for key, address in {"t": "/tables", "o": "/", "r": "/runs", "n": "/#nodes-title"}.items():
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(place.tree.url + address)
    heading = page.locator("#nodes-title").bounding_box()
    top = page.locator("header.top").bounding_box()
    assert heading is not None
    assert top is not None
    assert heading["y"] >= top["y"] + top["height"]  # the header stays, and does not cover it
    page.keyboard.press("j")
    first = page.evaluate("document.activeElement.closest('tr').id")
    page.keyboard.press("j")
    assert first != page.evaluate("document.activeElement.closest('tr').id")
    page.keyboard.press("k")
    assert first == page.evaluate("document.activeElement.closest('tr').id")
    page.goto("/runs")
    page.keyboard.press("/")
    page.keyboard.type("g o?")  # letters, where one types
    assert page.evaluate("document.activeElement.value") == "g o?"
    expect(help).to_be_hidden()


def test_what_takes_two_steps_takes_them_by_the_keyboard(place: Place, page: Page) -> None:
    run = place.tree.submit("echo", ["x", "y"], labels={"only": "nobody"})
    page.goto(f"/runs/{run}")
    first, second = page.locator("details.when-running summary"), page.locator("form.when-running button")
    first.focus()
    page.keyboard.press("Enter")
    expect(second).to_be_visible()
    page.keyboard.press("Escape")
    expect(second).to_be_hidden()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    expect(second).to_be_focused()
    assert place.tree.progress(run)["state"] == "running"
    page.keyboard.press("Enter")
    expect(page.locator("#head .state.cancelled")).to_be_visible()
    assert place.tree.progress(run)["state"] == "cancelled"

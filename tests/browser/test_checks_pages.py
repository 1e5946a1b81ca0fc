"""All pages with something on each: nothing refused, nothing from elsewhere; addresses that restore what was looked at;
a run of 10,000 items drawn in few strokes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.urls import resolve
from playwright.sync_api import Browser, Page, Request, Response, expect

from api import pages
from api.strips import CELLS
from cascade.local import LocalTree
from tests.browser import scenes, strewn
from tests.browser.test_axe import Place
from tests.browser.test_branches import Relay
from tests.browser.watching import Watched
from tests.integration.agents import Agent, done

POSTED = {"run-cancel", "run-retry", "node-add", *(f"node-{verb}" for verb in ("limits", "drain", "resume", "issue"))}
POSTED |= {"node-rotate", "node-revoke"}
ONCE = {"sign-in"}
"""Signs in whoever opens it."""
MAIN = ("nodes/node", "nodes/accesskey", "dispatch/run", "dispatch/task", "dispatch/allocation", "dispatch/source")
VIEW = """() => {
    const fields = [...document.querySelectorAll("main form input, main form select, main form textarea")]
        .filter(each => each.name && each.type !== "hidden" && each.name !== "csrfmiddlewaretoken")
        .map(each => [each.name, each.type === "checkbox" ? each.checked : each.value]);
    const rows = [...document.querySelectorAll("main tbody tr, #log-lines .text")]
        .map(row => [...row.querySelectorAll("td")].filter(cell => !cell.querySelector("time"))
            .map(cell => cell.textContent).join("|") || row.textContent);
    return [location.pathname, fields, rows];
}"""
"""What somebody sees of a page and has set on it; without what moves by itself."""


@pytest.fixture(scope="module")
def place(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with LocalTree(tmp_path_factory.mktemp("pages"), env=scenes.ENV) as tree:
        yield Place(tree)


@pytest.fixture(scope="module")
def window(browser: Browser, place: Place) -> Iterator[Watched]:
    made = Watched(browser, place.tree, viewport={"width": 1280, "height": 800})
    made.sign_in()
    yield made
    made.context.close()


@pytest.fixture(scope="module")
def logged(place: Place) -> int:
    """A run that printed three lines."""
    agent = Agent(place.tree)
    run, (work,) = agent.work("x")
    agent.ask("report", {"reports": [{**done(work), "log": "hay\na needle\nstraw\n"}]})
    place.tree.wait(run)
    # One node less that comes and goes while views are compared.
    place.tree.json("PATCH", f"/api/v1/nodes/{agent.id}", json={"active": False})
    return run


class Wire:
    """What a window asked for and did not get."""

    def __init__(self, page: Page) -> None:
        self.failed: list[str] = []
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)

    def _failed(self, request: Request) -> None:
        # Whoever leaves a page ends what it was still asking.
        if request.failure != "net::ERR_ABORTED":
            self.failed.append(f"{request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.failed.append(f"{response.url}: {response.status}")


WRONG = ("/no-such-page", "/sql?query=SELEC")
"""Their status is that of a failure."""


def test_no_page_is_refused_anything_or_asks_another_host(place: Place, window: Watched) -> None:
    """Every address of ``api.pages`` that can be looked at is among those that are."""
    page = window.page
    wire = Wire(page)
    rows = place.tree.json("GET", "/api/v1/runs", params={"type": "data_import"})["results"][0]["id"]
    visited = set()
    relay = Relay(place.tree)
    for address in [*place.addresses(), f"/nodes/{relay.agent.id}/below", f"/runs/{rows}/rows", "/journal"]:
        page.goto(address)
        if address in WRONG:
            wire.failed.clear()
            window.said.clear()
            continue
        visited.add(resolve(urlsplit(address).path).url_name)
        assert (wire.failed, window.said) == ([], [])
    relay.end()
    assert visited >= {pattern.name for pattern in pages.urlpatterns if pattern.name} - POSTED - ONCE


def test_no_list_of_the_admin_is_refused_anything_under_its_own_policy(window: Watched) -> None:
    page = window.page
    wire = Wire(page)
    page.goto("/admin/")
    policy = page.evaluate("fetch('/admin/').then(answer => answer.headers.get('content-security-policy'))")
    assert policy != page.evaluate("fetch('/').then(answer => answer.headers.get('content-security-policy'))")
    lists = page.evaluate(
        "[...new Set([...document.querySelectorAll('#nav-sidebar a')].map(each => each.pathname))]"
        ".filter(each => /^\\/admin\\/\\w+\\/\\w+\\/$/.test(each))"
    )
    assert {f"/admin/{name}/" for name in MAIN} <= set(lists)
    for address in lists:
        page.goto(address)
        assert (wire.failed, window.said) == ([], [])


@pytest.mark.parametrize("width", [1280, 375])
def test_the_menu_leads_to_each_page(window: Watched, width: int) -> None:
    page = window.page
    page.set_viewport_size({"width": width, "height": 800})
    page.goto("/")
    menu, sheet = page.locator("header .menu summary"), page.locator("header .menu .sheet")
    expect(sheet).to_be_hidden()
    menu.focus()
    page.keyboard.press("Enter")
    shown = (
        "[...document.querySelectorAll('header a')].filter(each => each.checkVisibility()).map(each => each.pathname)"
    )
    places = page.evaluate(shown)
    assert {"/", "/runs", "/tables", "/sql", "/submit", "/what-if", "/journal", "/admin/", "/api/docs"} <= set(places)
    sheet.get_by_role("button").first.click()  # times in UTC
    assert page.evaluate("localStorage.getItem('zone')") == "utc"
    sheet.get_by_role("button").first.click()
    menu.click()
    expect(sheet).to_be_hidden()
    menu.click()
    page.locator("header a[href='/sql'] >> visible=true").click()
    page.wait_for_url("**/sql")
    page.set_viewport_size({"width": 1280, "height": 800})
    assert window.said == []


def chosen(place: Place, logged: int, page: Page) -> Iterator[tuple[str, Any]]:
    """Views as somebody makes them by hand: the address that is there then, and what it shows."""
    page.goto("/runs")
    page.select_option("[name=state]", "partial")
    page.fill("[name=q]", "partial")
    page.press("[name=q]", "Enter")
    page.wait_for_url("**/runs?*q=partial*")
    assert page.locator("tbody tr").count() == 1
    yield page.url, page.evaluate(VIEW)

    page.goto("/tables/kline")
    page.locator("main summary", has=page.locator("small")).first.click()
    page.select_option("[name='.test.close']", "gte")
    page.fill("[name='.value.close']", "40")
    page.press("[name='.value.close']", "Enter")
    page.wait_for_url("**close__gte=40*")
    assert page.locator("tbody tr").count()
    yield page.url, page.evaluate(VIEW)

    page.goto("/sql")
    page.fill("#query", "SELECT symbol, count(*) AS bars FROM kline GROUP BY symbol -- ≥ 1")
    page.press("#query", "Control+Enter")
    page.locator("main tbody tr").wait_for()
    yield page.url, page.evaluate(VIEW)

    page.goto(f"/runs/{logged}")
    lines = page.locator("#log-lines li")
    expect(lines).to_have_count(3)
    page.fill("#log-search [name=search]", "needle")
    page.press("#log-search [name=search]", "Enter")
    expect(lines).to_have_count(1)
    yield page.url, page.evaluate(VIEW)

    page.goto(f"/what-if?run={place.scene.run}")
    page.fill("[name='add.name']", "one more")
    page.fill("[name='add.labels']", "only=x")
    page.press("[name='add.labels']", "Enter")
    page.locator("#answer-title").wait_for()
    yield page.url, page.evaluate(VIEW)


def test_a_copied_address_restores_the_view_for_somebody_else(
    browser: Browser, place: Place, logged: int, window: Watched
) -> None:
    views = list(chosen(place, logged, window.page))
    other = Watched(browser, place.tree, viewport={"width": 1280, "height": 800})
    # The first is opened by somebody who has yet to sign in.
    address = urlsplit(views[0][0])
    other.sign_in(f"{address.path}?{address.query}")
    assert other.page.evaluate(VIEW) == views[0][1]
    for url, view in views[1:]:
        other.page.goto(url)
        if "/runs/" in url:
            expect(other.page.locator("#log-lines li")).to_have_count(1)
        if "/sql" in url:
            # An address runs nothing.
            assert other.page.evaluate(VIEW)[1:] == [view[1], []]
            other.page.press("#query", "Control+Enter")
            other.page.locator("main tbody tr").wait_for()
        seen = other.page.evaluate(VIEW)
        if "/what-if" in url:
            # What it answers is as of now: meanwhile a node may have fallen silent.
            assert seen[2]
            seen, view = seen[:2], view[:2]
        assert seen == view, url
    other.close()


def test_a_run_of_ten_thousand_items_is_drawn_in_few_strokes(place: Place, window: Watched) -> None:
    run = strewn.add(place.tree)
    page = window.page
    page.goto(f"/runs/{run}")
    page.locator("#liveness[data-state=live]").wait_for()
    cells = page.locator("#strip .cells rect")
    assert 100 < cells.count() <= CELLS
    drawn = page.evaluate(
        "[...document.querySelectorAll('#strip .cells rect')].map(each => each.width.baseVal.valueInSpecifiedUnits)"
    )
    assert sum(drawn) == pytest.approx(100, abs=0.5)
    assert page.locator("main *").count() < 3_000
    said = page.locator("#strip .cells").get_attribute("aria-label") or ""
    assert sum(int(each.split()[0].replace(",", "")) for each in said.split(", ")) == strewn.ITEMS
    assert window.said == []

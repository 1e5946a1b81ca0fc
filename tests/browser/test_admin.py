"""The admin in a real browser, under its own policy: menus, filters, the palette, verbs; nothing refused, nothing from
elsewhere, no word in the console."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, expect

from tests.hostile.victim import Victim
from tests.integration.agents import Agent

VIOLATIONS = """
window.__refused = [];
document.addEventListener("securitypolicyviolation", each => window.__refused.push(each.violatedDirective));
"""


@pytest.fixture(scope="module")
def busy(parent: Victim) -> Victim:
    """Three nodes, and two runs that nobody can take."""
    for name in ("berlin", "paris", "rome"):
        Agent(parent.tree, description=name)
    for name in ("wanted first", "wanted second"):
        parent.tree.submit("echo", ["x"], name=name, labels={"only": "nobody"})
    return parent


@pytest.fixture
def page(busy: Victim, operator: BrowserContext) -> Iterator[Page]:
    """A page of the admin; afterwards: was anything refused, fetched from elsewhere, or complained about?"""
    page = operator.new_page()
    said: list[str] = []
    page.add_init_script(VIOLATIONS)
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))

    def told(each: ConsoleMessage) -> None:
        if each.type != "verbose":  # type: ignore[comparison-overlap]
            said.append(f"{page.url}: {each.text}")

    def local(each: Request) -> None:
        if not each.url.startswith(busy.tree.url):
            said.append(f"asked {each.url}")

    page.on("console", told)
    page.on("request", local)
    yield page
    assert page.evaluate("window.__refused") == []
    assert said == []
    page.close()


def test_menus_tabs_and_the_palette_work(busy: Victim, page: Page) -> None:
    page.goto(f"{busy.tree.url}/admin/")
    page.locator('#nav-sidebar a[href="/admin/dispatch/run/"]').click()
    expect(page).to_have_url(f"{busy.tree.url}/admin/dispatch/run/")
    # The palette: a keystroke, some letters, the way to a row.
    page.locator("body").press("Control+k")
    page.locator("#search-input-command").press_sequentially("wanted")
    found = page.locator("#command-results-list a", has_text="wanted first")
    found.wait_for()
    found.click()
    page.locator('#tabs-items a[href="#shards"]').click()
    expect(page.locator("[data-inline-type=tabular]").first).to_be_visible()
    page.locator('#tabs-items a[href="#general"]').click()
    expect(page.locator("[data-inline-type=tabular]").first).to_be_hidden()


def test_a_filter_is_in_the_address_and_narrows_the_list(busy: Victim, page: Page) -> None:
    page.goto(f"{busy.tree.url}/admin/nodes/node/")
    rows = page.locator("#result_list tbody")
    everybody = rows.count()
    assert everybody >= 3
    page.locator("#changelist a", has_text="Filters").first.click()
    page.locator('a[href*="state=inactive"]').locator("visible=true").click()
    expect(page).to_have_url(f"{busy.tree.url}/admin/nodes/node/?state=inactive")
    expect(rows).to_have_count(0)


def test_a_verb_from_a_rows_menu_asks_and_then_acts(busy: Victim, page: Page) -> None:
    address = f"{busy.tree.url}/admin/nodes/node/"
    page.goto(address)
    page.locator(".field-actions_holder span", has_text="more_horiz").first.click()
    page.get_by_role("link", name="Drain", exact=True).locator("visible=true").click()
    expect(page.locator(".confirm .question")).to_have_text(
        "Drain 1 node? It finishes what it has, and gets no new work until it is resumed."
    )
    page.get_by_role("button", name="Yes, drain").click()
    expect(page).to_have_url(address)
    expect(page.get_by_text("Draining: node-")).to_be_visible()


def test_a_verb_over_chosen_rows_asks_with_their_number_and_then_acts(busy: Victim, page: Page) -> None:
    page.goto(f"{busy.tree.url}/admin/dispatch/run/?state=running&q=wanted")
    page.locator("#result_list thead input.action-toggle, input.action-toggle").locator("visible=true").first.click()
    page.locator("select[name=action]").select_option(label="Cancel")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".confirm .question")).to_contain_text("Cancel 2 runs?")
    page.get_by_role("button", name="Yes, cancel").click()
    expect(page.get_by_text("2 runs have ended.")).to_be_visible()
    expect(page.locator("#result_list tbody")).to_have_count(0)


def test_pages_fit_a_narrow_window(busy: Victim, page: Page) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    for path in ("", "nodes/node/", "nodes/node/add/", "dispatch/run/", "dispatch/run/1/change/", "dispatch/task/add/"):
        page.goto(f"{busy.tree.url}/admin/{path}")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path

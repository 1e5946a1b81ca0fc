"""Both languages in a real browser: nothing wider than a phone, what scripts say, the switch in the menu."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from cascade.local import LocalTree
from tests.browser import scenes
from tests.browser.watching import Watched

WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
"""How much wider the page is than its window."""


@pytest.fixture(scope="module")
def tree(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("languages"), env=scenes.ENV) as made:
        made.wait(made.submit("data_import", ["AAPL"], params={"source": "sample"}))
        yield made


def test_on_a_phone_no_page_is_wider_than_the_window_in_either_language(browser: Browser, tree: LocalTree) -> None:
    found = [*scenes.addresses(scenes.add(tree)), "/journal", "/admin/"]
    addresses = [each for each in dict.fromkeys(found) if not each.startswith("/api/")]
    for locale, language in (("en-GB", "en"), ("zh-CN", "zh-hans")):
        window = Watched(browser, tree, locale=locale, viewport={"width": 375, "height": 800})
        window.sign_in()
        wide = {}
        for address in addresses:
            window.page.goto(address)
            assert window.page.locator("html").get_attribute("lang") == language, address
            if (over := window.page.evaluate(WIDER)) > 0:
                wide[address] = over
        assert wide == {}, language
        # The pages that are not there, and the statement that is none, are answered with 400 and 404.
        window.said = [each for each in window.said if "the server responded with a status of 40" not in each]
        window.close()


def test_scripts_speak_the_language_of_the_page_and_the_menu_changes_both(browser: Browser, tree: LocalTree) -> None:
    window = Watched(browser, tree, locale="zh-CN")
    window.sign_in()
    page = window.page
    expect(page.locator("#live-text")).to_have_text(re.compile("^实时 · [0-9]+ 秒前$"))
    expect(page.locator("#runs time[data-ago]").first).to_have_text(re.compile("前$"))
    page.locator("#pause").click()
    expect(page.locator("#pause")).to_have_text("恢复")
    expect(page.locator("#live-text")).to_have_text(re.compile("^已暂停"))
    page.locator("header .menu summary").click()
    expect(page.locator("#zone")).to_have_text("以 UTC 显示时间")
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("#live-text")).to_have_text(re.compile("^Live · [0-9]+ s ago$"))
    # What the socket brings is in the page's language, too, whatever the browser would have.
    expect(page.locator("#nodes .state").first).to_have_text(re.compile("online|draining|offline|inactive"))
    tree.submit("echo", ["new"], name="after the switch")
    row = page.locator("#runs tr", has_text="after the switch")
    expect(row.locator(".state")).to_have_text(re.compile("running|completed"))
    window.close()

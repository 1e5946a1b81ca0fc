"""Tables in a real browser: candles drawn under the strict policy, a file that is what the page says, the SQL box."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cascade.local import LocalTree
from tests.browser.test_scripts import watched

PIXELS = """() => {
    const seen = new Set();
    for (const canvas of document.querySelectorAll('#chart canvas')) {
        if (!canvas.width || !canvas.height) continue;
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3]) seen.add((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
        }
    }
    return [...seen];
}"""
"""Colours that are drawn."""
DRAWN_DARK = f"""async () => {{
    const until = performance.now() + 20000;
    while (!({PIXELS})().includes(0x1fb088)) {{
        if (performance.now() > until) throw new Error("the colours did not change");
        await new Promise(requestAnimationFrame);
    }}
}}"""
SAVED, FAILED = 0x1F9E77, 0xA50F2D
"""Of bars that rise and fall."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    """A parent with a worker of its own, and the bars of a symbol with their analysis."""
    with LocalTree(tmp_path_factory.mktemp("tables"), env={"CASCADE_SQL_SECONDS": "30"}) as made:
        for kind in ("data_import", "analysis"):
            made.wait(made.submit(kind, ["AAPL"], params={"source": "sample"}))
        yield made


@pytest.fixture
def page(browser: Browser, tree: LocalTree) -> Iterator[Page]:
    context = browser.new_context(base_url=tree.url, color_scheme="light", accept_downloads=True)
    page, said = watched(context)
    page.goto("/admin/login/?next=/tables")
    page.fill("input[name=username]", tree.username)
    page.fill("input[name=password]", tree.password)
    page.press("input[name=password]", "Enter")
    page.get_by_role("link", name="kline").wait_for()
    yield page
    assert said == []
    context.close()


def test_candles_are_drawn_with_indicators_and_no_word_in_the_console(page: Page) -> None:
    messages: list[str] = []
    # Chromium has advice for who reads a canvas, which is this test.
    page.on("console", lambda said: messages.extend([said.text] if "willReadFrequently" not in said.text else []))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (event) => console.error(event.violatedDirective))"
    )
    page.get_by_role("link", name="Candles").first.click()
    page.get_by_label("Period").select_option("W")
    page.get_by_label("From").fill("2005-01-01")
    page.get_by_label("to before").fill("2006-01-01")
    page.get_by_text("Indicators").click()
    page.get_by_label("rsi").check()
    page.get_by_label("boll_upper").check()
    page.get_by_label("signals").check()
    page.get_by_role("button", name="Show").click()
    page.locator("#chart[data-drawn='52'], #chart[data-drawn='53']").wait_for()
    assert "period=W" in page.url
    assert {SAVED, FAILED} <= set(page.evaluate(PIXELS))
    expect(page.locator("#legend")).to_contain_text("rsi")
    expect(page.get_by_text("TradingView Lightweight Charts")).to_be_visible()
    box = page.locator("#chart").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    expect(page.locator("#legend")).to_contain_text("2005-")
    page.emulate_media(color_scheme="dark")
    page.evaluate(DRAWN_DARK)
    assert messages == []


def test_a_filtered_file_has_the_rows_that_the_page_says(page: Page, tree: LocalTree, tmp_path: Path) -> None:
    page.get_by_role("link", name="kline").first.click()
    page.get_by_text("Columns, filters, order").click()
    page.get_by_label("close: test").select_option("gte")
    page.get_by_label("close: value").fill("600")
    page.get_by_label("Order by").select_option("close")
    page.get_by_label("highest first").check()
    page.get_by_label("open", exact=True).uncheck()
    page.get_by_role("button", name="Show").click()
    said = page.get_by_text("Download").inner_text()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="csv").click()
    assert waiting.value.suggested_filename == "kline.csv"
    waiting.value.save_as(tmp_path / "kline.csv")
    with (tmp_path / "kline.csv").open() as file:
        told = list(csv.DictReader(file))
    assert said == f"Download {len(told)} rows"
    every = tree.json("GET", "/api/v1/tables/kline/rows")
    wanted = sorted((row["close"] for row in every if row["close"] >= 600), reverse=True)
    assert [float(row["close"]) for row in told] == wanted
    assert len(wanted) > 10
    assert "open" not in told[0]
    assert page.locator("table.rows tbody tr").count() == min(len(wanted), 100)


def test_a_statement_runs_by_its_keys_and_stays(page: Page) -> None:
    page.goto("/tables/kline?close__gte=700")
    page.get_by_role("link", name="View and edit SQL").click()
    field = page.get_by_label("Statement")
    expect(field).to_have_value('SELECT *\nFROM "kline"\nWHERE "close" >= 700.0\nLIMIT 100')
    field.press("Control+Enter")
    expect(page.locator("table.rows tbody tr")).to_have_count(3)
    expect(page.get_by_label("Statement")).to_have_value('SELECT *\nFROM "kline"\nWHERE "close" >= 700.0\nLIMIT 100')
    with page.expect_download() as waiting:
        page.get_by_role("button", name="parquet").click()
    assert waiting.value.suggested_filename == "query.parquet"


@pytest.mark.parametrize("path", ["/tables", "/tables/kline?raw=true", "/sql", "/tables/analysis/chart?indicator=rsi"])
def test_a_narrow_window_is_not_scrolled_sideways(page: Page, path: str) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375

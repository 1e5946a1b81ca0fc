"""The page of a run while it runs: the log that follows, the search on the server, pause, a cancel in two steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from cascade.local import Child, LocalTree
from tests.acceptance.trees import QUICK
from tests.browser.test_scripts import watched

MODULE = """
import time
def work(item, n):
    for number in range(n):
        print(f"{item} says <b>{number}</b> \u202e{'x' * 60}")
        time.sleep(0.02)
    if item.startswith("bad"):
        raise ValueError("no table")
    return {"length": len(item)}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    folder = tmp_path_factory.mktemp("run-page")
    (folder / "printing.py").write_text(MODULE)
    env = {**QUICK, "CASCADE_CUSTOM": "work=printing:work", "PYTHONPATH": str(folder), "CASCADE_FALLBACK_WORKERS": "0"}
    with LocalTree(folder / "tree", children=[Child("east", 2, env=env)], env=env) as made:
        yield made


@pytest.fixture
def page(browser: Browser, tree: LocalTree) -> Iterator[Page]:
    """Signed in; nothing may be said to its console, and nothing asked of another host."""
    context = browser.new_context()
    elsewhere: list[str] = []
    page, said = watched(context)
    page.on("request", lambda asked: None if asked.url.startswith(tree.url) else elsewhere.append(asked.url))
    page.goto(f"{tree.url}/admin/login/?next=/")
    page.fill("input[name=username]", tree.username)
    page.fill("input[name=password]", tree.password)
    page.click("[type=submit]")
    expect(page.locator("#live-text")).to_contain_text("Live")
    yield page
    assert (said, elsewhere) == ([], [])
    context.close()


def running(tree: LocalTree, *items: str, lines: int = 1500) -> int:
    return tree.submit(
        "custom", items, params={"callable": "work", "arguments": {"n": lines}}, shard_size=1, max_attempts=1
    )


def test_its_log_follows_until_one_scrolls_up_and_again_from_the_end(tree: LocalTree, page: Page) -> None:
    run = running(tree, "a", "b", "c")
    page.goto(f"{tree.url}/runs/{run}")
    lines = page.locator("#log-lines li")
    expect(lines.nth(60)).to_be_attached()
    at_end = "e => e.scrollHeight - e.scrollTop - e.clientHeight < 24"
    assert page.eval_on_selector("#log-lines", at_end)
    page.eval_on_selector("#log-lines", "e => { e.scrollTop = 0; }")
    expect(page.locator("#log-jump")).to_be_visible()
    seen = lines.count()
    expect(lines.nth(seen + 20)).to_be_attached()
    assert page.eval_on_selector("#log-lines", "e => e.scrollTop") == 0
    page.click("#log-jump")
    expect(page.locator("#log-jump")).to_be_hidden()
    seen = lines.count()
    expect(lines.nth(seen + 20)).to_be_attached()
    assert page.eval_on_selector("#log-lines", at_end)
    assert page.locator("#log-lines b").count() == 0  # markup is text
    # The search is the server's: among all lines, whichever are in the document; and it is in the address.
    page.fill("#log-search [name=search]", "says <b>7</b>")
    page.press("#log-search [name=search]", "Enter")
    expect(lines).to_have_count(2)
    page.reload()
    expect(lines).to_have_count(2)
    page.fill("#log-search [name=search]", "nobody says that")
    page.press("#log-search [name=search]", "Enter")
    expect(page.locator("#log-note")).to_have_text("No line has “nobody says that”.")
    tree.request("POST", f"/api/v1/runs/{run}/cancel")


def test_a_cancel_takes_two_steps_and_a_failure_can_be_retried(tree: LocalTree, page: Page) -> None:
    run = running(tree, "a", "b", "c", "d", lines=3000)
    page.goto(f"{tree.url}/runs/{run}")
    expect(page.locator("#strip svg rect").first).to_be_attached()
    sure = page.get_by_role("button", name="Cancel this run")
    expect(sure).to_be_hidden()
    page.locator("summary", has_text="Cancel…").click()
    expect(page.locator("#open")).to_contain_text("2 that run will be stopped")
    sure.click()
    expect(page.locator("#head .state")).to_have_text("–cancelled")
    assert tree.progress(run)["cancelled"] == 4

    run = running(tree, "bad-1", "bad-2", "good", lines=1)
    page.goto(f"{tree.url}/runs/{run}")
    expect(page.locator("#head .state")).to_have_text("✕partial")
    expect(page.locator("#errors tr")).to_have_count(1)  # equal failures are one
    page.locator("summary", has_text="Retry failed…").click()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#lanes")).to_contain_text("east")
    tree.wait(run)


def test_paused_it_stands_still_and_counts_and_keys_lead_elsewhere(tree: LocalTree, page: Page) -> None:
    run = running(tree, "a", lines=200)
    page.goto(f"{tree.url}/runs/{run}")
    expect(page.locator("#live-text")).to_contain_text("Live")
    page.click("#pause")
    expect(page.locator("#live-text")).to_contain_text("Paused (+")
    tree.wait(run)
    assert "running" in page.locator("#head .state").inner_text()
    page.click("#pause")
    expect(page.locator("#head .state")).to_have_text("✓completed")
    page.keyboard.press("?")
    expect(page.locator("#keys-help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url(f"{tree.url}/runs")
    page.keyboard.press("/")
    page.keyboard.type("1")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs?*q=1*")

"""Stored scripts in a real browser: what is in names, results, logs and errors no page runs, or makes markup of."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page

from tests.hostile.victim import Victim
from tests.integration.agents import Agent

MARKS = (
    "<img src=x onerror=window.__pwned=1><script>window.__pwned=1</script>",
    "\"'><svg onload=window.__pwned=1></textarea></title></style><script src=/pwned.js></script>",
    "{{constructor.constructor('window.__pwned=1')()}}<a href=javascript:window.__pwned=1 autofocus onfocus=1>",
    "</script><script>window.__pwned=1</script><!--",
    "javascript:window.__pwned=1",
)
INJECTED = (
    'document.querySelectorAll(\'[onerror],[onload],[onfocus],[src="x"],[src*="pwned"],a[href^="javascript:"]\').length'
    " + [...document.scripts].filter(each => each.textContent.includes('__pwned')).length"
)


@pytest.fixture(scope="module")
def poisoned(parent: Victim) -> Victim:
    """Each text that a child or an operator can bring is one of the marks."""
    tree = parent.tree
    for number, mark in enumerate(MARKS):
        child = Agent(tree, description=mark)
        _, ((allocation, _, start, stop, *_),) = child.work(mark, name=mark)
        report = {"allocation": allocation, "seconds": 0.1, "log": mark}
        if number % 2:
            report["failure"] = {"kind": "error", "message": mark}
        else:
            report |= {"ranges": [[start, stop, 1]], "errors": [], "rows": [[mark, 0, mark]]}
        child.ask("report", {"reports": [report]})
        child.submit(mark, max_attempts=1, name=mark)
        tree.json("POST", "/api/v1/tasks", json={"name": mark, "type": "echo", "items": [mark]})
        tree.json("POST", "/api/v1/sources", json={"kind": "symbol", "key": mark, "name": mark, "extra": {mark: mark}})
        tree.json("POST", "/api/v1/rates", json={"key": f"{mark}:*", "per_second": 1})
        child.beat(version=mark[:40], boot=mark[:64])
    return parent


def watched(context: BrowserContext) -> tuple[Page, list[str]]:
    """A page, and what its console says of scripts that failed or were not let run."""
    page = context.new_page()
    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "favicon" not in message.text:
            said.append(f"{page.url}: {message.text}")

    page.on("console", note)
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
    page.on("dialog", lambda dialog: said.append(f"{page.url}: a dialog, {dialog.message}"))
    return page, said


def clean(page: Page, said: list[str]) -> None:
    assert page.evaluate("window.__pwned") is None, page.url
    assert page.evaluate(INJECTED) == 0, (page.url, page.content())
    assert said == []


def test_the_overview_shows_marks_as_text_and_stays_live(poisoned: Victim, operator: BrowserContext) -> None:
    page, said = watched(operator)
    page.goto(poisoned.tree.url)
    page.get_by_text("window.__pwned=1").first.wait_for()
    clean(page, said)
    run = poisoned.tree.submit("echo", ["x"], name=f"later {MARKS[0]}", labels={"only": "nobody"})
    page.get_by_text("later <img").first.wait_for()  # brought by the socket
    clean(page, said)
    poisoned.tree.json("POST", f"/api/v1/runs/{run}/cancel")
    page.close()


def test_every_page_of_the_admin_shows_marks_as_text(poisoned: Victim, operator: BrowserContext) -> None:
    page, said = watched(operator)
    page.goto(f"{poisoned.tree.url}/admin/")
    clean(page, said)
    lists = page.evaluate(
        "[...new Set([...document.querySelectorAll('a')].map(each => each.pathname))]"
        ".filter(each => /^\\/admin\\/\\w+\\/\\w+\\/$/.test(each))"
    )
    assert len(lists) > 8
    marked = 0
    for address in lists:
        page.goto(poisoned.tree.url + address, wait_until="domcontentloaded")
        clean(page, said)
        marked += "__pwned" in page.inner_text("body")
        one = page.evaluate(
            "[...document.querySelectorAll('#result_list a, table a')].map(each => each.pathname)"
            ".find(each => /\\/change\\/$/.test(each))"
        )
        if one:
            page.goto(poisoned.tree.url + one, wait_until="domcontentloaded")
            clean(page, said)
    assert marked > 4
    page.close()


def test_the_api_is_never_read_as_a_page(poisoned: Victim, operator: BrowserContext) -> None:
    page, said = watched(operator)
    for path in ("/api/docs", "/api/v1/runs", "/api/v1/tables/echo/rows", "/api/v1/runs/x<script>", "/<script>"):
        answer = page.goto(poisoned.tree.url + path, wait_until="domcontentloaded")
        assert answer is not None
        assert answer.headers["x-content-type-options"] == "nosniff"
        if path.startswith("/api/v1"):
            assert answer.headers["content-type"].startswith("application/json")
        assert page.evaluate("window.__pwned") is None
    assert [each for each in said if "status of 404" not in each] == []
    page.close()


def test_pages_that_submit_and_explain_show_marks_as_text(poisoned: Victim, operator: BrowserContext) -> None:
    page, said = watched(operator)
    runs = poisoned.tree.json("GET", "/api/v1/runs?limit=6")["results"]
    allocations = poisoned.tree.json("GET", "/api/v1/allocations?limit=5")["results"]
    addresses = [f"/submit?again={run['id']}" for run in runs] + [f"/runs/{run['id']}/items?index=0" for run in runs]
    addresses += [f"/allocations/{each['id']}" for each in allocations]
    marked = 0
    for address in [*addresses, f"/what-if?add.name=x&add.labels={quote(MARKS[0])}%3D1&run={runs[0]['id']}"]:
        page.goto(poisoned.tree.url + address, wait_until="domcontentloaded")
        clean(page, [each for each in said if "status of 400" not in each])
        marked += "__pwned" in page.content()
    assert marked > 8
    page.goto(f"{poisoned.tree.url}/submit?again={runs[0]['id']}")
    page.fill("#name", MARKS[0])
    page.get_by_role("button", name="Preview").click()
    page.locator("#preview:not(.nothing)").wait_for()
    clean(page, [each for each in said if "status of 400" not in each])
    page.close()


@pytest.mark.parametrize(
    "path", ["/tables", "/tables/echo?raw=true&facet=item", "/tables/echo?item={}", "/sql?query={}"]
)
def test_pages_of_rows_show_marks_as_text(poisoned: Victim, operator: BrowserContext, path: str) -> None:
    page, said = watched(operator)
    for mark in MARKS:
        page.goto(poisoned.tree.url + path.format(quote(mark)))
        page.locator("main section").first.wait_for()
        clean(page, said)
    page.close()

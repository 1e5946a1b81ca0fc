"""What pages promise to whoever uses them: the log, files, grouped errors, why something waits, what if, run again."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cascade.local import Child, LocalTree
from tests.acceptance.trees import QUICK, allocations, numbered, until
from tests.browser.watching import Watched
from tests.integration.agents import Agent

MODULE = """
import time
def work(item, lines=0, seconds=0, fail=""):
    for number in range(lines):
        print(f"{item} says {number}" + (" needle" if (item, number) == ("first", 7) else ""))
        time.sleep(seconds)
    if fail:
        raise ValueError(fail)
"""
SQL_SECONDS, SQL_ROWS = 4, 50


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    folder = tmp_path_factory.mktemp("use")
    (folder / "checked.py").write_text(MODULE)
    env = {
        **QUICK,
        "CASCADE_CUSTOM": "work=checked:work",
        "PYTHONPATH": str(folder),
        "CASCADE_FALLBACK_WORKERS": "0",
        "CASCADE_LEASE_SECONDS": "120",
        "CASCADE_OFFER_SECONDS": "120",
        "CASCADE_OFFLINE_SECONDS": "120",
        "CASCADE_SQL_SECONDS": str(SQL_SECONDS),
        "CASCADE_SQL_ROWS": str(SQL_ROWS),
    }
    with LocalTree(folder / "tree", children=[Child("east", 2, env=env)], env=env) as made:
        yield made


@pytest.fixture(scope="module")
def window(browser: Browser, tree: LocalTree) -> Iterator[Watched]:
    made = Watched(browser, tree, accept_downloads=True, viewport={"width": 1280, "height": 800})
    made.sign_in()
    yield made
    # The page of a statement that failed has the status of its failure.
    made.said = [each for each in made.said if not re.search(r"/sql: .* status of 4\d\d", each)]
    made.close()


@pytest.fixture
def page(window: Watched) -> Page:
    return window.page


def called(tree: LocalTree, *items: str, options: dict[str, object] | None = None, **arguments: object) -> int:
    params = {"callable": "work", "arguments": arguments}
    return tree.submit("custom", items, params=params, **{"max_attempts": 1, "shard_size": 1, **(options or {})})


UPPERMOST = """e => {
    const box = e.getBoundingClientRect();
    return document.elementFromPoint(box.x + 40, box.y + 9).textContent;
}"""
"""The line that is read at the top of the pane."""
RESTS = """e => new Promise(rested => {
    let was = -1;
    const look = () => (was === e.scrollTop ? rested(was) : (was = e.scrollTop, setTimeout(look, 100)));
    look();
})"""
"""Where it is scrolled to when that has come to rest."""
AT_END = "e => e.scrollHeight - e.scrollTop - e.clientHeight < 24"


def test_the_wheel_stops_the_log_from_following_until_one_jumps_to_its_end(tree: LocalTree, page: Page) -> None:
    run = called(tree, "slow", lines=3000, seconds=0.02)
    page.goto(f"/runs/{run}")
    pane, lines = page.locator("#log-lines"), page.locator("#log-lines li")
    expect(lines.nth(80)).to_be_attached()
    expect(page.locator("#log-jump")).to_be_hidden()
    pane.scroll_into_view_if_needed()
    pane.hover()
    page.mouse.wheel(0, -400)
    expect(page.locator("#log-jump")).to_be_visible()
    at, top, seen = pane.evaluate(RESTS), pane.evaluate(UPPERMOST), lines.count()
    expect(lines.nth(seen + 60)).to_be_attached()  # more lines have come
    assert pane.evaluate("e => e.scrollTop") == at
    assert pane.evaluate(UPPERMOST) == top
    page.click("#log-jump")
    expect(page.locator("#log-jump")).to_be_hidden()
    seen = lines.count()
    expect(lines.nth(seen + 20)).to_be_attached()
    assert pane.evaluate(AT_END)
    tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_the_search_finds_a_line_of_the_log_that_the_page_does_not_hold(tree: LocalTree, page: Page) -> None:
    run = called(tree, "first", "second", "third", "fourth", lines=500)
    tree.wait(run)
    page.goto(f"/runs/{run}")
    lines = page.locator("#log-lines li")
    expect(lines).to_have_count(1000)
    assert page.get_by_text("needle").count() == 0
    page.fill("#log-search [name=search]", "needle")
    page.press("#log-search [name=search]", "Enter")
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("first says 7 needle")
    assert int(lines.get_attribute("value") or 0) <= 1000  # its number among all lines


def lined(page: Page, folder: Path, click: str) -> list[dict[str, str]]:
    with page.expect_download() as waiting:
        page.click(click)
    waiting.value.save_as(folder / "file")
    with (folder / "file").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_of_filtered_rows_has_as_many_lines_as_the_page_says(
    tree: LocalTree, page: Page, tmp_path: Path
) -> None:
    tree.wait(tree.submit("echo", numbered(137), params={"rows": 2}))
    page.goto("/tables/echo?number=1&item__contains=7")
    wanted = {f"i{number}" for number in range(137) if "7" in str(number)}
    said = page.locator(".files").first.inner_text()
    assert f" {len(wanted)} " in said.replace("\n", " ")
    assert {row["item"] for row in lined(page, tmp_path, ".files a[href*='format=csv']")} == wanted

    # The box of SQL: what it shows, and where that is the first of more, what a file has.
    statement = "SELECT item FROM echo WHERE number = 1 AND item {} ORDER BY item"
    title = page.locator("#rows-title")
    page.goto("/sql")
    page.fill("#query", statement.format("LIKE '%7%'"))
    page.click("#run")
    assert int(re.sub(r"\D", "", title.inner_text())) == len(wanted)
    assert {row["item"] for row in lined(page, tmp_path, "#box button[value=csv]")} == wanted
    page.fill("#query", statement.format("<> ''"))
    page.click("#run")
    expect(page.locator(".note", has_text="sql_rows")).to_contain_text(str(SQL_ROWS))
    assert int(re.sub(r"\D", "", title.inner_text())) == SQL_ROWS
    assert len(lined(page, tmp_path, "#box button[value=csv]")) == 137


def test_a_thousand_equal_failures_are_one_group(tree: LocalTree, page: Page) -> None:
    run = called(tree, *numbered(1000), fail="no such table: prices", options={"shard_size": 4})
    page.goto(f"/runs/{run}")
    tree.wait(run, timeout=120)
    expect(page.locator("#head .state.failed")).to_be_visible()
    rows = page.locator("#errors tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("no such table: prices")
    expect(rows.locator("b.bad")).to_have_text(re.compile("^1,?000$"))


def test_a_pending_item_names_the_exact_limit_and_its_place_in_the_queue(tree: LocalTree, page: Page) -> None:
    node = Agent(tree, quotas=[{"task_type": "echo", "slots": 2, "limit": 2}])
    node.beat(hello=True)
    first = node.submit(*numbered(5), name="the one before", priority=8)
    mine = node.submit(*numbered(9), priority=3)
    node.granted(2)
    page.goto(f"/runs/{mine}/items?index=6")
    waits = page.locator("section.waits")
    expect(waits.locator(".note")).to_have_text("quota limit 2 of 2 for echo: 1 node")
    told = tree.json("GET", f"/api/v1/runs/{mine}/explain")["position"]
    assert told["position"] == told["of"] == 2
    expect(waits.locator(".key")).to_have_text("run 2 of 2 in line")
    expect(waits).to_contain_text("6 items")
    expect(waits.locator(f"a[href='/runs/{first}']")).to_contain_text("the one before")
    expect(waits.locator("ul")).to_contain_text(node.name)
    for run in (first, mine):
        tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_what_if_says_what_then_happens(tree: LocalTree, page: Page) -> None:
    """The same change, supposed on one page and made on another."""
    label = {"pair": "what-if"}
    quota = [{"task_type": "echo", "slots": 1, "limit": 1}]
    one, two = Agent(tree, labels=label, capacity=2), Agent(tree, labels=label, capacity=4, quotas=quota)
    for node in (one, two):
        node.beat(hello=True)
    runs = [
        tree.submit("echo", numbered(count), shard_size=1, labels=label, priority=priority)
        for count, priority in ((4, 5), (9, 4))
    ]

    def given() -> set[tuple[int, str, str]]:
        found = [each for run in runs for each in allocations(tree, run)]
        return {(each["run"], f"[{each['start']}, {each['stop']})", each["node_name"]) for each in found}

    before = until(lambda: found if len(found := given()) == 3 else None)
    page.goto(f"/what-if?node={two.id}")
    page.fill(f"[name='n{two.id}.capacity']", "7")
    page.fill(f"[name='n{two.id}.quotas']", "echo=3/6")
    page.click("#supposing button.first")
    rows = page.locator("table.grants tbody tr")
    supposed = {
        (int(row.locator("td").nth(0).inner_text()), *(row.locator("td").nth(at).inner_text() for at in (1, 2)))
        for row in rows.all()
    }
    assert len(supposed) == 5
    assert given() == before  # nothing was changed by asking

    page.goto(f"/nodes/{two.id}")
    page.fill("[name=capacity]", "7")
    page.fill("#quotas", "echo=3/6")
    page.locator("form[action$='/limits'] button").click()
    until(lambda: len(given()) >= 8)
    assert given() - before == supposed
    for run in runs:
        tree.json("POST", f"/api/v1/runs/{run}/cancel")


def test_run_again_fills_in_every_parameter_and_option(tree: LocalTree, page: Page) -> None:
    params = {
        "source": "sample",
        "start_date": "2004-02-01",
        "end_date": "2005-03-01",
        "strategy": "ma_cross",
        "strategy_params": {"fast": 7, "slow": 31},
    }
    options = {
        "name": 'again "and" <b>again</b> 🦊',
        "priority": 7,
        "timeout": 123.5,
        "max_attempts": 4,
        "backoff": 2.5,
        "shard_size": 3,
        "labels": {"only": "nobody", "zone": "eu"},
        "affinity": {"disk": "ssd"},
        "rate_key": "host:example.org",
        "balancer": "weighted",
        "fallback": "never",
        "island_seconds": 60.0,
    }
    items = ["AAPL", "IBM", {"symbol": "GOOG", "start_date": "2004-09-01"}]
    tree.json("POST", "/api/v1/rates", json={"key": "host:*", "per_second": 5})
    run = tree.submit("backtest", items, params=params, **options)
    page.goto(f"/runs/{run}")
    page.locator("a[href*='again=']").click()
    for name in ("source", "start_date", "end_date", "strategy"):
        expect(page.locator(f"[name='p.{name}']")).to_have_value(str(params[name]))
    for name in ("name", "priority", "timeout", "max_attempts", "backoff", "shard_size", "rate_key", "balancer"):
        expect(page.locator(f"#{name}")).to_have_value(str(options[name]))
    page.locator("#verbs button.first").click()
    page.wait_for_url(re.compile(rf"/runs/(?!{run}$)\d+$"))
    again = int(page.url.rpartition("/")[2])
    old, new = (tree.json("GET", f"/api/v1/runs/{each}") for each in (run, again))
    for name in ("type", "params", "count", *options):
        assert new[name] == old[name], name
    for at, item in enumerate(items):
        for each in (run, again):
            assert tree.json("GET", f"/api/v1/runs/{each}/explain?index={at}")["item"] == item
    for each in (run, again):
        tree.json("POST", f"/api/v1/runs/{each}/cancel")


def test_a_statement_that_takes_too_long_stays_and_names_the_setting(page: Page) -> None:
    statement = "SELECT max(hash(range))\nFROM range(1000000000000) -- <b>ö</b>"
    page.goto("/sql")
    page.fill("#query", statement)
    page.click("#run")
    expect(page.get_by_role("alert")).to_contain_text(f"the setting sql_seconds is {SQL_SECONDS}", timeout=30_000)
    expect(page.locator("#query")).to_have_value(statement)

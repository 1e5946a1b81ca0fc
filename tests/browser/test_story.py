"""A day with Cascade in a browser: a real parent and real children, from the sign-in to the rows on one's own disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from cascade.local import Child, LocalTree
from tests.acceptance.trees import EVEN, QUICK, account, allocations, held, numbered, until
from tests.browser.scenes import HOSTILE
from tests.browser.test_tables import PIXELS
from tests.browser.watching import Watched

NAME = HOSTILE[:200]
MODULE = """
from pathlib import Path
def work(item, flag):
    if item.startswith("bad") and not Path(flag).exists():
        raise ValueError("the disk is full")
    return {"item": item}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    folder = tmp_path_factory.mktemp("story")
    (folder / "told.py").write_text(MODULE)
    env = {**QUICK, "CASCADE_CUSTOM": "work=told:work", "PYTHONPATH": str(folder), "CASCADE_FALLBACK_WORKERS": "0"}
    children = [Child("north", 2, env=env, carrier="push"), Child("south", 2, env=env, carrier="pull")]
    with LocalTree(folder / "tree", children=children, env=env) as made:
        yield made


@pytest.fixture(scope="module")
def window(browser: Browser, tree: LocalTree) -> Iterator[Watched]:
    made = Watched(browser, tree, accept_downloads=True, viewport={"width": 1280, "height": 800})
    made.sign_in("/submit")
    yield made
    made.close()


@pytest.fixture
def page(window: Watched) -> Iterator[Page]:
    yield window.page
    window.still_well()


def stays(page: Page) -> None:
    """From now on a reload would be noticed, by ``stayed``."""
    page.evaluate("window.stayed = true")


def stayed(page: Page) -> bool:
    return page.evaluate("window.stayed === true")


def test_signed_out_one_is_asked_who_one_is_and_comes_to_where_one_wanted(browser: Browser, tree: LocalTree) -> None:
    window = Watched(browser, tree)
    page = window.page
    page.goto("/runs?state=failed")
    page.fill("input[name=username]", tree.username)
    page.fill("input[name=password]", "wrong")
    page.press("input[name=password]", "Enter")
    expect(page.locator("input[name=password]")).to_have_value("")
    expect(page.locator("input[name=username]")).to_have_value(tree.username)
    page.fill("input[name=password]", tree.password)
    page.press("input[name=password]", "Enter")
    page.wait_for_url(tree.url + "/runs?state=failed")
    page.locator(".menu summary").click()
    page.locator(".menu form[action*=logout] button").click()
    page.goto("/runs")
    expect(page.locator("input[name=password]")).to_be_visible()
    window.close()


def test_a_run_from_the_form_is_previewed_and_watched_to_its_end_without_a_reload(tree: LocalTree, page: Page) -> None:
    items, before = numbered(24, "from-the-form-"), tree.json("GET", "/api/v1/runs")["count"]
    page.goto("/submit")
    page.select_option("#type", "echo")
    page.fill("[id='p.seconds']", "0.3")
    page.fill("#items", "\n".join(items))
    page.locator("details.options summary").click()
    page.fill("#name", NAME)
    page.fill("#shard_size", "1")
    page.locator("#verbs button[value=preview]").click()
    expect(page.locator("#preview")).to_contain_text("24")
    expect(page.locator("#preview table.grants tbody tr").first).to_be_visible()
    assert tree.json("GET", "/api/v1/runs")["count"] == before  # a preview only looks
    page.locator("#verbs button[value=run]").click()
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    run = int(page.url.rpartition("/")[2])
    stays(page)
    expect(page.locator("h1 bdi")).to_have_text(NAME)
    for tone in ("executing", "saved"):
        expect(page.locator(f"#strip rect.tone-{tone}").first).to_be_attached()
    expect(page.locator("#lanes dt")).to_have_count(2)
    expect(page.locator("#head .state.saved")).to_be_visible(timeout=30_000)
    expect(page.locator("#head .progress")).to_contain_text("24/24")
    expect(page.locator("#strip .key li")).to_have_count(1)
    assert stayed(page)
    assert account(tree, run, items) == EVEN


def test_the_work_of_a_child_that_is_killed_moves_and_each_item_is_saved_once(tree: LocalTree, page: Page) -> None:
    items = numbered(40, "moved-")
    run = tree.submit("echo", items, params={"seconds": 0.3}, shard_size=1, name="killed")
    page.goto(f"/runs/{run}")
    stays(page)
    tree.wait(run, until=lambda progress: progress["saved"] >= 4)
    lost = until(lambda: held(tree, run, "south"))
    tree.kill("south", machine=True)
    gone = page.locator("#lanes rect.tone-expired").first
    expect(gone).to_be_attached(timeout=20_000)
    expect(page.locator("#allocations .state.expired").first).to_be_visible()
    expect(page.locator("#head .state.saved")).to_be_visible(timeout=60_000)
    assert stayed(page)
    ended = tree.progress(run)
    assert (ended["state"], ended["saved"], ended["rows"]) == ("completed", len(items), len(items))
    assert account(tree, run, items) == EVEN
    # What it held when it was killed is shown with both who had it.
    told = {each["id"]: each for each in allocations(tree, run)}
    moved = [each for each in lost if told[each]["state"] == "expired"]
    assert moved
    page.goto(f"/runs/{run}/items?index={told[moved[0]]['start']}")
    attempts = page.locator("table.attempts tbody tr")
    expect(attempts).to_have_count(2)
    expect(attempts.nth(0)).to_contain_text("south")
    expect(attempts.nth(0).locator(".state.expired")).to_be_visible()
    expect(attempts.nth(1)).to_contain_text("north")
    expect(attempts.nth(1).locator(".state.saved")).to_be_visible()
    page.goto("/")
    row = page.locator("#nodes tr", has_text="south")
    expect(row.locator(".state.expired")).to_be_visible(timeout=20_000)
    tree.restart("south")
    expect(row.locator(".state.saved")).to_be_visible(timeout=20_000)


def test_a_run_is_cancelled_in_two_steps_with_the_number_of_what_is_lost(tree: LocalTree, page: Page) -> None:
    run = tree.submit("echo", numbered(30), params={"seconds": 1}, shard_size=1)
    page.goto(f"/runs/{run}")
    expect(page.locator("#strip rect.tone-executing").first).to_be_attached()
    sure = page.locator("form.when-running button")
    expect(sure).to_be_hidden()
    page.locator("details.when-running summary").click()
    numbers = [int(each) for each in re.findall(r"\d+", page.locator("#open .when-running").inner_text())]
    assert numbers[0] > 0
    assert sum(numbers) <= 30
    assert tree.progress(run)["state"] == "running"
    sure.click()
    expect(page.locator("#head .state.cancelled")).to_be_visible()
    assert tree.progress(run)["state"] == "cancelled"


def test_what_failed_is_tried_again_when_its_cause_is_gone(tree: LocalTree, page: Page, tmp_path: Path) -> None:
    flag = tmp_path / "room"
    params = {"callable": "work", "arguments": {"flag": str(flag)}}
    items = ["good-1", "bad-1", "bad-2", "good-2", "bad-3"]
    run = tree.submit("custom", items, params=params, shard_size=1, max_attempts=1)
    page.goto(f"/runs/{run}")
    expect(page.locator("#head .state.failed")).to_be_visible()
    expect(page.locator("#errors tr")).to_have_count(1)
    expect(page.locator("#errors")).to_contain_text("the disk is full")
    flag.touch()
    page.locator("details.when-failed summary").click()
    expect(page.locator("#open .when-ended")).to_contain_text("3")
    page.locator("form.when-failed button").click()
    expect(page.locator("#head .state.saved")).to_be_visible()
    expect(page.locator("#errors tr")).to_have_count(0)
    assert tree.progress(run)["saved"] == len(items)


def test_the_secret_of_a_key_is_shown_once_and_signs_its_node_in(tree: LocalTree, page: Page) -> None:
    made = tree.json("POST", "/api/v1/nodes", json={"name": "a node to come", "capacity": 3})
    page.goto("/")
    page.locator("#nodes a", has_text="a node to come").click()
    page.locator("form[action$='/issue'] button").click()
    access, secret = (each.strip() for each in page.locator(".made code").all_inner_texts())
    assert secret
    assert secret in page.content()
    keys = page.locator("#keys tr")
    expect(keys).to_have_count(2)
    page.reload()
    expect(keys).to_have_count(2)  # asked for again, it is not made again
    expect(page.locator("#keys")).to_contain_text(access)
    assert secret not in page.content()
    page.go_back()
    page.go_forward()
    assert secret not in page.content()
    beat = requests.post(
        f"{tree.url}/api/v1/agent/beat",
        json={"boot": "one", "executors": ["echo"], "version": "0", "carrier": "pull"},
        headers={"Authorization": f"AK-SK {access}:{secret}"},
        timeout=30,
        proxies={"http": ""},
    )
    assert beat.status_code == 200, beat.text
    assert tree.json("GET", f"/api/v1/nodes/{made['id']}")["last_beat_at"]
    tree.json("PATCH", f"/api/v1/nodes/{made['id']}", json={"active": False})


def test_one_reads_why_something_waits_and_what_would_help(tree: LocalTree, page: Page) -> None:
    run = tree.submit("echo", numbered(3), labels={"region": "mars"}, name="waits")
    page.goto("/runs")
    page.locator("#runs a", has_text="waits").click()
    expect(page.locator("#waits .note")).to_contain_text("label region=mars")
    page.locator("#waits a[href*='what-if']").click()
    page.fill("[id='add.name']", "rover")
    page.fill("[id='add.labels']", "region=mars")
    page.locator("#supposing button.first").click()
    grants = page.locator("table.grants tbody tr")
    expect(grants).to_have_count(3)
    expect(grants.first).to_contain_text("rover")
    assert f"run={run}" in page.url
    tree.json("POST", f"/api/v1/runs/{run}/cancel")


def downloaded(page: Page, selector: str, folder: Path) -> bytes:
    with page.expect_download() as waiting:
        page.locator(selector).first.click()
    waiting.value.save_as(folder / "file")
    return (folder / "file").read_bytes()


def test_bars_are_imported_drawn_and_taken_home(tree: LocalTree, page: Page, tmp_path: Path) -> None:
    page.goto("/submit?type=data_import")
    page.select_option("[id='p.source']", "sample")
    page.fill("[id='p.start_date']", "2004-01-01")
    page.fill("[id='p.end_date']", "2004-12-31")
    page.fill("#items", "AAPL")
    page.locator("#verbs button[value=run]").click()
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    run = int(page.url.rpartition("/")[2])
    expect(page.locator("#head .state.saved")).to_be_visible(timeout=60_000)

    results = f"/api/v1/runs/{run}/results?format="
    for format in ("csv", "parquet"):
        mine = downloaded(page, f".links-of-run a[href$='format={format}']", tmp_path)
        theirs = tree.request("GET", results + format).content
        assert table(format, mine) == table(format, theirs)
        assert len(table(format, mine)) > 200
    page.locator(".links-of-run a[href$='/rows']").click()
    page.wait_for_url(re.compile("/tables/kline"))
    for format in ("csv", "parquet"):
        mine = downloaded(page, f".files a[href*='format={format}']", tmp_path)
        assert {(row["symbol"], str(row["datetime"])) for row in table(format, mine)} == {
            (row["symbol"], str(row["datetime"]))
            for row in table(format, tree.request("GET", results + format).content)
        }
    page.locator("a[href$='/tables/kline/chart']").first.click()
    page.locator("#chart[data-drawn]").wait_for()
    assert len(page.evaluate(PIXELS)) > 3


def table(format: str, content: bytes) -> list[dict[str, Any]]:
    """The rows of a file, by their moments: in a file they have no order."""
    import csv

    import pyarrow.parquet as pq

    rows: list[dict[str, Any]]
    if format == "csv":
        rows = list(csv.DictReader(content.decode().splitlines()))
    else:
        rows = pq.read_table(BytesIO(content)).to_pylist()
    return sorted(rows, key=lambda row: str(row["datetime"]))

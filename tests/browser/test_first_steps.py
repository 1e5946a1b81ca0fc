"""A parent that has just been installed: what its first page says to do, done as it says, ticks the steps."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cascade.local import ROOT, LocalTree
from tests.browser.test_scripts import watched


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    with LocalTree(tmp_path_factory.mktemp("fresh"), env={"CASCADE_FALLBACK_WORKERS": "0"}) as made:
        yield made


@pytest.fixture
def page(browser: Browser, tree: LocalTree) -> Iterator[Page]:
    context = browser.new_context(base_url=tree.url)
    page, said = watched(context)
    page.goto("/admin/login/?next=/")
    page.fill("input[name=username]", tree.username)
    page.fill("input[name=password]", tree.password)
    page.press("input[name=password]", "Enter")
    yield page
    assert said == []
    context.close()


@contextmanager
def running(command: str, folder: Path) -> Iterator[None]:
    """What was copied from the page, in a shell of another machine."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CASCADE_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**ours, "PATH": path, "CASCADE_DATA_DIR": str(folder), "NO_PROXY": "127.0.0.1"}
    with (folder / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", command], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
            shell.wait(30)


def test_the_steps_are_ticked_as_the_page_is_followed_and_go_when_a_row_is_saved(
    page: Page, tree: LocalTree, tmp_path: Path
) -> None:
    steps = page.locator("#steps")
    expect(steps.locator("li")).to_have_count(4)
    expect(steps.locator("li.done")).to_have_count(0)
    submit = page.locator("[data-list=runs] .command code").inner_text()
    page.locator("[data-list=nodes]").get_by_role("button", name="Add it").click()
    start = page.locator(".start .command code").last.inner_text()
    assert start.startswith("CASCADE_ACCESS_KEY=CN")

    page.goto("/")
    page.evaluate("window.stayed = true")
    expect(steps.locator("li.done")).to_have_count(1)
    with running(start, tmp_path):
        expect(page.locator("#nodes")).to_contain_text("online", timeout=30_000)
        expect(steps.locator("li.done")).to_have_count(2)
        words = shlex.split(submit)
        assert words[:2] == ["python", "manage.py"]
        tree.manage(*words[2:])
        expect(steps).to_be_hidden(timeout=30_000)
    assert page.evaluate("window.stayed"), "without a reload"
    expect(page.locator("#journal")).to_contain_text("Run completed")
    expect(page.locator("#journal")).to_contain_text("Node online")


def test_the_journal_is_filtered_by_its_links_and_says_when_there_is_nothing(page: Page, tree: LocalTree) -> None:
    page.goto("/journal")
    expect(page.locator("#journal tr")).not_to_have_count(0)
    page.get_by_role("link", name="Configuration").click()
    expect(page).to_have_url(f"{tree.url}/journal?about=configuration")
    expect(page.get_by_text("No entry about configuration")).to_be_visible()
    expect(page.locator("#live-text")).to_contain_text("Live")
    page.get_by_role("link", name="Show all entries").click()
    expect(page.locator("#journal tr")).not_to_have_count(0)

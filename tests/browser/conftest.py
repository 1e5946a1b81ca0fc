"""A real browser, and a parent whose every text is an attack. Skipped, with the reason, where there is no Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.hostile.victim import Victim, victim

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a file of tests: while it is there its event loop runs in this thread, where others could not run theirs."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not here: these tests need the Chromium that Debian packages")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server", "--disable-dev-shm-usage"]
        )
        yield made
        made.close()


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with victim(tmp_path_factory.mktemp("parent")) as made:
        yield made


@pytest.fixture
def operator(browser: Browser, parent: Victim) -> Iterator[BrowserContext]:
    """A window of the operator, who is signed in."""
    context = browser.new_context()
    pairs = (pair.split("=", 1) for pair in parent.session_cookie().split("; "))
    context.add_cookies([{"name": name, "value": value, "url": parent.tree.url} for name, value in pairs])
    yield context
    context.close()

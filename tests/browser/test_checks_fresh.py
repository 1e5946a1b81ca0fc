"""A fresh parent in a browser: a command to copy brings its first node; and the page outlives the parent's death."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from cascade.local import PARENT, ROOT, LocalTree
from tests.acceptance.trees import QUICK
from tests.browser.watching import Watched

STAYED = "window.stayed"
COMMAND = re.compile(r"^  (CASCADE_ACCESS_KEY=\S+ CASCADE_SECRET_KEY=\S+ python -m nodes.agent .+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTree]:
    """As somebody has it who changed no setting that decides what is shown: with its own worker, without a child."""
    with LocalTree(tmp_path_factory.mktemp("fresh"), env=QUICK) as made:
        yield made


@pytest.fixture
def window(browser: Browser, tree: LocalTree) -> Iterator[Watched]:
    made = Watched(browser, tree, viewport={"width": 1280, "height": 800})
    made.sign_in()
    made.context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield made
    made.context.close()


@contextmanager
def shell(command: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``command`` as somebody types it in the project's folder; the python of these tests is theirs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CASCADE_", "DJANGO_"))}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "CASCADE_DATA_DIR": str(folder)}
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        started = subprocess.Popen(
            ["sh", "-c", command], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield started
        finally:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def copied(page: Page, section: str) -> str:
    """What the section's button puts into the clipboard."""
    page.locator(f"[data-list={section}] .empty [data-copy]").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text !== '')")
    found: str = page.evaluate("navigator.clipboard.readText()")
    return found


def test_the_commands_that_a_fresh_overview_shows_bring_a_node_and_a_run_without_a_reload(
    tree: LocalTree, window: Watched, tmp_path: Path
) -> None:
    page = window.page
    page.locator("#liveness[data-state=live]").wait_for()
    expect(page.locator("#nodes tr")).to_have_count(1)  # this server itself
    page.evaluate(f"{STAYED} = true")
    with ExitStack() as stack:
        # At a terminal of the server: its folder is the server's.
        command = copied(page, "nodes")
        added = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=_of_server(tree), capture_output=True, text=True, timeout=60
        )
        assert added.returncode == 0, added.stderr
        (start,) = COMMAND.findall(added.stdout)
        assert f"--parent {tree.url}" in start
        row = page.locator("#nodes tr", has_text="child-1")
        expect(row).to_be_visible()
        expect(page.locator("[data-list=nodes] .empty")).to_be_hidden()
        stack.enter_context(shell(start, tmp_path / "child"))
        expect(row.locator(".state")).to_contain_text("online", timeout=30_000)
        window.still_well()

        ended = subprocess.run(
            ["sh", "-c", copied(page, "runs")],
            cwd=ROOT,
            env=_of_server(tree),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        expect(page.locator("#runs tr .state")).to_contain_text("completed")
        expect(page.locator("#steps")).to_be_hidden()
    assert page.evaluate(STAYED)
    window.still_well()


def _of_server(tree: LocalTree) -> dict[str, str]:
    env = tree._environment()
    return {**env, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}


def test_a_page_says_that_its_parent_is_gone_and_goes_on_when_it_is_back(tree: LocalTree, window: Watched) -> None:
    page = window.page
    state = page.locator("#liveness")
    expect(state).to_have_attribute("data-state", "live")
    page.evaluate(f"{STAYED} = true")
    tree.kill(PARENT)
    expect(state).to_have_attribute("data-state", "reconnecting")
    tree.start_parent()
    run = tree.submit("echo", ["x"], name="after the death", labels={"only": "nobody"})
    expect(page.locator(f"#run-{run}")).to_contain_text("after the death", timeout=30_000)
    expect(state).to_have_attribute("data-state", "live")
    assert page.evaluate(STAYED)

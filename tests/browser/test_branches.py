"""Branches of the tree on the overview: opened by hand, filled when opened, and kept open while the numbers move."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from cascade.local import LocalTree
from tests.browser.test_scripts import MARKS, clean, watched
from tests.hostile.victim import Victim
from tests.integration.agents import Agent

PARIS = {"name": "paris", "role": "relay", "state": "online", "capacity": 8, "used": 1, "queued": 0}
COUNTS = {"nodes": 4, "leaves": 3, "online": 4, "capacity": 8, "used": 1, "queued": 0, "depth": 2}
P1 = {"name": "p1", "role": "child", "state": "online", "capacity": 4, "used": 3, "queued": 1, "id": 1}
EVIL = {**P1, "name": MARKS[0][:100], "version": MARKS[1][:40], "labels": {MARKS[2][:100]: MARKS[3][:100]}}


class Relay:
    """A node that says it is a relay, moves its numbers with every beat, and answers what it is asked."""

    def __init__(self, tree: LocalTree) -> None:
        self.agent = Agent(tree)
        self.used = 0
        self._over = threading.Event()
        self._beat(hello=True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _beat(self, **more: Any) -> dict[str, Any]:
        self.used += 1
        subtree = {**COUNTS, "used": self.used, "children": [{**PARIS, "below": {**COUNTS, "depth": 1}}], "more": 0}
        said = {"role": "relay", "id": f"{self.agent.id:032x}", "slots": 8, "types": {}, "branches": []}
        return self.agent.beat(**said, subtree=subtree, **more)

    def _run(self) -> None:
        while not self._over.wait(0.2):
            for question in self._beat().get("ask", []):
                about = {"node": "paris", "live": True, "seconds_ago": 0.0, "below": COUNTS, "children": [P1, EVIL]}
                lost = {"status": 504, "detail": "rome does not answer"}
                told = {"body": about} if question["path"] in ([], ["paris"]) else lost
                self.agent.ask("tell", {"answers": [{"id": question["id"], **told}]})

    def end(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def relay(parent: Victim) -> Iterator[Relay]:
    made = Relay(parent.tree)
    yield made
    made.end()


def opened(page: Page, relay: Relay) -> Any:
    """The branch of the relay, opened by the keyboard, with what hangs below paris."""
    page.goto(relay.agent.tree.url)
    expect(page.locator("#live-text")).to_contain_text("Live")
    branch = page.locator(f"#branch-{relay.agent.id}")
    branch.locator("summary").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    branch.get_by_text("p1").wait_for()
    return branch


def test_an_opened_branch_is_asked_for_and_stays_open_while_its_numbers_move(
    relay: Relay, operator: BrowserContext
) -> None:
    page, said = watched(operator)
    branch = opened(page, relay)
    count = branch.locator("summary .count").first
    for _ in range(3):
        expect(count).not_to_have_text(count.inner_text(), timeout=20_000)
    # The row was drawn anew by the socket; what was opened in it and where the keys are is as it was.
    expect(branch.get_by_text("p1")).to_be_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    clean(page, said)
    page.close()


def test_at_the_width_of_a_phone_nothing_scrolls_sideways(relay: Relay, operator: BrowserContext) -> None:
    page, said = watched(operator)
    page.set_viewport_size({"width": 375, "height": 800})
    opened(page, relay)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.goto(f"{relay.agent.tree.url}/nodes/{relay.agent.id}/below")
    page.get_by_text("p1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    clean(page, said)
    page.close()


def test_a_branch_that_does_not_answer_says_so_where_it_was_opened(relay: Relay, operator: BrowserContext) -> None:
    page = operator.new_page()
    page.goto(f"{relay.agent.tree.url}/nodes/{relay.agent.id}/below?path=rome")
    expect(page.get_by_role("alert")).to_have_text("rome does not answer")
    page.close()

"""A run submitted in a browser: its form and its preview come without a reload, and it is seen to end."""

from __future__ import annotations

import re

from playwright.sync_api import BrowserContext, expect

from tests.browser.test_scripts import clean, watched
from tests.hostile.victim import Victim
from tests.integration.agents import Agent, done


def test_an_echo_is_submitted_through_the_form_and_seen_to_run(parent: Victim, operator: BrowserContext) -> None:
    page, seen = watched(operator)
    node = Agent(parent.tree)
    page.goto(f"{parent.tree.url}/submit")
    page.evaluate("window.stayed = true")
    page.select_option("#type", "echo")
    expect(page.locator("[id='p.seconds']")).to_be_visible()
    page.fill("#items", "one\ntwo\nthree")
    node.beat(hello=True)
    page.fill("[id='p.seconds']", "soon")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("alert")).to_contain_text("params.seconds: 'soon' is not a finite number")
    expect(page.locator("[id='p.seconds']")).to_have_value("soon")
    page.fill("[id='p.seconds']", "0")
    page.get_by_role("button", name="JSON").click()
    expect(page.locator("#params")).to_have_value(re.compile('"seconds": 0'))
    page.get_by_role("button", name="Form", exact=True).click()
    page.get_by_text("Options", exact=True).click()
    page.fill("#shard_size", "1")
    page.fill("#labels", f"only={node.name}")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_contain_text("3 items, in 3 shards of 1 item")
    assert page.evaluate("window.stayed")
    page.get_by_role("button", name="Run now").click()
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    run = int(page.url.rpartition("/")[2])
    node.ask("report", {"reports": [done(each) for each in node.granted(3)]})
    parent.tree.wait(run)
    expect(page.locator("#head")).to_contain_text("completed")
    page.get_by_role("link", name="Run again…").click()
    expect(page.locator("#items")).to_have_value("one\ntwo\nthree")
    expect(page.locator("#shard_size")).to_have_value("1")
    clean(page, seen)
    page.close()

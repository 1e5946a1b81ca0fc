"""The items of a run, as the server sends them: an item found by number or name, with who had it and why it waits."""

from __future__ import annotations

import pytest
from django.test import Client
from django.utils import timezone

from dispatch.items import freeze
from dispatch.models import Receipt
from dispatch.states import AllocationState, ShardState
from nodes import registry
from nodes.fields import parse_quota
from tests.integration import records

pytestmark = pytest.mark.django_db

ODD = "<b>bold</b> \u202eright \U0001f600 " + "x" * 150


def page(browser: Client, address: str, status: int = 200) -> str:
    answer = browser.get(address)
    assert answer.status_code == status
    return answer.content.decode()


def test_an_item_is_found_by_its_key_with_every_attempt_and_its_receipt(browser: Client) -> None:
    run = records.run(items=freeze(["AAPL", "FB", "IBM"]), count=3, type="echo")
    shard = records.cut(run, 0, 2, ShardState.SAVED)
    east, west = records.node("east"), records.node("west")
    records.tried(shard, east, AllocationState.EXPIRED, reason="quota 1 of 4", error="the lease ended")
    receipt = Receipt.objects.create(type="echo", manifest=[], node=west)
    done = records.tried(shard, west, AllocationState.COMPLETED, attempt=2, receipt=receipt, rows=7, seconds=3)
    html = page(browser, f"/runs/{run.pk}/items?item=FB")
    assert "Item 1" in html
    assert "items [0, 2)" in html
    assert html.index("quota 1 of 4") < html.index("free capacity")
    assert "expired: the lease, or the offer, ended before a report came" in html
    assert f"receipt {receipt.pk}, 7 rows" in html
    assert "the lease ended" in html
    assert f'href="/allocations/{done.pk}"' in html
    assert f"logs?format=text&amp;allocation={done.pk}" in html


def test_an_item_that_waits_names_the_exact_limit_and_its_place(browser: Client) -> None:
    node, _ = registry.add_node("east", capacity=4, quotas=[parse_quota("echo=2/2")])
    registry.record_beat(node.pk, at=timezone.now(), executors=["echo"])
    records.hold(node, 2)
    records.run(9, type="echo", name="the first", priority=9)
    run = records.run(9, type="echo")
    html = page(browser, f"/runs/{run.pk}/items?index=7")
    assert "in none yet" in html
    assert "quota limit 2 of 2 for echo: 1 node" in html
    assert "run 2 of 2 in line" in html
    assert "7 items of this run come before it" in html
    assert "the first" in html


@pytest.mark.parametrize(
    ("query", "said"),
    [("index=9", "9 is not one of 0 to 8"), ("index=x", "&#x27;x&#x27; is not one of 0 to 8"), ("item=no", "no item")],
)
def test_what_is_not_there_says_what_is(browser: Client, query: str, said: str) -> None:
    run = records.run(9)
    html = page(browser, f"/runs/{run.pk}/items?{query}", 404)
    assert said in html
    assert 'value="no"' in html or 'value="9"' in html or 'value="x"' in html


def test_without_a_question_they_are_listed_page_by_page_in_few_queries(
    browser: Client, django_assert_max_num_queries
) -> None:
    run = records.run(10_000)
    records.cut(run, 0, 4_000, ShardState.SAVED)
    records.cut(run, 4_000, 4_010, ShardState.FAILED, error=ODD)
    with django_assert_max_num_queries(8):
        html = page(browser, f"/runs/{run.pk}/items?from=3990")
    assert "Items 3990 to 4039 of 10000" in html
    assert html.count('class="state saved"') == 10
    assert html.count('class="state failed"') == 10
    assert html.count('class="state pending"') == 30
    assert "<b>bold</b>" not in html
    assert 'href="?from=4040"' in html
    assert 'href="?from=3940"' in html


def test_it_is_for_staff_and_of_runs_that_are_there(client: Client, browser: Client) -> None:
    assert browser.get("/runs/77/items").status_code == 404
    assert Client().get(f"/runs/{records.run(1).pk}/items").status_code == 302


def test_failed_items_of_an_ended_run_can_be_ticked(browser: Client) -> None:
    run = records.run(4, state="partial", failed=2, saved=2)
    records.cut(run, 0, 2, ShardState.SAVED)
    records.cut(run, 2, 4, ShardState.FAILED, error="no")
    html = page(browser, f"/runs/{run.pk}/items")
    assert [f'name="item" value="{index}"' in html for index in range(4)] == [False, False, True, True]
    browser.post(f"/runs/{run.pk}/retry", {"ticked": "", "item": ["2"]})
    run.refresh_from_db()
    assert (run.state, run.failed) == ("running", 0)
    assert 'form="retry"' not in page(browser, f"/runs/{run.pk}/items")

"""The page of one allocation, as the server sends it."""

from __future__ import annotations

import pytest
from django.test import Client
from django.utils import timezone

from dispatch import logs
from dispatch.states import AllocationState, ShardState
from nodes import messages
from tests.integration import records
from tests.integration.factory import child, submit

pytestmark = pytest.mark.django_db

ODD = "<b>bold</b> \u202eright \U0001f600 " + "x" * 150


def test_it_has_the_reason_the_error_whole_and_the_way_to_the_item(browser: Client) -> None:
    run, node = records.run(9, name=ODD), records.node("east")
    shard = records.cut(run, 4, 6, ShardState.FAILED)
    first = records.tried(shard, node, AllocationState.EXPIRED)
    error = "\n".join(f"line {number} of the trace" for number in range(300))
    each = records.tried(
        shard, node, AllocationState.FAILED, attempt=2, reason="quota 1 of 4", error=error, finished_at=timezone.now()
    )
    html = browser.get(f"/allocations/{each.pk}").content.decode()
    assert "quota 1 of 4" in html
    assert "line 0 of the trace" in html
    assert "line 299 of the trace" in html
    assert f'href="/runs/{run.pk}/items?index=4"' in html
    assert f'href="/nodes/{node.pk}"' in html
    assert f'href="/allocations/{first.pk}"' in html
    assert "<b>bold</b>" not in html
    assert "It has printed nothing." in html


def test_it_shows_what_was_printed_so_far(browser: Client) -> None:
    node = child()
    submit(2)
    each = node.works()[0].allocation
    html = browser.get(f"/allocations/{each}").content.decode()
    assert "Waiting for output…" in html
    printed = messages.read_logs({"logs": [[each, 0, "first\nsecond <i>line</i>\n"]]})
    logs.take(node.caller, printed)
    html = browser.get(f"/allocations/{each}").content.decode()
    assert "second &lt;i&gt;line&lt;/i&gt;" in html


def test_lists_of_allocations_lead_to_it(browser: Client) -> None:
    each = records.allocation(records.run(2), records.node(), 0, 2)
    assert f'href="/allocations/{each.pk}"' in browser.get(f"/runs/{each.run_id}").content.decode()
    assert f'href="/allocations/{each.pk}"' in browser.get("/").content.decode()


def test_it_is_for_staff_and_of_allocations_that_are_there(browser: Client) -> None:
    each = records.allocation(records.run(2), None, 0, 2)
    assert "a node that was removed" in browser.get(f"/allocations/{each.pk}").content.decode()
    assert browser.get("/allocations/77").status_code == 404
    assert Client().get(f"/allocations/{each.pk}").status_code == 302

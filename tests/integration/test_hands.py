"""Which nodes can run a run's items, beside having its type; and items that name sources."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch import queue, sources
from dispatch.lifecycle.kept import frozen
from dispatch.models import Run
from nodes.models import Node
from tests.integration.factory import child, dispatch
from tests.integration.factory import submit as submit_echo

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "kinds")]
FEED = "https://a.example/feed"


def submit(*items: Any, **fields: Any) -> Run:
    return submit_echo(list(items), type="remembers", **fields)


def reasons(run: Run) -> dict[int, str]:
    return {refusal.node: refusal.reason for refusal in queue.explain(run.pk).refusals}


def test_items_without_an_address_go_to_clients_with_code_of_their_own_only() -> None:
    ours = child("ours", types=["remembers"])
    theirs = child("theirs", types=["remembers"], dialect="cascade")
    run = submit("mp_1")
    assert run.hands == "outside"
    assert dispatch() == {theirs.id}
    assert "code of its own" in reasons(submit(*["mp_2"] * 9))[ours.id]


def test_items_with_an_address_go_to_any_node_that_has_a_line_to_the_parent() -> None:
    ours = child("ours", types=["remembers"])
    called = child("called", types=["remembers"])
    Node.objects.filter(pk=called.id).update(carrier="http")
    run = submit(FEED)
    assert run.hands == "line"
    assert dispatch() == {ours.id}
    assert "line to it" in reasons(submit(*[FEED] * 9))[called.id]


def test_other_work_asks_for_no_hands() -> None:
    assert submit_echo(1).hands == ""


def test_a_key_of_a_source_becomes_its_address_and_stays_what_the_item_is_called() -> None:
    sources.add("feed", "news", name="News", address=FEED)
    sources.add("feed", "bare")
    run = submit("news", "https://b.example/feed")
    assert frozen(run.pk).all() == [{"key": "news", "url": FEED, "name": "News"}, "https://b.example/feed"]
    assert run.hands == "line"
    # Without a client that could do it, the one that lacks an address fails alone; with one, it is waited for.
    assert submit("news", "bare").hands == "line"
    child("theirs", types=["remembers"], dialect="cascade")
    assert submit("news", "bare").hands == "outside"
    # A key of another kind of source is no address.
    sources.add("url", "page", address="https://c.example/")
    assert submit("page").hands == "outside"

"""Every door through which a stranger's address could make us call: none of them reaches a canary on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from dispatch.knocking import CALLBACK, Doorbell
from dispatch.models import Delivery
from nodes import executors, registry, surroundings
from nodes.executors.base import ItemFailed, Outcome
from nodes.models import Node
from nodes.protocol import FieldError
from nodes.surroundings import Surroundings
from tests.hostile.addresses import SPELLINGS
from tests.integration.factory import child, dispatch, submit
from tests.integration.test_webhooks import ended, send_due
from tests.unit.test_fetching import Peer, said, serving

WHOLE = tuple(each for each in SPELLINGS if each.isprintable() and each.startswith("http://") and len(each) > 7)


@pytest.fixture
def canary() -> Iterator[Peer]:
    """To whom nobody may ever connect, in a process that may reach public networks only."""
    before = surroundings.current()
    surroundings.settle(Surroundings())
    with serving() as made:
        made.script[""] = said(200, b"<html>the secret", Content_Type="text/html")
        yield made
        assert made.connections == 0
    surroundings.settle(before)


@pytest.mark.parametrize("kind", ["crawl", "feed_update"])
def test_work_about_such_an_address_fails_without_a_call(canary: Peer, kind: str) -> None:
    for spelling in WHOLE:
        url = spelling.format(port=canary.port)
        item = url if kind == "crawl" else {"key": "k", "address": url}
        try:
            executor = executors.get(kind)
            executor.check_item(item)
            brought = executor(executor.check({})).run(item)
        except (ValueError, ItemFailed):
            continue
        assert isinstance(brought, Outcome), url
        assert b"the secret" not in repr(brought.rows).encode(), url


@pytest.mark.django_db
def test_no_webhook_is_sent_there(canary: Peer) -> None:
    for number, spelling in enumerate(WHOLE):
        with suppress(FieldError):  # refused when it is set, where it is no address
            ended(spelling.format(port=canary.port), name=f"task {number}")
    assert Delivery.objects.count() > 20
    while send_due():
        pass
    assert {each.state for each in Delivery.objects.all()} == {Delivery.State.FAILED}


@pytest.mark.django_db
def test_an_address_that_a_node_told_itself_is_knocked_at_only_where_everybody_may_call(canary: Peer) -> None:
    a = child(capacity=1)
    submit(1)
    dispatch()
    registry.update_node(a.node.pk, api_url=canary.url, facts={CALLBACK: canary.url})
    Doorbell(Node.objects.get(pk=a.node.pk)).visit()
    assert canary.connections == 0


@pytest.mark.django_db
def test_an_address_that_an_operator_has_set_is_called_wherever_it_is() -> None:
    with serving() as peer:
        peer.script[""] = said(200, b"{}", Content_Type="application/json")
        a = child(capacity=1)
        submit(1)
        dispatch()
        registry.update_node(a.node.pk, api_url=peer.url)
        Doorbell(Node.objects.get(pk=a.node.pk)).visit()
        assert peer.connections == 1

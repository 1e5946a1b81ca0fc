"""A socket that closes: a node that does not come back gets nothing new, and what it was offered goes to others."""

from __future__ import annotations

import pytest
from django.conf import settings
from django.utils import timezone

from dispatch import lifecycle
from tests.integration import factory
from tests.integration.factory import child, dispatch, submit

pytestmark = pytest.mark.django_db


def _close(node: factory.Child) -> None:
    lifecycle.disconnected(node.id, timezone.now())


def test_offers_of_a_closed_socket_go_to_others_within_two_beats(clock: factory.Clock) -> None:
    a = child("a", 2)
    submit(2)
    assert dispatch() == {a.id}
    _close(a)
    b = child("b", 4)
    clock.forward(2 * settings.CASCADE.beat_seconds + 0.1)
    b.beat()
    lifecycle.expire(timezone.now())
    assert dispatch() == {b.id}
    assert len(b.claim()) == 2


def test_a_node_whose_socket_closed_gets_nothing_new_after_two_beats_of_silence(clock: factory.Clock) -> None:
    a = child("a", 2)
    _close(a)
    clock.forward(2 * settings.CASCADE.beat_seconds + 0.1)
    submit(1)
    assert dispatch() == set()


def test_a_node_that_beats_again_on_another_carrier_goes_on_as_before(clock: factory.Clock) -> None:
    a = child("a", 2)
    submit(2)
    held = [work.allocation for work in a.works()]
    _close(a)
    a.beat(held=held)
    clock.forward(2 * settings.CASCADE.beat_seconds + 0.1)
    assert lifecycle.expire(timezone.now()) == 0
    submit(1)
    a.beat(held=held)
    lifecycle.release(a.caller, held[:1])
    assert dispatch() == {a.id}

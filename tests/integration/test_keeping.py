"""What a program that has shared out its work itself brings a parent: rows of a run that was its own all along."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone

from cascade import keeping
from cascade.sharing import Fate
from dispatch import lifecycle
from dispatch.models import Allocation
from dispatch.states import RunState
from nodes import keys
from tests.integration import factory
from tests.integration.factory import saver, stored

pytestmark = pytest.mark.django_db


def test_rows_that_take_longer_to_tell_than_an_offer_lasts_are_taken(
    folder: object, clock: factory.Clock, settings: Any
) -> None:
    items = ["a", "b"]
    fates = [Fate("one", [[item, 0, f"{item}:0"]]) for item in items]
    caller = keys.inside(keeping._bridge_node())
    run = keeping._granted("shared", "echo", {}, items, fates, caller)
    clock.forward(settings.CASCADE.offer_seconds + 1)
    assert lifecycle.expire(timezone.now()) == 0
    keeping._report(run, "echo", caller, fates)
    with saver() as made:
        factory.save(made)
        assert stored(made).items == {"a": 1, "b": 1}
    assert Allocation.objects.get().run.state == RunState.COMPLETED

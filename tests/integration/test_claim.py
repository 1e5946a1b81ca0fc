"""Claim: the pull carrier fetches what was granted; a lease begins, and each allocation is delivered once."""

from __future__ import annotations

import datetime as dt
from functools import partial
from typing import Any

import pytest
from django.utils import timezone

from dispatch import lifecycle
from dispatch.models import Allocation
from dispatch.states import AllocationState
from nodes import keys, registry
from nodes.protocol import Unauthenticated
from tests.integration.agents import NO_ROW
from tests.integration.factory import assert_partition, at_once, child, dispatch, done, submit

pytestmark = pytest.mark.django_db


def test_a_claim_brings_what_was_granted_with_its_run_and_items() -> None:
    a = child(capacity=2)
    run = submit(["x", {"key": "y", "n": 1}, "z"], params={"rows": 3}, shard_size=2, timeout=7.5, priority=8)
    dispatch()
    reply = a.claimed()
    assert reply["runs"] == {run.pk: {"type": "echo", "params": run.params, "timeout": 7.5, "priority": 8}}
    first, second = Allocation.objects.order_by("pk")
    assert reply["work"] == [
        [first.pk, run.pk, 0, 2, 1, ["x", {"key": "y", "n": 1}]],
        [second.pk, run.pk, 2, 3, 1, ["z"]],
    ]
    assert (reply["cancel"], reply["drain"]) == ([], False)
    assert_partition(run)


def test_nothing_is_delivered_twice() -> None:
    a = child()
    submit(4)
    assert len(a.works()) == 4
    assert a.claim() == []


def test_a_claim_begins_the_lease_and_the_running() -> None:
    a = child(capacity=2)
    run = submit(2)
    before = timezone.now()
    a.works()
    for each in Allocation.objects.all():
        assert (each.state, each.delivered) == (AllocationState.EXECUTING, True)
        assert each.started_at is not None
        assert dt.timedelta(seconds=29) < each.deadline - before < dt.timedelta(seconds=31)
    assert_partition(run)


def test_a_child_gets_only_its_own() -> None:
    a, b = child("a", 1), child("b", 1)
    submit(2)
    dispatch()
    (mine,) = a.claim()
    (other,) = b.claim()
    assert mine.allocation != other.allocation
    assert Allocation.objects.get(pk=mine.allocation).node_id == a.id


def test_a_child_that_asks_for_few_slots_leaves_the_rest_for_its_next_claim(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"lookahead_limit": 0})
    a = child(capacity=4)
    submit(4)
    dispatch()
    assert [work.start for work in a.claim(slots=3)] == [0, 1, 2]
    assert a.claim(slots=0) == []
    assert [work.start for work in a.claim(slots=3)] == [3]


def test_a_claim_hears_what_it_must_drop_and_that_it_drains() -> None:
    a = child("a", 1)
    run = submit(1)
    (held,) = a.works()
    b = child("b", 1)
    submit(1)
    (foreign,) = b.works()
    asked = [held.allocation, foreign.allocation, NO_ROW]
    assert a.claimed(held=asked)["cancel"] == [foreign.allocation, NO_ROW]
    lifecycle.cancel(run.pk)
    registry.drain(a.id)
    reply = a.claimed(held=asked)
    assert (reply["cancel"], reply["drain"]) == (asked, True)


def test_a_draining_child_still_fetches_what_it_was_granted_before() -> None:
    a = child()
    submit(2)
    dispatch()
    registry.drain(a.id)
    assert len(a.claim()) == 2


@pytest.mark.parametrize("end", ["revoke", "deactivate", "remove"])
def test_a_key_that_is_not_valid_any_more_claims_nothing(end: str) -> None:
    a = child()
    run = submit(2)
    dispatch()
    if end == "revoke":
        keys.revoke(a.caller.access_key)
    elif end == "deactivate":
        registry.update_node(a.id, active=False)
    else:
        registry.remove_node(a.id, force=True)
    with pytest.raises(Unauthenticated):
        a.claim()
    assert set(Allocation.objects.values_list("state", "delivered")) == {("pending", False)}
    assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_claims_that_race_for_one_node_share_its_work_without_a_double() -> None:
    a = child(capacity=8)
    run = submit(40)
    while dispatch():
        replies = at_once(*[a.claim] * 4)
        works = [work for reply in replies for work in reply]
        assert len({work.allocation for work in works}) == len(works) == 8
        assert set(a.statuses(*[done(work) for work in works])) == {200}
        assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_races_with_a_cancel_gets_the_work_or_not_at_all() -> None:
    a = child(capacity=2)
    for _ in range(15):
        run = submit(2)
        dispatch()
        works, ended = at_once(a.claim, partial(lifecycle.cancel, run.pk))
        assert ended.state == "cancelled"
        assert a.live() == 0
        # What it got before the cancel it hears of with its next word.
        assert set(a.claimed(held=[work.allocation for work in works])["cancel"]) == {work.allocation for work in works}
        assert_partition(run)

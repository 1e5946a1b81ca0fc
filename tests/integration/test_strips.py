"""A run drawn: every item is somewhere on the strip, with the state that it has, however many there are."""

from __future__ import annotations

import datetime as dt

import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.django import TestCase

from api import strips
from dispatch.models import Shard
from dispatch.states import AllocationState, ShardState
from tests.integration import records

STATES = [*map(str, ShardState)]


class TestStrip(TestCase):
    @settings(max_examples=40, deadline=None)
    @given(some.data())
    def test_every_item_counts_once(self, data: some.DataObject) -> None:
        count = data.draw(some.integers(1, 5_000))
        run = records.run(count)
        ends = data.draw(some.lists(some.integers(1, count), max_size=60, unique=True).map(sorted))
        expected: dict[str, int] = {}
        start = 0
        for stop in ends:
            state, tried = data.draw(some.sampled_from(STATES)), data.draw(some.integers(0, 1))
            Shard.objects.create(run=run, start=start, stop=stop, state=state, attempts=tried)
            word = strips.TRIED if state == ShardState.PENDING and tried else state
            expected[word] = expected.get(word, 0) + stop - start
            start = stop
        if start < count:
            expected["pending"] = expected.get("pending", 0) + count - start
        strip = strips.strip(run.pk, count, start)
        assert {state.word: number for state, number in strip.states} == expected
        assert len(strip.cells) <= strips.CELLS
        assert sum(float(cell.width) for cell in strip.cells) >= 99.0
        run.delete()


@pytest.mark.django_db
def test_a_single_failed_item_is_seen_among_a_million() -> None:
    run = records.run(1_000_000)
    records.cut(run, 0, 700_000, ShardState.SAVED)
    records.cut(run, 700_000, 700_001, ShardState.FAILED)
    records.cut(run, 700_001, 1_000_000, ShardState.SAVED)
    strip = strips.strip(run.pk, run.count, run.cut)
    (bad,) = [cell for cell in strip.cells if cell.tone == "failed"]
    assert bad.label == "items 700,000 to 701,999: 1 failed, 1,999 saved"
    assert [cell.tone for cell in strip.cells] == ["saved", "failed", "saved"]


@pytest.mark.django_db
def test_a_lane_for_each_node_on_one_axis_of_time() -> None:
    run = records.run(40)
    now = timezone.now()
    nodes = {name: records.node(name) for name in ("early", "late")}
    for name, at in (("late", 30), ("early", 0), ("early", 20)):
        records.allocation(
            run,
            nodes[name],
            at,
            at + 10,
            state=AllocationState.COMPLETED,
            started_at=now + dt.timedelta(seconds=at),
            finished_at=now + dt.timedelta(seconds=at + 10),
        )
    view = strips.lanes(run.pk, now + dt.timedelta(seconds=90))
    assert [lane.node for lane in view.lanes] == ["early", "late"]
    early, late = view.lanes
    assert [(cell.tone, cell.x, cell.width) for cell in late.cells] == [("saved", "75.00", "25.00")]
    assert [(cell.x, cell.width) for cell in early.cells] == [("0.00", "25.00"), ("50.00", "25.00")]
    assert view.took == "40 s"
    assert [state.word for state in view.states] == ["saved"]


@pytest.mark.django_db
def test_a_run_that_nobody_had_has_no_lanes() -> None:
    assert strips.lanes(records.run(4).pk, timezone.now()).lanes == ()

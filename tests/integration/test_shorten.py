"""A shard that is ended early, so that an idle node does the rest: what was done counts, what was not is given out."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch import ending, events
from dispatch.models import Allocation, Run, Shard
from dispatch.states import AllocationState, RunState
from nodes.models import Node
from tests.integration.factory import (
    Child,
    Work,
    assert_partition,
    child,
    dispatch,
    done,
    partly,
    save,
    saver,
    shards,
    state,
    stored,
    submit,
)

pytestmark = pytest.mark.django_db

ITEMS = 10


@pytest.fixture(autouse=True)
def _nobody_asked() -> None:
    ending._asked.clear()


def started(items: int = ITEMS, **fields: Any) -> tuple[Run, Child, Work]:
    slow = child("slow", 1)
    run = submit(items, shard_size=items, **fields)
    (work,) = slow.works()
    return run, slow, work


def ended_early(work: Work, at: int) -> dict[str, Any]:
    """What is done before item ``at``."""
    return done(work._replace(stop=at)) | {"allocation": work.allocation, "stopped": at}


def pace(of: Child, run: Run, seconds: float) -> None:
    Node.objects.filter(pk=of.id).update(speeds={f"echo@{run.pk}": seconds})


def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], dict[str, Any]]]:
    heard: list[tuple[list[int], dict[str, Any]]] = []
    monkeypatch.setattr(events, "tell", lambda ids, message: heard.append((list(ids), message)))
    return heard


def test_what_was_done_counts_and_the_rest_is_given_to_somebody_else(folder) -> None:
    run, slow, work = started()
    assert slow.statuses(ended_early(work, 4)) == [200]
    assert shards(run) == [(0, 4, "spooled"), (4, ITEMS, "pending")]
    assert_partition(run)
    quick = child("quick", 1)
    Node.objects.filter(pk=slow.id).update(draining=True)
    (rest,) = quick.works()
    assert (rest.start, rest.stop, rest.attempt) == (4, ITEMS, 1)
    assert quick.statuses(done(rest)) == [200]
    with saver() as made:
        save(made)
        saved = {item: count for (item, _, of, *_), count in stored(made).rows.items() if of == run.pk}
    assert saved == {f"i{number}": 1 for number in range(ITEMS)}
    assert state(run) == RunState.COMPLETED
    assert_partition(run)


def test_the_same_report_again_is_the_same_receipt_and_another_one_is_refused() -> None:
    run, slow, work = started()
    slow.report(ended_early(work, 4))
    assert slow.report(ended_early(work, 4))[0]["repeated"] is True
    assert slow.statuses(ended_early(work, 5)) == [422]
    assert slow.statuses(done(work)) == [422]
    assert shards(run) == [(0, 4, "spooled"), (4, ITEMS, "pending")]


@pytest.mark.parametrize("at", [0, ITEMS, ITEMS + 1])
def test_an_end_that_is_not_inside_of_the_shard_is_refused(at: int) -> None:
    run, slow, work = started()
    entry = {**ended_early(work, 4), "stopped": at}
    assert slow.statuses(entry) == [422]
    assert Allocation.objects.get(run=run).state == AllocationState.EXECUTING


def test_ranges_must_cover_what_is_before_the_end_and_nothing_else() -> None:
    _, slow, work = started()
    assert slow.statuses({**ended_early(work, 4), "stopped": 5}) == [422]
    assert slow.statuses({**done(work), "stopped": 4}) == [422]


def test_items_that_failed_before_the_end_are_tried_again_and_the_rest_has_lost_no_attempt() -> None:
    run, slow, work = started(backoff=0.0)
    entry = partly(work._replace(stop=4), 1, retry=True) | {"stopped": 4}
    assert slow.statuses(entry) == [200]
    assert shards(run) == [(0, 1, "spooled"), (1, 2, "pending"), (2, 4, "spooled"), (4, ITEMS, "pending")]
    assert list(Shard.objects.filter(run=run).order_by("start").values_list("attempts", flat=True)) == [0, 1, 0, 0]
    assert_partition(run)


def test_a_slow_node_is_asked_once_to_leave_the_rest_to_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run, slow, work = started(26)
    quick = child("quick", 1)
    pace(slow, run, 10.0)
    pace(quick, run, 2.5)
    dispatch()
    heard = told(monkeypatch)
    assert ending.even_out_now() == set()
    (to, message) = heard[-1]
    assert to == [slow.id]
    assert message == {"type": "node.shorten", "shorten": [[work.allocation, 6]]}
    heard.clear()
    assert ending.even_out_now() == set()
    assert heard == []


@pytest.mark.parametrize("about", [{"dialect": "cascade"}, {"carrier": "http"}])
def test_a_node_that_would_not_understand_is_not_asked(monkeypatch: pytest.MonkeyPatch, about: dict[str, str]) -> None:
    run, slow, _ = started(26)
    quick = child("quick", 1)
    pace(slow, run, 10.0)
    pace(quick, run, 2.5)
    Node.objects.filter(pk=slow.id).update(**about)
    heard = told(monkeypatch)
    assert ending.even_out_now() == {quick.id}
    assert [message for _, message in heard if message["type"] == "node.shorten"] == []

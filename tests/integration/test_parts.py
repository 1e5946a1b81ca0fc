"""An allocation of several slots that is reported in parts: each item counts once, and only what is missing is lost."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

import pytest
from django.utils import timezone

from dispatch import lifecycle
from dispatch.models import Allocation, Shard
from dispatch.states import AllocationState, RunState
from nodes import messages
from nodes.protocol import FieldError
from tests.integration.factory import Work, assert_partition, child, rows_of, save, saver, state, stored, submit

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder")]

LATE = dt.timedelta(seconds=61)


def part(work: Work, number: int, *ranges: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Part ``number``, with the rows of ``ranges``."""
    indexes = [index for first, last in ranges for index in range(first, min(last, work.stop))]
    named = [[first, last, min(last, work.stop) - first] for first, last in ranges]
    body = {"allocation": work.allocation, "ranges": named, "rows": rows_of(work, only=indexes)}
    return {**body, **({"part": number} if number else {}), **more}


def begun(items: int = 10) -> tuple[Any, Any, Work]:
    mine = child(capacity=1)
    run = submit(items, shard_size=items)
    (work,) = mine.works()
    return run, mine, work


def shards_of(run: Any) -> list[tuple[int, int, str]]:
    return list(Shard.objects.filter(run=run).order_by("start").values_list("start", "stop", "state"))


def test_parts_are_accepted_one_after_the_other_and_the_rest_goes_on() -> None:
    run, mine, work = begun()
    assert mine.statuses(part(work, 1, (2, 4))) == [200]
    assert shards_of(run) == [(0, 2, "executing"), (2, 4, "spooled"), (4, 10, "executing")]
    assert_partition(run)
    assert mine.statuses(part(work, 2, (0, 1), (9, 10)), part(work, 3, (1, 2))) == [200, 200]
    assert mine.live() == 1
    assert mine.statuses(part(work, 0, (4, 9))) == [200]
    assert mine.live() == 0
    with saver() as made:
        save(made)
        assert stored(made).items == Counter(f"i{number}" for number in range(10))
    assert state(run) == RunState.COMPLETED
    allocation = Allocation.objects.get(pk=work.allocation)
    assert (allocation.state, allocation.parts, allocation.rows) == (AllocationState.COMPLETED, 3, 10)


def test_a_part_repeated_with_another_content_is_refused() -> None:
    run, mine, work = begun()
    assert mine.statuses(part(work, 1, (0, 3)), part(work, 2, (3, 4))) == [200, 200]
    before = shards_of(run)
    (answer,) = mine.report(part(work, 1, (0, 4)))
    assert (answer["status"], "part 1" in answer["detail"]) == (422, True)
    (again,) = mine.report(part(work, 2, (3, 4)))
    assert again["repeated"]
    assert shards_of(run) == before


def test_a_part_repeated_counts_once_and_one_too_early_is_refused() -> None:
    run, mine, work = begun()
    first = part(work, 1, (0, 3))
    assert mine.statuses(first) == [200]
    (again,) = mine.report(first)
    assert again["repeated"]
    (early,) = mine.report(part(work, 3, (3, 4)))
    assert early["status"] == 422
    assert "comes before part 2" in early["detail"]
    assert shards_of(run) == [(0, 3, "spooled"), (3, 10, "executing")]


@pytest.mark.parametrize("ranges", [[(0, 2)], [(1, 4)], [(2, 3), (1, 2)], [(8, 11)]])
def test_what_is_not_left_to_it_is_refused(ranges: list[tuple[int, int]]) -> None:
    run, mine, work = begun()
    assert mine.statuses(part(work, 1, (0, 2))) == [200]
    before = shards_of(run)
    assert mine.statuses(part(work, 2, *ranges)) == [422]
    assert shards_of(run) == before


def test_the_last_report_must_be_about_all_that_is_left() -> None:
    _, mine, work = begun()
    assert mine.statuses(part(work, 1, (2, 4))) == [200]
    assert mine.statuses(part(work, 0, (4, 10))) == [422]
    assert mine.statuses(part(work, 0, (0, 2), (4, 9))) == [422]
    assert mine.statuses(part(work, 0, (0, 2), (4, 10))) == [200]


def test_an_expired_one_costs_only_what_was_not_reported() -> None:
    run, mine, work = begun()
    assert mine.statuses(part(work, 1, (2, 4), (6, 8))) == [200]
    lifecycle.expire(timezone.now() + LATE)
    assert_partition(run)
    assert [each for each in shards_of(run) if each[2] != "spooled"] == [
        (0, 2, "pending"),
        (4, 6, "pending"),
        (8, 10, "pending"),
    ]
    assert mine.statuses(part(work, 2, (0, 1))) == [409]
    (again,) = mine.report(part(work, 1, (2, 4), (6, 8)))
    assert again["repeated"]
    assert mine.live() == 0


def test_a_cancel_ends_what_is_left_and_what_was_reported_is_saved() -> None:
    run, mine, work = begun()
    assert mine.statuses(part(work, 1, (2, 4))) == [200]
    lifecycle.cancel(run.pk)
    assert_partition(run)
    with saver() as made:
        save(made)
        assert stored(made).items == Counter(["i2", "i3"])
    assert state(run) == RunState.CANCELLED
    assert mine.statuses(part(work, 2, (0, 1))) == [409]


def test_errors_and_an_early_stop_come_with_the_last_report() -> None:
    run, mine, work = begun()
    with pytest.raises(FieldError, match="part"):
        messages.read_report({"reports": [part(work, 1, (0, 1), errors=[[1, "no", False]])]})
    assert mine.statuses(part(work, 1, (0, 1), (4, 6))) == [200]
    last = part(work, 0, (1, 2), (3, 4), (6, 7), errors=[[2, "never", False]], stopped=7)
    assert mine.statuses(last) == [200]
    assert_partition(run)
    assert [each for each in shards_of(run) if each[2] not in ("spooled",)] == [(2, 3, "failed"), (7, 10, "pending")]


def test_a_failure_gives_back_only_what_is_left() -> None:
    run, mine, work = begun()
    assert mine.statuses(part(work, 1, (0, 8))) == [200]
    failure = {"allocation": work.allocation, "failure": {"kind": "crash", "message": "gone"}}
    assert mine.statuses(failure) == [200]
    assert_partition(run)
    assert [each for each in shards_of(run) if each[2] != "spooled"] == [(8, 10, "pending")]


def test_rows_say_which_node_below_brought_them() -> None:
    _, mine, work = begun(4)
    named = [[0, 1, 1, 1], [1, 3, 2, 0]]
    first = part(work, 1, (0, 1), (1, 3), ranges=named, nodes=["paris/3", "rome"])
    assert mine.statuses(first) == [200]
    assert mine.statuses(part(work, 0, (3, 4))) == [200]
    with saver() as made:
        save(made)
        nodes = {item: node for item, _, _, _, node in stored(made).rows}
    assert nodes == {"i0": "a/rome", "i1": "a/paris/3", "i2": "a/paris/3", "i3": "a"}


def test_a_range_of_an_unknown_node_is_refused() -> None:
    _, _, work = begun(2)
    with pytest.raises(FieldError, match="nodes"):
        messages.read_report({"reports": [part(work, 1, (0, 1), ranges=[[0, 1, 1, 2]], nodes=["x"])]})

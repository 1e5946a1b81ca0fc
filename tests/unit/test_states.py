"""The transition tables, and how a run ends."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.states import (
    ALLOCATION,
    LIVE,
    RUN,
    RUN_ENDED,
    SHARD,
    SHARD_OPEN,
    AllocationState,
    RunState,
    ShardState,
    before,
    run_end,
)

TABLES = [(RUN, RunState), (SHARD, ShardState), (ALLOCATION, AllocationState)]


def reachable(table: Mapping[StrEnum, set[StrEnum]], first: StrEnum) -> set[StrEnum]:
    found, todo = {first}, [first]
    while todo:
        new = table[todo.pop()] - found
        found |= new
        todo += new
    return found


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_every_state_has_its_line_and_can_be_reached(
    table: Mapping[StrEnum, set[StrEnum]], states: type[StrEnum]
) -> None:
    assert set(table) == set(states)
    first: StrEnum = next(iter(states))
    assert reachable(table, first) == set(states)


@pytest.mark.parametrize(("table", "states"), TABLES)
def test_before_is_the_table_read_backwards(table: Mapping[StrEnum, set[StrEnum]], states: type[StrEnum]) -> None:
    for state in states:
        assert {source for source in states if state in table[source]} == set(before(table, state))


def test_an_allocation_that_ended_stays_so() -> None:
    for state in AllocationState:
        assert (ALLOCATION[state] == set()) == (state not in LIVE)


def test_a_cancelled_shard_stays_so_and_others_that_have_ended_can_only_be_opened_again() -> None:
    assert SHARD[ShardState.CANCELLED] == set()
    assert SHARD[ShardState.FAILED] == SHARD[ShardState.QUARANTINED] == {ShardState.PENDING}
    assert SHARD[ShardState.SAVED] == {ShardState.PENDING}


def test_only_reported_work_is_saved_and_reported_work_is_never_cancelled() -> None:
    assert before(SHARD, ShardState.SAVED) == (ShardState.SPOOLED,)
    assert ShardState.SPOOLED not in before(SHARD, ShardState.CANCELLED)


def test_a_run_that_was_cancelled_is_never_opened_again() -> None:
    assert set(before(RUN, RunState.RUNNING)) == {RunState.PARTIAL, RunState.FAILED, RunState.COMPLETED}
    assert set(RUN_ENDED) == set(RunState) - {RunState.RUNNING}


def test_open_shards_are_those_that_can_still_change_without_a_retry() -> None:
    ended = {ShardState.SAVED, ShardState.FAILED, ShardState.QUARANTINED, ShardState.CANCELLED}
    assert set(SHARD_OPEN) == set(ShardState) - ended


@pytest.mark.parametrize(
    ("saved", "failed", "quarantined", "cancelled", "end"),
    [
        (10, 0, 0, 0, RunState.COMPLETED),
        (9, 1, 0, 0, RunState.PARTIAL),
        (9, 0, 1, 0, RunState.PARTIAL),
        (0, 10, 0, 0, RunState.FAILED),
        (0, 0, 10, 0, RunState.FAILED),
        (0, 4, 6, 0, RunState.FAILED),
        (9, 0, 0, 1, RunState.CANCELLED),
        (0, 9, 0, 1, RunState.CANCELLED),
        (9, 0, 0, 0, None),
        (0, 0, 0, 0, None),
    ],
)
def test_how_a_run_of_ten_items_ends(
    saved: int, failed: int, quarantined: int, cancelled: int, end: RunState | None
) -> None:
    assert run_end(10, saved, failed, quarantined, cancelled) is end


@given(st.integers(1, 50), st.tuples(*[st.integers(0, 50)] * 4))
def test_a_run_ends_exactly_when_no_item_is_open(count: int, ended: tuple[int, int, int, int]) -> None:
    assert (run_end(count, *ended) is None) == (sum(ended) < count)

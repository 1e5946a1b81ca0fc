"""A lake keeps and gives rows as the file of one process does: what holds for that one holds for this one."""

from __future__ import annotations

import pytest

from dispatch.results.lake import LakeStore
from tests.integration.lakes import emptied, server, shared
from tests.unit.test_store import (
    filled,
    test_a_column_that_changes_its_type_is_refused,
    test_a_dataset_without_a_key_shows_every_row,
    test_a_filter_does_not_bring_back_a_replaced_row,
    test_a_key_given_twice_by_one_shard_is_shown_once,
    test_a_large_table_is_read_in_batches,
    test_a_null_in_the_key_is_a_key,
    test_a_reader_that_is_dropped_or_closed_lets_go,
    test_a_run_shows_its_own_rows_even_where_a_later_run_replaced_them,
    test_a_shard_without_rows_is_in_the_ledger,
    test_an_entry_that_is_there_keeps_the_whole_append_out,
    test_pages_go_by_the_natural_key_and_join_without_a_gap,
    test_readers_cannot_write,
    test_rows_and_ledger_are_saved_together,
    test_rows_that_do_not_fit_leave_no_entry,
    test_tables_tell_their_shape,
    test_the_view_shows_the_newest_row_per_key,
)

__all__ = [
    "emptied",
    "filled",
    "server",
    "shared",
    "test_a_column_that_changes_its_type_is_refused",
    "test_a_dataset_without_a_key_shows_every_row",
    "test_a_filter_does_not_bring_back_a_replaced_row",
    "test_a_key_given_twice_by_one_shard_is_shown_once",
    "test_a_large_table_is_read_in_batches",
    "test_a_null_in_the_key_is_a_key",
    "test_a_reader_that_is_dropped_or_closed_lets_go",
    "test_a_run_shows_its_own_rows_even_where_a_later_run_replaced_them",
    "test_a_shard_without_rows_is_in_the_ledger",
    "test_an_entry_that_is_there_keeps_the_whole_append_out",
    "test_pages_go_by_the_natural_key_and_join_without_a_gap",
    "test_readers_cannot_write",
    "test_rows_and_ledger_are_saved_together",
    "test_rows_that_do_not_fit_leave_no_entry",
    "test_tables_tell_their_shape",
    "test_the_view_shows_the_newest_row_per_key",
]


@pytest.fixture
def store(emptied: LakeStore) -> LakeStore:
    return emptied

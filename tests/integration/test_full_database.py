"""A control database without room: 507, nothing acknowledged, nothing half-written; with room again it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from dispatch.models import Allocation, Receipt
from dispatch.states import LIVE, RunState
from nodes.protocol import StorageFull
from tests.integration.factory import assert_partition, child, done, save, saver, state, stored, submit

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("connection.vendor != 'sqlite'", reason="a limit on pages is SQLite's"),
]
SOME = 400
"""Shards: what their report writes does not fit a page that is there already."""


@contextmanager
def full() -> Iterator[None]:
    """SQLite itself says that the disk is full: its file may not grow by another page, and has no free ones."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA max_page_count = 1")  # no less than there are
        try:
            yield
        finally:
            cursor.execute("PRAGMA max_page_count = 1073741823")


def test_a_report_that_does_not_fit_is_507_and_counts_when_it_is_sent_again() -> None:
    a = child(capacity=SOME)
    run = submit(SOME, shard_size=1)
    works = a.works()
    reports = [done(work, 20) for work in works]
    with full():
        with pytest.raises(StorageFull, match="no room"):
            a.report(*reports)
        assert StorageFull.status == 507
        assert not Receipt.objects.exists()
        assert Allocation.objects.filter(state__in=LIVE).count() == SOME
    assert set(a.statuses(*reports)) == {200}
    with saver() as made:
        save(made)
        assert len(stored(made).items) == SOME
    assert state(run) == RunState.COMPLETED
    assert_partition(run)

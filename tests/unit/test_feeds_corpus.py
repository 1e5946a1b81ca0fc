"""Broken and odd feeds, each named for its fault: rows or an error of that feed, never a crash."""

from __future__ import annotations

import time

import pytest

from nodes.executors.feed_update import FeedUpdate
from nodes.executors.rows import to_table
from nodes.feeds import BadFeed, read
from tests.unit.feed_corpus import CASES
from tests.unit.feed_writing import URL, Case

SECONDS = 20.0
"""Nothing here takes a tenth of it; what takes more than all of it grows with the square of its length."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_becomes_of(case: Case) -> None:
    began = time.monotonic()
    if case.error is not None:
        with pytest.raises(BadFeed) as refusal:
            read(case.content, case.headers, URL)
        assert case.error in str(refusal.value)
        # That is what documents are told of which nobody has thought.
        assert "cannot be read" not in str(refusal.value)
        assert len(str(refusal.value)) < 500
    else:
        feed = read(case.content, case.headers, URL)
        found = [
            {name: getattr(entry, name) for name in wanted}
            for entry, wanted in zip(feed.entries, case.entries, strict=True)
        ]
        assert found == list(case.entries)
        rows = [FeedUpdate({})._row("feed", entry) for entry in feed.entries]
        assert to_table(FeedUpdate.dataset, rows).num_rows == len(feed.entries)
        assert all(entry.id and len(entry.id) <= 200 for entry in feed.entries)
        assert case.note in "; ".join(feed.notes)
    assert time.monotonic() - began < SECONDS


def test_there_are_enough_of_them_and_each_has_its_name() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) > 100

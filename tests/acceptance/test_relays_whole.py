"""A root, two relays, six leaves on mixed carriers: whatever part fails in mid-run, every row is once at the root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos import branches
from tests.chaos.branches import Grove

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def grove(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grove]:
    with ExitStack() as stack:
        yield Grove(tmp_path_factory.mktemp("grove"), stack)


def test_all_sample_data_is_imported_through_the_relays(grove: Grove) -> None:
    assert grove.import_bars() == branches.BARS


@pytest.mark.parametrize("name", branches.SCENARIOS)
def test_every_row_is_once_at_the_root(grove: Grove, name: str) -> None:
    items = [f"{name} {number}" for number in range(branches.ITEMS)]
    found = branches.through(grove, name, branches.SCENARIOS[name], items, branches.ITEM_SECONDS)
    assert (found.lost, found.duplicated) == (set(), set())

"""Lakes for tests: one PostgreSQL server for a module, and in it a lake of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatch.results import lake_copying
from dispatch.results.lake import LakeStore
from dispatch.results.lake_place import Place
from tests.servers import postgresql

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a PostgreSQL server."""
    with postgresql() as url:
        yield url


@pytest.fixture
def place(server: str, tmp_path: Path) -> Place:
    """Of a lake that is not there yet."""
    return Place(server, str(tmp_path / "lake"), schema=f"lake_{next(_numbers)}")


@pytest.fixture
def store(place: Place) -> Iterator[LakeStore]:
    with LakeStore(place, memory="200MB") as made:
        yield made


@pytest.fixture(scope="module")
def shared(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LakeStore]:
    """A lake for many tests: making one takes longer than what most of them do with it."""
    with LakeStore(Place(server, str(tmp_path_factory.mktemp("shared")), schema="shared"), memory="200MB") as made:
        yield made


@pytest.fixture
def emptied(shared: LakeStore) -> LakeStore:
    """``shared`` without any rows."""
    shared.write(lake_copying._drop)
    return shared

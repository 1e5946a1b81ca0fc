"""Which result store this parent has, by its settings alone: the file of one process, or the lake of several."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.conf import settings

from dispatch.results.store import ResultStore
from nodes.protocol import Conflict

if TYPE_CHECKING:
    from dispatch.results.base import Store
    from dispatch.results.lake_place import Place

_reading: Store | None = None
_making = threading.Lock()


def make_store(*, writing: bool = True) -> Store:
    """The parent's store, not opened yet. ``writing`` matters to a lake: who does not lead only reads."""
    settled = settings.CASCADE
    if not settled.in_lake:
        return ResultStore(settled.results, memory=settled.duckdb_memory)
    from dispatch.results.lake import LakeStore
    from dispatch.results.lake_tidying import Tidying

    tidying = Tidying(merge_seconds=settled.lake_merge_seconds, keep_seconds=settled.lake_keep_seconds)
    return LakeStore(place(settled), memory=settled.duckdb_memory, writing=writing, tidying=tidying)


@contextmanager
def open_store(*, writing: bool = False) -> Iterator[Store]:
    """The parent's store, open meanwhile. Raises StoreBusy, in the case of a file where another process has it."""
    with make_store(writing=writing) as store:
        yield store


def for_reading() -> Store:
    """A lake's store that this process reads from whenever it is asked for rows; connected at the first use."""
    global _reading
    with _making:
        if _reading is None:
            _reading = make_store(writing=False)
            _reading.open()
        return _reading


def place(settled: Any) -> Place:
    """The lake of a parent with these settings. Raises Conflict where there is no PostgreSQL for its catalogue."""
    from dispatch.results.lake_place import S3, Place

    if not settled.database_url:
        raise Conflict("result_store is lake, whose catalogue is in PostgreSQL: set database_url")
    s3 = S3(settled.lake_endpoint, settled.lake_region, settled.lake_access_key, settled.lake_secret_key)
    return Place(settled.database_url, settled.lake, s3, process=getattr(settings, "PROCESS", ""))

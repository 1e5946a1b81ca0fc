"""The result store of a world: in memory with the transactions of the real one, or the real one in a folder.

Both lose at a crash what was not committed, and where the log of the real one is torn, what no checkpoint has moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dispatch.results.store import Part, ResultStore
from nodes import failpoints
from nodes.protocol import Conflict

COLUMNS = ("uid", "allocation", "way", "_run", "_allocation", "_node")
"""What a row says of itself, and what its lineage says."""


class Stored(NamedTuple):
    """``rows``: as ``COLUMNS``; ``ledger``: its keys and allocation."""

    rows: list[tuple[Any, ...]]
    ledger: list[tuple[int, int, int, int]]


class MemoryStore:
    """What the saver uses of a ``ResultStore``."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._ledger: dict[tuple[int, int, int], int] = {}
        self._checkpoint: tuple[int, dict[tuple[int, int, int], int]] = (0, {})

    def open(self) -> None: ...

    def close(self) -> None: ...

    def maintain(self) -> None: ...

    def ensure(self, dataset: Any) -> None: ...

    def recorded(self, ranges: Sequence[tuple[int, int, int]]) -> dict[tuple[int, int, int], int]:
        return {each: self._ledger[each] for each in ranges if each in self._ledger}

    def append(self, parts: Sequence[Part]) -> int:
        entries: dict[tuple[int, int, int], int] = {}
        rows: list[tuple[Any, ...]] = []
        for part in parts:
            for run, start, stop, allocation, _, _ in part.entries:
                key = run, start, stop
                if key in self._ledger or key in entries:
                    raise Conflict(f"saved before: {key}")
                entries[key] = allocation
            if part.table is not None:
                rows += zip(*(part.table.column(name).to_pylist() for name in COLUMNS), strict=True)
        if not entries and not rows:
            return 0
        failpoints.reach("store.rows")
        # Looked at again: who was stopped here for a while may be late, and the key is the database's to keep.
        if taken := entries.keys() & self._ledger.keys():
            raise Conflict(f"saved before: {sorted(taken)}")
        self._ledger |= entries
        self._rows += rows
        failpoints.reach("store.committed")
        return len(rows)

    def checkpoint(self) -> None:
        self._checkpoint = len(self._rows), dict(self._ledger)

    # The world's

    def crash(self, *, torn: bool) -> MemoryStore:
        """As the next process finds it."""
        if torn:
            count, self._ledger = self._checkpoint[0], dict(self._checkpoint[1])
            del self._rows[count:]
        return self

    def stored(self) -> Stored:
        return Stored(list(self._rows), [(*key, allocation) for key, allocation in self._ledger.items()])

    def remove(self) -> None:
        """There is nothing to remove."""


class FileStore(ResultStore):
    """The real one. A crash is a copy of its files at that moment, which the next process opens."""

    def __init__(self, folder: Path, number: int = 0, before: FileStore | None = None) -> None:
        super().__init__(folder / f"results-{number}.duckdb", memory="100MB")
        self._number = number
        self._before = before
        self.open()

    def crash(self, *, torn: bool) -> FileStore:
        copy = self.path.with_name(f"results-{self._number + 1}.duckdb")
        if self.path.exists():
            shutil.copy(self.path, copy)
        if not torn and (log := Path(f"{self.path}.wal")).exists():
            shutil.copy(log, f"{copy}.wal")
        # This one is closed in the end: a thread of the dead process may stand in the middle of it.
        return FileStore(self.path.parent, self._number + 1, self)

    def stored(self) -> Stored:
        from tests.sim.work import DATASET

        self.ensure(DATASET)
        with self.reader() as reading:
            rows = reading.execute(f"SELECT {', '.join(COLUMNS)} FROM sim_rows").fetchall()
            ledger = reading.execute("SELECT run, start, stop, allocation FROM ledger").fetchall()
        return Stored(rows, ledger)

    def remove(self) -> None:
        self.close()
        if self._before is not None:
            self._before.remove()

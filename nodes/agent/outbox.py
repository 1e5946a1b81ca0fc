"""Finished work on disk until the parent's receipt, so that an agent that is killed reports after its restart.

Beside it stands whose it is: an agent that was given another parent must not report it there, under the same ids.

Not synced to the platter: what a power cut takes was never acknowledged and is run again by lease.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from nodes import failpoints

logger = logging.getLogger(__name__)

Entry = dict[str, Any]


class Outbox:
    """A folder with one file per batch of entries and one per segment; one agent at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: dict[int, Entry] = {}
        self._batch_of: dict[int, int] = {}
        self._left: dict[int, set[int]] = {}
        self._next = 0
        self.parent = ""
        """Id of the server that the entries are for, where it is known."""

    def open(self) -> None:
        """Takes the folder and reads what an earlier agent left. Raises BlockingIOError when another one has it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115  (held as long as the agent lives)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        batches = [file for file in self.folder.glob("*.json") if file.stem.isdecimal()]
        for file in sorted(batches, key=lambda file: int(file.stem)):
            number = int(file.stem)
            self._next = max(self._next, number + 1)
            entries = _read(file)
            if not entries:
                # A torn file: its work was never acknowledged, so the lease brings it back.
                logger.warning("%s is torn; dropped", file.name)
                file.unlink()
                continue
            self._remember(number, entries)
        for temp in self.folder.glob("*.tmp"):
            temp.unlink()
        self._sweep()
        with suppress(OSError):
            self.parent = (self.folder / "parent").read_text().strip()

    def belong(self, parent: str) -> None:
        """From now on what comes is of the server with this id."""
        if parent != self.parent:
            temp = self.folder / "parent.tmp"
            try:
                temp.write_text(parent)
                os.replace(temp, self.folder / "parent")
            except OSError as error:
                logger.error("%s cannot be written: %s", self.folder, error.strerror)
            self.parent = parent

    def close(self) -> None:
        self._lock.close()

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, allocation: int) -> bool:
        return allocation in self._pending

    def put(self, entries: list[Entry]) -> None:
        """Keeps ``entries`` until ``drop``; when this returns, a kill of the agent loses nothing.

        Except while the disk is full or gone: they are in memory then, and can be reported all the same.
        """
        number, self._next = self._next, self._next + 1
        temp = self.folder / f"{number}.tmp"
        try:
            temp.write_text(json.dumps(entries, separators=(",", ":")))
            failpoints.reach("outbox.written")
            os.replace(temp, self.folder / f"{number}.json")
            failpoints.reach("outbox.kept")
        except OSError as error:
            logger.error("%s cannot be written, results are kept in memory only: %s", self.folder, error.strerror)
            with suppress(OSError):
                temp.unlink()
        self._remember(number, entries)

    def waiting(self, limit: int | None) -> list[Entry]:
        """The oldest entries without a receipt, at most ``limit``."""
        return list(islice(self._pending.values(), limit))

    def postpone(self, allocation: int) -> None:
        """The others come first from now on."""
        self._pending[allocation] = self._pending.pop(allocation)

    def allocations(self) -> list[int]:
        return list(self._pending)

    def drop(self, allocations: Iterable[int]) -> None:
        """These have their receipt, or never will."""
        segments = set()
        for allocation in allocations:
            entry = self._pending.pop(allocation, None)
            if entry is None:
                continue
            if entry.get("segment"):
                segments.add(entry["segment"])
            number = self._batch_of.pop(allocation)
            left = self._left[number]
            left.discard(allocation)
            if not left:
                del self._left[number]
                (self.folder / f"{number}.json").unlink(missing_ok=True)
        for segment in segments - {entry.get("segment") for entry in self._pending.values()}:
            self.segment(segment).unlink(missing_ok=True)

    def segment(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.arrow"

    def _remember(self, number: int, entries: list[Entry]) -> None:
        self._left[number] = {entry["allocation"] for entry in entries}
        for entry in entries:
            self._pending[entry["allocation"]] = entry
            self._batch_of[entry["allocation"]] = number

    def _sweep(self) -> None:
        """Segments that no entry names are from a worker that was killed before its report was written."""
        named = {entry.get("segment") for entry in self._pending.values()}
        for file in self.folder.glob("*.arrow"):
            if file.stem not in named:
                file.unlink()


def _read(file: Path) -> list[Entry]:
    """The entries of a batch; none where the file is not a whole one."""
    try:
        entries = json.loads(file.read_bytes())
    except ValueError:
        return []
    if not isinstance(entries, list):
        return []
    good = all(isinstance(entry, dict) and isinstance(entry.get("allocation"), int) for entry in entries)
    return entries if good else []

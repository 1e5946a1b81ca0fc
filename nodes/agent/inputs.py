"""Rows of the parent's tables that a shard works over: fetched before it runs, kept in a file until it has ended."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nodes.agent.carriers import Line, Unreachable, jitter


class Inputs:
    """The files of one agent, one for each allocation that has any, in ``folder``, which is this class' own."""

    def __init__(self, folder: Path, line: Line) -> None:
        self._folder = folder
        self._line = line

    def open(self) -> None:
        """Removes what an earlier life left behind: its allocations are brought again, or somebody else's."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def bring(self, allocation: int) -> str:
        """The file, fetched now; tries until the parent answers. Raises Refused."""
        attempt = 0
        while True:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                file = self._folder / f"{allocation}.arrow"
                await self._line.rest.download(f"inputs/{allocation}", file)
                return str(file)
            except Unreachable as error:
                await asyncio.sleep(jitter(attempt) if error.wait is None else error.wait)
                attempt += 1

    def drop(self, allocations: Iterable[int]) -> None:
        """They have ended."""
        for allocation in allocations:
            with suppress(FileNotFoundError):
                (self._folder / f"{allocation}.arrow").unlink()

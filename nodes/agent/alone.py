"""The line of an agent that has no parent: it leads nowhere. Work comes only from who calls this node."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nodes.agent.carriers import Body, Unreachable


class NoLine:
    """A ``carriers.Line`` on which nothing comes and nothing goes."""

    carrier = "pull"
    reachable = False

    def __init__(self, *_: object) -> None:
        self.taking = True
        self.long_poll = 0.0
        self.rest = self

    async def call(self, verb: str, body: Body) -> Body:
        raise Unreachable(f"{verb}: this node has no parent")

    async def upload(self, sha256: str, file: Path) -> None:
        raise Unreachable("this node has no parent")

    async def download(self, name: str, file: Path) -> None:
        raise Unreachable("this node has no parent")

    async def run(self) -> None:
        await asyncio.Event().wait()

    def wake(self) -> None:
        """There is nobody to ask."""

    def close(self) -> None:
        """Nothing is open."""

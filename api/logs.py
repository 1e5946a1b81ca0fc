"""What running shards print, on its way into the database: messages of many children are written together.

A message is answered when it is written, so that a child's next one, in whichever process it arrives, comes after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dispatch import logs
from nodes.keys import Caller
from nodes.messages import Printed
from nodes.protocol import CascadeError, TooMany

GATHER_SECONDS = 0.05
"""What comes within so long is written together."""
TOGETHER = 5000
"""Texts in one transaction, more or less."""
WAITING = 20_000_000
"""Characters that may wait to be written; who brings more keeps it a while."""
BUSY_QUEUE, BUSY_SECONDS = 400, 2.0
"""With more verbs waiting for a thread than that, or for longer, logs come later."""


class Gathering:
    """Logs on their way to a thread: while one batch is written, the next comes together."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Caller, Sequence[Printed], asyncio.Future[logs.Outcome]]] = []
        self._size = 0
        self._writing: asyncio.Task[None] | None = None

    async def take(self, caller: Caller, printed: Sequence[Printed]) -> dict[str, object]:
        """Raises CascadeError."""
        from api.agent import behind

        size = sum(len(piece.text) for piece in printed)
        if wait := behind(BUSY_QUEUE, BUSY_SECONDS):
            raise TooMany("this parent has more to do than to take logs at this moment", retry_after=wait)
        if self._size and self._size + size > WAITING:
            raise TooMany(f"{self._size} characters of logs wait to be written already", retry_after=1.0)
        answer: asyncio.Future[logs.Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, printed, answer))
        self._size += size
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        outcome = await answer
        if isinstance(outcome, CascadeError):
            raise outcome
        return outcome

    async def _write(self) -> None:
        from api.agent import in_thread

        while self._waiting:
            await asyncio.sleep(GATHER_SECONDS)
            batch = self._next()
            try:
                outcomes = await in_thread(logs.take_all, [(caller, printed) for caller, printed, _ in batch])
            except Exception as error:
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, _, answer), outcome in zip(batch, outcomes, strict=True):
                if not answer.done():
                    answer.set_result(outcome)

    def _next(self) -> list[tuple[Caller, Sequence[Printed], asyncio.Future[logs.Outcome]]]:
        count = texts = 0
        for _, printed, _ in self._waiting:
            if texts and texts + len(printed) > TOGETHER:
                break
            count, texts = count + 1, texts + len(printed)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._size -= sum(len(piece.text) for _, printed, _ in batch for piece in printed)
        return batch


gathering = Gathering()

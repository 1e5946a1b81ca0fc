"""What the shards that run here print, on its way to the parent: one message for all of them, every half second.

Best effort: nothing waits for it. Each text carries where it begins in its shard's log, so that the parent knows what
is missing and what it has already.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nodes.agent.carriers import Line, Refused, Unreachable, pause
from nodes.protocol import LOG_CHARACTERS, LOG_CUT, LOG_LIMIT, LOG_PIECES

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.06
"""Shards that began together are told of together, not all but one with the next message."""
TELL_SECONDS = 0.35
"""From an answer to the next message: with what a message takes, about two in a second."""
REFUSED_SECONDS = 5.0
KEPT = 4_000_000
"""Characters of all shards together; with many of them each has less than LOG_LIMIT."""

Piece = list[Any]
"""[allocation, where it begins, text]."""


@dataclass(slots=True)
class _Heard:
    """Of one shard: the end of its log, which begins at character ``start``. ``told``: so far the parent has it.

    ``base``: a worker counts from there; characters of earlier tries at the same allocation.
    """

    base: int = 0
    start: int = 0
    text: str = ""
    told: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def add(self, at: int, text: str, most: int) -> None:
        if at > self.end:  # something in between was lost
            self.start, self.text = at, ""
        self.text += text
        if (over := len(self.text) - most) > 0:
            self.start, self.text = self.start + over, self.text[over:]


class Logs:
    """``hear`` and ``anew`` are called from the pool's thread, everything else on the agent's loop."""

    def __init__(self, link: Line) -> None:
        self.on = False
        """Whether the parent wants to hear of logs; until it has said so, nothing is kept."""
        self._link = link
        self._turn = threading.Lock()
        self._shards: dict[int, _Heard] = {}
        self._due = asyncio.Event()
        self._awake = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def hear(self, allocation: int, offset: int, text: str) -> None:
        """A running shard has printed ``text``; before that, in this try, ``offset`` characters."""
        if not self.on or allocation < 0:  # below 0 are tasks handed directly to us
            return
        with self._turn:
            heard = self._shards.setdefault(allocation, _Heard())
            heard.add(heard.base + offset, text, min(LOG_LIMIT, KEPT // len(self._shards)))
            awake, self._awake = self._awake, True
        if not awake and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._due.set)

    def anew(self, allocation: int) -> None:
        """Its shard begins once more, and its worker counts from 0 again."""
        with self._turn:
            if (heard := self._shards.get(allocation)) is not None:
                heard.base = heard.end

    def ended(self, allocations: Iterable[int], entries: Iterable[dict[str, Any]]) -> None:
        """These do not run any more. Their ``entries`` get the log of a shard whose worker could not bring it, and say
        where their logs begin."""
        if not self._shards:
            return
        with self._turn:
            heard = {each: found for each in allocations if (found := self._shards.pop(each, None)) is not None}
        if not heard:
            return
        for entry in entries:
            if (found := heard.get(entry["allocation"])) is None:
                continue
            if "log" in entry:
                start = found.base + entry.get("log_start", 0)
            elif "failure" in entry:
                start, text = found.start, found.text
                if start:
                    over = max(len(text) + len(LOG_CUT) - LOG_LIMIT, 0)
                    start, text = start + over, LOG_CUT + text[over:]
                entry["log"] = text
            else:
                continue
            if start:
                entry["log_start"] = start

    def forget(self) -> None:
        """Nobody wants to hear of what runs."""
        with self._turn:
            self.on = False
            self._shards.clear()

    async def run(self) -> None:
        """Tells the parent, until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._due.set()
        attempt = 0
        while True:
            await self._due.wait()
            self._due.clear()
            await asyncio.sleep(GATHER_SECONDS)
            with self._turn:
                self._awake = False
            wait = TELL_SECONDS
            try:
                if pieces := self._news():
                    reply = await self._link.call("log", {"logs": pieces})
                    self._told(pieces, reply.get("gone") or [])
                    attempt = 0
            except Unreachable as error:
                attempt += 1
                wait = max(pause(error, attempt), TELL_SECONDS)
                self._due.set()
            except Refused as error:
                logger.warning("the parent refuses logs: %s", error)
                self._told(pieces, [])
                wait = REFUSED_SECONDS
            except Exception:
                logger.exception("logs could not be told")
                wait = REFUSED_SECONDS
            await asyncio.sleep(wait)

    def _news(self) -> list[Piece]:
        pieces: list[Piece] = []
        size = 0
        with self._turn:
            for allocation, heard in self._shards.items():
                at = max(heard.told, heard.start)
                if not (text := heard.text[at - heard.start :]):
                    continue
                if len(pieces) == LOG_PIECES or size + len(text) > LOG_CHARACTERS:
                    self._due.set()
                    break
                size += len(text)
                pieces.append([allocation, at, text])
        return pieces

    def _told(self, pieces: Iterable[Piece], gone: Iterable[int]) -> None:
        over = set(gone)
        with self._turn:
            for allocation, at, text in pieces:
                if (heard := self._shards.pop(allocation, None)) is not None and allocation not in over:
                    heard.told = max(heard.told, at + len(text))
                    self._shards[allocation] = heard  # behind those that have waited

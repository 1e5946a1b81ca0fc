"""What a shard prints and logs, as text: of the whole process, or of one of many threads that run side by side."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from nodes.protocol import LOG_CUT, LOG_LIMIT


class Tail(io.TextIOBase):
    """Keeps the end of what is written, and counts from where on it does."""

    def __init__(self) -> None:
        # One value, so that another thread never sees a text with the beginning of another one.
        self._kept = (0, "")
        self.noticed: Callable[[Tail], None] | None = None
        """Called once, when the next text is written; whoever wants to hear again says so again."""
        self.about: Any = None
        """What it is to whoever is called."""

    def write(self, text: str) -> int:
        start, kept = self._kept
        kept += text
        if (over := len(kept) - LOG_LIMIT) > LOG_LIMIT:
            start, kept = start + over, kept[over:]
        self._kept = (start, kept)
        if (noticed := self.noticed) is not None:
            self.noticed = None
            noticed(self)
        return len(text)

    def text(self) -> str:
        """Its last LOG_LIMIT characters, with LOG_CUT before them where there were more."""
        start, text = self._kept
        return LOG_CUT + text[self.start - start :] if self.start else text

    @property
    def start(self) -> int:
        """Characters that were written and that ``text`` does not have."""
        start, text = self._kept
        return start + max(len(text) - LOG_LIMIT + len(LOG_CUT), 0) if start or len(text) > LOG_LIMIT else 0

    def since(self, told: int) -> tuple[int, str]:
        """What was written from character ``told`` on, or as much of its end as is kept: where it begins, and it."""
        start, text = self._kept
        return max(told, start), text[max(told - start, 0) :]

    def forget(self) -> None:
        """Its text is needed no more."""
        self.noticed = None
        self._kept = (0, "")


_own: ContextVar[Tail | None] = ContextVar("tail", default=None)
"""A context variable and no thread-local: what asyncio hands to another thread writes to its shard's log, too."""
_apart = False


class _Sorted(io.TextIOBase):
    """Each text goes to the log of the shard that wrote it; what no shard wrote goes on to ``other``."""

    def __init__(self, other: TextIO) -> None:
        self._other = other

    def write(self, text: str) -> int:
        return (_own.get() or self._other).write(text)

    def flush(self) -> None:
        """A log needs none; and as the one stream of all, it must not be closed by one of them."""

    def close(self) -> None:
        """See ``flush``."""


def keep_apart() -> None:
    """From now on, in this process, shards that run side by side have a log each: of their own thread.

    Threads that an executor itself starts are nobody's; those of ``asyncio.to_thread`` are its own.
    """
    global _apart
    _apart = True
    sys.stdout, sys.stderr = _Sorted(sys.stdout), _Sorted(sys.stderr)
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))


@contextmanager
def log() -> Iterator[Tail]:
    """What is printed and logged inside: in this thread after ``keep_apart``, otherwise in the whole process."""
    tail = Tail()
    if _apart:
        before = _own.set(tail)
        try:
            yield tail
        finally:
            _own.reset(before)
        return
    handler = logging.StreamHandler(tail)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with redirect_stdout(tail), redirect_stderr(tail):
            yield tail
    finally:
        root.removeHandler(handler)

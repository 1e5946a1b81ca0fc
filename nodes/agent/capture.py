"""What a shard prints and logs, as text: of the whole process, or of one of many threads that run side by side."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from typing import TextIO

LOG_LIMIT = 16_000
"""Characters of a shard's log that are kept: its end, where a failure shows."""


class Tail(io.TextIOBase):
    """Keeps the end of what is written."""

    def __init__(self) -> None:
        self._text = ""
        self._cut = False

    def write(self, text: str) -> int:
        self._text += text
        if len(self._text) > 2 * LOG_LIMIT:
            self._text = self._text[-LOG_LIMIT:]
            self._cut = True
        return len(text)

    def text(self) -> str:
        if len(self._text) > LOG_LIMIT or self._cut:
            return "[…]\n" + self._text[-LOG_LIMIT + 10 :]
        return self._text


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

"""A run's items as one compressed blob, readable in slices.

A run that grows gets further blobs, one for each addition.

Layout: 4 bytes length of the index, the index (JSON list of the sizes of the chunks), then the chunks: zlib of a
JSON list of CHUNK items each. So a million items are one insert, and a shard's items cost one chunk to read.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from nodes.executors.base import Item, item_key

__all__ = ["CHUNK", "Frozen", "Growing", "freeze", "item_key"]

CHUNK = 1000


def freeze(items: Sequence[Item]) -> bytes:
    """The blob of ``items``, in order."""
    chunks = [
        zlib.compress(json.dumps(items[at : at + CHUNK], separators=(",", ":")).encode(), 1)
        for at in range(0, len(items), CHUNK)
    ]
    index = json.dumps([len(chunk) for chunk in chunks]).encode()
    return b"".join([struct.pack("<I", len(index)), index, *chunks])


class Frozen:
    """Reads a blob."""

    def __init__(self, blob: bytes) -> None:
        (length,) = struct.unpack_from("<I", blob)
        self._blob = blob
        self._offsets = [4 + length]
        for size in json.loads(blob[4 : 4 + length]):
            self._offsets.append(self._offsets[-1] + size)
        # A shard's neighbours are asked for next, so the chunk last read is mostly the one wanted.
        self._chunk = lru_cache(maxsize=4)(self._read)

    def _read(self, number: int) -> list[Item]:
        chunk: list[Item] = json.loads(zlib.decompress(self._blob[self._offsets[number] : self._offsets[number + 1]]))
        return chunk

    def count(self) -> int:
        """How many items there are."""
        full = len(self._offsets) - 2
        return full * CHUNK + len(self._chunk(full)) if full >= 0 else 0

    def slice(self, start: int, stop: int) -> list[Item]:
        """Items [start, stop)."""
        items: list[Item] = []
        for number in range(start // CHUNK, (stop - 1) // CHUNK + 1):
            base = number * CHUNK
            items += self._chunk(number)[max(0, start - base) : stop - base]
        return items

    def all(self) -> list[Item]:
        return self.slice(0, (len(self._offsets) - 1) * CHUNK)


class Growing:
    """The items of a run, its first blob and those that were added.

    ``later(start, stop)`` gives what was added from item ``start`` on and begins before ``stop`` (None: all). No more
    than is asked for is read, as the end may be part of a transaction that comes to nothing yet.
    """

    def __init__(self, first: bytes, later: Callable[[int, int | None], Iterable[tuple[int, int, bytes]]]) -> None:
        self._starts = [0]
        self._parts = [Frozen(first)]
        self._stop = self._parts[0].count()
        self._later = later
        self._turn = threading.Lock()

    def slice(self, start: int, stop: int) -> list[Item]:
        """Items [start, stop), as far as there are any."""
        if stop > self._stop:
            self._load(stop)
        stop = min(stop, self._stop)
        items: list[Item] = []
        at = bisect_right(self._starts, start) - 1
        while start < stop:
            base = self._starts[at]
            end = self._starts[at + 1] if at + 1 < len(self._starts) else self._stop
            items += self._parts[at].slice(start - base, min(stop, end) - base)
            start, at = min(stop, end), at + 1
        return items

    def all(self) -> list[Item]:
        self._load(None)
        return self.slice(0, self._stop)

    def _load(self, wanted: int | None) -> None:
        with self._turn:
            for start, stop, blob in self._later(self._stop, wanted):
                self._starts.append(start)
                self._parts.append(Frozen(blob))
                self._stop = stop

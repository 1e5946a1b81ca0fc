"""The parent's configuration on this machine: tasks, sources and type settings, as last fetched.

One file of two lines, a header {"version", "mark", "digest", "bytes"} and the content as JSON. It is put in place as a
whole, and read only where its digest is right: a kill or a damaged disk costs a fetch, never a wrong task.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nodes.agent.carriers import Refused, Unreachable, jitter
from nodes.protocol import CascadeError

logger = logging.getLogger(__name__)

FILE = "configuration.jsonl"
SIZE_LIMIT = 256 * 1024 * 1024
"""Bytes of a file that is taken; what a parent makes stays far below."""
HEADER_LIMIT = 1000
PIECE = 256 * 1024


class Damaged(CascadeError):
    """The file is not there, or not whole."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which one: numbers come again where a parent was restored from a copy; marks do not."""

    number: int
    mark: str


NONE = Version(0, "")


def of_task(content: dict[str, Any], task: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings by type and the sources that ``task`` goes by: those of the server that defined it, where a relay's
    own stand beside those of the node above it."""
    of = task.get("of", "")
    settings = (content.get("settings_of") or {}).get(of, {}) if of else content["settings"]
    return settings, [source for source in content["sources"] if source.get("of", "") == of]


class Store:
    """The file in ``folder``, which one agent writes and anybody may read."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    def version(self) -> Version:
        """What is here and whole. Raises Damaged."""
        with self._opened() as file:
            return _checked(file)

    def read(self) -> tuple[Version, dict[str, Any]]:
        """The version and its content. Raises Damaged."""
        with self._opened() as file:
            version = _checked(file)
            file.seek(0)
            file.readline()
            return version, json.loads(file.read())

    def take(self, packed: bytes) -> Version:
        """Puts what a parent sent (gzip) in place of what is here; when this returns, it outlives a power cut.

        Raises Damaged, and leaves what is here, where that is not whole; OSError for a disk that takes no more.
        """
        temp = self.file.with_suffix(".tmp")
        try:
            with open(temp, "w+b") as file:
                for piece in _unpacked(packed):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                version = _checked(file)
            os.replace(temp, self.file)
        finally:
            temp.unlink(missing_ok=True)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return version

    def _opened(self) -> IO[bytes]:
        try:
            return open(self.file, "rb")
        except OSError as error:
            raise Damaged(f"{self.file}: {error.strerror}") from None


class Sync:
    """Keeps ``store`` at what beats name. ``fetch`` brings the bytes; ``synced`` is called after a change."""

    def __init__(self, store: Store, fetch: Callable[[], Awaitable[bytes]], synced: Callable[[], None]) -> None:
        self._store = store
        self._fetch = fetch
        self._synced = synced
        self._here = NONE
        self._wanted = NONE
        self._job: asyncio.Task[None] | None = None
        self._failed = 0
        self._again = 0.0

    @property
    def number(self) -> int:
        """The version that is here; 0 for none."""
        return self._here.number

    def open(self) -> None:
        """Reads what an earlier agent left."""
        try:
            self._here = self._store.version()
        except Damaged as error:
            self._here = NONE
            if self._store.file.exists():
                logger.warning("the configuration is fetched again: %s", error)

    def heard(self, number: Any, mark: Any) -> None:
        """A beat's answer names the version in force. A lower one is taken, too: the parent was restored."""
        if not isinstance(number, int) or not number or not isinstance(mark, str):
            return
        self._wanted = Version(number, mark)
        busy = self._job is not None and not self._job.done()
        if self._wanted != self._here and not busy and asyncio.get_running_loop().time() >= self._again:
            self._job = asyncio.create_task(self._get())

    async def _get(self) -> None:
        try:
            packed = await self._fetch()
            self._here = await asyncio.to_thread(self._store.take, packed)
        except (Unreachable, Refused, Damaged, OSError) as error:
            self._failed += 1
            self._again = asyncio.get_running_loop().time() + jitter(self._failed)
            logger.warning("no configuration: %s", error)
            return
        self._failed = 0
        logger.info("configuration %d is here", self._here.number)
        self._synced()

    def close(self) -> None:
        if self._job is not None:
            self._job.cancel()


def _checked(file: IO[bytes]) -> Version:
    """Reads ``file`` to its end. Raises Damaged."""
    try:
        header = json.loads(file.readline(HEADER_LIMIT))
        version = Version(int(header["version"]), str(header["mark"]))
        digest = str(header["digest"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damaged("the header is not one of a configuration") from None
    found = hashlib.sha256()
    while piece := file.read(PIECE):
        found.update(piece)
    if found.hexdigest() != digest:
        raise Damaged(f"version {version.number} is not whole: its digest differs")
    return version


def _unpacked(packed: bytes) -> Iterator[bytes]:
    """Raises Damaged for what is not gzip, cut off, or larger than SIZE_LIMIT."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    size = 0
    rest = packed
    try:
        while not unpacker.eof:
            piece = unpacker.decompress(rest, PIECE)
            rest = unpacker.unconsumed_tail
            size += len(piece)
            if size > SIZE_LIMIT:
                raise Damaged(f"what the parent sent is larger than {SIZE_LIMIT} bytes")
            if not piece and not rest:
                break
            yield piece
    except zlib.error as error:
        raise Damaged(f"what the parent sent is not gzip: {error}") from None
    if not unpacker.eof:
        raise Damaged("what the parent sent is cut off")

"""The spool: a folder of uploaded segments, each named by the SHA-256 of its bytes. What is in them is not looked at.

A segment is on the disk, whole, before ``receive`` returns: that is what a receipt may be given for.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodes import failpoints
from nodes.executors.base import shown
from nodes.protocol import FieldError, StorageFull, TooLarge

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PIECE = 1024 * 1024


@dataclass(frozen=True)
class Segment:
    """``sha256`` in hex; ``size`` in bytes."""

    sha256: str
    size: int


def receive(chunks: Iterable[bytes], folder: Path, *, limit: int) -> Segment:
    """Writes ``chunks`` as one segment, durably; the same bytes again are the same segment.

    Raises TooLarge above ``limit`` bytes and StorageFull where the disk has no room. Whatever is raised, here or by
    ``chunks``, nothing half-written stays behind.
    """
    hashed = hashlib.sha256()
    size = 0
    with storage():
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync(folder.parent)
        temp = folder / f"{secrets.token_hex(16)}.part"
        try:
            with open(temp, "xb", buffering=0) as file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise TooLarge(f"the segment is larger than {limit} bytes")
                    hashed.update(chunk)
                    _write(file, chunk)
                failpoints.reach("spool.written")
                os.fsync(file.fileno())
            failpoints.reach("spool.synced")
            segment = Segment(hashed.hexdigest(), size)
            with _alone(folder, fcntl.LOCK_SH):
                # Also over one that is there: it may have been damaged since, and a new date keeps it from a sweep.
                os.replace(temp, path(folder, segment.sha256))
            failpoints.reach("spool.renamed")
            _sync(folder)
        except BaseException:
            with suppress(OSError):
                temp.unlink()
            raise
    return segment


def path(folder: Path, sha256: Any) -> Path:
    """Where the segment is, if it is. Raises FieldError on ``segment`` for what is no SHA-256 in lower-case hex."""
    return folder / f"{_hex(sha256)}.arrow"


def verify(folder: Path, sha256: str) -> bool:
    """Whether the segment is there with the bytes it was received with."""
    hashed = hashlib.sha256()
    try:
        with open(path(folder, sha256), "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                hashed.update(piece)
    except OSError:  # not there, or the disk cannot read it back
        return False
    return hashed.hexdigest() == sha256


def quarantine(folder: Path, sha256: str) -> Path | None:
    """Moves a damaged segment out of the way, to be looked at; None where there is none."""
    aside = folder / "quarantine"
    with storage():
        aside.mkdir(parents=True, exist_ok=True)
        target = path(aside, sha256)
        try:
            os.replace(path(folder, sha256), target)
        except FileNotFoundError:
            return None
        _sync(aside)
        _sync(folder)
    return target


def remove(folder: Path, sha256: str) -> None:
    """Removes a segment whose rows are safe elsewhere; one that is not there is no error."""
    path(folder, sha256).unlink(missing_ok=True)


def sweep(folder: Path, keep: set[str], older_than: float, *, now: float | None = None) -> int:
    """Removes what nobody names: segments not in ``keep``, and leftovers of uploads, last written ``older_than``
    seconds ago or earlier. Returns how many. ``now`` is a POSIX time. The quarantine is left alone.
    """
    latest = (time.time() if now is None else now) - older_than
    removed = 0
    if not folder.is_dir():
        return 0
    for entry in os.scandir(folder):
        name, _, kind = entry.name.partition(".")
        if kind != "part" and (kind != "arrow" or name in keep):
            continue
        # Alone, so that a segment received again between the look at its date and the removal is not lost.
        with _alone(folder, fcntl.LOCK_EX), suppress(FileNotFoundError):
            if os.stat(entry.path).st_mtime <= latest:
                os.unlink(entry.path)
                removed += 1
    return removed


@contextmanager
def storage() -> Iterator[None]:
    """Raises StorageFull for an error of the system that says so; it heals when there is room again."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"no room for results on the parent's disk: {error.strerror}") from error
        raise


def _hex(sha256: Any) -> str:
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise FieldError("segment", f"{shown(sha256)} is not a SHA-256: 64 of 0-9 and a-f")
    return sha256


def _write(file: Any, chunk: bytes) -> None:
    # An unbuffered write may take a part only, just before the disk is full.
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


@contextmanager
def _alone(folder: Path, kind: int) -> Iterator[None]:
    """Holds a lock on the folder, shared or exclusive, also against other processes."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

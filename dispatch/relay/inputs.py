"""Rows of the tables above that a relay's nodes work over: fetched once for each allocation above, kept until it ends.

Whoever serves a node may be another process than the one with the line to the parent, so what is wanted is said by
files in a folder that all of them share: ``<run>.wanted`` until the rows are there as ``<run>.arrow``, or what the
parent said instead as ``<run>.refused``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from dispatch import events
from dispatch.models import Origin
from nodes.protocol import NotYet, Unprocessable

RETRY_SECONDS = 2.0
KINDS = (".arrow", ".part", ".refused", ".wanted")


def file_of(run: int) -> Path:
    """Where the rows for a run from above are, if they are here."""
    return settings.CASCADE.spool / "inputs" / f"{run}.arrow"


def rows_of(run: int) -> Path:
    """The rows for ``run``; they are fetched if they are not here. Raises NotYet, and what the parent said instead."""
    file = file_of(run)
    try:
        os.utime(file)  # what was not used for longest goes first
        return file
    except FileNotFoundError:
        pass
    with suppress(FileNotFoundError):
        raise Unprocessable(f"the node above does not give them: {file.with_suffix('.refused').read_text()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".wanted").touch()
    events.inputs.set()
    raise NotYet("the rows for this shard are still to come from the node above", retry_after=RETRY_SECONDS)


def wanted(parent: str) -> list[Origin]:
    """What somebody waits for the rows of, of the open allocations of ``parent``; nothing else is left here."""
    found = _runs(".wanted")
    return list(Origin.objects.filter(pk__in=found, parent=parent, closed_at=None).order_by("pk")) if found else []


def make_room() -> None:
    """Removes files until those that are left are within the limit: the ones that were not used for longest."""
    files = [(file.stat().st_mtime, file.stat().st_size, file) for file in _folder(".arrow")]
    size = sum(each for _, each, _ in files)
    for _, each, file in sorted(files):
        if size <= settings.CASCADE.relay_inputs_limit:
            return
        file.unlink(missing_ok=True)
        size -= each


def brought(run: int) -> None:
    """They are here, unless their allocation has ended meanwhile."""
    file_of(run).with_suffix(".wanted").unlink(missing_ok=True)
    if not Origin.objects.filter(pk=run, closed_at=None).exists():
        drop([run])


def refused(run: int, detail: str) -> None:
    """The parent does not give them, now or later."""
    file = file_of(run)
    part = file.with_suffix(".part")
    part.write_text(detail)
    part.replace(file.with_suffix(".refused"))
    brought(run)


def drop(runs: Iterable[int]) -> None:
    """These have ended."""
    for run in runs:
        for kind in KINDS:
            file_of(run).with_suffix(kind).unlink(missing_ok=True)


def sweep() -> None:
    """Drops what belongs to no open allocation, as after a crash."""
    there = {run for kind in KINDS for run in _runs(kind)}
    drop(there - set(Origin.objects.filter(pk__in=there, closed_at=None).values_list("pk", flat=True)))


def _folder(kind: str) -> list[Path]:
    try:
        return [file for file in file_of(0).parent.iterdir() if file.suffix == kind and file.stem.isdecimal()]
    except FileNotFoundError:
        return []


def _runs(kind: str) -> list[int]:
    return [int(file.stem) for file in _folder(kind)]

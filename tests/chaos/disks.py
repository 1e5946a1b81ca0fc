"""Disks that are full for a while: the parent's spool, all that the parent has, a child's outbox. Needs root."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.chaos.report import Report
from tests.chaos.trees import SEGMENT, ChaosTree, Child, until

CHILDREN = (Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"))
ITEMS = 12
NEEDS_ROOT = "a small tmpfs cannot be mounted here: that needs root"


def run(seconds: float, report: Report) -> None:
    if not can_mount():
        report.figure("full disks", f"not tried: {NEEDS_ROOT}")
        return
    deadline = time.monotonic() + seconds
    scenarios = (full_spool, full_parent, full_outbox)
    for number in range(1000):
        if number and time.monotonic() > deadline:
            break
        scenarios[number % len(scenarios)](report)


def full_spool(report: Report) -> None:
    with TemporaryDirectory() as folder, small_disk(Path(folder) / "spool", 8) as disk:
        with ChaosTree(Path(folder), name="spool", children=CHILDREN) as tree:
            without_room(tree, disk)
            report.items("a full spool", tree.account())
        report.kill("the parent's spool, disk full")


def without_room(tree: ChaosTree, spool: Path) -> None:
    """Nothing is acknowledged while ``spool``, a small disk, has no room for it, and nothing half-written stays; with
    room again it heals by itself. Raises AssertionError."""
    known = tree.acknowledged()
    old = set(spool.glob("*.part"))  # of parents that were killed, to be swept in an hour
    full = fill(spool)
    tree.items(ITEMS, shard_size=2, pad=SEGMENT)
    refused(tree, 507)
    # Others may be at it at any moment; what must not be is one that stays.
    until(lambda: set(spool.glob("*.part")) <= old, 60, "a spool without anything half-written")
    assert tree.acknowledged() == known, "acknowledged without being kept"
    full.unlink()
    tree.settle()


def full_parent(report: Report) -> None:
    """Neither database takes anything any more; with room again, both go on."""
    with TemporaryDirectory() as folder, small_disk(Path(folder), 48) as disk:
        # What the test itself and the children write must go on.
        with (
            small_disk(disk / "chaos", 16),
            small_disk(disk / "children", 64),
            small_disk(disk / "logs", 16),
            ChaosTree(disk, name="full", children=CHILDREN) as tree,
        ):
            tree.items(200, shard_size=1, seconds=0.05)
            tree.items(ITEMS, shard_size=2, pad=SEGMENT)
            until(lambda: tree.saved() > ITEMS, 60, "some items saved")
            full = fill(disk)
            refused(tree, 507)
            full.unlink()
            tree.settle()
            answers = failures(tree)
            report.items("a full disk of the parent", tree.account())
        report.kill("all of the parent, disk full")
        report.add("answers of 500 from a parent whose disk is full", answers, zero=True)


def full_outbox(report: Report) -> None:
    """A child that can keep nothing reports small results from memory and hands back the others; no item fails."""
    with TemporaryDirectory() as folder, small_disk(Path(folder) / "children" / "pusher", 1) as disk:
        with ChaosTree(Path(folder), name="outbox", children=CHILDREN) as tree:
            full = fill(disk)
            tree.items(4 * ITEMS, shard_size=1, seconds=0.05)
            tree.items(2 * ITEMS, shard_size=2, pad=SEGMENT)
            tree.settle()
            full.unlink()
            tree.items(2 * ITEMS, shard_size=2, pad=SEGMENT)
            tree.settle()
            items = tree.account()
            report.items("a full outbox of a child", items)
            report.add("items that failed because a child's disk was full", len(items.ended), zero=True)
        report.kill("a child's outbox, disk full")


def refused(tree: ChaosTree, status: int) -> None:
    """A child has met this refusal."""
    known = {name: tree.log(name).stat().st_size for name in tree.children}

    def met() -> bool:
        return any(str(status) in tree.log(name).read_bytes()[known[name] :].decode() for name in tree.children)

    until(met, 30, f"an answer of {status} to a child")


def failures(tree: ChaosTree) -> int:
    """How often the parent answered 500: by its own log, where each is one line."""
    return tree.log("parent").read_text(errors="replace").count('" 500 ') + tree.log("parent").read_text(
        errors="replace"
    ).count(" 500 [")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size at ``folder``, as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "chaos", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@cache
def can_mount() -> bool:
    if os.geteuid() != 0:
        return False
    refusals = suppress(subprocess.CalledProcessError, FileNotFoundError)
    with TemporaryDirectory() as folder, refusals, small_disk(Path(folder), 1):
        return True
    return False


def fill(disk: Path) -> Path:
    """Takes all the room there is; removing the file that is returned gives it back."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 16, 1 << 12, 1 << 8):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return filler

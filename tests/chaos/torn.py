"""Files that a crash has torn or a disk has changed: segments, outboxes, the logs of both databases."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.chaos.crashes import at_point, revive
from tests.chaos.report import Report
from tests.chaos.trees import PARENT, SEGMENT, ChaosTree, Child, until

CHILDREN = (Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"))
Damage = Callable[[Path, Random], None]


def run(seconds: float, report: Report) -> None:
    deadline = time.monotonic() + seconds
    chance = report.chance("torn")
    with TemporaryDirectory() as folder, ChaosTree(Path(folder), name="torn", children=CHILDREN) as tree:
        for number in range(1000):
            if number >= len(SCENARIOS) and time.monotonic() > deadline:
                break
            SCENARIOS[number % len(SCENARIOS)](tree, chance, report)
        tree.settle()
        report.items("torn files", tree.account())


def cut(file: Path, chance: Random) -> None:
    """The end is missing."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def flip(file: Path, chance: Random) -> None:
    """One bit is another."""
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(content))


def spool(tree: ChaosTree, chance: Random, report: Report) -> None:
    """Segments that were acknowledged and are not saved yet are damaged while the parent is dead."""
    for damage in (cut, flip):
        spooled = _spooled(tree)
        assert spooled, "nothing to damage"
        for file in spooled:
            damage(file, chance)
            report.kill(f"segment in the spool, {_WORDS[damage]}")
        revive(tree)
        tree.settle()
        # The others were healed: their child had heard no receipt, and brought them once more.
        report.add("damaged segments that were found and put aside", sum(_aside(tree, file) for file in spooled))


def _spooled(tree: ChaosTree) -> list[Path]:
    """Kills the parent when it has segments in the spool that the result store has not."""
    tree.settle()
    tree.items(20, shard_size=2, pad=SEGMENT)
    tree.arm(PARENT, "store.rows")
    until(lambda: tree.reached(PARENT, "store.rows"), 60, "store.rows in the parent")
    tree.kill(PARENT)
    tree.disarm(PARENT)
    waiting = tree.database("SELECT DISTINCT segment FROM dispatch_receipt WHERE saved_at IS NULL AND segment <> ''")
    return [tree.data_dir / "spool" / f"{name}.arrow" for (name,) in waiting]


def _aside(tree: ChaosTree, file: Path) -> bool:
    return (tree.data_dir / "spool" / "quarantine" / file.name).exists()


def store_log(tree: ChaosTree, chance: Random, report: Report) -> None:
    """The result store's write-ahead log is cut after its rows were said to be saved, and before a checkpoint."""
    log = tree.data_dir / "results.duckdb.wal"
    before = tree.saved()
    _feed(tree)
    until(lambda: tree.saved() > before + 10 and log.exists(), 60, "saved rows in the result store's log")
    tree.kill(PARENT)
    if log.exists() and log.stat().st_size:
        cut(log, chance)
        report.kill(f"write-ahead log of the result store, {_WORDS[cut]}")
    revive(tree)
    tree.settle()


def control_log(tree: ChaosTree, chance: Random, report: Report) -> None:
    """What a write that never ended leaves at the end of the control database's log is not taken for anything."""
    log = tree.data_dir / "cascade.sqlite3-wal"
    _feed(tree)
    until(lambda: tree.acknowledged(), 60, "some acknowledged items")
    tree.kill(PARENT)
    with log.open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 9000)))
    report.kill("write-ahead log of the control database, a torn write at its end")
    revive(tree)
    tree.settle()


def outbox(tree: ChaosTree, chance: Random, report: Report) -> None:
    """What a child kept, and had no receipt for, is damaged while it is dead."""
    for damage in (cut, flip):
        child = chance.choice(list(tree.children))
        until(lambda child=child: at_point(tree, child, "outbox.kept"), 60, f"outbox.kept in {child}")  # type: ignore[misc]
        tree.kill(child, machine=True)
        tree.disarm(child)
        kept = [file for kind in ("*.json", "*.arrow") for file in tree.folder(child).glob(kind) if file.stat().st_size]
        for file in kept:
            if file.stem.isdecimal() or len(file.stem) == 64:
                damage(file, chance)
                report.kill(f"file in a child's outbox, {_WORDS[damage]}")
        revive(tree)
    tree.settle()


def _feed(tree: ChaosTree) -> None:
    tree.items(30, shard_size=1, seconds=0.05)
    tree.items(20, shard_size=2, pad=SEGMENT, seconds=0.05)


_WORDS: dict[Damage, str] = {cut: "cut short", flip: "a bit flipped"}
SCENARIOS = (spool, store_log, control_log, outbox)

"""kill -9 of every process at every fail-point: whoever reaches a point stands still there until the victim is dead."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from cascade.local import LocalTreeError
from tests.acceptance.trees import workers
from tests.chaos.report import Report
from tests.chaos.trees import PARENT, SEGMENT, ChaosTree, Child, until

CHILDREN = (Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"))
OWNERS: dict[str, tuple[str, ...]] = {
    "parent": (
        *("write.committing", "write.committed", "effect", "report.committed", "dispatcher.granted"),
        *("spool.written", "spool.synced", "spool.renamed"),
        *("store.rows", "store.committed", "saver.told", "spool.purging", "spool.purged"),
    ),
    "agent": ("agent.taken", "agent.finished", "agent.uploaded", "agent.receipt", "outbox.written", "outbox.kept"),
    "worker": ("worker.taken", "worker.worked", "worker.written", "worker.kept"),
}
VICTIMS = ("parent", "agent", "worker", "everything at once")
PATIENCE = 45.0
"""Seconds until a point is reached: those around a checkpoint are once in 20."""
WAVE = 8
"""Items of each kind between two kills."""


class NotReached(Exception):
    """There was work, and nobody came by the point."""


def run(seconds: float, report: Report) -> None:
    """Each point with its own process as the victim first, then with the others."""
    deadline = time.monotonic() + seconds
    chance = report.chance("crashes")
    own = [(owner, point, owner) for owner, points in OWNERS.items() for point in points]
    others = [(owner, point, victim) for owner, point, _ in own for victim in VICTIMS if victim != owner]
    chance.shuffle(own)
    chance.shuffle(others)
    tried: list[str] = []
    with TemporaryDirectory() as folder, ChaosTree(Path(folder), name="crash", children=CHILDREN) as tree:
        for owner, point, victim in own + others:
            if time.monotonic() > deadline:
                break
            child = chance.choice(CHILDREN).name
            try:
                crash(tree, owner, point, victim, child)
            except NotReached as error:
                report.problem(str(error))
                continue
            report.kill(f"{victim}, kill -9 at a named point")
            tried.append(f"{point}: {victim}")
            print(f"  {tried[-1]}", flush=True)
        tree.settle()
        report.items("kill -9 at named points", tree.account())
    report.figure("named points × victims of kill -9 tried", f"{len(tried)} of {len(own) + len(others)}")


def crash(tree: ChaosTree, owner: str, point: str, victim: str, child: str) -> None:
    """Work flows until ``owner`` (with agent and worker: of ``child``) is at ``point``; then ``victim`` is killed, the
    others go on, and what is dead is started again."""
    name = PARENT if owner == "parent" else child
    try:
        pid = until(lambda: at_point(tree, name, point), PATIENCE, f"{point} in {name}")
    except LocalTreeError:
        raise NotReached(f"nobody reached {point} in {name} within {PATIENCE:g} s") from None
    if victim == "worker":
        found = [pid] if owner == "worker" else [process.pid for process in workers(tree, child)]
        for each in found[:1]:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
    elif victim == "everything at once":
        for each in (PARENT, *tree.children):
            tree.kill(each, machine=True)
    else:
        tree.kill(PARENT if victim == "parent" else child)
    tree.disarm(name)
    revive(tree)


def at_point(tree: ChaosTree, name: str, point: str) -> int | None:
    """Who stands still at the point; None where for a while nobody came by, and there must be more work.

    It is armed when the work is submitted: a parent that stands still at once would leave us waiting for its answer.
    """
    # Rows that travel inline, and rows that are segments.
    tree.items(WAVE, shard_size=1)
    tree.items(WAVE, shard_size=2, pad=SEGMENT)
    tree.arm(name, point)
    try:
        return int(until(lambda: tree.reached(name, point), 6.0, point))
    except LocalTreeError:
        tree.disarm(name)
        return None


def revive(tree: ChaosTree) -> None:
    """Starts what is dead, the parent first, and returns when all of it is up."""
    dead = [name for name in (PARENT, *tree.children) if not tree.alive(name)]
    if PARENT in dead:
        tree.start_parent()
    for name in dead:
        if name != PARENT:
            tree.restart(name)

"""kill -9 at random moments: of the parent, agents, workers, whole machines, everything; and how soon work goes on."""

from __future__ import annotations

import os
import signal
import statistics
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.acceptance.trees import workers
from tests.chaos.crashes import revive
from tests.chaos.report import Report
from tests.chaos.trees import PARENT, SEGMENT, ChaosTree, Child, until

CHILDREN = (Child("pusher", 3, carrier="push"), Child("puller", 2, carrier="pull"), Child("either", 2))
KINDS = ("parent", "agent", "worker", "machine of a child", "everything at once")
WEIGHTS = (4, 4, 4, 2, 2)
AHEAD = 60
"""Items that wait at least, whenever something is killed."""
WAVE = 60
SETTLE_SHARE = 0.2
"""Of the time, for what is left to end."""


def run(seconds: float, report: Report) -> None:
    deadline = time.monotonic() + (1 - SETTLE_SHARE) * seconds
    chance = report.chance("kills")
    recovered: list[float] = []
    with TemporaryDirectory() as folder, ChaosTree(Path(folder), name="kill", children=CHILDREN) as tree:
        while time.monotonic() < deadline:
            feed(tree, chance)
            time.sleep(chance.expovariate(1.0))  # a moment that nothing in the system determines
            kind = chance.choices(KINDS, WEIGHTS)[0]
            before = tree.saved()
            killed = time.monotonic()
            kill(tree, kind, chance)
            report.kill(f"{kind}, kill -9 at a random moment")
            revive(tree)
            if not tree.waiting():  # all of it was done before the kill
                feed(tree, chance)
            if kind in ("parent", "everything at once"):
                saved_more(tree, before)
                recovered.append(time.monotonic() - killed)
        tree.settle(120)
        report.items("kill -9 at random moments", tree.account())
    if recovered:
        report.figure("kill -9 of the parent until the next item is saved, median", statistics.median(recovered), "s")
        report.figure("kill -9 of the parent until the next item is saved, longest", max(recovered), "s")


def saved_more(tree: ChaosTree, before: int) -> None:
    until(lambda: tree.saved() > before, 60, f"an item saved beside {before} ({tree.waiting()} wait)")


def feed(tree: ChaosTree, chance: Random) -> None:
    """Enough to do for whoever is not dead."""
    while tree.waiting() < AHEAD:
        size = chance.choice((1, 1, 3))
        if chance.random() < 0.3:
            tree.items(WAVE // 2, shard_size=size, pad=SEGMENT, seconds=0.02)
        else:
            tree.items(WAVE, shard_size=size, rows=chance.choice((1, 3)), seconds=chance.choice((0.0, 0.05)))


def kill(tree: ChaosTree, kind: str, chance: Random) -> None:
    child = chance.choice(list(tree.children))
    if kind == "parent":
        tree.kill(PARENT)
    elif kind == "agent":
        tree.kill(child)
    elif kind == "machine of a child":
        tree.kill(child, machine=True)
    elif kind == "worker":
        for process in workers(tree, child)[:1]:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    else:
        for name in (PARENT, *tree.children):
            tree.kill(name, machine=True)

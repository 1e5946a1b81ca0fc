"""Clocks set wrong: a child's by ten minutes, the parent's by an hour while it runs. No lease ends for it."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.chaos.report import Report
from tests.chaos.trees import PARENT, SEGMENT, UNHURRIED, ChaosTree, Child, until

CHILDREN = (Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"))
JUMPS = (600.0, -600.0, 3600.0, -3600.0, 0.0)
EXPIRED = "leases that ended because a clock was wrong"


def run(seconds: float, report: Report) -> None:
    deadline = time.monotonic() + seconds
    chance = report.chance("clocks")
    with (
        TemporaryDirectory() as folder,
        ChaosTree(Path(folder), name="clock", children=CHILDREN, env=UNHURRIED) as tree,
    ):
        for number in range(1000):
            if number > 1 and time.monotonic() > deadline:
                break
            childs(tree, report)
            parents(tree, chance.choice(JUMPS), report)
        tree.settle()
        report.items("wrong clocks", tree.account())


def childs(tree: ChaosTree, report: Report) -> None:
    """Both are ten minutes off, one from its start, one from some moment on; they work as before."""
    early, late = tree.children
    tree.shift(early, -600)
    tree.restart(early)
    before = tree.expired()
    _feed(tree)
    tree.shift(late, 600)
    tree.settle()
    report_of(tree, before, report)
    for name in (early, late):
        if "clock is" not in tree.log(name).read_text():
            report.problem(f"{name} never noticed that its clock was wrong: was it?")
        report.kill("child's clock, ten minutes off")
        tree.shift(name, 0)


def parents(tree: ChaosTree, jump: float, report: Report) -> None:
    """It jumps while work is out: no lease ends, the children's requests are taken again after one 401 at most."""
    before = tree.expired()
    saved = tree.saved()
    _feed(tree)
    until(lambda: tree.saved() > saved, 60, "an item saved")
    for seconds in (jump, 0.0):
        tree.shift(PARENT, seconds)
        known = tree.saved()
        report.kill("parent's clock, set while it runs")
        until(lambda known=known: tree.saved() > known or tree.waiting() == 0, 60, "an item saved after the jump")  # type: ignore[misc]
    tree.settle()
    report_of(tree, before, report)


def report_of(tree: ChaosTree, before: int, report: Report) -> None:
    report.add(EXPIRED, tree.expired() - before, zero=True)


def _feed(tree: ChaosTree) -> None:
    tree.items(40, shard_size=1, seconds=0.3)
    tree.items(10, shard_size=2, pad=SEGMENT, seconds=0.1)

"""SIGSTOP past the lease, then SIGCONT: an agent alone, a whole machine, a worker, the parent, all children at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acceptance.trees import workers
from tests.chaos.report import Report
from tests.chaos.trees import PARENT, SEGMENT, ChaosTree, Child, until

CHILDREN = (Child("pusher", 2, carrier="push"), Child("puller", 2, carrier="pull"))
LEASE = 6.0
SETTINGS = {"CASCADE_LEASE_SECONDS": str(LEASE), "CASCADE_OFFER_SECONDS": str(LEASE)}
KINDS = ("agent", "machine of a child", "worker", "parent", "all children at once")
EXPIRED = "leases that ended while a child stood still, their work given to another"
MASS = "leases that ended because the parent stood still"


def run(seconds: float, report: Report) -> None:
    deadline = time.monotonic() + seconds
    chance = report.chance("freezes")
    with (
        TemporaryDirectory() as folder,
        ChaosTree(Path(folder), name="freeze", children=CHILDREN, env=SETTINGS) as tree,
    ):
        for number in range(1000):
            if number >= len(KINDS) and time.monotonic() > deadline:
                break
            kind = KINDS[number % len(KINDS)]
            freeze(tree, kind, chance.choice(CHILDREN).name, report)
            report.kill(f"{kind}, SIGSTOP past the lease")
        tree.settle()
        report.items("SIGSTOP past the lease", tree.account())


def freeze(tree: ChaosTree, kind: str, child: str, report: Report) -> None:
    """One of ``KINDS`` stands still past the lease with work in hand, and goes on; the work ends whatever happens."""
    tree.items(16, shard_size=1, seconds=0.6, timeout=LEASE)
    tree.items(8, shard_size=1, pad=SEGMENT, seconds=0.6, timeout=LEASE)
    until(lambda: tree.executing(child) > 1, 30, f"work at {child}")
    before = tree.expired()
    if kind == "parent":
        with standing_still([tree.pid(PARENT)]):
            time.sleep(LEASE + 1)  # what is waited for is that time passes and nothing happens
        tree.settle()
        report.add(MASS, tree.expired() - before, zero=True)
        return
    pids = {
        "agent": [tree.pid(child)],
        "worker": [process.pid for process in workers(tree, child)[:1]],
        "machine of a child": family(tree, child),
        "all children at once": [pid for name in tree.children for pid in family(tree, name)],
    }[kind]
    with standing_still(pids):
        if kind == "worker":
            tree.settle()  # its agent ends it at its time-out, and the lease goes on until then
        else:
            # What it was about to report may be over, and then it holds nothing that could end.
            until(lambda: tree.expired() > before or not tree.executing(child), 60, f"the end of a lease, {kind}")
    tree.settle()
    report.add(EXPIRED, tree.expired() - before)


def family(tree: ChaosTree, name: str) -> list[int]:
    return [tree.pid(name), *(process.pid for process in workers(tree, name))]


@contextmanager
def standing_still(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

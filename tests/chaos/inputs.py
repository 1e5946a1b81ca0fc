"""Bad input: every operation of the API with values of all kinds, by an operator, a child and a stranger; and bombs."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from cascade.local import LocalTreeError
from tests.chaos.report import Report

if TYPE_CHECKING:
    from tests.hostile.victim import Victim

SLICE = 30.0
"""Seconds for one of them at a time."""
LOOK_SECONDS = 0.02
MB = 2**20


def run(seconds: float, report: Report) -> None:
    from tests.hostile import openapi
    from tests.hostile.victim import victim

    deadline = time.monotonic() + seconds
    chance = report.chance("inputs")
    with TemporaryDirectory() as folder, victim(Path(folder), UPLOAD_LIMIT=str(8 * MB)) as parent:
        bombs(parent, report)
        while time.monotonic() < deadline:
            for who in openapi.WHO:
                seed = chance.randrange(2**31)
                left = max(5.0, min(SLICE, deadline - time.monotonic()))
                found = openapi.attack(parent, who, seconds=left, seed=seed)
                report.add("bad and odd requests tried", found.tried)
                report.add("answers of 5xx to them", found.server_errors, zero=True)
                for name in found.failures:
                    report.problem(f"seed {seed}, {who}: {name}")
        report.add("faults in the parent's log after them", len(parent.faults), zero=True)


def bombs(parent: Victim, report: Report) -> None:
    """Segments that are small and become large, or lie: as the rows of an allocation that is really the child's."""
    from tests.hostile.bombs import BOMBS, honest
    from tests.integration.agents import Agent, done

    child = Agent(parent.tree)  # which holds nothing else

    def sent(content: bytes) -> set[int]:
        run, (work,) = child.work("bomb")
        sha256 = hashlib.sha256(content).hexdigest()
        answer = child.send("PUT", f"segments/{sha256}", content)
        if answer.status_code == 201:
            answer = child.say("report", {"reports": [done(work, rows=None, segment=sha256, offset=0)]})
        with suppress(LocalTreeError):  # it has ended
            parent.tree.json("POST", f"/api/v1/runs/{run}/cancel")
        return {result["status"] for result in answer.json().get("results", [])} or {answer.status_code}

    # What it costs to have looked at any segment at all is not the bombs' doing.
    sent(honest(1))
    before = parent.memory
    with watched(parent) as most:
        for name, make in BOMBS.items():
            report.add("segments that are bombs or lie", 1)
            if not (statuses := sent(make())) <= {400, 413, 422}:
                report.problem(f"the bomb {name} was answered {statuses}")
    report.figure(
        "memory of the parent before them, and at most under them",
        f"{before / MB:.0f} MB, {most['parent'] / MB:.0f} MB",
    )
    report.figure("memory of the process that looks at segments, at most", most["decoder"] / MB, "MB")


@contextmanager
def watched(parent: Victim) -> Iterator[dict[str, int]]:
    """The most memory, in bytes, of the parent and of the largest process below it while the block runs."""
    most = {"parent": parent.memory, "decoder": 0}
    over = threading.Event()
    process = psutil.Process(parent.tree.pid("parent"))

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            with suppress(psutil.NoSuchProcess):
                most["parent"] = max(most["parent"], process.memory_info().rss)
                most["decoder"] = max(most["decoder"], *(each.memory_info().rss for each in process.children()), 0)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()

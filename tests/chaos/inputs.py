"""Bad input: every operation of the API with values of all kinds, by an operator, a child and a stranger."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.chaos.report import Report

SLICE = 30.0
"""Seconds for one of them at a time."""


def run(seconds: float, report: Report) -> None:
    from tests.hostile import openapi
    from tests.hostile.victim import victim

    deadline = time.monotonic() + seconds
    chance = report.chance("inputs")
    with TemporaryDirectory() as folder, victim(Path(folder)) as parent:
        while time.monotonic() < deadline:
            for who in openapi.WHO:
                seed = chance.randrange(2**31)
                left = max(5.0, min(SLICE, deadline - time.monotonic()))
                found = openapi.attack(parent, who, seconds=left, seed=seed)
                report.add("bad and odd requests tried", found.tried)
                report.add("answers of 5xx to them", found.server_errors, zero=True)
                for name in found.failures:
                    report.problem(f"seed {seed}, {who}: {name}")
        report.most("memory of the parent after them", parent.memory / 2**20, "MB")
        report.add("faults in the parent's log after them", len(parent.faults), zero=True)

"""The tests that are marked as long: once, whatever the time, since each of them is a whole."""

from __future__ import annotations

import subprocess
import sys

from tests.chaos.report import Report

LIMIT = 1800.0


def run(seconds: float, report: Report) -> None:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "long", "tests/acceptance", "tests/scale"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        report.problem(f"long tests:\n{done.stdout[-3000:]}")
    report.add("long tests", _passed(done.stdout))


def _passed(told: str) -> int:
    """What pytest's quiet output says: a dot for each."""
    return sum(line.count(".") for line in told.splitlines() if line and set(line.split(" ")[0]) <= set(".FEsx"))

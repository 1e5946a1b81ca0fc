"""Simulated worlds: parents, relays and children in virtual time, on a network that loses, doubles and holds back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from cascade.local import ROOT
from tests.chaos.report import Report

BATCH = 50
"""Seeds of each kind in one process."""


def run(seconds: float, report: Report) -> None:
    deadline = time.monotonic() + seconds
    first = report.chance("simulated").randrange(10**6)
    while True:
        # A process of its own: it makes Django use a database of its own.
        command = [
            sys.executable,
            "-m",
            "tests.sim",
            "--seeds",
            str(BATCH),
            "--from",
            str(first),
            "--keep-going",
            "--json",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
        if not done.stdout:
            raise RuntimeError(f"the simulator ended with {done.returncode}: {done.stderr[-1000:]}")
        for line in done.stdout.splitlines():
            _add(json.loads(line), report)
        first += BATCH
        if time.monotonic() > deadline:
            return


def _add(summary: dict[str, Any], report: Report) -> None:
    """What came of the worlds of one kind."""
    what = "simulated trees" if summary["kind"] == "tree" else "simulated worlds"
    report.add(f"{what}, each with a seed of its own", summary["seeds"])
    report.add("simulated time", summary["seconds"] / 3600, "h")
    report.add("rows saved in simulated worlds", summary["rows"])
    report.add(
        "crashes in simulated worlds",
        sum(summary["faults"].get(f"{who} killed", 0) for who in ("parent", "relay", "child")),
    )
    report.add("promises broken in simulated worlds", len(summary["broken"]), zero=True)
    for broken in summary["broken"]:
        report.problem(f"make sim SEED={broken['seed']} breaks promise {broken['promise']}")

"""Histories of verbs against models in dictionaries, and at once on PostgreSQL: ``tests/stateful``, with new seeds."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.chaos.report import Report
from tests.stateful.lengths import EXAMPLES

TIMES = 3
"""So many times the examples of ``make test`` in one round."""
ROUNDS = (
    (["pytest", "tests/stateful/test_allocator.py"], ("allocator",)),
    (["pytest", "tests/stateful/test_lifecycle.py"], ("lifecycle",)),
    (["tests.postgresql", "tests/stateful/test_at_once.py"], ("at_once",)),
    (["tests.postgresql", "tests/stateful/test_lifecycle.py"], ("lifecycle",)),
)
LIMIT = 1200.0


def run(seconds: float, report: Report) -> None:
    chance, until = report.chance("machines"), time.monotonic() + seconds
    number = 0
    while number == 0 or time.monotonic() < until:
        arguments, machines = ROUNDS[number % len(ROUNDS)]
        number += 1
        seed = chance.randrange(2**32)
        argv = [sys.executable, "-m", *arguments, "-p", "no:cacheprovider", f"--hypothesis-seed={seed}"]
        env = {**os.environ, "STATEFUL": str(TIMES)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=LIMIT)
        if done.returncode:
            report.problem(f"{' '.join(arguments)}, seed {seed}:\n{done.stdout[-3000:]}")
        for machine in machines:
            report.add(f"histories of verbs, {machine}", EXAMPLES[machine] * TIMES)

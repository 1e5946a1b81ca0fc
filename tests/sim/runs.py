"""``run(seeds)`` for tests and other programs: in a process of its own, as time itself is replaced there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.sim.summary import Summary

ROOT = Path(__file__).resolve().parents[2]


def run(
    seeds: range | int,
    *,
    kind: str = "plain",
    jobs: int = 1,
    seconds: float | None = None,
    env: dict[str, str] | None = None,
) -> Summary:
    """All of ``seeds`` (a number: so many from 0 on), within ``seconds`` of real time at most.

    Raises subprocess.TimeoutExpired, and RuntimeError with its output where the simulator itself failed.
    """
    asked = range(seeds) if isinstance(seeds, int) else seeds
    command = [sys.executable, "-m", "tests.sim", "--json", "--keep-going", "--kind", kind]
    command += ["--from", str(asked.start), "--seeds", str(len(asked)), "--jobs", str(jobs)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=seconds
    )
    try:
        return Summary.read(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        raise RuntimeError(f"the simulator failed: {done.stderr[-2000:]}") from None

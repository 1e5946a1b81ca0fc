"""``python -m tests.chaos [--minutes N]``: breaks real processes in every way, and counts what became of items.

Parts run one after another, each in its share of the time; the table comes at the end. Exit status 1 where anything was
lost or duplicated, where an answer was a 5xx that should not be, or where a part broke off.
"""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tests.chaos.report import Report, write


@dataclass(frozen=True)
class Part:
    """``module`` has ``run(seconds, report)``, ending soon after ``seconds``; ``share`` is its weight in the time."""

    module: str
    share: float
    about: str


PARTS = {
    "crashes": Part("tests.chaos.crashes", 6, "kill -9 of every process at every named point"),
    "kills": Part("tests.chaos.kills", 4, "kill -9 at random moments"),
    "freezes": Part("tests.chaos.freezes", 2, "SIGSTOP past the lease, then SIGCONT"),
    "disks": Part("tests.chaos.disks", 2, "full disks"),
    "torn": Part("tests.chaos.torn", 2, "files cut short, bits flipped"),
    "clocks": Part("tests.chaos.clocks", 1, "clocks set wrong"),
    "inputs": Part("tests.chaos.inputs", 2, "every operation of the API, with values that do not fit"),
    "machines": Part("tests.chaos.machines", 2, "histories of verbs against a model, and at once on PostgreSQL"),
    "long": Part("tests.chaos.long", 2, "tests that take too long for `make test`"),
    "simulated": Part("tests.chaos.simulated", 3, "worlds under a virtual clock"),
    "scale": Part("tests.chaos.scale", 3, "several processes on PostgreSQL and Redis, each killed or restarted"),
    "branches": Part("tests.chaos.branches", 3, "a tree of relays: each part of it killed, cut off, frozen, moved"),
    "network": Part("tests.chaos.network", 2, "children behind lines that drop, hold, drip and break"),
    "herd": Part("tests.chaos.herd", 3, "a herd of children whose parent is killed and returns"),
    "peer": Part("tests.chaos.celery_peer", 2, "a worker frozen past its lease, here and with Celery"),
    "hostile": Part("tests.hostile.run", 2, "requests, frames and files that nobody means well with"),
}
"""In the order in which they run."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together (default: 10)")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), metavar="PART", help=f"one part; of: {', '.join(PARTS)}"
    )
    parser.add_argument("--seed", type=int, help="of what is left to chance; printed, where none is given")
    parser.add_argument("--write", type=Path, metavar="FILE", help="puts the table into this file, between its marks")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(1_000_000)

    chosen = {name: part for name, part in PARTS.items() if not options.only or name in options.only}
    weights = sum(part.share for part in chosen.values())
    report = Report(seed)
    print(f"seed {seed}; {', '.join(chosen)}", flush=True)
    began = time.monotonic()
    for name, part in chosen.items():
        seconds = 60 * options.minutes * part.share / weights
        print(f"\n{name}: {part.about}; {seconds:.0f} s", flush=True)
        known = len(report.problems)
        start = time.monotonic()
        try:
            import_module(part.module).run(seconds, report)
        except Exception as error:  # the others are to be run all the same
            traceback.print_exc()
            report.problem(f"{name} broke off: {type(error).__name__}: {str(error)[:500]}")
        for problem in report.problems[known:]:
            print(f"  BROKEN {problem}", flush=True)
        print(f"  {name} took {time.monotonic() - start:.0f} s", flush=True)

    command = f"`make chaos MINUTES={options.minutes:g}`" + "".join(f", part {name}" for name in options.only or ())
    minutes = (time.monotonic() - began) / 60
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    about = f"By {command} in {minutes:.0f} minutes, seed {seed}, {machine}."
    text = f"{about}\n\n{report.markdown()}"
    print(f"\n{text}")
    if options.write:
        write(options.write, text)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())

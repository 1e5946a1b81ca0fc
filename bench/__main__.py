"""``python -m bench [name…] [--rounds N]``: prints a table per benchmark; exit status 1 when a floor is missed."""

from __future__ import annotations

import argparse
import sys
import time

from bench import headline, kinds, levels, live, memory, node, noop, scale, unequal, waits
from bench.report import Table, machine

BENCHMARKS = {
    "noop": noop.measure,
    "waits": waits.measure,
    "headline": headline.measure,
    "unequal": unequal.measure,
    "node": node.measure,
    "scale": scale.measure,
    "memory": memory.measure,
    "tree": levels.measure,
    "live": live.measure,
    "analysis": lambda rounds: [kinds.analysis(rounds)],
    "optimization": lambda rounds: [kinds.optimization(rounds)],
    "feeds": lambda rounds: [kinds.feeds(rounds)],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which; all by default: {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system, taking turns (default: 3)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are: {', '.join(BENCHMARKS)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")

    print(machine())
    print(f"Medians of {options.rounds} interleaved runs, least and most in brackets.", flush=True)
    missed: list[str] = []
    for name in options.names or BENCHMARKS:
        began = time.monotonic()
        try:
            tables: list[Table] = BENCHMARKS[name](options.rounds)
        # One benchmark that breaks leaves the others to be measured.
        except Exception as error:
            print(f"\n{name} broke off: {type(error).__name__}: {error}", flush=True)
            missed.append(name)
            continue
        for table in tables:
            print(f"\n{table}", flush=True)
            missed += table.missed
        print(f"\n({name} took {time.monotonic() - began:.0f} s)", flush=True)
    if missed:
        print(f"\nBelow the floor: {'; '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

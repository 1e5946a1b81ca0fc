"""``python -m tests.sim``: runs worlds, and says whether every promise was kept in them."""

from __future__ import annotations

import argparse
import json

from tests.sim import environment


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", help="run this world alone, and tell everything that happens in it; t7 is a tree")
    parser.add_argument("--seeds", type=int, default=500, help="how many worlds of each kind")
    parser.add_argument(
        "--kind", choices=("plain", "tree"), help="only those with one parent, or only those with relays"
    )
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first world's seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--quiet", action="store_true", help="with --seed: its digest and what was broken only")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first broken promise")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    given = parser.parse_args()
    environment.set_up()
    from tests.sim import worlds

    if given.seed is not None:
        summary = worlds.replay(*worlds.read(given.seed), tell=None if given.quiet else print)
        print(f"seed {given.seed}: digest {summary.digest}")
        print(json.dumps(summary.plain()) if given.json else summary.text())
        return 1 if summary.broken else 0
    broken = False
    for kind in [given.kind] if given.kind else worlds.KINDS:
        numbers = range(given.first, given.first + given.seeds)
        summary = worlds.run([(kind, number) for number in numbers], jobs=given.jobs, keep_going=given.keep_going)
        print(json.dumps(summary.plain()) if given.json else summary.text(), flush=True)
        broken = broken or bool(summary.broken)
        if broken and not given.keep_going:
            break
    return 1 if broken else 0


if __name__ == "__main__":
    environment.end(main())

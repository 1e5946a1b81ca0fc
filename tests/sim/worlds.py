"""Many worlds, one after the other or in several processes. Needs ``environment.set_up()``."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import sys
from collections.abc import Callable, Sequence

from tests.sim import clock
from tests.sim.summary import Summary
from tests.sim.world import World

CHUNK = 10
"""Worlds between two collections of garbage."""


def replay(seed: int, tell: Callable[[str], None] | None = None) -> Summary:
    """One world."""
    _quiet()
    began = clock.real_monotonic()
    result = World(seed, tell).run()
    summary = Summary(
        1,
        result.seconds,
        clock.real_monotonic() - began,
        result.messages,
        result.commits,
        result.rows,
        result.faults,
        result.reached,
        digest=result.digest,
    )
    if result.broken:
        summary.broken.append({"seed": seed, "promise": result.broken, "trace": result.trace})
    return summary


def run(seeds: Sequence[int], *, jobs: int = 1, keep_going: bool = False) -> Summary:
    """All of ``seeds``, or up to the first that breaks a promise."""
    began = clock.real_monotonic()
    total, digests = Summary(), hashlib.sha256()
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if jobs > 1:
        # Forked: Django is set up, its database is in memory, and each has its own copy.
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            for made in pool.imap(_chunk, chunks):
                _add(total, digests, made)
                if total.broken and not keep_going:
                    break
    else:
        for chunk in chunks:
            _add(total, digests, _chunk(chunk, keep_going))
            if total.broken and not keep_going:
                break
    total.digest = digests.hexdigest()
    total.took = clock.real_monotonic() - began
    return total


def _chunk(seeds: Sequence[int], keep_going: bool = True) -> list[Summary]:
    made = []
    for seed in seeds:
        made.append(replay(seed))
        if made[-1].broken and not keep_going:
            break
    gc.collect()
    return made


def _add(total: Summary, digests: hashlib._Hash, made: Sequence[Summary]) -> None:
    for each in made:
        total.add(each)
        digests.update(each.digest.encode())


def _quiet() -> None:
    """Tasks of dead processes are dropped where they stand, about which Python would have something to say."""
    sys.unraisablehook = lambda _: None
    # What a world leaves behind is collected between two, since the end of a coroutine is code that runs.
    gc.disable()

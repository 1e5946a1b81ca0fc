"""Many worlds, one after the other or in several processes. Needs ``environment.set_up()``."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tests.sim import clock
from tests.sim.summary import Summary
from tests.sim.trees import Tree
from tests.sim.world import World

KINDS: dict[str, type[World]] = {"plain": World, "tree": Tree}
Seed = tuple[str, int]
"""Kind and number."""


def read(text: str) -> Seed:
    """As a broken promise names it: 7, or t7 for a tree. Raises ValueError."""
    return ("tree", int(text[1:])) if text.startswith(Tree.KIND) else ("plain", int(text))


def replay(kind: str, seed: int, tell: Callable[[str], None] | None = None) -> Summary:
    """One world."""
    _quiet()
    began = clock.real_monotonic()
    result = KINDS[kind](seed, tell).run()
    summary = Summary(
        kind,
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
        summary.broken.append({"seed": result.seed, "promise": result.broken, "trace": result.trace})
    return summary


def run(seeds: Sequence[Seed], *, jobs: int = 1, keep_going: bool = False) -> Summary:
    """All of ``seeds``, which are of one kind, or up to the first that breaks a promise."""
    began = clock.real_monotonic()
    total, digests = Summary(seeds[0][0] if seeds else ""), hashlib.sha256()
    begun: deque[tuple[Connection, BaseProcess]] = deque()
    left = iter(seeds)
    while True:
        begun.extend(_begin(seed) for seed in islice(left, jobs - len(begun)))
        if not begun or (total.broken and not keep_going):
            break
        receiver, process = begun.popleft()
        made: Summary = receiver.recv()
        process.join()
        total.add(made)
        digests.update(made.digest.encode())
    for _, process in begun:
        process.kill()
    total.digest = digests.hexdigest()
    total.took = clock.real_monotonic() - began
    return total


def _begin(seed: Seed) -> tuple[Connection, BaseProcess]:
    """A world in a fork of this process: Django is set up, its database is in memory, and what one world leaves in some
    module reaches no other one. From this thread, as SQLite's connections are bound to theirs."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(replay(*seed)))
    process.start()
    sender.close()
    return receiver, process


def _quiet() -> None:
    """Tasks of dead processes are dropped where they stand, about which Python would have something to say."""
    sys.unraisablehook = lambda _: None
    # What a world leaves behind is collected between two, since the end of a coroutine is code that runs.
    gc.disable()

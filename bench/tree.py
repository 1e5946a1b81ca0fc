"""A run over a real tree, timed from its submission to its end as the API tells it: every row is saved by then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cascade.local import Child, LocalTree, LocalTreeError

RUN_SECONDS = 120.0
"""No run here takes so long unless something is broken."""


@contextmanager
def tree(children: int, *, capacity: int = 4, carrier: str = "push") -> Iterator[LocalTree]:
    """A parent and ``children`` in a folder that is removed afterwards."""
    with TemporaryDirectory(prefix="cascade-bench-") as folder:
        names = [Child(f"child-{number}", capacity=capacity, carrier=carrier) for number in range(1, children + 1)]
        with LocalTree(Path(folder), children=names) as running:
            yield running


def seconds(tree: LocalTree, items: int, *, params: dict[str, Any] | None = None, shard_size: int) -> float:
    """Runs ``items`` echo items, ``shard_size`` per shard (0: automatic).

    Raises LocalTreeError unless every one of them is saved.
    """
    # A new key per item and run: nothing that was done before may help.
    base = time.time_ns()
    numbers = [f"{base}-{number}" for number in range(items)]
    began = time.perf_counter()
    run = tree.submit("echo", numbers, params=params or {}, shard_size=shard_size)
    while (progress := tree.progress(run))["state"] == "running":
        elapsed = time.perf_counter() - began
        if elapsed > RUN_SECONDS:
            raise LocalTreeError(f"run {run} did not end in {RUN_SECONDS:g} s: {progress}\n{tree.tail('parent')}")
        # Asking costs the parent milliseconds of one core: a twentieth of the time so far is exact enough.
        time.sleep(min(0.1, max(0.01, elapsed / 20)))
    elapsed = time.perf_counter() - began
    if progress["state"] != "completed" or progress["saved"] != items or progress["rows"] != items:
        raise LocalTreeError(f"run {run} should have saved {items} rows of {items} items: {progress}")
    return elapsed

"""The program that looks at uploaded segments: a process with limits on memory and time, started by ``decoding``.

A line of JSON in, a line of JSON out, until nobody has asked for a while. What a segment can do to whoever unpacks it
(a fault in a library, memory, endless work), it does to this process. Django-free; writes no file.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dispatch.results import datasets
from nodes.executors.base import Column, Dataset
from nodes.protocol import CascadeError, FieldError, TooLarge

IDLE_SECONDS = 30.0
MEMORY = 2 * datasets.BATCH_LIMIT + 256 * 1024 * 1024
"""Bytes of data: a record batch, once more as the dataset's types, and what the libraries take."""
CPU_SECONDS = 30
"""For one segment. Half a gigabyte takes about one."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's; this ends with its input
    # The allocator that Arrow brings reserves far more than it uses, which the limit would count.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    for limit, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    lines = sys.stdin.buffer
    while select.select([lines], [], [], IDLE_SECONDS)[0] and (line := lines.readline()):
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
        pa.default_memory_pool().release_unused()


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """{"rows"} of the segment that is asked about, or {"error", …}, which ``decoding`` makes an exception again."""
    try:
        return {"rows": datasets.count(Path(asked["path"]), _dataset(asked["dataset"]))}
    except FieldError as error:
        return {"error": "field", "field": error.field, "detail": error.message}
    except CascadeError as error:
        return {"error": "large" if isinstance(error, TooLarge) else "unprocessable", "detail": str(error)}


def asking(path: Path, dataset: Dataset) -> dict[str, Any]:
    """What to ask for the rows of a segment."""
    columns = [[column.name, column.type] for column in dataset.columns]
    return {"path": str(path), "dataset": [dataset.table, columns, list(dataset.key)]}


def _dataset(shape: list[Any]) -> Dataset:
    table, columns, key = shape
    return Dataset(table, tuple(Column(*column) for column in columns), tuple(key))


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent is gone
        main()

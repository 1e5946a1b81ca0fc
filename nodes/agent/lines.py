"""A worker process that is given shards as lines of JSON, for programs that are no agents (``cascade.client``).

    python -m nodes.agent.lines FOLDER SURROUNDINGS

One line in, a shard as ``runner.run`` takes it; one line out, its report's entry. Larger results are Arrow files in
FOLDER. Unlike ``pool`` this starts no copy of the calling program, so it needs no ``if __name__ == "__main__"`` there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from nodes import surroundings
from nodes.executors.rows import inline as as_lists

ROOT = Path(__file__).resolve().parents[2]


class Lost(Exception):
    """The worker died, or was stopped, in the middle of a shard."""


class Worker:
    """One such process, started with its first shard. ``stop`` may come from another thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, shard: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The shard's entry. Raises Lost, TimeoutError after ``timeout`` seconds; the next call starts anew."""
        if self._stopped:
            raise Lost("stopped")
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(timeout, end)
        clock.daemon = True
        clock.start()
        try:
            process.stdin.write(json.dumps(shard).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            line = b""
        finally:
            clock.cancel()
        if line.endswith(b"\n"):
            entry: dict[str, Any] = json.loads(line)
            return entry
        self._end()
        if late.is_set():
            raise TimeoutError(f"not done within {timeout:g} s")
        raise Lost(f"the worker process died (status {process.returncode})")

    def stop(self) -> None:
        self._stopped = True
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            [sys.executable, "-m", "nodes.agent.lines", str(self._folder), json.dumps(surroundings.current().plain())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _end(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


def rows_of(entry: dict[str, Any], dataset: Any, folder: Path) -> list[list[Any]]:
    """The rows of an entry that a ``Worker`` made, as lists in the dataset's column order; its file goes."""
    if not entry.get("segment"):
        return list(entry.get("rows") or [])
    import pyarrow as pa

    file = folder / f"{entry['segment']}.arrow"
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    count = sum(each[2] for each in entry["ranges"])
    rows = as_lists(dataset, table.slice(entry.get("offset", 0), count), count) or []
    file.unlink()
    return rows


def _serve(folder: str, around: str) -> None:
    """Until the other end is closed. What executors print goes to the error stream, never among the entries."""
    from nodes.agent import runner

    surroundings.settle(surroundings.Surroundings(**json.loads(around)))
    entries = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        entry = runner.run([json.loads(line)], folder)[0]
        entries.write(json.dumps(entry).encode() + b"\n")
        entries.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])

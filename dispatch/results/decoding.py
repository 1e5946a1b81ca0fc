"""Uploaded segments are looked at in processes of their own (``decoder``), which a bomb may have.

One is started when the first segment comes, kept while there are more, and ends when there are none. All that this
process hears of a segment is how many rows it has, or what is wrong with it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from dispatch.results.decoder import asking
from nodes.executors.base import Dataset
from nodes.protocol import CascadeError, FieldError, TooLarge, Unprocessable

logger = logging.getLogger(__name__)

PROCESSES = 2
"""At once at most. Whoever comes meanwhile waits for its turn."""
PATIENCE = 120.0
"""Seconds for one segment; the process has a limit on its own time, this one is for a disk that does not answer."""
ROOT = Path(__file__).resolve().parents[2]
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""Of the environment; the rest holds secrets."""


class NoDecoder(CascadeError):
    """No process could be had to look at a segment; it may be reported again."""

    status = 503


class _Ended(Exception):
    """The process has ended with ``status``, negative for a signal."""

    def __init__(self, status: int) -> None:
        self.status = status


def rows(path: Path, dataset: Dataset) -> int:
    """The rows of the segment at ``path``. Raises what ``datasets.decode`` would, and NoDecoder.

    A segment that the process did not survive is Unprocessable.
    """
    asked = json.dumps(asking(path, dataset)).encode() + b"\n"
    process = _free.get()
    try:
        while True:
            fresh = process is None
            process = process or _Process()
            try:
                return _read(process.ask(asked))
            except _Ended as ended:
                process = None
                # One that was there before may have come to its end, or been ended, before it was asked.
                if not fresh:
                    continue
                logger.warning("looking at the segment %s ended its process: %s", path.name, ended.status)
                raise Unprocessable(
                    "the segment takes more memory or time to unpack than is allowed, or its data is damaged"
                ) from None
    finally:
        _free.put(process)


def _read(reply: Any) -> int:
    if (error := reply.get("error")) is None:
        return int(reply["rows"])
    if error == "field":
        raise FieldError(reply["field"], reply["detail"])
    raise (TooLarge if error == "large" else Unprocessable)(reply["detail"])


class _Process:
    def __init__(self) -> None:
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "dispatch.results.decoder"],
                cwd=ROOT,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
        except OSError as error:
            raise NoDecoder(f"no process could be started to look at the segment: {error.strerror}") from error

    def ask(self, line: bytes) -> Any:
        """The answer to ``line``. Raises _Ended."""
        stdin, stdout = self._popen.stdin, self._popen.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(line)
            return json.loads(_line(stdout))
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self._popen.kill()
            status = self._popen.wait()
            stdin.close()
            stdout.close()
            raise _Ended(status) from None


def _line(stdout: IO[bytes]) -> bytes:
    """Raises EOFError, TimeoutError."""
    deadline = time.monotonic() + PATIENCE
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        if not (piece := os.read(stdout.fileno(), 65536)):
            raise EOFError
        line += piece
    return line


_free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
"""Last in, first out: while one suffices, the others come to their end."""
for _ in range(PROCESSES):
    _free.put(None)

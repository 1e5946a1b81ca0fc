"""How this machine and this agent are, sampled in the background: whoever asks never waits for a measurement."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

logger = logging.getLogger(__name__)

STALE_SECONDS = 30.0
"""A sample so old says that nobody samples any more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Percentages; ``taken`` by this machine's clock, without zone; ``at`` in monotonic seconds.

    ``memory_mb`` of this process and its workers, 0 where nobody asked for it.
    """

    cpu: float
    memory: float
    memory_mb: float
    disk: float
    taken: dt.datetime
    at: float

    @property
    def stale(self) -> bool:
        return time.monotonic() - self.at > STALE_SECONDS


class Sampler:
    """``last`` is always there; ``take()`` renews it. ``resident``: measure this agent's own memory as well."""

    def __init__(self, folder: Path, *, resident: bool = False) -> None:
        self._folder = folder
        self._resident_too = resident
        self._process = psutil.Process()
        self._before = psutil.cpu_times()
        self.started = time.monotonic()
        self.last = self._sample(0.0)

    @property
    def uptime(self) -> float:
        """Seconds."""
        return round(time.monotonic() - self.started, 3)

    def take(self) -> None:
        try:
            self.last = self._sample(self._cpu())
        except (OSError, psutil.Error):
            logger.exception("this machine's load could not be read")

    def _cpu(self) -> float:
        """Since the last look, over all cores. Not ``psutil.cpu_percent``: its memory is shared with the beats'."""
        before, self._before = self._before, psutil.cpu_times()
        passed = sum(self._before) - sum(before)
        idle = self._before.idle - before.idle + getattr(self._before, "iowait", 0.0) - getattr(before, "iowait", 0.0)
        return round(min(max(100.0 * (1 - idle / passed), 0.0), 100.0), 1) if passed > 0 else self.last.cpu

    def _sample(self, cpu: float) -> Sample:
        folder = self._folder if self._folder.exists() else Path.home()
        return Sample(
            cpu=cpu,
            memory=psutil.virtual_memory().percent,
            memory_mb=self._resident() if self._resident_too else 0.0,
            disk=psutil.disk_usage(str(folder)).percent,
            taken=dt.datetime.now(),
            at=time.monotonic(),
        )

    def _resident(self) -> float:
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue  # it has just ended
        return round(total / 1e6, 1)


class Tally:
    """What has ended on this node since its start, whoever gave it; seconds are running time."""

    def __init__(self) -> None:
        self.executed = self.failed = 0
        self.seconds = 0.0

    @property
    def completed(self) -> int:
        return self.executed - self.failed

    @property
    def average(self) -> float:
        return self.seconds / self.executed if self.executed else 0.0

    @property
    def success_rate(self) -> float:
        """From 0 to 1; 0 before anything has ended."""
        return self.completed / self.executed if self.executed else 0.0

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Entries of reports (see ``nodes.protocol``). Failed is what brought nothing."""
        for entry in entries:
            self.executed += 1
            self.failed += bool(entry.get("failure") or (entry.get("errors") and not entry.get("ranges")))
            self.seconds += entry.get("seconds", 0.0)

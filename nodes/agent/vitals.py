"""CPU, memory and disk of this machine, in percent, as beats carry them."""

from __future__ import annotations

from pathlib import Path

import psutil


class Vitals:
    """Samples since the last look; never blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        psutil.cpu_percent(None)  # the first sample has nothing to compare with

    def now(self) -> dict[str, float]:
        return {
            "cpu": psutil.cpu_percent(None),
            "memory": psutil.virtual_memory().percent,
            "disk": psutil.disk_usage(str(self._folder if self._folder.exists() else Path.home())).percent,
        }

"""``python -m tests.chaos.inside agent|manage …``: an agent or a parent as always, which a test can reach into.

Three things are added, all by files in the folder that CHAOS_FOLDER names: the process stands still at a fail-point
that is armed (``<point>.armed``), its clock is off by what ``clock`` says, and an agent notes the receipts that it
hears (``acknowledged.log``, for all agents together). Worker processes import this module, too, and so can be stopped
at their points.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nodes import failpoints
from tests.chaos.work import note

_folder = Path(os.environ["CHAOS_FOLDER"])


def _hook(point: str) -> None:
    """Whoever is first at an armed point stands still there, and says who it is."""
    armed = _folder / f"{point}.armed"
    with suppress(FileNotFoundError):
        reached = _folder / f"{point}.{os.getpid()}.part"
        os.rename(armed, reached)
        reached.write_text(str(os.getpid()))
        os.rename(reached, _folder / f"{point}.reached")
        os.kill(os.getpid(), signal.SIGSTOP)


class _Shifted:
    """No function, which would become a method where a class has it as an attribute, as DRF's throttles do."""

    def __init__(self, real: Callable[[], float]) -> None:
        self._real = real

    def __call__(self) -> float:
        return self._real() + _offset()


def _wrong_clock() -> None:
    time.time = _Shifted(time.time)


def _wrong_django_clock() -> None:
    import datetime as dt

    from django.utils import timezone

    real = timezone.now
    timezone.now = lambda: real() + dt.timedelta(seconds=_offset())


def _offset() -> float:
    try:
        return float((_folder / "clock").read_text())
    except (FileNotFoundError, ValueError):  # not wrong, or just being written
        return 0.0


def _noted_receipts() -> None:
    from nodes.agent.sender import Sender

    settle = Sender._settle

    def noted(self: Sender, entries: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
        accepted = {result["allocation"] for result in results if result["status"] == 200}
        for entry in entries:
            if entry["allocation"] in accepted:
                note(_folder.parent / "acknowledged.log", json.dumps([entry["allocation"], entry.get("ranges", [])]))
        settle(self, entries, results)

    Sender._settle = noted  # type: ignore[method-assign]


_armed = failpoints.armed(_hook)  # kept: it ends when it is collected
_armed.__enter__()

if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    _wrong_clock()
    if kind == "manage":
        _wrong_django_clock()
        sys.argv = ["manage.py", *arguments]
        runpy.run_path("manage.py", run_name="__main__")
    else:
        _noted_receipts()
        from nodes.agent.__main__ import main

        sys.argv = ["nodes.agent", *arguments]
        main()

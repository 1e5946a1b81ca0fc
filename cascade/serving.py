"""What the processes that serve have in common: ``runserver`` and ``dispatcher``."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.core.management import CommandError

from cascade import console
from dispatch import leading
from dispatch.leading import Loop
from nodes.migrated import behind
from nodes.protocol import CascadeError

SWITCH_SECONDS = 0.0005
"""A message passes through several threads; at Python's 5 ms each of them could wait that long for a busy one."""


@contextmanager
def running(loops: Sequence[Loop]) -> Iterator[None]:
    """Starts ``loops`` in their order; stops them in the reverse order. Raises CommandError where one cannot start."""
    started: list[Loop] = []
    try:
        for loop in loops:
            loop.start()
            started.append(loop)
            leading.running.append(loop)
        yield
    except CascadeError as error:
        raise CommandError(str(error), returncode=console.status_of(error)) from None
    finally:
        _second_signal_ends()
        for loop in reversed(started):
            leading.running.remove(loop)
            loop.stop()


def check_migrated() -> None:
    """Raises CommandError: a database that others use as well is the operator's to migrate."""
    if behind():
        raise CommandError("the database is behind this version; run: python manage.py migrate")


def steady() -> None:
    """No long pauses: neither for a thread that waits for its turn, nor for a collector that walks the whole heap.

    What is loaded by now stays for good, so the collector need not look at it again; a full collection over it stops
    every thread for some 80 ms.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _second_signal_ends() -> None:
    """While the loops wind down, being asked again means at once."""

    def end(number: int, frame: object) -> None:
        os._exit(1)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)

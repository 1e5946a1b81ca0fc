"""``write()``: the transaction that every change of the control database runs in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

_turn = threading.RLock()


@contextmanager
def write() -> Iterator[None]:
    """An atomic block; nested ones join it.

    SQLite has one writer at a time and lets the others poll with growing sleeps. Threads of this process
    take turns at a lock instead, which costs microseconds; other processes are met by IMMEDIATE and the busy time-out.
    """
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        with transaction.atomic():
            yield
        return
    with _turn, transaction.atomic():
        yield

"""A submission that its client may repeat without saying so: one run, unless the first one was answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.utils import timezone

from dispatch.models import Run
from nodes.transactions import write

REPEATED_SECONDS = 60
"""A client repeats what was answered with a 5xx within so long; later it means another run."""

_under_way: set[str] = set()
_lock = threading.Lock()


@contextmanager
def once(fingerprint: str) -> Iterator[str]:
    """The ``idempotency_key`` for a submission with this ``fingerprint`` (at most 100 characters).

    The run keeps the key until the block ends well, which is when the client is answered. Where it does not (an
    error that leaves as a 5xx, the end of this process) the next submission with the same fingerprint, within a
    minute, gets the same key and so the same run. After a good answer it gets a run of its own: two equal ones may be
    meant. What is not known here is an answer that was lost on its way; clients that fear it send a key themselves.
    """
    now = timezone.now()
    with _lock:
        # Each submission under way in this process has a number of its own: side by side they are different ones.
        numbered = (f"due:{fingerprint}:{number}" for number in range(len(_under_way) + 4))
        free = [key for key in numbered if key not in _under_way]
        since = now - timedelta(seconds=REPEATED_SECONDS)
        due = Run.objects.filter(idempotency_key__in=free, created_at__gte=since).order_by("pk")
        key = due.values_list("idempotency_key", flat=True).first() or free[0]
        _under_way.add(key)
    try:
        _forget(key, before=since)
        yield key
        _forget(key)
    finally:
        with _lock:
            _under_way.discard(key)


def _forget(key: str, before: datetime | None = None) -> None:
    runs = Run.objects.filter(idempotency_key=key)
    if before is not None:
        runs = runs.filter(created_at__lt=before)
    with write():
        runs.update(idempotency_key=None)

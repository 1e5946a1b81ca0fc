"""Whether there is room for more results: what waits to be saved has a limit, and the disk keeps a reserve.

Asked before anything is written or acknowledged. What is refused stays in the children's outboxes, on their disks.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings
from django.db.models import Sum
from django.db.models.functions import Length
from django.utils import timezone

from dispatch import metrics
from dispatch.models import Receipt
from dispatch.results import spool
from nodes import failpoints
from nodes.prepared import Change, Given, Prepared
from nodes.protocol import StorageFull, TooMany

LOOK_SECONDS = 0.5
"""What waits is added up so often at most; what was let in since then is counted on top."""
RETRY_SECONDS = 3.0
NEARLY = 0.75

_lock = threading.Lock()
_waiting = 0
_looked = -LOOK_SECONDS


def check(size: int = 0) -> None:
    """Raises StorageFull, or TooMany, where ``size`` more bytes of results cannot be taken now; else they count."""
    global _waiting
    settled = settings.CASCADE
    free = min(shutil.disk_usage(folder).free for folder in {settled.data_dir, _there(settled.spool)})
    if free < settled.disk_reserve + size:
        metrics.put_off.add(of="disk")
        raise StorageFull(f"the parent's disk has {free} bytes left; {settled.disk_reserve} stay free (disk_reserve)")
    with _lock:
        if (waits := _added_up()) + size > settled.spool_limit:
            raise _too_many(waits)
        _waiting += size


def check_work() -> None:
    """As ``check``, before more work is taken: its results are of no use to a parent that is nearly at the limit."""
    check()
    if (waits := waiting()) > NEARLY * settings.CASCADE.spool_limit:
        raise _too_many(waits)


def _too_many(waits: int) -> TooMany:
    metrics.put_off.add(of="spool")
    limit = settings.CASCADE.spool_limit
    return TooMany(
        f"{waits} bytes of results wait to be saved; the limit is {limit} (spool_limit)", retry_after=RETRY_SECONDS
    )


_PURGED = Change(lambda: Receipt.objects.filter(pk__among=Given("receipts")), payload=None, purged_at=Given("now"))
_WANTED = Prepared(
    lambda: Receipt.objects.filter(segment__among=Given("named"), purged_at=None).order_by().values_list("segment")
)


def purge(receipts: Sequence[tuple[int, str]]) -> None:
    """Nobody needs what the spool has for these receipts (id, segment) any more. Repeating it changes nothing."""
    failpoints.reach("spool.purging")
    _PURGED.run(receipts=[pk for pk, _ in receipts], now=timezone.now())
    named = {segment for _, segment in receipts if segment}
    wanted = {segment for (segment,) in _WANTED.rows(named=named)} if named else set()
    failpoints.reach("spool.purged")
    for segment in named - wanted:
        spool.remove(settings.CASCADE.spool, segment)


def short() -> bool:
    """Whether so much waits that the saver should make room at once: saved segments stay until a checkpoint."""
    return waiting() > settings.CASCADE.spool_limit // 2


def _there(folder: Path) -> Path:
    return folder if folder.is_dir() else folder.parent


def waiting() -> int:
    """Bytes of results that were taken and are not saved yet: segments in the spool, and rows in receipts."""
    with _lock:
        return _added_up()


def _added_up() -> int:
    global _waiting, _looked
    if time.monotonic() - _looked >= LOOK_SECONDS:
        _waiting = _in_spool(settings.CASCADE.spool) + _in_receipts()
        _looked = time.monotonic()
    return _waiting


def forget() -> None:
    """The next look is a fresh one."""
    global _looked
    with _lock:
        _looked = -LOOK_SECONDS


def _in_spool(folder: Path) -> int:
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((".arrow", ".part")):
                    try:
                        total += entry.stat().st_size
                    except FileNotFoundError:
                        continue  # saved and removed meanwhile
    except FileNotFoundError:
        return 0
    return total


def _in_receipts() -> int:
    waits = Receipt.objects.filter(saved_at=None)
    return int(waits.aggregate(bytes=Sum(Length("payload")))["bytes"] or 0)

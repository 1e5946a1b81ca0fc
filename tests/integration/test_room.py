"""Room for results: what waits in the spool and in receipts counts, the disk keeps its reserve, and both heal."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from django.utils import timezone

from dispatch.models import Receipt
from dispatch.results import room
from nodes.protocol import StorageFull, TooMany

pytestmark = pytest.mark.django_db

LIMIT = 100_000


@pytest.fixture(autouse=True)
def limits(settings: Any, folder: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"spool_limit": LIMIT, "disk_reserve": 0})
    room.forget()


def spool(folder: Any, size: int) -> Any:
    (folder / "spool").mkdir(exist_ok=True)
    file = folder / "spool" / f"{size:064x}.arrow"
    file.write_bytes(bytes(size))
    room.forget()
    return file


def test_an_empty_spool_has_room_for_as_much_as_the_limit(folder):
    room.check(LIMIT)
    with pytest.raises(TooMany) as error:
        room.check(LIMIT + 1)
    assert error.value.retry_after > 0


def test_what_was_let_in_counts_before_it_is_there(folder):
    room.check(LIMIT - 10)
    with pytest.raises(TooMany):
        room.check(11)
    room.check(10)


def test_segments_count_until_they_are_removed(folder):
    file = spool(folder, LIMIT - 1000)
    room.check(1000)
    with pytest.raises(TooMany):
        room.check(1001)
    file.unlink()
    room.forget()
    room.check(LIMIT)


def test_rows_inside_receipts_count_until_they_are_saved(folder):
    receipt = Receipt.objects.create(type="echo", manifest=[], payload=bytes(LIMIT))
    room.forget()
    with pytest.raises(TooMany):
        room.check(1)
    Receipt.objects.filter(pk=receipt.pk).update(saved_at=timezone.now())
    room.forget()
    room.check(1)


def test_a_disk_without_its_reserve_takes_nothing(folder, settings):
    free = shutil.disk_usage(folder).free
    settings.CASCADE = settings.CASCADE.model_copy(update={"disk_reserve": 2 * free})
    with pytest.raises(StorageFull) as error:
        room.check()
    assert error.value.retry_after > 0


def test_work_is_refused_earlier_than_results(folder):
    spool(folder, int(0.8 * LIMIT))
    room.check(1000)
    with pytest.raises(TooMany):
        room.check_work()


def test_a_saver_is_asked_to_make_room_before_the_limit_is_reached(folder):
    spool(folder, LIMIT // 2)
    assert not room.short()
    spool(folder, LIMIT // 4)
    assert room.short()

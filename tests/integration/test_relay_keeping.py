"""A relay that keeps rows has those that count above, each once; one that does not decodes and saves none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from dispatch.lifecycle.kept import about as about_
from dispatch.lifecycle.kept import beyond, frozen, remembered
from dispatch.models import Receipt, Run
from dispatch.relay import forwarding, place, taking
from dispatch.results import reducing, spool
from dispatch.results.saver import Saver
from tests.integration.factory import Child, Work, child, done, saver, stored, uploaded

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "relay")]

PARENT = "p" * 32


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    keeping(monkeypatch, True)
    monkeypatch.setattr(place, "here", place.Place())


def keeping(monkeypatch: pytest.MonkeyPatch, keeps: bool) -> None:
    update = {"role": "relay", "relay_keeps_rows": keeps}
    monkeypatch.setattr(settings, "CASCADE", settings.CASCADE.model_copy(update=update))


@pytest.fixture
def store() -> Iterator[Saver]:
    with saver() as made:
        yield made


def taken(allocation: int = 70, count: int = 4, **about: Any) -> Run:
    run = {"type": "echo", "params": {}, "timeout": 60.0, "priority": 5, "shard_size": 2, **about}
    items = [f"i{allocation}-{number}" for number in range(count)]
    message = {"runs": {"9": run}, "work": [[allocation, 9, 100, 100 + count, 1, items]], "slots": {str(allocation): 4}}
    for read_once in (about_, beyond, frozen, remembered):
        read_once.cache_clear()
    assert taking.take(PARENT, message).held == [allocation]
    return Run.objects.get(origin__allocation=allocation)


def works(mine: Child) -> list[Work]:
    found = mine.works()
    assert found
    return found


def passed_on() -> None:
    """The node above has everything that is done."""
    for sending in forwarding.due(PARENT):
        forwarding.settled(sending)


def segments() -> set[str]:
    return {file.stem for file in settings.CASCADE.spool.glob("*.arrow")}


def test_rows_are_saved_here_when_the_node_above_has_them_and_once(store: Saver) -> None:
    mine = child(capacity=4)
    run = taken()
    assert set(mine.statuses(*(done(each) for each in works(mine)))) == {200}
    assert not store.once()  # they may still be refused above, and be made by others
    passed_on()
    assert store.once()
    assert not store.once()
    assert stored(store).items == Counter({f"i70-{number}": 1 for number in range(4)})
    (receipt,) = Receipt.objects.all()
    assert None not in (receipt.saved_at, receipt.kept_at)
    run.refresh_from_db()
    assert (run.state, run.rows) == ("completed", 4)


def test_a_segment_stays_until_it_was_passed_on_and_saved(store: Saver) -> None:
    mine = child(capacity=4)
    taken()
    assert set(mine.statuses(*uploaded([done(each) for each in works(mine)]))) == {200}
    (segment,) = segments()
    store._settle()
    assert segments() == {segment}
    passed_on()
    store._settle()
    assert segments() == {segment}
    assert Receipt.objects.get().purged_at is None
    assert store.once()
    store._settle()
    assert segments() == set()
    assert Receipt.objects.get().purged_at is not None
    assert sum(stored(store).rows.values()) == 4


def test_what_the_node_above_does_not_want_is_not_saved_here(store: Saver) -> None:
    mine = child(capacity=4)
    taken()
    assert set(mine.statuses(*(done(each) for each in works(mine)))) == {200}
    taking.drop(PARENT, [70])
    assert not store.once()
    assert stored(store).items == Counter()


def test_a_crash_between_the_two_commits_saves_nothing_twice(folder: Path) -> None:
    mine = child(capacity=4)
    taken()
    assert set(mine.statuses(*(done(each) for each in works(mine)))) == {200}
    passed_on()
    with saver() as made:
        assert made.once()
        Receipt.objects.update(kept_at=None)  # as if the process had ended before
    with saver() as again:
        while again.once():
            pass
        assert stored(again).items == Counter({f"i70-{number}": 1 for number in range(4)})
    assert Receipt.objects.get().kept_at is not None


def test_what_a_torn_log_of_its_store_has_lost_is_saved_again(folder: Path) -> None:
    mine = child(capacity=4)
    taken()
    assert set(mine.statuses(*(done(each) for each in works(mine)))) == {200}
    passed_on()
    with saver() as made:
        assert made.once()
    settings.CASCADE.results.unlink()
    with saver() as again:
        again.once()
        assert sum(stored(again).rows.values()) == 4


def test_a_damaged_segment_that_the_node_above_has_costs_only_the_copy(store: Saver) -> None:
    mine = child(capacity=4)
    first = taken()
    assert set(mine.statuses(*uploaded([done(each) for each in works(mine)]))) == {200}
    passed_on()
    (segment,) = segments()
    spool.path(settings.CASCADE.spool, segment).write_bytes(b"torn")
    taken(71)
    assert set(mine.statuses(*(done(each) for each in works(mine)))) == {200}
    passed_on()
    while store.once():
        pass
    first.refresh_from_db()
    assert (first.state, first.saved) == ("completed", 4)
    assert stored(store).items == Counter({f"i71-{number}": 1 for number in range(4)})
    forwarding.purge()
    store._settle()
    assert not Receipt.objects.filter(purged_at=None).exists()


def test_without_the_setting_nothing_is_saved_and_what_was_accepted_with_it_still_is(
    store: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = child(capacity=4)
    taken(70)
    assert set(mine.statuses(*(done(each) for each in works(mine)))) == {200}
    keeping(monkeypatch, False)
    taken(71)
    assert set(mine.statuses(*(done(each) for each in works(mine)))) == {200}
    passed_on()
    while store.once():
        pass
    assert {item.split("-")[0] for item in stored(store).items} == {"i70"}


@pytest.mark.usefixtures("kinds")
def test_a_run_from_above_is_not_reduced_here(store: Saver) -> None:
    run = taken(count=1, type="finds", params={"most": 5})
    Run.objects.filter(pk=run.pk).update(state="completed", ended_at=timezone.now(), cut=1, saved=1)
    reducing.reduce_ended()
    run.refresh_from_db()
    assert run.reduction == {}

"""Pruning: what is old goes, what is needed stays, and results stay whatever goes."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.utils import timezone

from dispatch import lifecycle, pruning
from dispatch.dispatcher import Dispatcher
from dispatch.models import Allocation, Delivery, Receipt, Run, Shard, StagedRow, SyncLog, Task
from dispatch.results.saver import Saver
from nodes.models import Heartbeat, Nonce
from nodes.transactions import write
from tests.integration.factory import Clock, assert_partition, at_once, child, done, partly, save, saver, stored, submit

pytestmark = pytest.mark.django_db
DAY = 86_400.0


@pytest.fixture(autouse=True)
def _days(settings: Any, folder: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"run_days": 90, "log_days": 14, "heartbeat_days": 7})


def ran(made: Saver, *, purged: bool = True, failed: int | None = None) -> Run:
    """A run of four items that has ended."""
    node = child(f"node {Run.objects.count()}")
    run = submit(4, max_attempts=1)
    for work in node.works():
        node.report(partly(work, work.start) if work.start == failed else done(work))
    save(made)
    if purged:
        Receipt.objects.filter(saved_at__isnull=False).update(payload=None, purged_at=timezone.now())
    assert_partition(run)
    return run


def log(operation: str) -> None:
    SyncLog.objects.create(operation=operation, direction="pull", started_at=timezone.now())


def left() -> list[int]:
    return [model._default_manager.count() for model in (Run, Shard, Allocation, Receipt)]


def test_an_old_run_goes_with_all_that_belongs_to_it_and_its_rows_stay(clock: Clock) -> None:
    with saver() as made:
        ran(made)
        before = stored(made)
        clock.forward(89 * DAY)
        assert pruning.prune(timezone.now())["runs"] == 0
        clock.forward(2 * DAY)
        receipts = Receipt.objects.count()
        counts = pruning.prune(timezone.now())
        assert {kind: count for kind, count in counts.items() if count} == {
            **{"runs": 1, "shards": 4, "allocations": 4, "receipts": receipts},
        }
        assert left() == [0, 0, 0, 0]
        # Rows, and the ledger that says they are saved.
        assert stored(made) == before
        assert sum(before.ledger.values()) == 4


def test_what_is_not_purged_from_the_spool_yet_keeps_its_run(clock: Clock) -> None:
    with saver() as made:
        ran(made, purged=False)
        before = left()
        clock.forward(100 * DAY)
        pruning.prune(timezone.now())
        assert left() == before


def test_what_is_reported_but_not_saved_is_left_alone(clock: Clock) -> None:
    node = child()
    submit(2)
    for work in node.works():
        node.report(done(work))
    before = left()
    clock.forward(100 * DAY)
    pruning.prune(timezone.now())
    assert left() == before
    with saver() as made:
        save(made)
        assert sum(stored(made).rows.values()) == 2


def test_a_receipt_stays_while_a_younger_run_is_in_it(clock: Clock) -> None:
    with saver() as made:
        old, young = ran(made), ran(made)
        Receipt.objects.exclude(pk=Receipt.objects.earliest("pk").pk).delete()
        Allocation.objects.update(receipt=Receipt.objects.get())
        clock.forward(50 * DAY)
        Run.objects.filter(pk=young.pk).update(ended_at=timezone.now())
        clock.forward(50 * DAY)
        assert pruning.prune(timezone.now())["receipts"] == 0
        assert not Run.objects.filter(pk=old.pk).exists()
        assert Allocation.objects.filter(run=young, receipt__isnull=False).count() == 4


def test_running_runs_and_waiting_calls_stay_however_old(clock: Clock) -> None:
    task = Task.objects.create(name="t", type="echo", items=["a"], webhook_url="http://127.0.0.1:9/")
    running = lifecycle.submit_task(task)
    told = lifecycle.cancel(lifecycle.submit_task(task).pk)
    clock.forward(1000 * DAY)
    assert pruning.prune(timezone.now())["runs"] == 0
    assert Run.objects.filter(pk__in=[running.pk, told.pk]).count() == 2
    Delivery.objects.update(state="failed")
    counts = pruning.prune(timezone.now())
    assert (counts["runs"], counts["deliveries"]) == (1, 1)
    assert Run.objects.get() == running


def test_a_run_opened_again_in_the_middle_stays_and_can_end(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with saver() as made:
        run = ran(made, failed=2)
        clock.forward(100 * DAY)
        slice_ = pruning._Pass.slice

        def interrupted(self: Any, kind: str, act: Any) -> int:
            if kind == "runs":
                lifecycle.retry(run.pk)
            return slice_(self, kind, act)

        monkeypatch.setattr(pruning._Pass, "slice", interrupted)
        assert pruning.prune(timezone.now())["runs"] == 0
        node = child("another")
        (work,) = node.works()
        node.report(done(work))
        save(made)
    run.refresh_from_db()
    assert (run.state, run.saved) == ("completed", 4)


def test_logs_history_calls_and_staged_rows_go_by_their_own_ages(clock: Clock) -> None:
    node = child()
    submit(2)
    ended, live = (work.allocation for work in node.works())
    for pk in (ended, live):
        StagedRow.objects.create(allocation_id=pk, item="i", key="k", row=[])
    node.release(ended)
    SyncLog.objects.all().delete()
    log("old")
    Heartbeat.objects.create(node=node.node, at=timezone.now())
    clock.forward(15 * DAY)
    log("new")
    counts = pruning.prune(timezone.now())
    assert (counts["sync_logs"], counts["staged_rows"], counts["heartbeats"] >= 1) == (1, 1, True)
    assert SyncLog.objects.get().operation == "new"
    assert StagedRow.objects.get().allocation_id == live


def test_days_stand_for_the_settings_and_a_dry_run_changes_nothing(clock: Clock) -> None:
    with saver() as made:
        ran(made)
        log("old")
        clock.forward(2 * DAY)
        before = left()
        would = pruning.prune(timezone.now(), days=1, dry_run=True)
        assert left() == before
        assert would == pruning.prune(timezone.now(), days=1)
        assert (would["runs"], would["sync_logs"]) == (1, SyncLog.objects.count() + would["sync_logs"])
        assert left() == [0, 0, 0, 0]


def test_it_goes_in_slices_and_leaves_off_when_its_time_is_over(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "SLICE", 10)
    for number in range(95):
        log(f"old {number}")
    clock.forward(20 * DAY)
    assert pruning.prune(timezone.now(), seconds=0.0)["sync_logs"] == 0
    taken: list[int] = []
    slice_ = pruning._Pass.slice

    def counted(self: Any, kind: str, act: Any) -> int:
        taken.append(slice_(self, kind, act))
        return taken[-1]

    monkeypatch.setattr(pruning._Pass, "slice", counted)
    assert pruning.prune(timezone.now())["sync_logs"] == 95
    assert max(taken) == 10


@pytest.mark.django_db(transaction=True)
def test_two_at_once_and_a_writer_between_them(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "SLICE", 5)
    for number in range(40):
        log(f"old {number}")
    clock.forward(20 * DAY)
    now = timezone.now()

    def writer() -> str:
        for number in range(5):
            with write():
                log(f"new {number}")
        return "written"

    one, two, said = at_once(lambda: pruning.prune(now), lambda: pruning.prune(now), writer)
    assert said == "written"
    assert one["sync_logs"] >= 0
    assert two["sync_logs"] >= 0
    assert sorted(SyncLog.objects.values_list("operation", flat=True)) == [f"new {number}" for number in range(5)]


def test_the_dispatcher_prunes(clock: Clock) -> None:
    log("old")
    Nonce.objects.create(value="n", expires_at=timezone.now() + dt.timedelta(days=1))
    clock.forward(20 * DAY)
    Dispatcher().once()
    assert not SyncLog.objects.filter(operation="old").exists()
    assert not Nonce.objects.exists()

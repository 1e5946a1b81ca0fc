"""Saving: from the spool to the result store, each acknowledged row once, wherever the power fails."""

from __future__ import annotations

import datetime as dt
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as conf
from django.db import DatabaseError, connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dispatch import lifecycle
from dispatch.models import Allocation, Receipt, Run, Shard
from dispatch.results import spool
from dispatch.results.saver import CHECKPOINT_SECONDS, SWEEP_SECONDS, Saver
from dispatch.states import RUN_ENDED, RunState, ShardState
from nodes import registry
from nodes.protocol import Conflict
from tests.integration.factory import (
    Child,
    Work,
    assert_partition,
    child,
    dispatch,
    done,
    failure,
    fresh,
    partly,
    save,
    saver,
    shards,
    state,
    stored,
    submit,
    uploaded,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder")]


@contextmanager
def no_notes() -> Iterator[None]:
    """The control database cannot note down what was saved."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER power_cut BEFORE UPDATE OF saved_at ON dispatch_receipt "
            "BEGIN SELECT RAISE(ABORT, 'power cut'); END"
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TRIGGER power_cut")


@contextmanager
def power_cut() -> Iterator[None]:
    """The result store commits, then it is over."""
    with no_notes(), pytest.raises(DatabaseError, match="power cut"):
        yield


def wait_for(condition: Callable[[], bool]) -> None:
    """Until a thread has done its part, at most half a minute."""
    until = time.monotonic() + 30
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < until
        tick.wait(0.01)


def once_each(count: int) -> dict[str, int]:
    return {f"i{number}": 1 for number in range(count)}


def reported(a: Child, run: Run, *, segments: bool = False) -> list[Work]:
    """All of ``run`` done and reported."""
    works = []
    while new := a.works():
        entries = [done(work) for work in new]
        assert set(a.statuses(*(uploaded(entries) if segments else entries))) == {200}
        works += new
    assert {each for *_, each in shards(run)} == {ShardState.SPOOLED}
    return works


def spoil(segment: str) -> None:
    """One bit of a spooled segment flips."""
    path = spool.path(conf.CASCADE.spool, segment)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_every_row_is_saved_once_with_where_it_came_from() -> None:
    a = child("a", 2)
    run = submit(5, shard_size=2)
    works = reported(a, run)
    with saver() as made:
        save(made)
        found = stored(made)
        lineage = made.store.select("echo", raw=True, order=["item"]).read_all().to_pylist()
    by_start = {work.start: work.allocation for work in works}
    assert found.items == once_each(5)
    assert found.ledger == {
        (run.pk, start, min(start + 2, 5), by_start[start], min(2, 5 - start)): 1 for start in (0, 2, 4)
    }
    assert [(row["_start"], row["_node"], row["_run"]) for row in lineage] == [
        (start, "a", run.pk) for start in (0, 0, 2, 2, 4)
    ]
    assert {row["_allocation"] for row in lineage} == set(by_start.values())
    assert all(row["_saved_at"] is not None for row in lineage)
    ended = fresh(run)
    assert (ended.state, ended.saved, ended.rows) == (RunState.COMPLETED, 5, 5)
    assert_partition(run)


def test_inline_and_segment_rows_of_one_message_are_all_saved_where_they_belong() -> None:
    a = child(capacity=6)
    run, other = submit(4), submit(["o0", "o1"])
    works = sorted(a.works(), key=lambda work: work.allocation)
    inline, first, second = works[::3], works[1::3], works[2::3]
    entries = [
        *[done(work, 2) for work in inline],
        *uploaded([done(work, 3) for work in first]),
        *uploaded([done(work, 1) for work in second]),
    ]
    # In any order, and a segment's entries not in the order of its rows.
    assert a.statuses(*reversed(entries)) == [200] * 6
    with saver() as made:
        save(made)
        found = stored(made)
    assert found.items == {
        str(work.items[0]): count for part, count in ((inline, 2), (first, 3), (second, 1)) for work in part
    }
    assert {(item, allocation) for item, _, _, allocation, _ in found.rows} == {
        (work.items[0], work.allocation) for work in works
    }
    assert (state(run), state(other)) == (RunState.COMPLETED, RunState.COMPLETED)
    assert_partition(run)
    assert_partition(other)


def test_a_segment_too_large_to_be_in_memory_is_saved_in_pieces_with_each_row_where_it_belongs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dispatch.results.saver.AT_ONCE", 1)
    monkeypatch.setattr("dispatch.results.saver.STREAM_ROWS", 2)
    a = child(capacity=3)
    run = submit(3)
    works = sorted(a.works(), key=lambda work: work.allocation)
    assert a.statuses(*reversed(uploaded([done(work, 3) for work in works]))) == [200] * 3
    with saver() as made:
        save(made)
        found = stored(made)
    assert found.items == {str(work.items[0]): 3 for work in works}
    assert {(item, allocation) for item, _, _, allocation, _ in found.rows} == {
        (work.items[0], work.allocation) for work in works
    }
    assert state(run) == RunState.COMPLETED


def test_a_batch_has_no_more_bytes_than_it_may_and_the_rest_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dispatch.results.saver.BATCH_BYTES", 1)
    a = child(capacity=3)
    run = submit(3)
    for work in a.works():
        assert a.statuses(done(work, 2)) == [200]
    with saver() as made:
        for left in (2, 1, 0):
            made.once()
            assert Receipt.objects.filter(saved_at=None).count() == left
        assert len(stored(made).rows) == 6
    assert state(run) == RunState.COMPLETED


def test_results_of_several_types_in_one_message_go_to_their_tables() -> None:
    a = child(capacity=2)
    submit(1)
    params = {"source": "sample", "start_date": "2001-03-01"}
    kline = submit(["AAPL"], type="data_import", params=params)
    works = {work.run: work for work in a.works()}
    bar = ["AAPL", "2001-03-01T00:00:00", "1d", 1.0, 2.0, 0.5, 1.5, 100, "sample"]
    bars = works.pop(kline.pk)
    (work,) = works.values()
    assert a.statuses(done(work), {**done(bars), "rows": [bar]}) == [200, 200]
    with saver() as made:
        save(made)
        assert [row["symbol"] for row in made.store.select("kline").read_all().to_pylist()] == ["AAPL"]
        assert stored(made).items == {"i0": 1}


def test_a_shard_without_rows_is_saved_by_its_ledger_entry() -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    a.report(done(work, 0))
    with saver() as made:
        save(made)
        assert stored(made).ledger == {(run.pk, 0, 1, work.allocation, 0): 1}
    assert state(run) == RunState.COMPLETED
    assert_partition(run)


@pytest.mark.parametrize(
    ("kinds", "end", "counts"),
    [
        (("done", "done"), RunState.COMPLETED, (2, 0, 0, 0)),
        (("done", "error"), RunState.PARTIAL, (1, 1, 0, 0)),
        (("done", "crash"), RunState.PARTIAL, (1, 0, 1, 0)),
        (("error", "error"), RunState.FAILED, (0, 2, 0, 0)),
        (("crash", "crash"), RunState.FAILED, (0, 0, 2, 0)),
        (("error", "crash"), RunState.FAILED, (0, 1, 1, 0)),
        (("timeout", "done"), RunState.PARTIAL, (1, 1, 0, 0)),
        (("done", "cancel"), RunState.CANCELLED, (1, 0, 0, 1)),
        (("cancel", "cancel"), RunState.CANCELLED, (0, 0, 0, 2)),
        (("error", "cancel"), RunState.CANCELLED, (0, 1, 0, 1)),
    ],
)
def test_a_run_of_everything_ends_rightly(kinds: tuple[str, str], end: str, counts: tuple[int, ...]) -> None:
    a = child(capacity=2)
    run = submit(2, max_attempts=1)
    while works := a.works():
        open_ = [work for work in works if kinds[work.start] != "cancel"]
        a.report(*[done(work) if kinds[work.start] == "done" else failure(work, kinds[work.start]) for work in open_])
        assert_partition(run)
    if "cancel" in kinds:
        lifecycle.cancel(run.pk)
    with saver() as made:
        save(made)
    ended = fresh(run)
    assert (ended.saved, ended.failed, ended.quarantined, ended.cancelled) == counts
    assert ended.state == end
    assert ended.ended_at is not None
    assert_partition(run)


def test_a_partly_failed_shard_saves_the_rows_of_the_others() -> None:
    a = child(capacity=1)
    run = submit(6, shard_size=6)
    (work,) = a.works()
    a.report(*uploaded([partly(work, 0, 3)]))
    with saver() as made:
        save(made)
        found = stored(made)
    assert found.items == {"i1": 1, "i2": 1, "i4": 1, "i5": 1}
    assert found.ledger == {(run.pk, 1, 3, work.allocation, 2): 1, (run.pk, 4, 6, work.allocation, 2): 1}
    assert (state(run), fresh(run).rows) == (RunState.PARTIAL, 4)
    assert_partition(run)


# The power fails


@pytest.mark.parametrize("segments", [False, True])
def test_a_parent_killed_between_receipt_and_commit_saves_all_at_its_next_start(segments: bool) -> None:
    a = child(capacity=2)
    run = submit(4)
    reported(a, run, segments=segments)
    with saver() as made:
        assert stored(made).rows == Counter()
    with saver() as again:
        save(again)
        assert stored(again).items == once_each(4)
    assert state(run) == RunState.COMPLETED
    assert_partition(run)


@pytest.mark.parametrize("segments", [False, True])
def test_a_parent_killed_between_the_two_commits_has_each_row_once(segments: bool) -> None:
    a = child(capacity=2)
    run = submit(4)
    reported(a, run, segments=segments)
    with saver() as made:
        with power_cut():
            made.once()
        assert stored(made).items == once_each(4)
    assert fresh(run).saved == 0
    assert_partition(run)
    with saver() as again:
        save(again)
        found = stored(again)
    assert found.items == once_each(4)
    assert set(found.ledger.values()) == {1}
    assert len(found.ledger) == 4
    assert (state(run), fresh(run).saved, fresh(run).rows) == (RunState.COMPLETED, 4, 4)
    assert_partition(run)


def test_what_came_after_the_crash_is_saved_beside_what_came_before() -> None:
    a = child(capacity=2)
    run = submit(8, shard_size=2)
    a.report(*[done(work) for work in a.works()])
    with saver() as made, power_cut():
        made.once()
    works = a.works()
    a.report(done(works[0]), partly(works[1], works[1].start))
    with saver() as again:
        save(again)
        assert stored(again).items == {f"i{number}": 1 for number in range(8) if number != works[1].start}
    assert (state(run), fresh(run).saved) == (RunState.PARTIAL, 7)
    assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_a_save_that_failed_half_way_is_finished_by_the_same_saver() -> None:
    a = child(capacity=2)
    run = submit(4)
    made = Saver()
    made.start()
    try:
        a.report(*[done(work) for work in a.works()])
        wait_for(lambda: fresh(run).saved == 2)
        with no_notes():
            a.report(*[done(work) for work in a.works()])
            wait_for(lambda: len(stored(made).ledger) == 4)
        wait_for(lambda: state(run) == RunState.COMPLETED)
        assert stored(made).items == once_each(4)
    finally:
        made.stop()
    assert_partition(run)


def test_telling_twice_what_is_saved_counts_it_once() -> None:
    a = child(capacity=2)
    run = submit(2)
    reported(a, run)
    receipts = list(Receipt.objects.all())
    with saver() as made:
        save(made)
    lifecycle.saved(receipts)
    assert (fresh(run).saved, fresh(run).rows) == (2, 2)
    assert_partition(run)


def test_the_same_report_after_a_restart_changes_nothing() -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    (first,) = a.report(done(work))
    with saver() as made:
        save(made)
        (second,) = a.report(done(work))
        assert second["receipt"] == first["receipt"]
        assert not made.once()
        assert len(stored(made).ledger) == 1
    assert_partition(run)


# The disk fails


@pytest.mark.parametrize("fault", ["bit", "cut", "gone"])
def test_a_damaged_spool_file_is_put_aside_and_its_items_run_again(folder: Path, fault: str) -> None:
    a = child(capacity=4)
    run = submit(4)
    works = a.works()
    bad = uploaded([done(work) for work in works[:2]])
    segment = bad[0]["segment"]
    a.report(*bad, done(works[2]), done(works[3]))
    path = spool.path(conf.CASCADE.spool, segment)
    if fault == "bit":
        spoil(segment)
    elif fault == "cut":
        os.truncate(path, path.stat().st_size - 10)
    else:
        path.unlink()
    with saver() as made:
        save(made)
        assert stored(made).items == {"i2": 1, "i3": 1}
        assert shards(run)[:2] == [(0, 1, ShardState.PENDING), (1, 2, ShardState.PENDING)]
        assert set(Shard.objects.filter(start__lt=2).values_list("attempts", "deaths", "losses")) == {(0, 0, 0)}
        assert not path.exists()
        assert (conf.CASCADE.spool / "quarantine" / path.name).exists() == (fault != "gone")
        assert_partition(run)
        again = a.works()
        assert [(work.start, work.attempt) for work in again] == [(0, 1), (1, 1)]
        # The same rows again: the same segment, whole this time.
        assert a.statuses(*uploaded([done(work) for work in again])) == [200, 200]
        save(made)
        assert stored(made).items == once_each(4)
    assert (state(run), fresh(run).saved, fresh(run).rows) == (RunState.COMPLETED, 4, 4)
    assert_partition(run)


def test_a_damaged_file_that_several_messages_name_costs_each_its_part_once() -> None:
    a = child(capacity=4)
    run = submit(4)
    entries = uploaded([done(work) for work in a.works()])
    for entry in entries:
        a.report(entry)
    spoil(entries[0]["segment"])
    with saver() as made:
        save(made)
        assert {each for *_, each in shards(run)} == {ShardState.PENDING}
        assert_partition(run)
        a.report(*uploaded([done(work) for work in a.works()]))
        save(made)
        assert stored(made).items == once_each(4)
    assert_partition(run)


def test_a_damaged_file_costs_nothing_when_its_rows_are_in_the_ledger() -> None:
    a = child(capacity=1)
    run = submit(4, shard_size=4)
    (work,) = a.works()
    (entry,) = uploaded([done(work)])
    a.report(entry)
    with saver() as made, power_cut():
        made.once()
    spoil(entry["segment"])
    with saver() as again:
        save(again)
        assert stored(again).items == once_each(4)
    assert (state(run), fresh(run).saved) == (RunState.COMPLETED, 4)
    assert_partition(run)


def test_the_spool_is_kept_until_the_store_has_written_everything_into_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a = child(capacity=2)
    run = submit(2)
    one, two = a.works()
    (entry,) = uploaded([done(one)])
    a.report(entry, done(two))
    path = spool.path(conf.CASCADE.spool, entry["segment"])
    real = time.monotonic
    with saver() as made:
        save(made)
        made._tidy()
        assert path.exists()
        assert Receipt.objects.filter(purged_at=None).count() == 2
        monkeypatch.setattr(time, "monotonic", lambda: real() + CHECKPOINT_SECONDS + 1)
        made._tidy()
        assert not path.exists()
        assert not Receipt.objects.filter(purged_at=None).exists()
        assert not Receipt.objects.filter(payload__isnull=False).exists()
        assert stored(made).items == once_each(2)
    assert_partition(run)


@pytest.mark.parametrize("segments", [False, True], ids=["inline rows", "segments"])
def test_what_a_torn_log_of_the_store_has_lost_is_saved_again_from_the_spool(segments: bool) -> None:
    a = child(capacity=2)
    run = submit(4)
    reported(a, run, segments=segments)
    database = conf.CASCADE.results
    log = database.with_name(database.name + ".wal")
    with saver() as made:
        save(made)
        assert stored(made).items == once_each(4)
        before, torn = database.read_bytes(), log.read_bytes()
    assert state(run) == RunState.COMPLETED
    # As if the power had failed then, and the disk had kept half of the log; DuckDB opens that without a word.
    database.write_bytes(before)
    log.write_bytes(torn[: len(torn) // 2])
    with saver() as again:
        save(again)
        assert stored(again).items == once_each(4)
        assert again.once() is False
    with saver() as last:
        save(last)
        assert stored(last).items == once_each(4)
    assert (state(run), fresh(run).saved) == (RunState.COMPLETED, 4)
    assert_partition(run)


@pytest.mark.parametrize("over", [False, True], ids=["completed", "cancelled"])
def test_what_store_and_spool_have_lost_both_is_made_again(over: bool) -> None:
    a = child(capacity=5)
    run = submit(4 + over)
    works = a.works() + a.works()
    assert set(a.statuses(*uploaded([done(work) for work in works[:4]]))) == {200}
    database = conf.CASCADE.results
    log = database.with_name(database.name + ".wal")
    with saver() as made:
        save(made)
        if over:
            lifecycle.cancel(run.pk)
        before = database.read_bytes()
    ended = RunState.CANCELLED if over else RunState.COMPLETED
    assert state(run) == ended
    # The power failed: nothing is left of the log, and a bit of each segment is another one.
    database.write_bytes(before)
    log.unlink(missing_ok=True)
    for file in conf.CASCADE.spool.glob("*.arrow"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    for _ in range(2):
        with saver() as again:
            save(again)
            assert not stored(again).items
    assert_partition(run)
    assert (state(run), fresh(run).saved, fresh(run).rows) == (ended if over else RunState.RUNNING, 0, 0)
    if not over:
        reported(a, run, segments=True)
        with saver() as last:
            save(last)
            assert stored(last).items == once_each(4)
        assert state(run) == RunState.COMPLETED
        assert_partition(run)


def test_uploads_that_no_report_named_are_swept_and_what_waits_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    a = child(capacity=2)
    run = submit(2)
    one, two = a.works()
    (named,) = uploaded([done(one)])
    (nobodys,) = uploaded([done(two, 2)])
    a.report(named)
    kept, swept = (spool.path(conf.CASCADE.spool, entry["segment"]) for entry in (named, nobodys))
    for path in (kept, swept):
        os.utime(path, (1, 1))
    real = time.monotonic
    with saver() as made:
        monkeypatch.setattr(time, "monotonic", lambda: real() + SWEEP_SECONDS + 1)
        made._tidy()
        assert (kept.exists(), swept.exists()) == (True, False)
        save(made)
        assert stored(made).items == {"i0": 1}
    assert_partition(run)


# Anything, in any order


ACTS = ("dispatch", "claim", "accept", "hello", "beat", "report", "release", "expire", "cancel", "retry", "save", "cut")
KINDS = ("done", "done", "segment", "partly", "again", "error", "timeout", "crash")


class Anything:
    """Draws what happens next, does it, and looks at everything that must hold."""

    def __init__(self, data: st.DataObject, made: Saver) -> None:
        self.draw = data.draw
        self.made = made
        self.children = [child("a", 2, "echo=1"), child("b", 3, "echo[i1]=1/1")]
        self.runs = [self.submit() for _ in range(2)]
        self.works: dict[int, list[Work]] = {each.id: [] for each in self.children}
        self.accepted: set[tuple[int, int, int]] = set()

    def submit(self) -> Run:
        size, attempts = self.draw(st.integers(0, 3)), self.draw(st.integers(1, 2))
        return submit(self.draw(st.integers(1, 7)), shard_size=size, max_attempts=attempts)

    def some(self, works: Sequence[Work]) -> list[Work]:
        return [work for work in works if self.draw(st.booleans())]

    def act(self) -> None:
        a = self.draw(st.sampled_from(self.children))
        run = self.draw(st.sampled_from(self.runs))
        works = self.some(self.works[a.id])
        ids = [work.allocation for work in works]
        act = self.draw(st.sampled_from(ACTS))
        if act == "dispatch":
            dispatch()
        elif act == "claim":
            self.works[a.id] += a.claim(self.draw(st.integers(0, 3)))
        elif act == "accept":
            a.accept(*ids, *a.offered())
        elif act in ("hello", "beat"):
            a.beat(hello=act == "hello", held=ids, running=ids)
        elif act == "report":
            self.report(a, works)
        elif act == "release":
            a.release(*ids)
        elif act == "expire":
            lifecycle.expire(timezone.now() + dt.timedelta(seconds=self.draw(st.sampled_from((1, 16, 31)))))
        elif act in ("cancel", "retry"):
            with suppress(Conflict):
                (lifecycle.cancel if act == "cancel" else lifecycle.retry)(run.pk)
        elif act == "save":
            save(self.made)
        elif Receipt.objects.filter(saved_at=None).exclude(manifest=[]).exists():
            with power_cut():
                self.made.once()
            self.made._doubtful = None  # as a start does

    def report(self, a: Child, works: Sequence[Work]) -> None:
        for work in works:
            kind = self.draw(st.sampled_from(KINDS))
            if kind == "segment":
                (entry,) = uploaded([done(work)])
            elif kind == "partly":
                failed = self.draw(st.sets(st.integers(work.start, work.stop - 1), min_size=1))
                entry = partly(work, *sorted(failed), retry=self.draw(st.booleans()))
            elif kind in ("done", "again"):
                entry = done(work)
            else:
                entry = failure(work, kind)
            for _ in range(2 if kind == "again" else 1):
                (result,) = a.report(entry)
                assert result["status"] in (200, 409, 422)
                if result["status"] == 200:
                    self.accepted |= {
                        (work.run, index, work.allocation)
                        for first, last, _ in entry.get("ranges", ())
                        for index in range(first, last)
                    }

    def look(self) -> None:
        for run in self.runs:
            assert_partition(run)
        # No item was ever accepted twice.
        assert Counter((run, index) for run, index, _ in self.accepted).total() == len(
            {(run, index) for run, index, _ in self.accepted}
        )

    def end(self) -> None:
        """Everybody works honestly from now on, until all runs have ended."""
        for each in self.children:
            each.beat(hello=True)
        for _ in range(60):
            for each in self.children:
                each.report(*[done(work) for work in each.works()])
            self.look()
            save(self.made)
            if {state(run) for run in self.runs} <= set(RUN_ENDED):
                break
        else:
            pytest.fail("a run does not end")
        rows = stored(self.made).rows
        saved = {(run, int(item[1:]), allocation) for item, _, run, allocation, _ in rows}
        assert set(rows.values()) <= {1}
        assert saved >= self.accepted
        assert Counter((run, index) for run, index, _ in saved).total() == sum(fresh(run).saved for run in self.runs)


@given(st.data())
@hypothesis_settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_whatever_happens_in_whatever_order_no_item_is_lost_or_saved_twice(
    settings: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"data_dir": tmp_path_factory.mktemp("anything")})
    with transaction.atomic(), saver() as made:
        anything = Anything(data, made)
        for _ in range(data.draw(st.integers(0, 40))):
            anything.act()
            anything.look()
        anything.end()
        transaction.set_rollback(True)


# Size


def test_more_ranges_than_one_statement_can_name_are_saved() -> None:
    a = child(capacity=1)
    run = submit(12_100, shard_size=5000)
    while works := a.works():
        (work,) = works
        a.report(partly(work, *range(work.start, work.stop, 2)))
    assert isinstance(connection.connection, sqlite3.Connection)
    limit = connection.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 5500)
    try:
        with saver() as made:
            save(made)
            assert len(stored(made).ledger) == 6050
    finally:
        connection.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, limit)
    assert (state(run), fresh(run).saved, fresh(run).failed) == (RunState.PARTIAL, 6050, 6050)
    assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_the_saver_of_a_parent_saves_what_comes_while_it_runs() -> None:
    a = child(capacity=4)
    runs = [submit(8) for _ in range(3)]
    made = Saver()
    made.start()
    try:
        while works := a.works():
            a.report(*[done(work) for work in works])
        wait_for(lambda: not Run.objects.exclude(state=RunState.COMPLETED).exists())
        assert stored(made).items == {f"i{number}": 3 for number in range(8)}
    finally:
        made.stop()
    assert {state(run) for run in runs} == {RunState.COMPLETED}
    for run in runs:
        assert_partition(run)


def test_a_node_removed_before_its_rows_are_saved_is_still_named_in_them() -> None:
    a = child("gone", 1)
    run = submit(1)
    (work,) = a.works()
    a.report(done(work))
    registry.remove_node(a.id)
    with saver() as made:
        save(made)
        assert [node for *_, node in stored(made).rows] == ["gone"]
    assert Allocation.objects.get().node_id is None
    assert_partition(run)


def test_nothing_waits_after_everything_is_saved(settings: Any) -> None:
    a = child(capacity=2)
    reported(a, submit(2))
    with saver() as made:
        assert made.once()
        assert not made.once()
    assert not Receipt.objects.filter(saved_at=None).exists()

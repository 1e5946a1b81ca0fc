"""Report: what is accepted is durable and counts once; what is late, foreign or contradictory changes nothing."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.utils import timezone

from dispatch import lifecycle
from dispatch.models import Allocation, Receipt, Run, Shard
from dispatch.states import LIVE, AllocationState, RunState, ShardState
from nodes import keys, registry
from nodes.models import Node
from nodes.protocol import Unauthenticated
from tests.integration import factory
from tests.integration.agents import NO_ROW
from tests.integration.factory import (
    Child,
    Work,
    assert_partition,
    at_once,
    child,
    dispatch,
    done,
    failure,
    fresh,
    partly,
    rows_of,
    save,
    saver,
    shards,
    state,
    stored,
    submit,
    uploaded,
)

pytestmark = pytest.mark.django_db

LATE = dt.timedelta(seconds=61)
"""After a lease, and after the grace that all nodes have which fall silent at once."""


def lose(run: Run) -> None:
    """All leases of now end."""
    lifecycle.expire(timezone.now() + LATE)
    assert_partition(run)


def everything() -> list[Any]:
    tables = (Run.objects, Shard.objects, Allocation.objects, Receipt.objects)
    return [list(table.order_by("pk").values()) for table in tables]


def unchanged(act: Callable[[], Any]) -> Any:
    """Calls ``act`` and sees to it that nothing was written."""
    before = everything()
    result = act()
    assert everything() == before
    return result


# What is accepted


def test_a_whole_shard_is_spooled_with_its_receipt() -> None:
    a = child(capacity=1)
    run = submit(3, shard_size=3)
    (work,) = a.works()
    (result,) = a.report({**done(work, 2), "log": "fine\n", "seconds": 1.25})
    receipt = Receipt.objects.get()
    assert result == {"allocation": work.allocation, "status": 200, "receipt": receipt.manifest[0]["digest"]}
    assert (receipt.node_id, receipt.type, receipt.rows, receipt.saved_at) == (a.id, "echo", 6, None)
    allocation = Allocation.objects.get()
    assert (allocation.state, allocation.receipt_id) == (AllocationState.COMPLETED, receipt.pk)
    assert (allocation.rows, allocation.seconds, allocation.log) == (6, 1.25, "fine\n")
    assert (allocation.progress, allocation.error) == (3, "")
    assert shards(run) == [(0, 3, ShardState.SPOOLED)]
    assert (state(run), lifecycle.progress(fresh(run))["spooled"]) == (RunState.RUNNING, 3)
    assert_partition(run)


def test_many_shards_in_one_message_are_one_receipt() -> None:
    a = child(capacity=5)
    run, other = submit(3), submit(2)
    works = a.works()
    assert a.statuses(*[done(work) for work in works]) == [200] * 5
    assert Receipt.objects.count() == 1
    assert len(Receipt.objects.get().manifest) == 5
    assert_partition(run)
    assert_partition(other)


def test_a_report_frees_its_slots_for_what_runs_next() -> None:
    a = child(capacity=2)
    run = submit(300)
    a.report(*[{**done(work), "seconds": 0.001} for work in a.works()])
    works = a.works()
    assert a.executing() == 2
    a.report(done(works[0]), done(works[1]))
    assert a.executing() == 0
    following = [work.allocation for work in works[2:5]]
    a.beat(held=following, running=following)
    assert set(Allocation.objects.filter(state="executing").values_list("pk", flat=True)) == set(following[:2])
    assert_partition(run)


def test_a_shard_without_any_row_counts_as_done() -> None:
    a = child(capacity=1)
    run = submit(2, shard_size=2)
    (work,) = a.works()
    assert a.statuses(done(work, 0)) == [200]
    assert shards(run) == [(0, 2, ShardState.SPOOLED)]
    assert_partition(run)


def test_a_report_measures_the_nodes_speed_by_type_and_run() -> None:
    a = child(capacity=1)
    run = submit(8, shard_size=4)
    (work,) = a.works()
    a.report({**done(work), "seconds": 2.0})
    assert a.node.speeds == {"echo": 0.5, f"echo@{run.pk}": 0.5}
    (work,) = a.works()
    a.report({**done(work), "seconds": 4.0})
    assert 0.5 < a.node.speeds["echo"] < 1.0


def test_a_node_keeps_the_speeds_of_the_newest_runs_only() -> None:
    a = child(capacity=1)
    Node.objects.filter(pk=a.id).update(speeds={f"echo@{number}": 1.0 for number in range(1_000_000, 1_000_040)})
    submit(1)
    (work,) = a.works()
    a.report(done(work))
    kept = [name for name in a.node.speeds if "@" in name]
    assert len(kept) == 32
    assert "echo@1000000" not in kept
    assert "echo@1000039" in kept


def test_a_report_needs_no_claim_before_it_when_the_offer_was_fetched_elsewhere() -> None:
    """Shorter than a beat: the parent hears of the start with the result."""
    a = child(capacity=1)
    run = submit(1)
    dispatch()
    (offer,) = a.offered()
    work = Work(offer, run.pk, 0, 1, 1, ["i0"])
    assert a.statuses(done(work)) == [200]
    assert_partition(run)


# What is not


def test_a_late_report_after_reassignment_saves_nothing() -> None:
    a, b = child("a", 1), child("b", 1)
    registry.drain(b.id)
    run = submit(1)
    (lost,) = a.works()
    lose(run)
    registry.drain(a.id)
    registry.resume(b.id)
    (again,) = b.works()
    assert again.start == lost.start
    (result,) = unchanged(lambda: a.report(done(lost)))
    assert (result["status"], "lease" in result["detail"]) == (409, True)
    assert b.statuses(done(again)) == [200]
    (result,) = unchanged(lambda: a.report(done(lost)))
    assert result["status"] == 409
    assert [entry["node"] for receipt in Receipt.objects.all() for entry in receipt.manifest] == ["b"]
    assert_partition(run)


def test_the_same_report_again_gets_the_same_receipt_and_changes_nothing() -> None:
    a = child(capacity=2)
    run = submit(4, shard_size=2)
    works = a.works()
    entries = [done(works[0]), partly(works[1], works[1].start)]
    first = a.report(*entries)
    second = unchanged(lambda: a.report(*[{**entry, "seconds": 99.0, "log": "again"} for entry in entries]))
    assert [result["receipt"] for result in second] == [result["receipt"] for result in first]
    assert {result["status"] for result in second} == {200}
    assert_partition(run)


def test_a_repeated_failure_gets_the_same_receipt_and_counts_once() -> None:
    a = child(capacity=1)
    run = submit(2, shard_size=2)
    (work,) = a.works()
    (first,) = a.report(failure(work))
    (second,) = unchanged(lambda: a.report(failure(work)))
    assert (second["status"], second["receipt"]) == (200, first["receipt"])
    assert Shard.objects.get().deaths == 1
    assert_partition(run)


@pytest.mark.parametrize("other", ["rows", "ranges", "failure"])
def test_another_content_for_a_reported_allocation_is_refused(other: str) -> None:
    a = child(capacity=1)
    run = submit(2, shard_size=2)
    (work,) = a.works()
    a.report(done(work))
    changed = {
        "rows": {**done(work), "rows": [["i0", 0, "forged"], ["i1", 0, "forged"]]},
        "ranges": partly(work, 1),
        "failure": failure(work),
    }[other]
    (result,) = unchanged(lambda: a.report(changed))
    assert result["status"] == 422
    assert_partition(run)


def test_another_childs_allocation_and_one_that_never_was_are_not_found() -> None:
    a, b = child("a", 1), child("b", 1)
    run = submit(2)
    a.works()
    (other,) = b.claim()
    unknown = Work(NO_ROW, run.pk, 0, 1, 1, ["i0"])
    results = unchanged(lambda: a.report(done(other), done(unknown), failure(other._replace(allocation=NO_ROW + 1))))
    assert [result["status"] for result in results] == [404, 404, 404]
    assert b.statuses(done(other)) == [200]
    assert unchanged(lambda: a.report(done(other)))[0]["status"] == 404
    assert_partition(run)


def test_one_bad_entry_does_not_cost_the_others_of_its_message() -> None:
    a = child(capacity=4)
    run = submit(4)
    one, two, three, four = a.works()
    lifecycle.release(a.caller, [two.allocation])
    bad = {**done(three), "rows": [["i2", "not a number", "x"]]}
    assert a.statuses(done(one), done(two), bad, done(four)) == [200, 409, 422, 200]
    assert a.live() == 1
    # What was refused for its content can be said better.
    assert a.statuses(done(three)) == [200]
    assert_partition(run)


@pytest.mark.parametrize("end", ["revoke", "deactivate", "remove"])
def test_a_key_that_is_not_valid_any_more_reports_nothing(end: str) -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    if end == "revoke":
        keys.revoke(a.caller.access_key)
    elif end == "deactivate":
        registry.update_node(a.id, active=False)
    else:
        registry.remove_node(a.id, force=True)

    def act() -> None:
        with pytest.raises(Unauthenticated):
            a.report(done(work))

    unchanged(act)
    lose(run)
    assert shards(run) == [(0, 1, ShardState.PENDING)]


def test_a_report_for_a_cancelled_run_saves_nothing() -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    lifecycle.cancel(run.pk)
    assert unchanged(lambda: a.report(done(work)))[0]["status"] == 409
    assert_partition(run)


@pytest.mark.parametrize(
    ("ranges", "errors"),
    [
        ([[0, 2, 0]], []),
        ([[0, 4, 0]], []),
        ([[0, 3, 0]], [2]),
        ([[0, 3, 0]], [3]),
        ([[0, 3, 0]], [5]),
        ([[0, 3, 0], [9, 10, 0]], []),
        ([[0, 1, 0], [0, 1, 0], [1, 3, 0]], []),
        ([[1, 3, 0], [0, 1, 0]], []),
        ([], [2, 1, 0]),
        ([], [0, 0, 1, 2]),
        ([], []),
        ([[3, 6, 0]], []),
    ],
)
def test_a_report_that_does_not_name_each_item_once_is_refused(ranges: list[list[int]], errors: list[int]) -> None:
    a = child(capacity=1)
    run = submit(6, shard_size=3)
    (work,) = a.works()
    entry = {"allocation": work.allocation, "ranges": ranges, "errors": [[index, "x", True] for index in errors]}
    assert unchanged(lambda: a.report(entry))[0]["status"] == 422
    assert_partition(run)


@pytest.mark.parametrize(
    "row",
    [["i0", 0], ["i0", 0, "v", 1], ["i0", "zero", "v"], ["i0", 1.5, "v"], [1, 0, "v"], ["i0", 2**63, "v"], "i00", None],
)
def test_rows_that_do_not_fit_the_dataset_are_refused(row: Any) -> None:
    a = child(capacity=1)
    run = submit(1)
    (work,) = a.works()
    (result,) = unchanged(lambda: a.report({**done(work), "rows": [row]}))
    assert (result["status"], "rows" in result["detail"]) == (422, True)
    assert_partition(run)


def test_a_segment_that_is_not_here_is_asked_for_and_then_taken(folder: object) -> None:
    a = child(capacity=2)
    run = submit(2)
    works = a.works()
    entries = uploaded([done(work) for work in works])
    assert a.statuses({**entries[0], "segment": "0f" * 32}) == [412]
    assert a.statuses(*entries) == [200, 200]
    assert Receipt.objects.get().segment == entries[0]["segment"]
    assert_partition(run)


def test_a_segment_shorter_than_the_report_says_is_refused(folder: object) -> None:
    a = child(capacity=2)
    run = submit(2)
    one, two = uploaded([done(work) for work in a.works()])
    assert unchanged(lambda: a.report({**two, "offset": 2}))[0]["status"] == 422
    longer = [[*one["ranges"][0][:2], 3]]
    assert unchanged(lambda: a.report({**one, "ranges": longer}))[0]["status"] == 422
    assert a.statuses(one, two) == [200, 200]
    assert_partition(run)


# Partial failure


def test_an_item_that_fails_for_good_costs_that_item() -> None:
    a = child(capacity=1)
    run = submit(5, shard_size=5)
    (work,) = a.works()
    assert a.statuses(partly(work, 1, 4)) == [200]
    spooled, failed = ShardState.SPOOLED, ShardState.FAILED
    assert shards(run) == [(0, 1, spooled), (1, 2, failed), (2, 4, spooled), (4, 5, failed)]
    assert list(Shard.objects.filter(state=failed).values_list("error", flat=True)) == [
        "no luck with i1",
        "no luck with i4",
    ]
    note = Allocation.objects.get().error
    assert "2 of 5 items failed" in note
    assert "i1" in note
    assert_partition(run)


def test_a_failed_items_reason_names_it_even_when_the_executor_did_not() -> None:
    a = child(capacity=1)
    submit(["AAPL", "NIX"], shard_size=2)
    (work,) = a.works()
    a.report({**partly(work, 1), "errors": [[1, "unknown symbol", False]]})
    assert Shard.objects.get(state=ShardState.FAILED).error == "NIX: unknown symbol"


def test_items_worth_another_attempt_go_again_after_the_back_off_and_neighbours_together(clock: factory.Clock) -> None:
    a = child(capacity=1)
    run = submit(6, shard_size=6, backoff=10.0)
    (work,) = a.works()
    a.report(partly(work, 1, 2, 4, retry=True))
    assert [each[:2] for each in shards(run) if each[2] == ShardState.PENDING] == [(1, 3), (4, 5)]
    assert a.works() == []
    clock.forward(11)
    a.beat()
    (again,) = a.works()
    assert (again.start, again.stop, again.attempt) == (1, 3, 2)
    assert_partition(run)


def test_an_item_fails_when_its_attempts_are_used_up() -> None:
    a = child(capacity=1)
    run = submit(3, shard_size=3, max_attempts=3)
    attempts = []
    while works := a.works():
        (work,) = works
        attempts.append(work.attempt)
        a.report(partly(work, *([1] if work.start <= 1 < work.stop else []), retry=True))
        assert_partition(run)
    assert attempts == [1, 2, 3]
    assert [each for each in shards(run) if each[2] == ShardState.FAILED] == [(1, 2, "failed")]
    assert fresh(run).failed == 1


def test_a_shard_whose_every_item_failed_has_a_receipt_and_no_rows_to_wait_for() -> None:
    a = child(capacity=1)
    run = submit(2, shard_size=2)
    (work,) = a.works()
    assert a.statuses(partly(work, 0, 1)) == [200]
    assert Allocation.objects.get().state == AllocationState.FAILED
    assert Receipt.objects.get().saved_at is not None
    assert (state(run), fresh(run).failed) == (RunState.FAILED, 2)
    assert_partition(run)


# Whole failures


def test_an_executor_that_cannot_work_fails_its_shard_after_its_attempts(clock: factory.Clock) -> None:
    a = child(capacity=1)
    run = submit(2, shard_size=2, max_attempts=3, backoff=4.0)
    for attempt, wait in ((1, 4), (2, 8), (3, 0)):
        (work,) = a.works()
        assert work.attempt == attempt
        a.report(failure(work, "error", "no module named x"))
        assert_partition(run)
        if wait:
            assert a.works() == []
            clock.forward(wait + 1)
            a.beat()
    assert shards(run) == [(0, 2, ShardState.FAILED)]
    assert Shard.objects.get().error == "no module named x"
    assert state(run) == RunState.FAILED


def test_a_poison_item_kills_three_workers_then_stands_alone_and_is_quarantined_with_its_reason(
    settings: Any,
) -> None:
    a = child(capacity=4)
    run = submit(16, shard_size=16)
    deaths: list[tuple[int, int]] = []
    while works := a.works():
        for work in works:
            if work.start <= 5 < work.stop:
                deaths.append((work.start, work.stop))
                a.report(failure(work, "crash", "worker died: signal 11"))
            else:
                a.report(done(work))
            assert_partition(run)
    assert deaths[:3] == [(0, 16)] * 3
    assert (0, 16) not in deaths[3:]
    assert len(deaths) <= 3 + 4
    poison = Shard.objects.get(state=ShardState.QUARANTINED)
    assert (poison.start, poison.stop, poison.error) == (5, 6, "worker died: signal 11")
    assert (fresh(run).quarantined, lifecycle.progress(fresh(run))["spooled"]) == (1, 15)


def test_two_poison_items_are_both_found() -> None:
    a = child(capacity=4)
    run = submit(20, shard_size=10)
    while works := a.works():
        for work in works:
            hit = {3, 4} & set(range(work.start, work.stop))
            a.report(failure(work) if hit else done(work))
            assert_partition(run)
    assert [each[:2] for each in shards(run) if each[2] == ShardState.QUARANTINED] == [(3, 4), (4, 5)]
    assert fresh(run).quarantined == 2


def test_an_item_that_hangs_is_cut_out_and_fails_alone() -> None:
    a = child(capacity=4)
    run = submit(8, shard_size=8, max_attempts=2)
    while works := a.works():
        for work in works:
            hangs = work.start <= 2 < work.stop
            a.report(failure(work, "timeout", "took longer than 5 s") if hangs else done(work))
            assert_partition(run)
    assert [each for each in shards(run) if each[2] != ShardState.SPOOLED] == [(2, 3, ShardState.FAILED)]


# Races


@pytest.mark.django_db(transaction=True)
def test_a_report_that_races_with_a_cancel_gives_one_end_state(folder: object) -> None:
    a = child(capacity=3)
    ends: Counter[str] = Counter()
    with saver() as made:
        for _ in range(20):
            run = submit(6, shard_size=2)
            works = a.works()
            statuses, _ = at_once(
                partial(a.statuses, *[done(work) for work in works]),
                partial(lifecycle.cancel, run.pk),
            )
            assert len(set(statuses)) == 1
            assert_partition(run)
            save(made)
            assert_partition(run)
            ended = fresh(run)
            ends[ended.state] += 1
            # Reported first: everything is saved; cancelled first: nothing is.
            assert (ended.saved, ended.cancelled) == ((6, 0) if statuses[0] == 200 else (0, 6))
            assert not Allocation.objects.filter(run=run, state__in=LIVE).exists()
        kept = {run for (_, _, run, _, _) in stored(made).rows}
    assert kept == set(Run.objects.filter(saved__gt=0).values_list("pk", flat=True))
    assert ends.total() == 20


@pytest.mark.django_db(transaction=True)
def test_a_report_that_races_with_the_end_of_its_lease_counts_once_or_not_at_all() -> None:
    a = child(capacity=2)
    for _ in range(15):
        Node.objects.update(losses=0)  # else it would cool down
        run = submit(2)
        works = a.works()
        late = timezone.now() + LATE
        statuses, expired = at_once(
            partial(a.statuses, *[done(work) for work in works]),
            partial(lifecycle.expire, late),
        )
        # On PostgreSQL each of the two may go to another one of the racers.
        assert sorted(statuses) == [200] * (2 - expired) + [409] * expired
        assert_partition(run)
        lifecycle.cancel(run.pk) if expired else None


@pytest.mark.django_db(transaction=True)
def test_the_same_report_sent_at_once_over_two_carriers_counts_once() -> None:
    a = child(capacity=2)
    for _ in range(10):
        run = submit(2)
        entries = [done(work) for work in a.works()]
        first, second = at_once(*[partial(a.report, *entries)] * 2)
        assert {result["status"] for result in first + second} == {200}
        assert [result["receipt"] for result in first] == [result["receipt"] for result in second]
        assert Receipt.objects.filter(allocations__run=run).distinct().count() == 1
        assert_partition(run)


@pytest.mark.django_db(transaction=True)
def test_a_report_that_races_with_the_revocation_of_its_key_is_whole_or_refused() -> None:
    for number in range(10):
        a: Child = child(f"n{number}", 2)
        run = submit(2)
        works = a.works()
        statuses, _ = at_once(
            partial(a.statuses, *[done(work) for work in works]),
            partial(keys.revoke_all, a.id),
        )
        accepted = statuses == [200, 200]
        assert accepted or isinstance(statuses, Unauthenticated)
        assert Receipt.objects.filter(node_id=a.id).count() == accepted
        assert_partition(run)
        registry.drain(a.id)
        lifecycle.expire(timezone.now() + LATE)
        if not accepted:
            lifecycle.cancel(run.pk)


def test_rows_of_makes_what_echo_makes() -> None:
    from nodes.executors.echo import Echo

    made = [list(row) for row in Echo(Echo.check({"rows": 2})).run("i0")]
    assert rows_of(Work(1, 1, 0, 1, 1, ["i0"]), 2) == made

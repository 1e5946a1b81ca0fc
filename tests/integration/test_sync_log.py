"""The sync log: each verb leaves its trace, many alike are one row, and nothing waits for it."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import DatabaseError
from django.utils import timezone

from dispatch import lifecycle, synclog
from dispatch.dispatcher import Dispatcher
from dispatch.models import SyncLog
from nodes import registry
from tests.integration import factory
from tests.integration.factory import child, dispatch, done, failure, submit
from tests.integration.native import Api

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nothing_noted() -> Iterator[None]:
    synclog.clear()
    yield
    synclog.clear()


def flushed() -> list[tuple[str, str, int, int]]:
    """(operation, direction, status, count), in order of their names."""
    synclog.flush(now=True)
    return sorted(SyncLog.objects.values_list("operation", "direction", "status", "count"))


OK, FAILED = SyncLog.Status.OK, SyncLog.Status.FAILED


def test_work_leaves_its_trace_from_grant_to_report() -> None:
    a = child(capacity=2)
    submit(2)
    first, second = a.works()
    a.report(done(first, 3), done(second, 2))
    assert flushed() == [("claim", "pull", OK, 2), ("dispatch", "push", OK, 2), ("report", "push", OK, 5)]
    assert set(SyncLog.objects.values_list("node_id", flat=True)) == {a.id}


def test_a_claim_without_work_is_not_worth_a_line() -> None:
    child().claim()
    assert flushed() == []


def test_an_accepted_offer_and_a_release() -> None:
    a = child(capacity=2)
    submit(2)
    dispatch()
    one, other = a.offered()
    a.accept(one, other)
    a.release(one, detail="the node stops")
    assert flushed()[0] == ("accept", "push", OK, 2)
    assert flushed()[2] == ("release", "push", OK, 1)
    assert SyncLog.objects.get(operation="release").extra["detail"] == "the node stops"


def test_a_report_that_is_refused_says_why() -> None:
    a = child("a")
    submit(1)
    (work,) = a.works()
    wrong = child("b")
    assert wrong.statuses(done(work)) == [404]
    assert flushed()[-1] == ("report", "push", FAILED, 1)
    refused = SyncLog.objects.get(operation="report")
    assert (refused.node_id, "no allocation" in refused.error) == (wrong.id, True)


def test_a_repeated_report_brings_no_rows_again() -> None:
    a = child()
    submit(1)
    (work,) = a.works()
    a.report(done(work, 3))
    a.report(done(work, 3))
    assert flushed()[-1] == ("report", "push", OK, 3)
    assert SyncLog.objects.get(operation="report").extra == {"exchanges": 2}


def test_a_failed_shard_is_a_good_report_without_rows() -> None:
    a = child()
    submit(1)
    (work,) = a.works()
    a.report(failure(work))
    assert flushed()[-1] == ("report", "push", OK, 0)


def test_what_expires_is_there_with_its_node(clock: factory.Clock) -> None:
    a = child(capacity=2)
    submit(2)
    a.works()
    submit(1)
    clock.forward(1000)
    lifecycle.expire(timezone.now())
    assert ("expire", "push", FAILED, 2) in flushed()
    assert "lease" in SyncLog.objects.get(operation="expire").error


def test_many_alike_within_a_second_are_one_row() -> None:
    a = child()
    for number in range(10_000):
        synclog.note(a.id, "report", synclog.PUSH, count=2, extra={"last": number})
    synclog.note(a.id, "report", synclog.PUSH, error="no")
    synclog.note(a.id, "report", synclog.PUSH, count=3, error="another")
    assert flushed() == [("report", "push", OK, 20_000), ("report", "push", FAILED, 3)]
    assert SyncLog.objects.get(status=OK).extra == {"last": 9_999, "exchanges": 10_000}
    assert SyncLog.objects.get(status=FAILED).error == "no"


def test_a_note_costs_microseconds() -> None:
    began = time.perf_counter()
    for _ in range(10_000):
        synclog.note(1, "report", synclog.PUSH, count=5)
    # Measured 0.5; a busy machine may take some times that.
    assert (time.perf_counter() - began) / 10_000 < 20e-6


def test_memory_is_bounded_and_what_was_not_kept_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synclog, "KEPT", 10)
    for number in range(25):
        synclog.note(None, f"operation {number}", synclog.PUSH)
    assert len(flushed()) == 11
    assert SyncLog.objects.get(operation="log").count == 15
    assert flushed() == flushed()


def test_notes_of_a_removed_node_go_with_it() -> None:
    a = child()
    synclog.note(a.id, "report", synclog.PUSH)
    registry.remove_node(a.id)
    synclog.note(a.id, "report", synclog.PUSH, error="late")
    assert flushed() == []


def test_nothing_is_lost_when_the_database_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    a = child()
    synclog.note(a.id, "report", synclog.PUSH, count=2)

    def fail(*_: Any) -> int:
        synclog.note(a.id, "report", synclog.PUSH, count=3)  # meanwhile
        raise DatabaseError("no")

    with monkeypatch.context() as patch:
        patch.setattr(synclog, "insert_rows", fail)
        with pytest.raises(DatabaseError):
            synclog.flush(now=True)
    assert flushed() == [("report", "push", OK, 5)]


def test_threads_lose_no_note() -> None:
    def note() -> None:
        for _ in range(2000):
            synclog.note(None, "knock", synclog.PUSH, count=1)

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flushed() == [("knock", "push", OK, 8000)]


def test_the_dispatcher_writes_it_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synclog, "_flushed", time.monotonic() - 10)
    loop = Dispatcher()
    synclog.note(None, "knock", synclog.PUSH)
    loop.once()
    assert SyncLog.objects.count() == 1
    synclog.note(None, "knock", synclog.PUSH)
    loop.once()
    assert SyncLog.objects.count() == 1
    synclog.flush(now=True)
    assert SyncLog.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_the_dispatcher_writes_the_rest_when_it_stops() -> None:
    loop = Dispatcher()
    loop.start()
    synclog.flush(now=True)
    synclog.note(None, "knock", synclog.PUSH)
    loop.stop()
    assert SyncLog.objects.get().operation == "knock"


# Over the API


def test_it_is_listed_with_filters_newest_first(api: Api) -> None:
    a, b = child("a"), child("b")
    for node, error in ((a, ""), (b, ""), (a, "no")):
        synclog.note(node.id, "report", synclog.PUSH, count=1, error=error)
    synclog.note(a.id, "claim", synclog.PULL, count=1)
    synclog.flush(now=True)
    SyncLog.objects.filter(operation="claim").update(started_at=timezone.now() - dt.timedelta(days=1))

    def found(query: str) -> list[tuple[str, str, str]]:
        answer = api.get(f"sync-logs?{query}")
        assert answer.status == 200, answer.body
        return [(each["node_name"], each["operation"], each["status"]) for each in answer.body["results"]]

    assert found("") == [
        ("a", "claim", "ok"),
        ("a", "report", "failed"),
        ("b", "report", "ok"),
        ("a", "report", "ok"),
    ]
    assert found(f"node={b.id}") == [("b", "report", "ok")]
    assert found("operation=claim") == found("direction=pull") == [("a", "claim", "ok")]
    assert found("status=failed") == [("a", "report", "failed")]
    yesterday = (timezone.now() - dt.timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found(f"until={yesterday}") == [("a", "claim", "ok")]
    assert len(found(f"since={yesterday}")) == 3
    assert found("limit=1&offset=2") == [("b", "report", "ok")]
    (entry,) = api.get("sync-logs?status=failed").body["results"]
    assert (entry["node"], entry["error"], entry["count"], entry["extra"]) == (a.id, "no", 1, {"exchanges": 1})
    assert entry["ended_at"] >= entry["started_at"]
    assert api.get(f"sync-logs/{entry['id']}").body["error"] == "no"


@pytest.mark.parametrize(
    "query", ["node=x", "direction=up", "status=2", "since=yesterday", "operatoin=claim", "limit=-1", "ordering=error"]
)
def test_a_filter_that_means_nothing_is_refused(api: Api, query: str) -> None:
    answer = api.get(f"sync-logs?{query}")
    assert (answer.status, answer.body["field"]) == (400, query.partition("=")[0])


def test_it_is_only_read(api: Api) -> None:
    assert {api.post("sync-logs", {}).status, api.delete("sync-logs").status} == {405}

"""Articles and reports of the ``cascade`` dialect: staged once, accepted once, saved once; what is wrong says where."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dispatch import lifecycle
from dispatch.lifecycle import staged
from dispatch.models import Receipt, Run, StagedRow
from dispatch.results import saver as savers
from dispatch.states import AllocationState
from tests.integration.agents import NO_ROW
from tests.integration.factory import assert_partition, fresh, save, saver
from tests.integration.feeds import Child, allocation, article, begun
from tests.integration.native import Api

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _folder(folder: Path) -> None:
    pass


def saved(run: Run) -> list[dict[str, Any]]:
    """The rows of a run, after a save."""
    with saver() as made:
        save(made)
        made.store.ensure(savers.executors.get("feed_update").dataset)
        with made.store.reader() as reading:
            found = reading.execute(
                "SELECT * FROM articles_rows WHERE _run = ? ORDER BY feed, id", [run.pk]
            ).to_arrow_table()
    assert_partition(run)
    return list(found.to_pylist())


def test_an_article_is_a_row_with_each_of_its_values() -> None:
    child = Child()
    run = begun("mp")
    package = child.claim()
    sent = {
        "id": "a1",
        "mp_id": "mp",
        "title": "T",
        "url": "u",
        "author": "who",
        "pic_url": "p",
        "description": "d",
        "content": "c\x00",
        "publish_time": "2026-01-01T08:00:00+08:00",
        "unknown": {"x": 1},
    }
    assert child.upload(package, sent).good() == {"received": 1, "new_count": 1}
    child.report(package, {"mp_id": "mp", "status": "success"}).good()
    (row,) = saved(run)
    at = row.pop("published")
    assert at.isoformat() == "2026-01-01T00:00:00"
    assert {name: value for name, value in row.items() if not name.startswith("_")} == {
        "id": "a1",
        "feed": "mp",
        "title": "T",
        "url": "u",
        "author": "who",
        "summary": "d",
        "text": "c\ufffd",
        "image": "p",
    }
    assert row["_node"] == "kid"
    assert fresh(run).state == "completed"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (1_767_225_600, "2026-01-01T00:00:00"),
        ("1767225600", "2026-01-01T00:00:00"),
        (1_767_225_600_500, "2026-01-01T00:00:00.500000"),
        ("2026-01-01 10:00:00", "2026-01-01T10:00:00"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00"),
        ("", None),
        (0, None),
        (None, None),
    ],
)
def test_times_come_as_seconds_or_as_iso(given: Any, kept: str | None) -> None:
    child = Child()
    begun("mp")
    child.upload(child.claim(), article("mp", publish_time=given)).good()
    assert StagedRow.objects.get().row[5] == kept


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"publish_time": "soon"}, "publish_time"),
        ({"publish_time": True}, "publish_time"),
        ({"publish_time": [1]}, "publish_time"),
        ({"publish_time": 1e300}, "publish_time"),
        ({"publish_time": "nan"}, "publish_time"),
        ({"title": {"a": 1}}, "title"),
        ({"content": False}, "content"),
        ({"id": None}, "id"),
        ({"id": "x" * 301}, "id"),
        ({"id": "a\x00"}, "id"),
        ({"mp_id": None}, "mp_id"),
        ({"mp_id": {}}, "mp_id"),
    ],
)
def test_a_bad_article_names_its_field_and_stages_nothing(bad: dict[str, Any], field: str) -> None:
    child = Child()
    begun("mp", "mp2")
    package = child.claim()
    answer = child.upload(package, article("mp", 1), article("mp", 2, **bad))
    assert answer.status == 400
    assert answer.why.startswith(f"articles[1].{field}: ")
    assert not StagedRow.objects.exists()
    assert child.upload(package, article("mp", 1)).good()["new_count"] == 1


def test_an_article_without_its_feed_belongs_to_the_only_one() -> None:
    child = Child()
    begun("mp")
    child.upload(child.claim(), {"id": 17, "title": "t"}).good()
    assert StagedRow.objects.get().row[:2] == ["17", "mp"]


def test_an_article_counts_once_within_its_allocation_however_often_it_comes() -> None:
    child = Child()
    run = begun("mp")
    package = child.claim()
    one, two = article("mp", 1), article("mp", 2)
    assert child.upload(package, one, one).good() == {"received": 2, "new_count": 1}
    assert child.upload(package, one, two).good() == {"received": 2, "new_count": 1}
    assert child.upload(package, one, two).good() == {"received": 2, "new_count": 0}
    child.report(package).good()
    assert len(saved(run)) == 2


def test_an_upload_again_after_the_report_is_answered_and_a_new_article_is_refused() -> None:
    child = Child()
    run = begun("mp")
    package = child.claim()
    child.upload(package, article("mp", 1)).good()
    child.report(package).good()
    assert child.upload(package, article("mp", 1)).good() == {"received": 1, "new_count": 0}
    assert child.upload(package, article("mp", 1), article("mp", 2)).status == 409
    assert len(saved(run)) == 1
    assert [row.row for row in StagedRow.objects.all()] == [[]], "content is kept twice"


def test_a_report_again_with_another_timestamp_is_the_same_report() -> None:
    child = Child()
    run = begun("a", "b", max_attempts=1)
    package = child.claim()
    child.upload(package, article("a")).good()
    results: list[dict[str, Any]] = [
        {"mp_id": "a", "status": "success", "article_count": 1},
        {"mp_id": "b", "status": "failed", "error": "no"},
    ]
    for at in ("10:00", "10:01"):
        child.report(package, *results, article_count=1, timestamp=at).good()
    assert Receipt.objects.count() == 1
    assert len(saved(run)) == 1
    assert (fresh(run).saved, fresh(run).failed, fresh(run).state) == (1, 1, "partial")
    # Another report is not.
    assert child.report(package).status == 422
    assert child.status(package, "failed").status == 422


@pytest.mark.parametrize(
    "failed",
    [
        {"mp_id": "b", "mp_name": "B", "status": "failed", "article_count": 0, "error": "blocked"},
        {"feed_id": "b", "success": False, "error": "blocked"},
    ],
)
def test_both_shapes_of_results_fail_the_feed_they_name_and_it_is_tried_again(failed: dict[str, Any]) -> None:
    child = Child()
    run = begun("a", "b", "c")
    package = child.claim()
    child.upload(package, article("a"), article("b", 9), article("c")).good()
    child.report(package, {"mp_id": "a"}, failed).good()
    assert "blocked" in allocation(package).error
    # What came for the feed that failed is not lost, and keeps its feed.
    assert Counter(row["feed"] for row in saved(run)) == {"a": 1, "b": 1, "c": 1}
    again = child.claim()
    assert [each["id"] for each in again["feeds"]] == ["b"]
    child.upload(again, article("b")).good()
    child.report(again, {"feed_id": "b", "success": True, "new_article_count": 1}).good()
    assert len(saved(run)) == 4
    assert fresh(run).state == "completed"


def test_rows_of_a_feed_that_is_not_in_the_package_are_kept() -> None:
    child = Child()
    run = begun("a", "b")
    package = child.claim()
    child.upload(package, article("stranger"), article("b")).good()
    child.report(package, {"mp_id": "elsewhere", "status": "failed"}).good()
    assert [row["feed"] for row in saved(run)] == ["b", "stranger"]
    assert fresh(run).state == "completed"


@pytest.mark.parametrize(
    ("results", "field"),
    [
        ("many", "results"),
        ([5], "results[0]"),
        ([{"mp_id": "a"}, {"status": "success"}], "results[1].mp_id"),
        ([{"mp_id": "a", "status": "so so"}], "results[0].status"),
        ([{"feed_id": "a", "success": "yes"}], "results[0].success"),
    ],
)
def test_results_that_cannot_be_read_name_the_field(results: Any, field: str) -> None:
    child = Child()
    begun("a")
    package = child.claim()
    for path in ("report-completion", "report-result"):
        answer = child.post(path, {**package, "results": results})
        assert answer.status == 400
        assert answer.why.startswith(f"{field}: ")
    assert child.report(package).status == 200


def test_completed_completes_with_what_is_staged_and_a_late_report_of_the_same_is_no_harm() -> None:
    child = Child()
    run = begun("a")
    package = child.claim()
    child.upload(package, article("a")).good()
    for _ in range(2):
        child.status(package, "completed").good()
    child.report(package, {"mp_id": "a", "status": "success"}).good()
    child.status(package, "executing").good()
    assert len(saved(run)) == 1


def test_failed_tries_again_and_fails_for_good_when_no_attempt_is_left() -> None:
    child = Child()
    run = begun("a", max_attempts=2)
    for attempt in range(2):
        package = child.claim()
        child.upload(package, article("a", attempt)).good()
        for _ in range(2):
            child.status(package, "failed", error_message="no net").good()
        assert (allocation(package).state, allocation(package).error) == (AllocationState.FAILED, "no net")
    assert child.post("claim-task").good() is None
    assert (fresh(run).state, fresh(run).failed) == ("failed", 1)


def test_report_result_finds_the_claim_by_its_task_and_feeds() -> None:
    child = Child()
    run = begun("a", "b", shard_size=1)
    packages = {each["feeds"][0]["id"]: each for each in (child.claim(), child.claim())}
    child.upload(packages["b"], article("b")).good()
    body = {"task_id": packages["b"]["task_id"], "results": [{"mp_id": "b", "status": "success"}]}
    for at in ("1", "2"):
        answer = child.post("report-result", {**body, "timestamp": at}).good()
        assert answer == {"allocation_id": packages["b"]["allocation_id"], "article_count": 1}
    assert allocation(packages["a"]).state == AllocationState.PENDING
    assert child.post("report-result", {**body, "task_id": "77777"}).status == 404
    assert Child("other").post("report-result", body).status == 404
    assert child.report(packages["a"]).status == 200
    assert len(saved(run)) == 1


def test_the_allocation_of_another_child_is_a_404_and_stays_as_it_is() -> None:
    child, stranger = Child(), Child("stranger", capacity=1)
    run = begun("a")
    package = child.claim()
    for answer in (
        stranger.status(package, "executing"),
        stranger.status(package, "completed"),
        stranger.status(package, "failed"),
        stranger.upload(package, article("a")),
        stranger.report(package, {"mp_id": "a", "status": "failed"}),
    ):
        assert answer.status == 404, answer
    assert allocation(package).state == AllocationState.PENDING
    assert not StagedRow.objects.exists()
    child.report(package).good()
    assert stranger.upload(package, article("a")).status == 404
    assert saved(run) == []


@pytest.mark.parametrize("id", ["0", str(NO_ROW), "abc", "-1", "9" * 30, NO_ROW])
def test_an_allocation_that_nobody_has_is_a_404(id: Any) -> None:
    child = Child()
    begun("a")
    child.claim()
    for answer in (
        child.put("task-status", {"allocation_id": id, "status": "executing"}),
        child.put("task-status", {"allocation_id": id, "status": "failed"}),
        child.post("upload-articles", {"allocation_id": id, "articles": []}),
        child.post("report-completion", {"allocation_id": id}),
    ):
        assert answer.status == 404, answer


@pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff", b"null", b'{"allocation_id": true}', b'{"allocation_id": {}}'])
def test_nonsense_is_a_400(body: bytes) -> None:
    child = Child()
    for method, path in (("PUT", "task-status"), ("POST", "upload-articles"), ("POST", "report-completion")):
        assert child.send(method, path, body).status == 400


@pytest.mark.parametrize("limit", ["INLINE_ROWS", "INLINE_BYTES"])
def test_many_rows_go_through_a_segment_in_their_order(limit: str, monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    monkeypatch.setattr(staged, limit, 20)
    monkeypatch.setattr(staged, "BATCH_ROWS", 7)
    child = Child()
    run = begun("a", "b", "c")
    package = child.claim()
    for key in ("c", "b", "a"):
        child.upload(package, *(article(key, number) for number in range(25))).good()
    child.report(package, {"mp_id": "b", "status": "failed"}).good()
    assert Receipt.objects.get().segment
    rows = saved(run)
    assert Counter(row["feed"] for row in rows) == {"a": 25, "b": 25, "c": 25}
    assert api.get(f"runs/{run.pk}").body["rows"] == 75


def test_one_allocation_can_bring_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child()
    begun("a")
    package = child.claim()
    monkeypatch.setattr(staged, "STAGED_LIMIT", 2)
    assert child.upload(package, *(article("a", number) for number in range(3))).status == 413
    assert child.upload(package, article("a", 1), article("a", 2)).status == 200
    monkeypatch.setattr(staged, "STAGED_LIMIT", 100)
    monkeypatch.setattr(staged, "STAGED_BYTES", 500)
    assert child.upload(package, article("a", 3, content="x" * 600)).status == 413
    assert child.report(package).status == 200


def test_an_upload_between_the_reading_of_the_rows_and_their_acceptance_is_in_the_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = Child()
    run = begun("a")
    package = child.claim()
    child.upload(package, article("a", 1)).good()
    plan = staged._plan
    late = iter([2])

    def interrupted(*args: Any) -> Any:
        made = plan(*args)
        for number in late:
            child.upload(package, article("a", number)).good()
        return made

    monkeypatch.setattr(staged, "_plan", interrupted)
    child.report(package).good()
    assert len(saved(run)) == 2


def test_a_cancelled_run_refuses_the_report() -> None:
    child = Child()
    run = begun("a")
    package = child.claim()
    lifecycle.cancel(run.pk)
    assert child.report(package).status == 409
    assert child.upload(package, article("a")).status == 409


def test_a_status_completed_after_the_report_says_nothing_new() -> None:
    child = Child()
    run = begun("a", "b", max_attempts=1)
    package = child.claim()
    child.upload(package, article("a")).good()
    child.report(
        package, {"mp_id": "a", "status": "success"}, {"mp_id": "b", "status": "failed", "error": "gone"}
    ).good()
    assert child.status(package, "completed").good()["status"] == "completed"
    assert Child("other").status(package, "completed").status == 404
    assert [row["feed"] for row in saved(run)] == ["a"]
    run.refresh_from_db()
    assert (run.saved, run.failed) == (1, 1)

"""What is computed of a run's rows when it has ended."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings

from dispatch import lifecycle
from dispatch.models import Run
from dispatch.results import decoding, reducing, saver, spool
from dispatch.results.reducing import reduce_ended
from nodes.executors.base import Column, Dataset
from nodes.executors.rows import encode, to_table
from tests.integration.factory import Child, child, fresh, save
from tests.integration.factory import saver as made_saver
from tests.integration.factory import submit as submit_echo
from tests.integration.kinds import Finds

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "kinds")]


@pytest.fixture
def store(folder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    with made_saver() as made:
        monkeypatch.setattr(saver, "_store", made.store)
        yield made


def finished(store: Any, scores: dict[str, float], node: Child | None = None) -> Run:
    node = node or child(types=["finds"])
    run = submit_echo(list(scores), type="finds")
    for work in node.works():
        rows = [[item, scores[item]] for item in work.items]
        entry = {"allocation": work.allocation, "ranges": [[work.start, work.stop, len(rows)]], "rows": rows}
        node.report({**entry, "seconds": 6.0})
    save(store)
    return run


def reduced(run: Run) -> dict[str, Any]:
    reduction = fresh(run).reduction
    assert reduction is not None
    return dict(reduction)


def test_an_ended_run_has_its_reductions_over_its_own_rows(store: Any) -> None:
    node = child(types=["finds"])
    first = finished(store, {"a": 1.0, "b": 3.0, "c": 2.0}, node)
    second = finished(store, {"a": 9.0}, node)
    assert reduce_ended() == 2
    assert reduced(first) == {
        "best": [{"item": "b", "score": 3.0}, {"item": "c", "score": 2.0}],
        "mean": [{"mean": 2.0, "items": 3}],
    }
    assert reduced(second)["best"] == [{"item": "a", "score": 9.0}]
    assert reduce_ended() == 0


def test_a_run_that_goes_on_has_none_and_one_opened_again_gets_a_new_one(store: Any) -> None:
    node = child(types=["finds"])
    run = submit_echo(["a", "b"], type="finds", max_attempts=1)
    first, second = node.works()
    node.report({"allocation": first.allocation, "ranges": [[0, 1, 1]], "rows": [["a", 1.0]], "seconds": 6.0})
    save(store)
    assert reduce_ended() == 0
    node.report({"allocation": second.allocation, "errors": [[1, "no luck", False]]})
    assert reduce_ended() == 1
    assert reduced(run)["mean"] == [{"mean": 1.0, "items": 1}]
    lifecycle.retry(run.pk)
    assert fresh(run).reduction is None
    (again,) = node.works()
    node.report({"allocation": again.allocation, "ranges": [[1, 2, 1]], "rows": [["b", 3.0]], "seconds": 6.0})
    save(store)
    reduce_ended()
    assert reduced(run)["mean"] == [{"mean": 2.0, "items": 2}]


def test_a_run_without_rows_has_empty_ones_and_a_number_that_is_none_is_null(store: Any) -> None:
    run = submit_echo(["a"], type="finds")
    lifecycle.cancel(run.pk)
    assert reduce_ended() == 1
    assert reduced(run) == {"best": [], "mean": [{"mean": None, "items": 0}]}


def test_sql_that_fails_says_so_and_the_others_are_there(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Finds, "reductions", {"wrong": "SELECT nothing FROM rows", **Finds.reductions})
    run = finished(store, {"a": 1.0})
    reduce_ended()
    reduction = reduced(run)
    assert "nothing" in reduction["wrong"]["error"]
    assert reduction["best"] == [{"item": "a", "score": 1.0}]


def test_a_json_column_that_holds_no_json_is_shown_as_the_text_it_is(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = (Column("item", "json"), Column("score", "float64"))
    monkeypatch.setattr(Finds, "dataset", Dataset("found_json", columns, ("score",)))
    monkeypatch.setattr(Finds, "reductions", {"all": "SELECT item FROM rows ORDER BY score"})
    node = child(types=["finds"])
    run = submit_echo(["a"], type="finds")
    (work,) = node.works()
    texts = ["{bad", '"\\u0000\\ud800"', '{"\\u0000": NaN}', '[1, "ä"]']
    table = to_table(Finds.dataset, [['"x"', float(at)] for at in range(len(texts))])
    # As an earlier version took it, which looked at the types of a file's columns only.
    monkeypatch.setattr(decoding, "rows", lambda path, dataset: len(texts))
    content = encode(table.set_column(0, "item", [texts]))
    segment = spool.receive([content], settings.CASCADE.spool, limit=100_000)
    entry = {"allocation": work.allocation, "ranges": [[0, 1, len(texts)]], "segment": segment.sha256, "seconds": 6.0}
    assert node.statuses(entry) == [200]
    save(store)
    assert reduce_ended() == 1
    found = [each["item"] for each in reduced(run)["all"]]
    assert found == ["{bad", "\ufffd?", {"\ufffd": None}, [1, "ä"]]


def test_a_run_that_cannot_be_reduced_does_not_keep_others_waiting(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = child(types=["finds"])
    first, second = finished(store, {"a": 1.0}, node), finished(store, {"b": 2.0}, node)
    real = reducing.reduction

    def broken(run_id: int, task_type: str) -> dict[str, Any]:
        if run_id == first.pk:
            raise OSError("no room")
        return real(run_id, task_type)

    monkeypatch.setattr(reducing, "reduction", broken)
    assert reduce_ended() == 1
    assert fresh(first).reduction is None
    assert reduced(second)["mean"] == [{"mean": 2.0, "items": 1}]


def test_a_run_that_is_opened_again_meanwhile_is_left_for_its_next_end(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = child(types=["finds"])
    run = submit_echo(["a"], type="finds", max_attempts=1)
    (work,) = node.works()
    node.report({"allocation": work.allocation, "errors": [[0, "no luck", False]]})
    real = reducing.reduction

    def reopened(run_id: int, task_type: str) -> dict[str, Any]:
        lifecycle.retry(run_id)
        return real(run_id, task_type)

    monkeypatch.setattr(reducing, "reduction", reopened)
    assert reduce_ended() == 0
    assert fresh(run).reduction is None


def test_times_are_text_and_there_are_only_so_many_rows(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reducing, "MOST_ROWS", 3)
    rows = "SELECT TIMESTAMP '2024-01-31 12:00:00' AS at, unnest(range(10)) AS n FROM rows ORDER BY n"
    monkeypatch.setattr(Finds, "reductions", {"times": rows})
    run = finished(store, {"a": 1.0})
    reduce_ended()
    assert reduced(run)["times"] == [{"at": "2024-01-31T12:00:00", "n": number} for number in range(3)]


def test_types_without_reductions_are_done_at_once(store: Any) -> None:
    run = submit_echo(1)
    lifecycle.cancel(run.pk)
    assert reduce_ended() == 0
    assert reduced(run) == {}


@pytest.mark.django_db(transaction=True)
def test_the_loop_reduces_what_a_crash_left_and_what_ends_later(store: Any) -> None:
    left = finished(store, {"a": 1.0})
    loop = reducing.Reducer()
    loop.start()
    try:
        _until(lambda: fresh(left).reduction is not None)
        later = finished(store, {"b": 2.0}, Child(left.allocations.get().node_id or 0, _caller(left)))
        _until(lambda: fresh(later).reduction is not None)
    finally:
        loop.stop()


def _caller(run: Run) -> Any:
    from nodes.keys import Caller

    node = run.allocations.get().node
    assert node is not None
    key = node.keys.get()
    return Caller(node.pk, key.pk, key.access_key)


def _until(condition: Any) -> None:
    import time

    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""What items remember from run to run, and how it went with them the last time."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch import lifecycle
from dispatch.models import ItemMemory, Receipt, Run
from nodes.executors.base import MEMORY_LIMIT
from nodes.protocol import FieldError
from tests.integration.factory import Child, Work, child, dispatch, failure
from tests.integration.factory import submit as submit_echo

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "kinds")]
FEED, OTHER = "https://a.example/feed", "https://b.example/feed"


def submit(*items: Any, **fields: Any) -> Run:
    return submit_echo(list(items), type="remembers", **fields)


def reader(name: str = "a", **fields: Any) -> Child:
    return child(name, types=["remembers"], **fields)


def told(work: Work, memory: Any = None, **more: Any) -> dict[str, Any]:
    about = {**({} if memory is None else {"memory": memory}), **more}
    return {
        "allocation": work.allocation,
        "ranges": [[work.start, work.stop, 0]],
        "seconds": 6.0,
        "outcomes": [[work.start, about]] if about else [],
    }


def memory_sent(node: Child) -> Any:
    dispatch()
    reply = node.claimed()
    (work,) = (Work(*each) for each in reply["work"])
    return work, reply.get("memory", {}).get(str(work.allocation))


def test_what_an_item_remembers_comes_with_its_next_run_on_whatever_node() -> None:
    first = reader("first")
    submit(FEED)
    work, memory = memory_sent(first)
    assert memory == {}
    first.report(told(work, {"etag": "1"}, status="ok", counts={"new": 3}))
    first.beat(leaving=True)
    second = reader("second")
    submit(FEED)
    assert memory_sent(second)[1] == {FEED: {"etag": "1"}}
    kept = ItemMemory.objects.get()
    assert (kept.type, kept.key, kept.status, kept.counts, kept.failed) == ("remembers", FEED, "ok", {"new": 3}, False)


def test_an_outcome_without_memory_leaves_it_as_it_was() -> None:
    node = reader()
    for memory in ({"etag": "1"}, None):
        submit(FEED)
        work, _ = memory_sent(node)
        node.report(told(work, memory, status="unchanged"))
    kept = ItemMemory.objects.get()
    assert (kept.memory, kept.status) == ({"etag": "1"}, "unchanged")


@pytest.mark.parametrize("whole", [True, False])
def test_a_failure_is_told_and_forgets_nothing(whole: bool) -> None:
    node = reader()
    submit(FEED)
    work, _ = memory_sent(node)
    node.report(told(work, {"etag": "1"}))
    good = ItemMemory.objects.get().succeeded_at
    run = submit(FEED, max_attempts=1)
    work, _ = memory_sent(node)
    errors = {"allocation": work.allocation, "ranges": [], "errors": [[work.start, "gone: 410", False]]}
    node.report(failure(work, "timeout", "gone: 410") if whole else errors)
    kept = ItemMemory.objects.get()
    assert (kept.failed, kept.status, kept.memory, kept.run_id) == (True, "gone: 410", {"etag": "1"}, run.pk)
    assert kept.succeeded_at == good
    submit(FEED)
    work, memory = memory_sent(node)
    assert memory == {FEED: {"etag": "1"}}
    node.report(told(work))
    assert not ItemMemory.objects.get().failed


def test_a_late_report_is_not_remembered() -> None:
    node = reader()
    submit(FEED)
    work, _ = memory_sent(node)
    node.release(work.allocation)
    assert node.statuses(told(work, {"etag": "late"})) == [409]
    assert not ItemMemory.objects.exists()


def test_each_item_of_a_shard_has_its_own_memory() -> None:
    node = reader()
    submit(FEED, OTHER, shard_size=2)
    (work,) = node.works()
    entry = told(work)
    entry["outcomes"] = [[0, {"memory": {"n": 0}}], [1, {"memory": {"n": 1}}]]
    node.report(entry)
    submit(OTHER, FEED, shard_size=2)
    assert memory_sent(node)[1] == {FEED: {"n": 0}, OTHER: {"n": 1}}


def test_what_was_lost_before_it_was_saved_is_not_thought_to_be_known() -> None:
    node = reader()
    submit(FEED)
    work, _ = memory_sent(node)
    node.report(told(work, {"etag": "1"}))
    lifecycle.damaged(Receipt.objects.get(), "a flipped bit")
    # Saved rows may stay known; these were not saved.
    assert ItemMemory.objects.get().memory in ({}, {"etag": "1"})
    ItemMemory.objects.update(memory={"etag": "1"})
    receipt = Receipt.objects.get()
    Receipt.objects.update(saved_at=None)
    lifecycle.damaged(receipt, "a flipped bit")
    assert ItemMemory.objects.get().memory == {}


def test_the_last_memory_is_the_one_that_comes_next() -> None:
    node = reader()
    for etag in ("1", "2"):
        submit(FEED)
        work, _ = memory_sent(node)
        node.report(told(work, {"etag": etag}))
    submit(FEED)
    assert memory_sent(node)[1] == {FEED: {"etag": "2"}}


def test_an_item_of_that_key_of_another_type_has_a_memory_of_its_own() -> None:
    ItemMemory.objects.create(type="another", key=FEED, memory={"etag": "another's"})
    submit(FEED)
    work, memory = memory_sent(node := reader())
    assert memory == {}
    node.report(told(work, {"etag": "1"}))
    assert ItemMemory.objects.get(type="another").memory == {"etag": "another's"}


def test_only_what_was_lost_is_forgotten() -> None:
    node = reader()
    submit(FEED, OTHER)
    for work in node.works():
        node.report(told(work, {"n": work.start}))
    Receipt.objects.update(saved_at=None)
    lifecycle.damaged(Receipt.objects.earliest("pk"), "a flipped bit")
    assert dict(ItemMemory.objects.values_list("key", "memory")) == {FEED: {}, OTHER: {"n": 1}}


def test_a_status_is_there_and_fits_its_column() -> None:
    node = reader()
    submit(FEED, OTHER, max_attempts=1)
    first, second = node.works()
    node.report(told(first), {"allocation": second.allocation, "ranges": [], "errors": [[1, "x" * 3000, False]]})
    assert ItemMemory.objects.get(key=FEED).status == "ok"
    assert ItemMemory.objects.get(key=OTHER).status == "x" * 200


@pytest.mark.parametrize("memory", [{"big": "x" * MEMORY_LIMIT}, {"nul": "\x00"}, "text", [1]])
def test_a_memory_that_cannot_be_kept_is_refused(memory: Any) -> None:
    node = reader()
    submit(FEED)
    work, _ = memory_sent(node)
    with pytest.raises(FieldError, match="memory"):
        node.report(told(work, memory))


def test_other_types_remember_nothing() -> None:
    node = child()
    submit_echo(1)
    assert "memory" not in (dispatch(), node.claimed())[1]

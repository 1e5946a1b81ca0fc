"""Items that a run gets while it goes on: found by its items, each once, with the report that found them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from django.db import transaction

from dispatch import lifecycle
from dispatch.lifecycle import found as found_items
from dispatch.lifecycle.kept import frozen
from dispatch.models import ItemsPart, Run, SeenItem
from dispatch.states import RunState
from nodes.messages import Entry, ItemOutcome
from nodes.protocol import FieldError
from tests.integration.factory import Child, Work, assert_partition, at_once, child, dispatch, fresh, save, saver, state
from tests.integration.factory import submit as submit_echo

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folder", "kinds")]


def submit(*items: Any, **fields: Any) -> Run:
    return submit_echo(list(items), type="finds", **fields)


def finder(name: str = "a", capacity: int = 4) -> Child:
    return child(name, capacity, types=["finds", "planned"])


def found(work: Work, *items: Any, rows: bool = True) -> dict[str, Any]:
    """A report that its first item found ``items``."""
    length = work.stop - work.start
    return {
        "allocation": work.allocation,
        "ranges": [[work.start, work.stop, length if rows else 0]],
        "rows": [[str(item), 1.0] for item in work.items] if rows else [],
        "seconds": 6.0,
        "outcomes": [[work.start, {"found": list(items)}]],
    }


def items_of(run: Run) -> list[Any]:
    frozen.cache_clear()
    return frozen(run.pk).all()


def test_what_an_accepted_report_found_is_run_as_further_items_of_the_run() -> None:
    node = finder()
    run = submit("a")
    (work,) = node.works()
    assert node.statuses(found(work, "b", {"key": "c", "deep": 1})) == [200]
    assert fresh(run).count == 3
    assert_partition(run)
    assert [each.items for each in node.works()] == [["b"], [{"key": "c", "deep": 1}]]


def test_a_run_ends_when_what_was_found_has_ended_and_not_before() -> None:
    node = finder()
    run = submit("a")
    with saver() as made:
        (work,) = node.works()
        node.report(found(work, "b"))
        save(made)
        assert state(run) == RunState.RUNNING
        (work,) = node.works()
        node.report(found(work))
        save(made)
    assert state(run) == RunState.COMPLETED
    assert_partition(run)


def test_an_item_is_found_once_whoever_finds_it_and_how_often() -> None:
    node = finder()
    run = submit("a", "b")
    first, second = node.works()
    node.report(found(first, "b", "a", "x", "x"), found(second, "x", "y"))
    assert items_of(run) == ["a", "b", "x", "y"]
    for work in node.works():
        node.report(found(work, "a", "y", "b", "x"))
    assert fresh(run).count == 4
    assert SeenItem.objects.filter(run=run).count() == 4


def test_a_repeated_report_adds_nothing_and_has_the_same_receipt() -> None:
    node = finder()
    run = submit("a")
    (work,) = node.works()
    first = node.report(found(work, "b"))[0]
    again = node.report(found(work, "b"))[0]
    assert again["receipt"] == first["receipt"]
    assert again["repeated"]
    assert fresh(run).count == 2
    # Other finds are another content.
    assert node.statuses(found(work, "c")) == [422]


def test_a_report_after_its_lease_was_lost_finds_nothing() -> None:
    node = finder()
    run = submit("a")
    (work,) = node.works()
    node.release(work.allocation)
    assert node.statuses(found(work, "b")) == [409]
    assert fresh(run).count == 1
    assert not ItemsPart.objects.exists()


def test_no_more_items_than_the_params_allow() -> None:
    node = finder()
    run = submit("a", params={"most": 3})
    (work,) = node.works()
    node.report(found(work, "b", "c", "d", "e"))
    assert items_of(run) == ["a", "b", "c"]


def test_no_more_items_than_the_server_allows(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"max_items": 2})
    node = finder()
    run = submit("a")
    (work,) = node.works()
    node.report(found(work, "b", "c"))
    assert fresh(run).count == 2


@pytest.mark.parametrize("item", [None, True, "", [1], {"key": ""}, "x" * 300, "nul\x00"])
def test_what_cannot_be_an_item_is_refused_with_its_place(item: Any) -> None:
    node = finder()
    run = submit("a")
    (work,) = node.works()
    (result,) = node.report(found(work, "good", item))
    assert result["status"] == 422
    assert "found[1]" in result["detail"]
    assert fresh(run).count == 1


def test_items_of_a_type_that_does_not_grow_find_nothing() -> None:
    node = child()
    run = submit_echo(1)
    (work,) = node.works()
    entry = {**found(work, "b"), "rows": [["i0", 0, "i0:0"]]}
    assert node.statuses(entry) == [422]
    assert fresh(run).count == 1


def test_outcomes_are_about_items_of_the_ranges() -> None:
    node = finder()
    submit("a")
    (work,) = node.works()
    with pytest.raises(FieldError, match="outcomes"):
        node.report({**found(work), "outcomes": [[work.stop, {"found": ["b"]}]]})
    with pytest.raises(FieldError, match="outcomes"):
        node.report({**found(work), "outcomes": [[work.start, {}], [work.start, {}]]})


def test_a_cancelled_run_does_not_grow() -> None:
    node = finder()
    run = submit("a", "b")
    first, _second = node.works()
    lifecycle.cancel(run.pk)
    assert node.statuses(found(first, "c")) == [409]
    assert state(run) == RunState.CANCELLED
    assert_partition(run)


def test_what_a_transaction_added_that_came_to_nothing_is_not_remembered() -> None:
    node = finder()
    run = submit("a")
    (work,) = node.works()
    node.report(found(work, "b"))
    frozen.cache_clear()

    def take(*items: Any) -> int:
        return found_items.take("finds", run.pk, [Entry(1, outcomes=(ItemOutcome(0, items),))])

    with transaction.atomic():
        assert take("never") == 1
        # As the same report's failures are looked up.
        assert frozen(run.pk).slice(1, 2) == ["b"]
        transaction.set_rollback(True)
    with transaction.atomic():
        assert take("c") == 1
    assert frozen(run.pk).slice(0, 3) == ["a", "b", "c"]


def test_thousands_that_are_found_again_are_added_once() -> None:
    node = finder()
    run = submit("a", "b", params={"most": 5000})
    first, second = node.works()
    names = [f"n{number}" for number in range(1200)]
    node.report(found(first, *names))
    node.report(found(second, *names, "last"))
    assert items_of(run) == ["a", "b", *names, "last"]


def test_a_run_that_began_with_more_items_than_its_params_allow_gets_no_others() -> None:
    node = finder()
    run = submit("a", "b", "c", "d", "e", params={"most": 3})
    node.report(found(node.works()[0], "x", "y", "z"))
    assert fresh(run).count == 5


def test_many_additions_are_read_back_in_order_across_their_borders() -> None:
    node = finder(capacity=40)
    run = submit("root", params={"most": 1000})
    wanted = ["root"]
    for round_ in range(4):
        for work in node.works():
            names = [f"{round_}.{work.start}.{number}" for number in range(3)]
            node.report(found(work, *names))
            wanted += names
    assert items_of(run) == wanted
    known = frozen(run.pk)
    for start in range(0, len(wanted), 7):
        for stop in range(start, len(wanted) + 1, 5):
            assert known.slice(start, stop) == wanted[start:stop]


# Runs that the parent itself adds to


def planned() -> Run:
    return submit_echo([], type="planned")


def test_a_planned_run_begins_without_items_and_stays_open_until_the_last_is_added() -> None:
    node = finder()
    run = planned()
    assert (run.count, run.expected, run.growing) == (2, 6, True)
    with saver() as made:
        for work in node.works():
            node.report(found(work))
        save(made)
        assert state(run) == RunState.RUNNING
        assert lifecycle.append(run.pk, 2, ["t2", "t3"], last=False)
        for work in node.works():
            node.report(found(work))
        save(made)
        assert state(run) == RunState.RUNNING
        assert lifecycle.append(run.pk, 4, [], last=True)
    assert state(run) == RunState.COMPLETED
    assert fresh(run).count == 4
    assert_partition(run)


def test_what_cannot_be_an_item_is_not_added_and_nothing_after_the_last() -> None:
    run = planned()
    with pytest.raises(FieldError, match=r"items\[1\]"):
        lifecycle.append(run.pk, 2, ["t2", None], last=False)  # type: ignore[list-item]
    assert fresh(run).count == 2
    assert lifecycle.append(run.pk, 2, ["t2"], last=True)
    assert state(run) == RunState.RUNNING
    assert not lifecycle.append(run.pk, 3, ["t3"], last=False)
    assert items_of(run) == ["t0", "t1", "t2"]


def test_additions_are_numbered_so_that_two_who_plan_do_not_both_add() -> None:
    run = planned()
    assert lifecycle.append(run.pk, 2, ["t2"], last=False)
    assert not lifecycle.append(run.pk, 2, ["t2 again"], last=False)
    assert items_of(run) == ["t0", "t1", "t2"]
    lifecycle.cancel(run.pk)
    assert not lifecycle.append(run.pk, 3, ["t3"], last=False)


@pytest.mark.django_db(transaction=True)
def test_two_who_find_the_same_at_once_add_it_once() -> None:
    nodes = [finder("a", 1), finder("b", 1)]
    run = submit("x", "y")
    dispatch()
    works = [node.claim()[0] for node in nodes]
    names = [f"n{number}" for number in range(30)]
    entries = [found(work, *names) for work in works]
    results = at_once(*(partial(node.statuses, entry) for node, entry in zip(nodes, entries, strict=True)))
    assert results == [[200], [200]]
    assert sorted(items_of(run)) == sorted(["x", "y", *names])

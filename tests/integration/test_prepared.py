"""Queries whose text is made once say what the ORM's say, on either database."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.db.models import F, IntegerField, Q, QuerySet, Sum
from django.utils import timezone

from dispatch.models import Allocation, Run
from dispatch.states import LIVE, RunState
from nodes.models import Node
from nodes.prepared import Change, Given, Prepared
from tests.integration.factory import child, dispatch, submit

pytestmark = pytest.mark.django_db

NOW = dt.datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=dt.UTC)


def test_rows_are_those_of_the_orm_with_the_same_types() -> None:
    child("a", labels={"zone": "eu"})
    columns = ("pk", "name", "labels", "active", "last_beat_at", "speeds", "weight")
    asked = Prepared(lambda: Node.objects.filter(name=Given("name")).values_list(*columns))
    expected = list(Node.objects.values_list(*columns))
    assert asked.rows(name="a") == expected
    assert [type(each) for each in asked.rows(name="a")[0]] == [type(each) for each in expected[0]]
    assert asked.rows(name="b") == []
    assert asked.any(name="a")
    assert not asked.any(name="b")


def test_objects_are_whole_or_without_what_is_deferred() -> None:
    run = submit(3, labels={"zone": "eu"})
    (whole,) = Prepared(lambda: Run.objects.filter(pk=Given("run"))).objects(run=run.pk)
    plain = Run.objects.get(pk=run.pk)
    assert {**vars(whole), "_state": None} == {**vars(plain), "_state": None}
    assert not whole._state.adding
    (part,) = Prepared(lambda: Run.objects.defer("items", "params").filter(pk=Given("run"))).objects(run=run.pk)
    assert part.get_deferred_fields() == {"items", "params"}
    assert bytes(part.items) == bytes(plain.items)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, lambda some: dict.fromkeys(some).keys()])
def test_any_of_a_list_is_one_parameter_of_numbers_or_texts(kind: type) -> None:
    names = [f"n{number}" for number in range(4)]
    ids = {name: child(name).caller.node_id for name in names}
    by_name = Prepared(lambda: Node.objects.filter(name__among=Given("names")).order_by("name").values_list("name"))
    by_id = Prepared(lambda: Node.objects.filter(pk__among=Given("ids")).order_by("name").values_list("name"))
    assert by_name.rows(names=kind(["n1", "n3", "gone"])) == [("n1",), ("n3",)]
    assert by_id.rows(ids=kind([ids["n0"], ids["n2"]])) == [("n0",), ("n2",)]
    assert by_id.rows(ids=kind([])) == []
    # Beyond what a statement may have of parameters.
    assert len(by_id.rows(ids=kind([*range(10**6, 10**6 + 70_000), *ids.values()]))) == 4


def test_relations_sums_and_members_of_enumerations() -> None:
    mine = child(capacity=3)
    run = submit(3)
    dispatch()
    asked = Prepared(
        lambda: (
            Allocation.objects.filter(run__among=Given("runs"), node=Given("node"), state__in=LIVE)
            .order_by()
            .values_list("run", "type")
            .annotate(all_slots=Sum("slots"))
        )
    )
    assert asked.rows(runs=[run.pk], node=mine.caller.node_id) == [(run.pk, "echo", 3)]
    assert asked.rows(runs=[run.pk], node=0) == []


def test_times_are_compared_and_written_as_they_are() -> None:
    node = Node.objects.get(pk=child().caller.node_id)
    seen = Change(lambda: Node.objects.filter(pk=Given("node")), last_beat_at=Given("now"))
    assert seen.run(node=node.pk, now=NOW) == 1
    node.refresh_from_db()
    assert node.last_beat_at == NOW
    late = Prepared(lambda: Node.objects.filter(Q(last_beat_at__lt=Given("now"))).values_list("last_beat_at"))
    assert late.rows(now=NOW) == []
    assert late.rows(now=NOW + dt.timedelta(microseconds=1)) == [(NOW,)]
    assert seen.run(node=node.pk, now=None) == 1
    node.refresh_from_db()
    assert node.last_beat_at is None


def test_a_change_counts_what_it_changed_and_may_count_with_what_was_there() -> None:
    run = submit(3)
    count = Change(
        lambda: Run.objects.filter(pk=Given("run"), state=RunState.RUNNING),
        rows=F("rows") + Given("more", IntegerField()),
        state=Given("state"),
        ended_at=Given("now"),
    )
    assert count.run(run=run.pk, more=5, state=str(RunState.COMPLETED), now=timezone.now()) == 1
    assert count.run(run=run.pk, more=5, state=str(RunState.COMPLETED), now=timezone.now()) == 0
    run.refresh_from_db()
    assert (run.rows, run.state) == (5, RunState.COMPLETED)


def test_the_text_is_made_once() -> None:
    made = []

    def make() -> QuerySet[Node, Any]:
        made.append(1)
        return Node.objects.filter(pk=Given("node"))

    asked = Prepared(make)
    for _ in range(3):
        asked.objects(node=1)
    assert len(made) == 1

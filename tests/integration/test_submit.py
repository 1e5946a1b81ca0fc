"""Submit: what is frozen, what is refused with which field, and one run per idempotency key."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from dispatch import lifecycle
from dispatch.items import Frozen
from dispatch.models import Run, Shard
from dispatch.states import RunState
from nodes import messages
from nodes.protocol import FieldError, Unprocessable
from tests.integration.factory import assert_partition, at_once, fresh, submit

pytestmark = pytest.mark.django_db

PARAMS = {"source": "sample", "start_date": "2001-01-01"}


def test_a_run_keeps_its_items_in_order_and_has_cut_nothing_yet() -> None:
    items: list[Any] = ["b", "a", 7, 1.5, {"key": "c", "n": 1}]
    run = fresh(submit(items, name="five"))
    assert Frozen(bytes(run.items)).all() == items
    assert (run.count, run.cut, run.state, run.name) == (5, 0, RunState.RUNNING, "five")
    assert not Shard.objects.filter(run=run).exists()
    assert_partition(run)


def test_a_run_keeps_what_it_was_asked_with() -> None:
    asked = {
        "priority": 9,
        "timeout": 12.5,
        "max_attempts": 7,
        "backoff": 0.25,
        "shard_size": 3,
        "balancer": "round_robin",
        "labels": {"zone": "eu"},
        "submitted_by": "alice",
    }
    run = fresh(submit(["a"], params={"rows": "2"}, **asked))
    assert {name: getattr(run, name) for name in asked} == asked
    assert run.params["rows"] == 2


def test_a_split_expands_the_items_before_they_are_frozen() -> None:
    params = {"source": "sample", "start_date": "2001-03-01", "end_date": "2003-02-01"}
    run = submit(["AAPL"], type="data_import", params=params, split="year")
    items = Frozen(bytes(fresh(run).items)).all()
    assert run.count == len(items) == 3
    assert {item["symbol"] for item in items if isinstance(item, dict)} == {"AAPL"}


def test_a_hundred_thousand_items_are_one_row() -> None:
    run = submit(100_000)
    assert run.count == 100_000
    assert Run.objects.count() == 1
    assert not Shard.objects.exists()


BAD: list[tuple[str, dict[str, Any]]] = [
    ("type", {"type": "dance"}),
    ("items", {"items": []}),
    ("items", {"items": "AAPL"}),
    ("items", {"items": {"a": 1}}),
    ("items", {"items": None}),
    ("items[1]", {"items": ["a", None]}),
    ("items[0]", {"items": [True]}),
    ("items[0]", {"items": [["a"]]}),
    ("items[0]", {"items": [""]}),
    ("items[0]", {"items": [{}]}),
    ("items[0]", {"items": [float("nan")]}),
    ("items[0]", {"items": [{"a": float("inf")}]}),
    ("items[2]", {"items": ["a", "b", "a\x00b"]}),
    ("items[0]", {"items": ["\ud800"]}),
    ("items[0]", {"items": [{"key": "a", "b": "\x00"}]}),
    ("items[0]", {"items": ["x" * 201]}),
    ("items[0]", {"items": [{"key": "a", "b": "x" * 10_001}]}),
    ("items[0]", {"items": [10**400]}),
    ("params.rows", {"params": {"rows": "many"}}),
    ("params.rows", {"params": {"rows": -1}}),
    ("params.colour", {"params": {"colour": "red"}}),
    ("params", {"params": ["rows"]}),
    ("split", {"split": "year"}),
    ("name", {"name": "x" * 201}),
    ("name", {"name": "a\x00"}),
    ("priority", {"priority": 0}),
    ("priority", {"priority": 11}),
    ("priority", {"priority": 5.0}),
    ("priority", {"priority": True}),
    ("priority", {"priority": 10**400}),
    ("timeout", {"timeout": 0}),
    ("timeout", {"timeout": "5"}),
    ("timeout", {"timeout": float("nan")}),
    ("timeout", {"timeout": float("inf")}),
    ("timeout", {"timeout": 10**400}),
    ("timeout", {"timeout": 7 * 86_400 + 1}),
    ("max_attempts", {"max_attempts": 0}),
    ("max_attempts", {"max_attempts": 101}),
    ("backoff", {"backoff": -0.1}),
    ("shard_size", {"shard_size": -1}),
    ("shard_size", {"shard_size": 1.5}),
    # A report could not name each of its items.
    ("shard_size", {"shard_size": messages.IDS_LIMIT + 1}),
    ("balancer", {"balancer": "fastest"}),
    ("balancer", {"balancer": 5}),
    ("labels.zone", {"labels": {"zone": 1}}),
    ("labels", {"labels": {"z\x00": "eu"}}),
    ("labels", {"labels": ["zone"]}),
    ("Idempotency-Key", {"idempotency_key": "k" * 161}),
    ("Idempotency-Key", {"idempotency_key": "k\x00"}),
]


@pytest.mark.parametrize(("field", "given"), BAD, ids=lambda value: repr(value)[:50])
def test_what_could_never_be_run_is_refused_with_its_field(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(FieldError) as raised:
        lifecycle.submit(**{"type": "echo", "items": ["a"], **given})
    assert raised.value.field == field
    assert raised.value.message
    assert not Run.objects.exists()


def test_items_of_the_wrong_kind_for_their_type_are_refused_by_number() -> None:
    with pytest.raises(FieldError) as raised:
        lifecycle.submit(type="data_import", items=["AAPL", {"colour": "red"}], params=PARAMS)
    assert raised.value.field == "items[1]"


def test_more_items_than_allowed_are_refused(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"max_items": 3})
    submit(3)
    with pytest.raises(FieldError, match="4 items; at most 3"):
        submit(4)


OWN = "tests.unit.test_balancers.backwards"


@pytest.mark.parametrize("path", ["builtins.len", "os.path.join", "unittest.__main__.x", OWN])
def test_only_balancers_that_are_allowed_by_name_are_taken(path: str) -> None:
    with pytest.raises(FieldError) as raised:
        submit(["a"], balancer=path)
    assert raised.value.field == "balancer"


def test_a_balancer_on_the_list_is_taken(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"balancers": [OWN]})
    assert fresh(submit(["a"], balancer=OWN)).balancer == OWN


def test_the_same_submission_with_the_same_key_is_the_same_run() -> None:
    first = submit(["a"], idempotency_key="k")
    assert submit(["a"], idempotency_key="k").pk == first.pk
    assert submit(["a"], idempotency_key="other").pk != first.pk
    assert submit(["a"]).pk != first.pk
    assert Run.objects.count() == 3


@pytest.mark.parametrize("change", [{"items": ["b"]}, {"priority": 6}, {"params": {"rows": 2}}, {"labels": {"a": "b"}}])
def test_a_key_used_for_something_else_is_refused(change: dict[str, Any]) -> None:
    run = submit(["a"], idempotency_key="k")
    with pytest.raises(Unprocessable, match=f"run {run.pk}"):
        submit(**{"items": ["a"], "idempotency_key": "k", **change})
    assert Run.objects.count() == 1


def test_a_key_that_begins_like_another_is_another() -> None:
    assert submit(["a"], idempotency_key="k").pk != submit(["b"], idempotency_key="k:1").pk
    assert submit(["c"], idempotency_key="%").pk != submit(["d"], idempotency_key="_").pk


@pytest.mark.django_db(transaction=True)
def test_submissions_that_race_with_one_key_make_one_run() -> None:
    for number in range(10):
        runs = at_once(*[partial(submit, ["a"], idempotency_key=f"k{number}")] * 4)
        assert len({run.pk for run in runs}) == 1
    assert Run.objects.count() == 10

"""What-if equals what then happens: the change is made for real, the pass is made, and the allocations are compared one
by one. Asking writes nothing, anywhere."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatch import buckets, events, queue, rated, whatif
from dispatch.explaining import supposed
from dispatch.lifecycle import kept
from dispatch.models import Allocation, RateLimit, Run, Shard
from dispatch.whatif import Changes, NewNode, NodeChange, suppose
from nodes import registry
from nodes.fields import parse_quota
from nodes.models import Node
from nodes.protocol import CascadeError, Conflict, FieldError
from tests.integration.factory import Child, Clock, child, dispatch, done, failure, partly, submit
from tests.integration.native import Api
from tests.stateful.lengths import PHASES

pytestmark = pytest.mark.django_db

Given = tuple[str, int, int, int, int, int, str]
"""(node, run, start, stop, attempt, slots, reason)"""


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that moves when it is told to only: tokens and back-offs depend on it."""
    clock, began = Clock(monkeypatch), timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: began + clock.ahead)
    return clock


def foreseen(changes: Changes) -> list[Given]:
    answer = suppose(changes)
    assert answer.complete
    return [
        (
            answer.names[made.node],
            made.run,
            made.piece.start,
            made.piece.stop,
            made.piece.attempt,
            made.slots,
            made.reason[:300],
        )
        for made in answer.plan.grants
    ]


def happened(changes: Changes) -> list[Given]:
    """What a pass gives out after ``changes`` were made for real."""
    before = Allocation.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    make(changes)
    dispatch()
    made = Allocation.objects.filter(pk__gt=before).order_by("pk")
    return list(made.values_list("node__name", "run", "start", "stop", "attempt", "slots", "reason"))


def make(changes: Changes) -> None:
    for change in changes.nodes:
        registry.update_node(registry.find_node(change.node).pk, quotas=change.quotas, **change.fields)
    for new in changes.add:
        node, _ = registry.add_node(new.name, capacity=new.capacity, quotas=new.quotas, **new.fields)
        registry.record_beat(node.pk, at=timezone.now(), boot="b1", executors=list(new.types or ()))
    for run, priority in changes.priorities.items():
        # No verb changes it yet; a pass reads it from here.
        Run.objects.filter(pk=run).update(priority=priority)
    for key, said in changes.rates.items():
        limit = RateLimit.objects.filter(key=key).first()
        if said is None:
            assert limit is not None
            buckets.remove_limit(limit.pk)
        elif limit is None:
            buckets.set_limit(key, *said)
        else:
            buckets.change_limit(limit.pk, per_second=said[0], burst=said[1])


def test_more_capacity_gives_out_what_it_was_said_to(still: Clock) -> None:
    child("a", 2)
    child("b", 1, "echo=1/1")
    runs = [submit(4), submit(3, priority=8)]
    dispatch()
    change = Changes(nodes=[NodeChange("a", {"capacity": 4}), NodeChange("b", quotas=[parse_quota("echo=1")])])
    said = foreseen(change)
    assert [(node, run) for node, run, *_ in said] == [("a", runs[0].pk), ("a", runs[0].pk)]
    assert happened(change) == said


def test_what_would_start_and_what_would_still_wait_is_told_with_the_limits(still: Clock) -> None:
    child("a", 2, "echo=1/1")
    child("b", 2, labels={"region": "us"})
    first, second = submit(4, labels={"region": "eu"}), submit(9)
    dispatch()
    changes = Changes(
        nodes=[NodeChange("a", {"labels": {"region": "eu"}}), NodeChange("b", {"draining": True})],
        add=[NewNode("new", 1, types=["echo"])],
        priorities={second.pk: 9},
    )
    told = supposed.told(suppose(changes))
    assert [(each["what"], each["field"], each["then"]) for each in told["changes"]] == [
        ("node a", "labels", {"region": "eu"}),
        ("node b", "draining", True),
        ("node new", "added", "capacity 1"),
        (f"run {second.pk}", "priority", 9),
    ]
    assert [(made["run"], made["node"], made["by"]) for made in told["grants"]] == [(second.pk, "new", "free")]
    assert (told["before"]["shards"], told["after"]["shards"]) == (0, 1)
    nodes = {row["node"]: row for row in told["nodes"]}
    assert nodes["new"]["before"] is None
    assert nodes["new"]["after"]["gets"] == {"shards": 1, "items": 1, "slots": 1}
    assert nodes["b"]["after"]["state"] == "draining"
    assert [(each["run"], each["position"]) for each in told["waiting"]] == [(second.pk, 1), (first.pk, 2)]
    assert told["waiting"][0]["waits_for"] == (
        "no free slot: 1 of 1 in use on 1 node; quota limit 1 of 1 for echo: 1 node"
    )
    assert told["waiting"][1]["waits_for"] == "quota limit 1 of 1 for echo: 1 node"
    texts = [each["text"] for each in told["waiting"][1]["reasons"]]
    assert texts == ["quota limit 1 of 1 for echo: 1 node", "label region=eu: 1 node", "draining: 1 node"]


def test_quotas_that_are_changed_hold_and_those_that_are_not_named_are_gone(still: Clock) -> None:
    child("a", 6, "echo=0/1", "echo[i4]=0/0")
    child("b", 6, "echo=6")
    submit(9)
    dispatch()
    registry.drain(registry.find_node("b").pk)
    submit(["i4", "z", "z", "z", "z"])
    change = Changes(nodes=[NodeChange("a", quotas=[parse_quota("echo=2/4")])])
    said = foreseen(change)
    assert [reason.partition(":")[0] for *_, reason in said] == [
        "quota 2 of 2 for echo",
        "free capacity",
        "free capacity",
    ]
    assert happened(change) == said


def test_a_shard_that_is_put_off_stays_so_whatever_the_rate_becomes(still: Clock) -> None:
    buckets.set_limit("i*", 0.5, 1)
    child("a", 9)
    submit(["i1", "i1", "i2", "i1", "i3"], rate_key="{item}", shard_size=1)
    dispatch()
    assert Shard.objects.filter(state="pending", not_before__gt=timezone.now()).count() == 2
    unlimited, change = Changes(rates={"i*": None}), Changes(rates={"i*": (50.0, 9)})
    for each in (unlimited, change):
        with transaction.atomic():
            assert foreseen(each) == []
            assert happened(each) == []
            transaction.set_rollback(True)
    still.forward(20)
    Node.objects.update(last_beat_at=timezone.now())
    said = foreseen(change)
    # The bucket was filled at the old rate until now, and holds no more than the old burst.
    assert len(said) == 1
    assert happened(change) == said


def test_a_rate_that_is_changed_lets_through_what_it_was_said_to(still: Clock) -> None:
    buckets.set_limit("feeds", 1.0, 2)
    child("a", 20)
    submit(30, rate_key="feeds")
    dispatch()
    still.forward(3.5)
    Node.objects.update(last_beat_at=timezone.now())
    for change in (
        Changes(rates={"feeds": (4.0, 9)}),
        Changes(rates={"feeds": None}),
        Changes(rates={"feeds": (0.001, 1)}),
    ):
        with transaction.atomic():
            said = foreseen(change)
            assert happened(change) == said
            transaction.set_rollback(True)


@contextmanager
def undone() -> Iterator[None]:
    """What happens inside did not; nor is any of it remembered, as numbers come again."""
    with transaction.atomic():
        try:
            yield
        finally:
            transaction.set_rollback(True)
            for read_once in (kept.about, kept.beyond, kept.remembered, kept.frozen):
                read_once.cache_clear()
            rated._live.clear()


QUOTAS = st.lists(
    st.sampled_from(("echo=1", "echo=0/1", "echo=1/2", "echo[i1]=1", "echo[i2]=0/0", "data_import=1")),
    max_size=2,
    unique_by=lambda text: text.partition("=")[0],
)
LABELS = st.sampled_from(({}, {}, {"region": "eu"}, {"region": "us"}))
NODE: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "capacity": st.integers(1, 4),
        "quotas": QUOTAS,
        "labels": LABELS,
        "types": st.sampled_from((["echo"], ["echo", "data_import"])),
    }
)
RUN: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "items": st.integers(1, 8),
        "priority": st.integers(4, 6),
        "labels": LABELS,
        "shard_size": st.integers(0, 3),
        "rate_key": st.sampled_from(("", "", "", "r", "{item}")),
        "balancer": st.sampled_from(("most_free", "round_robin", "earliest_finish", "least_tasks")),
        "backoff": st.sampled_from((0.0, 30.0)),
    }
)
CHANGE: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"capacity": st.integers(1, 6)}),
    st.fixed_dictionaries({"quotas": QUOTAS}),
    st.fixed_dictionaries({"quotas": QUOTAS, "capacity": st.integers(3, 6)}),
    st.fixed_dictionaries({"labels": LABELS}),
    st.fixed_dictionaries({"draining": st.booleans()}),
    st.fixed_dictionaries({"active": st.booleans(), "weight": st.sampled_from((0.5, 2.0))}),
)
RATE = st.none() | st.tuples(st.sampled_from((0.5, 2.0, 50.0)), st.integers(1, 6))


@settings(
    max_examples=100,
    phases=PHASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_whatever_is_supposed_happens_when_it_is_made_true(data: st.DataObject, still: Clock) -> None:
    with undone():
        buckets.set_limit("r", 2.0, 3)
        buckets.set_limit("i*", 1.0, 1)
        children = [_node(f"n{at}", **said) for at, said in enumerate(data.draw(st.lists(NODE, max_size=4)))]
        runs = [submit(said.pop("items"), **said) for said in data.draw(st.lists(RUN, min_size=1, max_size=4))]
        _work(data, children, still)
        changes = data.draw(_changes(len(children), [run.pk for run in runs]))
        try:
            said = foreseen(changes)
        except CascadeError as error:
            with pytest.raises(type(error)):
                make(changes)
            return
        assert happened(changes) == said


def _node(name: str, *, capacity: int, quotas: list[str], **said: Any) -> Child:
    return child(name, capacity, *(text for text in quotas if _fits(text, capacity)), **said)


def _fits(text: str, capacity: int) -> bool:
    return parse_quota(text).slots <= capacity


def _work(data: st.DataObject, children: list[Child], still: Clock) -> None:
    """Some passes, some of whose work ends, one way or another."""
    for _ in range(data.draw(st.integers(0, 2))):
        dispatch()
        for each in children:
            for work in each.claim():
                how = data.draw(st.sampled_from(("held", "held", "done", "partly", "crash", "released")))
                if how == "done":
                    each.report({**done(work), "seconds": data.draw(st.sampled_from((0.1, 6.0)))})
                elif how == "partly":
                    each.report(partly(work, work.start, retry=True))
                elif how == "crash":
                    each.report(failure(work))
                elif how == "released":
                    each.release(work.allocation)
        still.forward(data.draw(st.sampled_from((0.0, 0.6, 2.0))))
        for each in children:
            each.beat()


@st.composite
def _changes(draw: st.DrawFn, nodes: int, runs: list[int]) -> Changes:
    names = draw(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=3, unique=True)) if nodes else []
    changed = []
    for number in names:
        said = draw(CHANGE)
        quotas = said.pop("quotas", None)
        specs = None if quotas is None else [parse_quota(text) for text in quotas]
        changed.append(NodeChange(f"n{number}", said, specs))
    add = [
        NewNode(f"new{at}", said["capacity"], said["types"], _specs(said), {"labels": said["labels"]})
        for at, said in enumerate(draw(st.lists(NODE, max_size=2)))
    ]
    priorities = draw(st.dictionaries(st.sampled_from(runs), st.integers(1, 10), max_size=2))
    rates = draw(st.dictionaries(st.sampled_from(("r", "i1", "i*")), RATE, max_size=2))
    # One that is not there cannot be taken away.
    return Changes(changed, add, priorities, {key: rate for key, rate in rates.items() if rate or key != "i1"})


def _specs(said: dict[str, Any]) -> list[Any]:
    return [parse_quota(text) for text in said["quotas"] if _fits(text, said["capacity"])]


def everything() -> dict[str, list[Any]]:
    """All rows of all tables."""
    return {model._meta.label: list(model._base_manager.order_by("pk").values()) for model in apps.get_models()}


def test_asking_writes_nothing_anywhere(still: Clock) -> None:
    buckets.set_limit("{item}", 1.0, 1)
    a = child("a", 3, "echo=1/2")
    run = submit(9)
    paced = submit([f"https://h{number}.org/" for number in range(5)], type="crawl", shard_size=0)
    Node.objects.update(executors=["echo", "crawl"])
    dispatch()
    a.report(partly(a.claim()[0], 0, retry=True))
    # A pass notes what is live in lanes; what has ended since must still be known to the next one.
    noted, wakes = dict(rated._live), list(queue._wakes._heap)
    woken = events.dispatcher.is_set()
    rows = everything()
    changes = Changes(
        nodes=[NodeChange("a", {"capacity": 9}, [parse_quota("echo=4/9")])],
        add=[NewNode("new", 4)],
        priorities={run.pk: 9, paced.pk: 1},
        rates={"{item}": (3.0, 3), "host:*": (1.0, 2)},
    )
    with CaptureQueriesContext(connection) as asked:
        answer = suppose(changes)
        supposed.told(answer)
    assert answer.plan.grants
    # A cursor of PostgreSQL is how a long SELECT is read.
    statements = [re.sub(r"\ADECLARE .* CURSOR FOR ", "", query["sql"]) for query in asked]
    assert [sql for sql in statements if not sql.startswith("SELECT")] == []
    assert not any("FOR UPDATE" in sql for sql in statements)
    assert everything() == rows
    assert (rated._live, queue._wakes._heap, events.dispatcher.is_set()) == (noted, wakes, woken)


def test_explaining_a_run_keeps_no_lane_from_resting(still: Clock) -> None:
    """What was live at the last pass is looked for in the next one, however many looks there were in between."""
    child("a", 9, types=["crawl"])
    run = submit([f"https://one.org/{number}" for number in range(9)], type="crawl", shard_size=0)
    dispatch()
    still.forward(0.1)
    dispatch()
    noted = {pk: set(live) for pk, live in rated._live.items()}
    assert noted[run.pk]
    Allocation.objects.update(state="completed", finished_at=timezone.now())
    queue.explain(run.pk)
    queue.explain()
    assert rated._live == noted


def test_the_number_of_queries_does_not_grow_with_nodes_or_runs() -> None:
    def asked(nodes: int, runs: int) -> int:
        for number in range(nodes):
            child(f"{nodes}-{number}", 1)
        for _ in range(runs):
            submit(2)
        with CaptureQueriesContext(connection) as queries:
            supposed.told(suppose(Changes()))
        return len(queries)

    assert asked(2, 2) == asked(9, 9)


def test_a_question_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    child("a", 50)
    for _ in range(4):
        submit(3)
    monkeypatch.setattr(whatif, "GRANTS_LIMIT", 5)
    monkeypatch.setattr(supposed, "GRANTS_LIMIT", 5)
    answer = suppose(Changes())
    assert (len(answer.plan.grants), answer.complete) == (5, False)
    assert supposed.told(answer)["looked_at"]["limit"] == "it ends after 5 shards given out"
    monkeypatch.setattr(whatif, "GRANTS_LIMIT", 100)
    monkeypatch.setattr(whatif, "RUNS_LIMIT", 2)
    told = supposed.told(suppose(Changes()))
    assert (told["looked_at"]["runs"], told["looked_at"]["of"], told["looked_at"]["complete"]) == (2, 4, False)
    monkeypatch.setattr(whatif, "RUNS_LIMIT", 100)
    monkeypatch.setattr(whatif, "LOOKS_LIMIT", 1)
    submit(3, priority=9, labels={"zone": "eu"})
    told = supposed.told(suppose(Changes()))
    assert (told["looked_at"]["runs"], told["looked_at"]["of"]) == (1, 5)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        (Changes(nodes=[NodeChange("b")]), FieldError, "nodes.0.node: no node is called 'b'"),
        (Changes(nodes=[NodeChange("a", {"capacity": 0})]), FieldError, "nodes.0.capacity: 0 is not a whole number"),
        (Changes(nodes=[NodeChange("a", {"capacity": 1})]), FieldError, "nodes.0.capacity: 1 is below the quota"),
        (Changes(nodes=[NodeChange("a", {"role": "relay"})]), FieldError, "nodes.0.role: cannot be supposed"),
        (
            Changes(nodes=[NodeChange("a", quotas=[parse_quota("echo=9")])]),
            FieldError,
            "nodes.0.quotas.0.slots: 9 is above the node's capacity, 4",
        ),
        (Changes(add=[NewNode("a")]), Conflict, "add.0.name: a node called 'a' exists already"),
        (Changes(add=[NewNode("x", types=["nope"])]), FieldError, "add.0.types.0: 'nope' is not a task type"),
        (Changes(add=[NewNode("x", 0)]), FieldError, "add.0.capacity: 0"),
        (Changes(priorities={99: 1}), FieldError, "runs.0.run: 99 is not a run that goes on"),
        (Changes(rates={"r": None}), FieldError, "rates.0.key: there is no rate limit 'r'"),
        (Changes(rates={"r": (0, 1)}), FieldError, "rates.0.per_second: 0 is not a number"),
    ],
)
def test_what_cannot_be_supposed_is_refused_by_name(changes: Changes, kind: type[Exception], says: str) -> None:
    child("a", 4, "echo=2")
    with pytest.raises(kind) as raised:
        suppose(changes)
    assert says in str(raised.value)


def test_one_is_looked_at_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whatif, "TURN_SECONDS", 0.01)
    with whatif._turn:
        answer = api.post("what-if", {})
    assert (answer.status, answer.response.headers["Retry-After"]) == (429, "1")
    assert api.post("what-if", {"limit": 1}).status == 200
    # One that was refused has given its turn back.
    assert api.post("what-if", {"runs": [{"run": 99, "priority": 1}]}).status == 400
    assert api.post("what-if", {}).status == 200


def test_an_inactive_node_can_be_supposed_to_be_active_with_its_quotas(still: Clock) -> None:
    a = child("a", 3, "echo=0/1")
    submit(3)
    registry.update_node(a.id, active=False)
    change = Changes(nodes=[NodeChange("a", {"active": True})])
    said = foreseen(change)
    assert len(said) == 1
    assert happened(change) == said


def test_work_that_came_back_is_foreseen_with_its_attempt(still: Clock) -> None:
    a = child("a", 1)
    run = submit(3, backoff=0.0)
    a.report(failure(a.works()[0]))
    assert Shard.objects.filter(run=run, state="pending").exists()
    change = Changes(add=[NewNode("b", 2, ["echo"])])
    said = foreseen(change)
    assert [attempt for *_, attempt, _, _ in said].count(2) == 1
    assert happened(change) == said
    assert dt.timedelta() == still.ahead

"""``GET /metrics``: its text, who may read it, and that its numbers are what the database has and what happened."""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.testing import HttpCommunicator
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from api import metrics as page
from cascade.asgi import application
from cascade.config import BASE_DIR
from dispatch import lifecycle, metrics
from dispatch.models import Allocation
from dispatch.states import AllocationState, ShardState
from nodes.transactions import write
from tests.integration import factory, records

PAIR = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{({PAIR}(?:,{PAIR})*)\}})? (-?[0-9.e+-]+)$")
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')

Key = tuple[str, frozenset[tuple[str, str]]]


def parsed(text: str) -> dict[Key, float]:
    """Each line is a comment of a family or a sample of the family before it; no sample is there twice."""
    assert text.endswith("\n")
    found: dict[Key, float] = {}
    family = kind = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
        elif line.startswith("# TYPE "):
            assert line.split(" ")[2] == family
            kind = line.split(" ")[3]
        else:
            match = SAMPLE.match(line)
            assert match, line
            name, labels, value = match.groups()
            endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert name in [family + ending for ending in endings]
            assert kind != "counter" or name.endswith("_total")
            key = (name, frozenset(LABEL.findall(labels or "")))
            assert key not in found
            found[key] = float(value)
    return found


class Now:
    """The page, and how it differs from what it was."""

    def __init__(self) -> None:
        self.values = parsed(page.text())

    def of(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    def since(self, before: Now, name: str, **labels: str) -> float:
        return self.of(name, **labels) - before.of(name, **labels)


@pytest.fixture(autouse=True)
def _read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test's database had is not told here."""
    monkeypatch.setattr(page, "database", page.Database())
    monkeypatch.setattr(page, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(page, "SHARE", 1e9)


# What it says


@pytest.mark.django_db(transaction=True)
def test_work_from_grant_to_saved_row_is_counted_once_where_it_is_committed() -> None:
    before = Now()
    with factory.saver() as saver:
        one = factory.child(capacity=4)
        factory.submit(3, shard_size=1)
        factory.dispatch()
        works = one.works()
        answers = one.report(*(factory.done(work) for work in works))
        one.report(factory.done(works[0]))
        one.report({**factory.done(works[0]), "allocation": 10**6})
        factory.save(saver)
    assert {answer["status"] for answer in answers} == {200}
    after = Now()
    assert after.since(before, "cascade_allocations_granted_total") == 3
    assert after.since(before, "cascade_allocations_ended_total", state="completed") == 3
    assert after.since(before, "cascade_items_total", state="saved") == 3
    assert after.since(before, "cascade_rows_saved_total") == 3
    assert after.since(before, "cascade_reports_repeated_total") == 1
    assert after.since(before, "cascade_reports_refused_total", code="404") == 1
    assert after.since(before, "cascade_saver_batch_seconds_count") >= 1
    assert after.of("cascade_runs", state="completed") == 1


@pytest.mark.django_db(transaction=True)
def test_what_is_undone_with_its_transaction_is_not_counted() -> None:
    before = Now()
    with write():
        metrics.granted.committed(5)
        transaction.set_rollback(True)
    with write():
        metrics.granted.committed(2)
    assert Now().since(before, "cascade_allocations_granted_total") == 2


@pytest.mark.django_db(transaction=True)
def test_leases_that_end_are_counted_as_expired() -> None:
    factory.child(capacity=2).works  # noqa: B018  (a node that takes work)
    factory.submit(2, shard_size=1)
    factory.dispatch()
    before = Now()
    lifecycle.expire(timezone.now() + dt.timedelta(hours=1))
    lifecycle.expire(timezone.now() + dt.timedelta(hours=2))
    assert Now().since(before, "cascade_allocations_ended_total", state="expired") == 2


@pytest.mark.django_db
def test_slots_shards_and_nodes_are_those_of_the_database(settings: Any) -> None:
    near = records.node("near", capacity=4, last_beat_at=timezone.now())
    records.node('a "b" \\ c', capacity=2, last_beat_at=None)
    records.hold(near, 2)
    records.hold(near, 1, AllocationState.PENDING)
    records.cut(records.run(7), 0, 5, ShardState.FAILED)
    now = Now()
    assert now.of("cascade_nodes", state="online") == 1
    assert now.of("cascade_nodes", state="offline") == 1
    assert now.of("cascade_slots") == 4
    assert now.of("cascade_shards", state="failed") == 1
    (kind,) = Allocation.objects.values_list("type", flat=True).distinct().order_by()
    assert now.of("cascade_slots_in_use", type=kind) == now.of("cascade_node_slots_in_use", node="near") == 2
    assert now.of("cascade_slots_queued", type=kind) == now.of("cascade_node_slots_queued", node="near") == 1
    assert now.of("cascade_node_up", node=r"a \"b\" \\ c") == 0
    settings.CASCADE = settings.CASCADE.model_copy(update={"metrics_nodes": 1})
    names = {name for name, _ in Now().values}
    assert "cascade_nodes" in names
    assert not [name for name in names if name.startswith("cascade_node_")]


@pytest.mark.django_db
def test_as_many_queries_are_made_for_a_hundred_nodes_and_runs_as_for_one() -> None:
    counts = []
    for number in (1, 100):
        for each in range(number):
            node = records.node(f"n{number}-{each}", last_beat_at=timezone.now())
            records.hold(node, 1)
            records.run(5)
        page.room.forget()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            page.text()
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 8


@pytest.mark.django_db
def test_the_database_is_not_read_again_at_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LEAST_SECONDS", 3600.0)
    page.text()
    with CaptureQueriesContext(connection) as queries:
        page.text()
    assert len(queries) == 0


def test_without_a_database_the_process_tells_of_itself_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> page.Values:
        raise page.DatabaseError("gone")

    monkeypatch.setattr(page, "_read_all", away)
    now = Now()
    assert now.of("cascade_database_up") == 0
    assert now.of("process_resident_memory_bytes") > 10**7
    assert not [name for name, _ in now.values if name == "cascade_runs"]


def test_counts_of_many_threads_add_up_and_buckets_hold_what_is_below_their_bound() -> None:
    def count() -> None:
        for _ in range(20_000):
            made.add()

    made, timed = metrics.Counter("t_total", "of this test"), metrics.Histogram("t_seconds", "of this test")
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seconds in (0.0005, 0.001, 0.3, 99.0):
            timed.observe(seconds)
    finally:
        metrics.COUNTED.remove(made)
        metrics.COUNTED.remove(timed)
    assert [sample.value for sample in made.samples()] == [80_000]
    buckets = {dict(sample.labels).get("le", sample.suffix): sample.value for sample in timed.samples()}
    assert (buckets["0.001"], buckets["0.25"], buckets["0.5"], buckets["10.0"], buckets["+Inf"]) == (2, 2, 3, 3, 4)
    assert buckets["_count"] == 4
    assert buckets["_sum"] == pytest.approx(99.3015)


# Who may read it


@pytest.fixture
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "text", lambda: "up 1\n")


def asked(client: str, *headers: tuple[str, str], method: str = "GET", host: str = "127.0.0.1:8000") -> int:
    sent = [(b"host", host.encode()), *((name.encode(), value.encode()) for name, value in headers)]
    communicator = HttpCommunicator(application, method, "/metrics", headers=sent)
    communicator.scope["client"] = [client, 5000]
    return int(async_to_sync(communicator.get_response)(timeout=30)["status"])


@pytest.mark.usefixtures("_quiet")
def test_without_a_token_this_machine_alone_may_read_it() -> None:
    assert asked("127.0.0.1") == asked("::1") == asked("::ffff:127.0.0.1") == 200
    assert asked("10.0.0.7") == asked("") == 403
    # A proxy on this machine asks for somebody else, a page whose name points here for its author.
    assert asked("127.0.0.1", ("x-forwarded-for", "203.0.113.9")) == 403
    assert asked("127.0.0.1", ("forwarded", "for=203.0.113.9")) == 403
    assert asked("127.0.0.1", host="rebound.example.org") == 400
    assert asked("127.0.0.1", method="POST") == 405


@pytest.mark.usefixtures("_quiet")
def test_with_a_token_whoever_has_it_may_and_nobody_else(settings: Any) -> None:
    settings.CASCADE = settings.CASCADE.model_copy(update={"metrics_token": "long and secret"})
    right = ("authorization", "Bearer long and secret")
    assert asked("10.0.0.7", right, host="web1:8000") == 200
    assert asked("127.0.0.1", right, ("x-forwarded-for", "203.0.113.9")) == 200
    assert asked("127.0.0.1") == asked("10.0.0.7") == 401
    assert asked("10.0.0.7", ("authorization", "Bearer long and secret!")) == 401
    assert asked("10.0.0.7", ("authorization", "Basic long and secret")) == 401
    assert asked("10.0.0.7", ("authorization", "Bearer schl\xfcssel")) == 401


# What is built on it


def known_names() -> set[str]:
    counted = {
        family.name + suffix
        for family in metrics.COUNTED
        for suffix in (("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",))
    }
    return counted | {gauge.name for gauge in page.GAUGES} | {"up"}


def named_in(query: str) -> set[str]:
    """The metrics of a query in PromQL, whose labels and functions have other names."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring) ?\([^)]*\)", "", query)
    return set(re.findall(r"\b[a-z_]{2,}\b(?!\s*\()", bare)) - {"job", "instance", "and", "or", "unless"}


def labels_of(query: str) -> Iterator[tuple[str, set[str]]]:
    for name, inner in re.findall(r"\b([a-z_]+)\{([^}]*)\}", query):
        yield name, set(re.findall(r"([a-z_]+) ?(?:=~|!~|!=|=)", inner)) - {"job", "instance"}


def dashboard_queries() -> list[tuple[str, str]]:
    dashboard = json.loads((BASE_DIR / "deploy" / "grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(panel["targets"] for panel in panels)
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


def alert_queries() -> list[tuple[str, str]]:
    import yaml

    rules = yaml.safe_load((BASE_DIR / "deploy" / "alerts.yml").read_text())
    return [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]


def test_every_query_of_the_dashboard_and_the_alerts_is_about_a_metric_there_is_and_labels_it_has() -> None:
    labels = {gauge.name: set(gauge.labels) for gauge in page.GAUGES} | {"up": set()}
    for family in metrics.COUNTED:
        labels |= {name: {family.label, "le"} for name in known_names() if name.startswith(family.name)}
    for title, query in [*dashboard_queries(), *alert_queries()]:
        assert named_in(query), title
        assert named_in(query) <= known_names(), title
        for name, used in labels_of(query):
            assert used <= labels[name], title


def test_a_query_about_a_metric_that_is_not_there_would_be_found() -> None:
    assert named_in('sum by (state) (rate(cascade_gone_total{job="a"}[5m])) / 2') == {"cascade_gone_total"}

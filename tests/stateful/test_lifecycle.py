"""The lifecycle's verbs in any order, against the model: after every step the database says what the model says.

Promises 1 to 5 are in that comparison: rows saved once, items neither lost nor doubled, reports from live allocations
only, capacity and limits at each grant, nothing from a revoked key.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dispatch import lifecycle, queue
from dispatch.models import Allocation, Receipt
from dispatch.results import spool
from dispatch.results.saver import Saver
from dispatch.tail import Copy, Late
from nodes import keys, messages, registry
from nodes.fields import parse_quota
from nodes.keys import Caller
from nodes.protocol import Conflict, Unauthenticated
from nodes.transactions import write
from tests.integration import factory
from tests.integration.factory import Child, Work
from tests.stateful import record
from tests.stateful.lengths import length
from tests.stateful.model import LIVE, WORKER_DEATHS, Model, Refused

NUMBERS = st.integers(0, 11)
"""Which of those that there are, counted round."""
KINDS = st.sampled_from(("good", "good", "good", "partly", "again", "stopped", "error", "timeout", "crash"))


class Lifecycle(RuleBasedStateMachine):
    saver: Saver
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        record.forget()
        self.model = Model()
        self.clock.seconds = 0.0
        self.bodies: dict[int, dict[str, Any]] = {}
        """What was accepted, by allocation."""

    @initialize()
    def begin(self):
        self.a_node_comes(2, None)
        self.a_node_comes(1, None)
        self.a_run_is_submitted(6, 2, 2, 0.0)

    # Nodes and keys

    @rule(capacity=st.integers(1, 3), limit=st.sampled_from((None, None, 1)))
    def a_node_comes(self, capacity, limit):
        if len(self.model.nodes) == 3:
            return
        quotas = [parse_quota(f"echo=0/{limit}")] if limit is not None else []
        node, _ = registry.add_node(f"n{len(self.model.nodes)}", capacity=capacity, quotas=quotas)
        self.model.nodes[node.pk] = {
            "capacity": capacity,
            "limit": limit,
            "draining": False,
            "beat_at": self.model.now,
            "keys": {node.keys.get().pk: True},
        }
        self.child(node.pk).beat(hello=True, executors=["echo"])

    @rule(which=NUMBERS, capacity=st.integers(1, 3), limit=st.sampled_from((None, 1, 2)), draining=st.booleans())
    def a_node_is_changed(self, which, capacity, limit, draining):
        node = self.node(which)
        quotas = [parse_quota(f"echo=0/{limit}")] if limit is not None else []
        registry.update_node(node, capacity=capacity, quotas=quotas, draining=draining)
        self.model.nodes[node].update(capacity=capacity, limit=limit, draining=draining)

    @rule(which=NUMBERS)
    def a_key_is_rotated(self, which):
        node = self.node(which)
        mine = self.model.nodes[node]["keys"]
        keys.rotate(node)
        for old in sorted(pk for pk, live in mine.items() if live)[:-1]:
            mine[old] = False
        mine[max(record.keys_of(node))] = True

    @rule(which=NUMBERS, key=NUMBERS)
    def a_key_is_revoked(self, which, key):
        node = self.node(which)
        pk = self.one(self.model.nodes[node]["keys"], key)
        keys.revoke(record.access_key(pk))
        self.model.nodes[node]["keys"][pk] = False

    # Runs

    @rule(
        count=st.integers(1, 6),
        size=st.integers(1, 3),
        attempts=st.integers(1, 3),
        backoff=st.sampled_from((0.0, 0.0, 20.0)),
    )
    def a_run_is_submitted(self, count, size, attempts, backoff):
        if len(self.model.runs) < 4:
            run = factory.submit(count, shard_size=size, max_attempts=attempts, backoff=backoff)
            self.model.submitted(run.pk, count, size=size, max_attempts=attempts, backoff=backoff)

    @rule(which=NUMBERS)
    def a_run_is_cancelled(self, which):
        run = self.one(self.model.runs, which)
        self.refused_alike(lambda: lifecycle.cancel(run), lambda: self.model.cancel(run))

    @rule(which=NUMBERS)
    def a_run_is_retried(self, which):
        run = self.one(self.model.runs, which)
        self.refused_alike(lambda: lifecycle.retry(run), lambda: self.model.retry(run))

    # Granted, delivered, taken back

    @rule()
    def work_is_allocated(self):
        queue.allocate_now()
        for pk, run, start, stop, node in self.new():
            self.model.granted(pk, run, start, stop, node)
        takers = [node for node in self.model.nodes if self.model.takes(node)]
        assert not takers or not self.model.grantable(), f"nodes {takers} could have more"

    @rule(which=NUMBERS, other=NUMBERS)
    def a_second_copy_is_given_out(self, which, other):
        pk, node = self.one(self.live(), which), self.node(other)
        if pk is None:
            return
        first = self.model.allocations[pk]
        if not self.model.takes(node) or first["node"] == node or self.model.twins(pk):
            return
        late = Late(pk, first["run"], 0, first["node"], first["start"], 1, True, 99.0, 0, 0.0)
        with write():
            queue.locked()
            lifecycle.copy([Copy(late, node, "late")], timezone.now())
        for made, *_ in self.new():
            self.model.copied(made, pk, node)

    @rule(which=NUMBERS, key=NUMBERS, slots=st.integers(0, 3))
    def a_node_claims(self, which, key, slots):
        node = self.node(which)

        def expected() -> list[int]:
            ids = self.model.undelivered(node)[:slots]
            self.model.deliver(node, ids)
            return ids

        self.said(node, key, lambda child: [work.allocation for work in child.claim(slots)], expected)

    @rule(which=NUMBERS, key=NUMBERS, ids=st.lists(NUMBERS, min_size=1, max_size=3, unique=True))
    def a_node_accepts(self, which, key, ids):
        node, some = self.node(which), self.some(ids)

        def expected() -> list[int]:
            self.model.deliver(node, some)
            return [pk for pk in some if pk not in self.model.live(node)]

        self.said(node, key, lambda child: child.accept(*some), expected)

    @rule(which=NUMBERS, key=NUMBERS, ids=st.lists(NUMBERS, max_size=4, unique=True), hello=st.booleans())
    def a_node_beats(self, which, key, ids, hello):
        node = self.node(which)
        held = self.some(ids) if hello else sorted({*self.model.live(node), *self.some(ids)})
        held = [pk for pk in held if pk not in self.model.undelivered(node)]
        self.said(
            node,
            key,
            lambda child: child.beat(hello=hello, held=held, running=held)["cancel"],
            lambda: self.model.beat(node, held, held, hello=hello),
        )

    @rule(which=NUMBERS, key=NUMBERS, ids=st.lists(NUMBERS, min_size=1, max_size=2, unique=True))
    def a_node_releases(self, which, key, ids):
        node, some = self.node(which), self.some(ids)
        self.said(
            node, key, lambda child: sorted(child.release(*some)), lambda: sorted(self.model.released(node, some))
        )

    @rule(which=NUMBERS)
    def what_a_node_has_not_fetched_is_recalled(self, which):
        node = self.node(which)
        recalled = [each.id for each in lifecycle.recall([node], "recalled")]
        assert sorted(recalled) == sorted(self.model.released(node, [], unfetched=True))

    @rule(which=NUMBERS)
    def a_socket_closes(self, which):
        lifecycle.disconnected(self.node(which), timezone.now())
        self.model.disconnected(self.node(which))

    @rule(seconds=st.sampled_from((3.0, 16.0, 31.0, 46.0)))
    def time_passes_and_leases_expire(self, seconds):
        self.clock.seconds = self.model.now = self.model.now + seconds
        assert lifecycle.expire(timezone.now()) == self.model.expire()

    @rule(seconds=st.sampled_from((16.0, 46.0)))
    def the_parent_was_away(self, seconds):
        self.clock.seconds = self.model.now = self.model.now + seconds
        lifecycle.forgive(timezone.now())
        self.model.forgive()

    # Reports

    @rule(which=NUMBERS, key=NUMBERS, kind=KINDS, at=NUMBERS, segment=st.integers(0, 7))
    def a_report_comes(self, which, key, kind, at, segment):
        if (pk := self.one(self.live(), which)) is not None:
            self.report(pk, self.model.allocations[pk]["node"], key, kind, at, segment=segment == 0)

    @rule(which=NUMBERS, key=NUMBERS, kind=KINDS, at=NUMBERS)
    def a_report_comes_late_or_again_or_says_something_else(self, which, key, kind, at):
        over = [pk for pk, each in self.model.allocations.items() if each["state"] not in LIVE]
        if (pk := self.one(over, which)) is not None:
            self.report(pk, self.model.allocations[pk]["node"], key, kind, at)

    @rule(which=NUMBERS, key=NUMBERS)
    def a_report_is_repeated(self, which, key):
        if (pk := self.one(self.bodies, which)) is not None:
            self.send(pk, self.model.allocations[pk]["node"], key, self.bodies[pk])

    @rule(which=NUMBERS, other=NUMBERS, key=NUMBERS)
    def another_node_reports_it(self, which, other, key):
        pk, node = self.one(self.model.allocations, which), self.node(other)
        if pk is not None and self.model.allocations[pk]["node"] != node:
            self.report(pk, node, key, "good", 0)

    def report(self, pk: int, node: int, key: int, kind: str, at: int, *, segment: bool = False) -> None:
        mine = self.model.allocations[pk]
        start, stop = mine["start"], mine["stop"]
        work = Work(pk, mine["run"], start, stop, 1, [f"i{index}" for index in range(start, stop)])
        one = start + at % (stop - start)
        if kind in ("error", "timeout", "crash"):
            body = factory.failure(work, kind)
        elif kind in ("partly", "again"):
            body = factory.partly(work, one, retry=kind == "again")
        elif kind == "stopped" and one > start:
            body = {**factory.done(work._replace(stop=one, items=work.items[: one - start])), "stopped": one}
        else:
            body = factory.done(work)
        if segment and body.get("rows"):
            (body,) = factory.uploaded([body])
        self.send(pk, node, key, body)

    def send(self, pk: int, node: int, key: int, body: dict[str, Any]) -> None:
        (entry,) = messages.read_report({"reports": [body]})

        def expected() -> tuple[int, bool]:
            status, repeated = self.model.judge(node, pk, entry.digest)
            if status == 200 and not repeated:
                self.bodies[pk] = body
                self.accepted(pk, entry)
            if self.model.online(node):
                self.model.nodes[node]["beat_at"] = self.model.now
            return status, repeated

        def answered(child: Child) -> tuple[int, bool]:
            (result,) = child.report(body)
            assert result["status"] != 200 or result["receipt"] == entry.digest
            return result["status"], result.get("repeated", False)

        self.said(node, key, answered, expected)

    def accepted(self, pk: int, entry: messages.Entry) -> None:
        if entry.failure:
            self.model.failed(pk, entry.digest, entry.failure)
            return
        done = [index for first, last, _ in entry.ranges for index in range(first, last)]
        failed = [error.index for error in entry.errors]
        stop = self.model.allocations[pk]["stop"]
        rest = list(range(entry.stopped, stop)) if entry.stopped is not None else []
        retry = bool(entry.errors) and entry.errors[0].retry
        rows = [f"i{index}:0" for index in done]
        self.model.reported(pk, entry.digest, done, failed, rest, rows, retry=retry, segment=entry.segment)

    # Saving

    @rule()
    def what_was_reported_is_saved(self):
        self.model.saved()
        factory.save(self.saver)
        assert record.rows(self.saver, list(self.model.runs)) == +self.model.rows

    @rule()
    def the_saver_dies_between_the_commits(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lifecycle, "saved", lambda receipts: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt) if self.model.waiting else pytest.MonkeyPatch.context():
                factory.save(self.saver)
        # As in a process that has just started: it asks the ledger what was saved.
        self.saver._doubtful = None
        self.what_was_reported_is_saved()

    @rule(which=NUMBERS)
    def a_segment_rots_in_the_spool(self, which):
        segments = sorted({entry["segment"] for entry in self.model.waiting if entry["segment"]})
        if (segment := self.one(segments, which)) is not None:
            path = spool.path(django_settings.CASCADE.spool, segment)
            path.write_bytes(path.read_bytes()[:-1])
            self.model.damaged(segment)
            self.what_was_reported_is_saved()

    # What must hold

    @invariant()
    def the_database_says_what_the_model_says(self):
        record.compare(self.model)

    def teardown(self):
        """Whatever was acknowledged and is still to be saved is saved in the end."""
        self.what_was_reported_is_saved()

    # Below: who and which

    @staticmethod
    def one(some: Any, which: int) -> Any:
        """One of ``some``, or None where there is none."""
        some = sorted(some)
        return some[which % len(some)] if some else None

    def some(self, ids: list[int]) -> list[int]:
        """Some of all allocations."""
        return sorted({pk for each in ids if (pk := self.one(self.model.allocations, each)) is not None})

    def node(self, which: int) -> int:
        return self.one(self.model.nodes, which)

    def live(self) -> list[int]:
        return [pk for pk, each in self.model.allocations.items() if each["state"] in LIVE]

    def new(self) -> list[tuple[int, int, int, int, int]]:
        """Allocations that the model does not know yet."""
        columns = ("pk", "run_id", "start", "stop", "node_id")
        new = Allocation.objects.exclude(pk__in=list(self.model.allocations)).order_by("pk")
        assert all(new.values_list("reason", flat=True))
        return list(new.values_list(*columns))

    def child(self, node: int, key: int = 0) -> Child:
        return Child(node, Caller(node, self.one(self.model.nodes[node]["keys"], key), "AK"))

    def said(self, node: int, key: int, verb: Callable[[Child], Any], expected: Callable[[], Any]) -> None:
        """``verb`` by one of the node's keys does what the model does; with a revoked one it does nothing."""
        child = self.child(node, key)
        if self.model.nodes[node]["keys"][child.caller.key_id]:
            answer = verb(child)
            assert answer == expected()
        else:
            with pytest.raises(Unauthenticated):
                verb(child)

    @staticmethod
    def refused_alike(verb: Callable[[], Any], expected: Callable[[], Any]) -> None:
        try:
            expected()
        except Refused:
            with pytest.raises(Conflict):
                verb()
        else:
            verb()


class Clock:
    """The parent's, which stands still until it is put forward."""

    seconds = 0.0

    def now(self) -> dt.datetime:
        return record.BASE + dt.timedelta(seconds=self.seconds)


@pytest.mark.timeout(600)
@pytest.mark.django_db(transaction=True)
def test_the_verbs_do_what_the_model_does(monkeypatch, settings, tmp_path):
    told = {"data_dir": tmp_path, "result_store": "file", "worker_deaths": WORKER_DEATHS, "lookahead_limit": 0}
    settings.CASCADE = settings.CASCADE.model_copy(update=told)
    clock = Clock()
    monkeypatch.setattr(timezone, "now", clock.now)
    with factory.saver() as saver:
        machine = type("Lifecycle", (Lifecycle,), {"saver": saver, "clock": clock})
        run_state_machine_as_test(machine, settings=length("lifecycle", steps=30))
    assert not Receipt.objects.filter(saved_at=None).exists()

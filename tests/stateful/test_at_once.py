"""Bundles of verbs at once, each in a thread and a connection of its own, on PostgreSQL, while another thread looks.

The promises are asked of every moment that the watcher sees. Only what verbs answered is remembered here: a receipt
stands for rows that are in the result store, once, in the end. The order in which the verbs of a bundle come to the
database is theirs, so Hypothesis draws numbers alone, and what they stand for is looked up when it is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from dispatch import lifecycle, queue
from dispatch.models import Allocation, Run
from dispatch.results.saver import Saver
from dispatch.states import LIVE
from dispatch.tail import Copy, Late
from nodes import keys, registry
from nodes.fields import parse_quota
from nodes.keys import Caller
from nodes.models import AccessKey, Node
from nodes.protocol import CascadeError
from nodes.transactions import retried, write
from tests.integration import factory
from tests.integration.factory import Child, Work
from tests.stateful import record
from tests.stateful.lengths import length
from tests.stateful.meeting import Crew
from tests.stateful.test_lifecycle import Clock
from tests.stateful.watching import Watcher

pytestmark = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")

AT_ONCE = 4
GRANTS = ("allocate", "allocate", "assign", "assign", "copy", "submit", "cancel")
ENDS = (
    *("report", "report", "fail", "partly", "repeat", "release", "recall", "expire", "expire"),
    *("hello", "cancel", "save"),
)
VERBS = (*GRANTS, *ENDS, "claim", "accept", "beat", "retry", "revoke", "rotate", "forgive", "disconnected")
NUMBERS = st.integers(0, 11)


def bundles(verbs: Sequence[str], least: int = 2) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    return st.lists(st.tuples(st.sampled_from(verbs), NUMBERS, NUMBERS), min_size=least, max_size=AT_ONCE)


class AtOnce(RuleBasedStateMachine):
    saver: Saver
    clock: Clock
    crew: Crew
    lookout: ThreadPoolExecutor

    def __init__(self) -> None:
        super().__init__()
        record.forget()
        self.clock.seconds = 0.0
        self.bodies: dict[int, dict[str, Any]] = {}
        """The last report sent of each allocation."""
        self.receipts: dict[int, str] = {}
        """Allocation -> the digest that was acknowledged."""
        self.rows: Counter[tuple[int, str, int]] = Counter()
        """What was acknowledged, and must be saved."""
        self.whole = True
        """Every answer was heard."""

    @initialize(limit=st.sampled_from((None, 1)))
    def begin(self, limit):
        quotas = [parse_quota("echo=0/1")] if limit is not None else []
        for name, capacity, rules in (("a", 1, []), ("b", 1, []), ("c", 2, quotas)):
            node, _ = registry.add_node(name, capacity=capacity, quotas=rules)
            registry.record_beat(node.pk, at=timezone.now(), executors=["echo"])
        factory.submit(4, shard_size=2, max_attempts=2)
        factory.submit(3, max_attempts=2)

    @rule(bundle=bundles(VERBS), seconds=st.sampled_from((0.0, 0.0, 0.0, 16.0, 31.0)))
    def verbs_run_at_once(self, bundle, seconds):
        self.clock.seconds += seconds
        self.run(bundle)

    @rule(bundle=bundles(GRANTS, least=3))
    def work_is_granted_by_many(self, bundle):
        self.all_that_is_held_is_done()
        self.run(bundle)

    @rule(bundle=bundles(ENDS), seconds=st.sampled_from((0.0, 31.0)))
    def work_ends_in_many_ways(self, bundle, seconds):
        queue.allocate_now()
        for node in Node.objects.order_by("pk"):
            lifecycle.accept(keys.inside(node.pk), self.live(node.pk))
        self.clock.seconds += seconds
        self.run(bundle)

    def run(self, bundle: Sequence[tuple[str, int, int]]) -> None:
        Node.objects.update(last_beat_at=timezone.now())
        expired = Allocation.objects.filter(state="expired").count()
        verbs = [self.verb(*each) for each in bundle]
        self.whole = False
        with Watcher(self.lookout):
            answers = self.crew.at_once(verbs)
        for (name, *_), answer in zip(bundle, answers, strict=True):
            if isinstance(answer, Exception) and not isinstance(answer, CascadeError):
                raise answer
            if name in ("report", "partly", "fail", "repeat") and isinstance(answer, tuple):
                self.heard(*answer)
        self.each_is_done_by_one(bundle, answers, Allocation.objects.filter(state="expired").count() - expired)
        self.whole = True

    @rule()
    def all_that_is_held_is_done(self):
        """By one after the other, so that there are slots for the next bundle."""
        for pk in self.live():
            mine = Allocation.objects.get(pk=pk)
            assert mine.node_id is not None
            child = Child(mine.node_id, keys.inside(mine.node_id))
            body = self.bodies[pk] = factory.done(self.work(mine))
            self.heard(body, child.report(body)[0])
        if Run.objects.filter(state="running").count() < 3:
            factory.submit(3)

    def heard(self, body: dict[str, Any], result: dict[str, Any]) -> None:
        """What the answer to a report promises."""
        pk = body["allocation"]
        if result["status"] != 200:
            return
        assert self.receipts.setdefault(pk, result["receipt"]) == result["receipt"], "two receipts for one allocation"
        if "repeated" not in result:
            self.rows.update((self.run_of(pk), value, pk) for _, _, value in body.get("rows") or ())

    def each_is_done_by_one(self, bundle: Sequence[tuple[str, int, int]], answers: Sequence[Any], expired: int) -> None:
        told = [(name, answer) for (name, *_), answer in zip(bundle, answers, strict=True)]
        counts = [answer for name, answer in told if name == "expire"]
        assert sum(counts) <= expired, f"{counts} were expired, and only {expired} there were"
        released = [pk for name, answer in told if name == "release" and isinstance(answer, list) for pk in answer]
        assert len(released) == len(set(released)), "one allocation was released twice"

    def teardown(self):
        factory.save(self.saver)
        assert not self.whole or record.rows(self.saver, list(Run.objects.values_list("pk", flat=True))) == self.rows

    # Below: what the numbers stand for

    def verb(self, name: str, which: int, other: int) -> Callable[[], Any]:
        now = timezone.now()
        nodes = sorted(Node.objects.values_list("pk", flat=True))
        node = nodes[which % len(nodes)]
        runs = sorted(Run.objects.values_list("pk", flat=True))
        run = runs[other % len(runs)]
        child = self.child(node, other)
        live = self.live()
        some = live[which % len(live) :] if live else []
        mine = self.live(node)
        verbs: dict[str, Callable[[], Any]] = {
            "allocate": queue.allocate_now,
            "assign": partial(queue.assign, run, node),
            "copy": partial(self.copy, some[:1], nodes[other % len(nodes)]),
            "claim": partial(child.claim, 1 + other % 3),
            "accept": partial(child.accept, *mine),
            "beat": partial(child.beat, held=mine, running=mine),
            "hello": partial(child.beat, hello=True, held=mine[:1]),
            "release": partial(child.release, *mine[:2]),
            "recall": partial(lifecycle.recall, [node], "recalled"),
            "expire": partial(lifecycle.expire, now),
            "cancel": partial(lifecycle.cancel, run),
            "retry": partial(lifecycle.retry, run),
            "save": self.saver.once,
            "submit": partial(factory.submit, 1 + which % 3, priority=1 + other % 10),
            "revoke": partial(keys.revoke, record.access_key(child.caller.key_id)),
            "rotate": partial(keys.rotate, node),
            "forgive": partial(lifecycle.forgive, now),
            "disconnected": partial(lifecycle.disconnected, node, now),
        }
        if name in verbs:
            return verbs[name]
        return self.report(name, some[0] if some else None, other)

    def report(self, name: str, pk: int | None, other: int) -> Callable[[], Any]:
        if name == "repeat" and self.bodies:
            pk = sorted(self.bodies)[other % len(self.bodies)]
        if pk is None:
            return lambda: None
        mine = Allocation.objects.get(pk=pk)
        work = self.work(mine)
        bodies = {
            "report": factory.done(work),
            "partly": factory.partly(work, mine.start, retry=other % 2 == 0),
            "fail": factory.failure(work, ("error", "crash", "timeout")[other % 3]),
            "repeat": self.bodies.get(pk, factory.done(work)),
        }
        body = self.bodies[pk] = bodies[name]
        assert mine.node_id is not None
        child = self.child(mine.node_id, other)
        return lambda: (body, child.report(body)[0])

    @staticmethod
    def work(mine: Allocation) -> Work:
        items = [f"i{index}" for index in range(mine.start, mine.stop)]
        return Work(mine.pk, mine.run_id, mine.start, mine.stop, 1, items)

    @retried
    def copy(self, ids: Sequence[int], node: int) -> None:
        """As ``dispatch.ending`` does it: what is late and who has a slot is looked up under the nodes' lock."""
        with write():
            queue.locked()
            for first in Allocation.objects.filter(pk__in=ids, state__in=LIVE).exclude(node=node):
                about = Node.objects.get(pk=node)
                limit = about.quotas.values_list("limit", flat=True).first()
                most = about.capacity if limit is None else min(about.capacity, limit)
                if len(self.live(node)) < most:
                    late = Late(
                        first.pk, first.run_id, first.shard_id, first.node_id or 0, first.start, 1, True, 99.0, 0, 0.0
                    )
                    lifecycle.copy([Copy(late, node, "late")], timezone.now())

    @staticmethod
    def live(node: int | None = None) -> list[int]:
        found = Allocation.objects.filter(state__in=LIVE)
        return sorted((found if node is None else found.filter(node=node)).values_list("pk", flat=True))

    @staticmethod
    def run_of(pk: int) -> int:
        return Allocation.objects.values_list("run_id", flat=True).get(pk=pk)

    @staticmethod
    def child(node: int, which: int) -> Child:
        """With one of its keys, mostly a live one."""
        mine = AccessKey.objects.filter(node=node)
        live = mine.filter(revoked_at=None)
        some = sorted((live if which % 4 and live.exists() else mine).values_list("pk", flat=True))
        return Child(node, Caller(node, some[which % len(some)], "AK"))


@pytest.mark.timeout(600)
@pytest.mark.django_db(transaction=True)
def test_verbs_at_once_keep_the_promises_at_every_commit(monkeypatch, settings, tmp_path):
    settings.CASCADE = settings.CASCADE.model_copy(
        update={"data_dir": tmp_path, "result_store": "file", "lookahead_limit": 0}
    )
    clock = Clock()
    monkeypatch.setattr(timezone, "now", clock.now)
    with factory.saver() as saver, Crew(AT_ONCE) as crew, ThreadPoolExecutor(1) as lookout:
        machine = type("AtOnce", (AtOnce,), {"saver": saver, "clock": clock, "crew": crew, "lookout": lookout})
        try:
            run_state_machine_as_test(machine, settings=length("at_once", steps=8))
        finally:
            lookout.submit(lambda: connection.close()).result()  # that thread's own; ``connection.close`` is ours

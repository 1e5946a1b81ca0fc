"""Beats of sockets share transactions; each has its own answer, and the pace follows the number of children."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.utils import timezone

from api import agent, beats
from nodes import failpoints, keys, messages, registry
from nodes.keys import Caller
from nodes.models import Node
from nodes.protocol import Unauthenticated

pytestmark = pytest.mark.django_db(transaction=True)

PLAIN = {"boot": "one", "held": [], "running": []}


def node(name: str) -> Caller:
    made, key = registry.add_node(name)
    return Caller(made.pk, made.keys.get().pk, key.access_key)


def gathered(callers: list[Caller], body: dict[str, Any]) -> tuple[list[Any], int]:
    """The outcomes of beats that come at one moment, and how many transactions they took."""
    commits = 0

    def count(name: str) -> None:
        nonlocal commits
        commits += name == "write.committed"

    async def all_of_them() -> list[Any]:
        gathering = beats.Gathering()
        sent = messages.read_beat(body)
        return await asyncio.gather(*(gathering.beat(each, sent) for each in callers), return_exceptions=True)

    with failpoints.armed(count):
        return async_to_sync(all_of_them)(), commits


def test_beats_of_one_moment_share_a_transaction():
    callers = [node(f"n{number}") for number in range(20)]
    outcomes, commits = gathered(callers, PLAIN)
    assert [each["node"] for each in outcomes] == [f"n{number}" for number in range(20)]
    assert commits == 1
    assert not Node.objects.filter(last_beat_at=None).exists()


def test_a_revoked_key_among_them_is_refused_alone():
    callers = [node(f"n{number}") for number in range(3)]
    keys.revoke(callers[1].access_key)
    outcomes, _ = gathered(callers, PLAIN)
    assert isinstance(outcomes[1], Unauthenticated)
    assert [each["node"] for each in (outcomes[0], outcomes[2])] == ["n0", "n2"]
    assert Node.objects.get(name="n1").last_beat_at is None


def test_who_says_hello_is_committed_before_anybody_is_told(monkeypatch):
    monkeypatch.setattr(beats, "pace", beats.Pace())  # which counts now, in a thread
    outcomes, commits = gathered([node("a"), node("b")], {**PLAIN, "hello": True})
    assert len(outcomes) == commits == 2


@pytest.mark.parametrize(("children", "seconds"), [(1, 5), (500, 5), (800, 8), (100_000, 10)])
def test_the_more_children_the_slower_they_beat_but_thrice_in_a_lease_at_least(
    settings, monkeypatch, children, seconds
):
    settings.CASCADE = settings.CASCADE.model_copy(
        update={"beat_seconds": 5.0, "lease_seconds": 30.0, "offline_seconds": 45.0}
    )
    caller = node("n")
    registry.record_beat(caller.node_id, at=timezone.now())
    pace = beats.Pace()
    monkeypatch.setattr(beats, "BEATS_A_SECOND", 100.0 / children)
    assert pace.seconds() == pytest.approx(seconds)


def test_a_beat_by_rest_has_the_pace_too(monkeypatch):
    caller = node("n")
    monkeypatch.setattr(beats.pace, "seconds", lambda: 7.5)
    assert agent.perform(caller, "beat", PLAIN)["beat_seconds"] == 7.5


def test_what_can_come_later_is_asked_to_when_verbs_wait_too_long_and_beats_are_not(monkeypatch):
    async def blocked() -> tuple[float, float, list[float], Any]:
        gate = threading.Event()
        held = [asyncio.create_task(agent.in_thread(gate.wait, 20)) for _ in range(agent.THREADS._max_workers + 5)]
        try:
            while not agent.THREADS._work_queue.qsize():
                await asyncio.sleep(0.01)
            quick = agent.behind()
            monkeypatch.setattr(agent, "_waited", agent.WAIT_LIMIT + 1)
            turns = agent.Turns()
            anew = [turns.next() for _ in range(4)]
            assert agent.behind() == 0.0
            monkeypatch.setattr(agent, "_waited", agent.HELD_WAIT_LIMIT + 1)
            return quick, agent.behind(), anew, await beats.Gathering().beat(caller, messages.read_beat(PLAIN))
        finally:
            gate.set()
            await asyncio.gather(*held)

    caller = node("n")
    quick, late, anew, reply = async_to_sync(blocked)()
    assert quick == 0.0
    assert late >= 1.0
    # Some are let in; the others are told to come one after the other, not all at one moment.
    assert anew[0] == 0.0
    assert anew[1] >= 1.0
    assert all(before < after for before, after in itertools.pairwise(anew[1:]))
    assert reply["node"] == "n"
    assert agent.behind() == 0.0

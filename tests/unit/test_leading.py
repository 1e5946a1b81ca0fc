"""A process that has had no answer for too long does nothing that is the leader's, whatever its threads think."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dispatch import advising, configuration, dispatcher, driving, events, leading, synclog, webhooks
from nodes import journal


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Connection:
    """Answers each beat, ``took`` seconds after it was asked."""

    def __init__(self, clock: Clock, took: float) -> None:
        self.clock, self.took = clock, took

    def execute(self, query: str) -> None:
        self.clock.now += self.took


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leading, "time", clock)
    monkeypatch.setattr(leading, "_until", math.inf)
    return clock


def test_where_nobody_else_can_lead_this_process_does(clock):
    assert leading.held()


def test_who_forgoes_does_not_lead(clock):
    leading.forgo()
    assert not leading.held()


def test_a_beat_counts_from_when_it_was_asked_and_not_from_its_answer(clock):
    leading._Heart(Connection(clock, took=2.0)).beat()  # type: ignore[arg-type]
    assert leading.held()
    clock.now += leading.HELD_SECONDS - 2.0
    assert not leading.held()


def test_who_succeeds_waits_for_longer_than_the_old_one_may_go_on():
    assert leading.FROZEN_SECONDS >= leading.HELD_SECONDS + leading.BEAT_SECONDS


LOOPS: dict[str, tuple[Any, Callable[[], None]]] = {
    "dispatcher": (dispatcher.Dispatcher, events.dispatcher.set),
    "advisor": (advising.Advisor, events.advisor.set),
    "webhooks": (webhooks.Webhooks, events.webhooks.set),
    "configuration": (configuration.Configuration, lambda: None),
    "driver": (driving.Driver, lambda: None),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_does_nothing_while_its_process_does_not_lead(name, monkeypatch):
    kind, wake = LOOPS[name]
    asked, passes = threading.Event(), []

    def held() -> bool:
        # Not the first times; from then on it leads.
        asks.append(1)
        return len(asks) > 2

    def once(self: object) -> bool:
        passes.append(len(asks))
        asked.set()
        return False

    asks: list[int] = []
    monkeypatch.setattr(leading, "held", held)
    monkeypatch.setattr(kind, "once", once)
    monkeypatch.setattr(synclog, "flush", lambda now=False: 0)
    monkeypatch.setattr(journal, "flush", lambda now=False: 0)
    monkeypatch.setattr(driving, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(configuration, "LOOK_SECONDS", 0.01)
    loop = kind()
    loop.start()
    try:
        while not asked.wait(0.02):
            wake()
    finally:
        loop.stop()
    assert min(passes) > 2

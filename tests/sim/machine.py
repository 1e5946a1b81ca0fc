"""What one server has of its own, though all servers of a world share this process: its database and what its modules
know. It is put in place when code of that server begins to run, and only where another server's is there.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import channels.layers
from django.conf import settings
from django.db import connection

from api import beats, limits, logs, revoked
from dispatch import configuration, ending, events, queue, rated, synclog
from dispatch.lifecycle import kept
from dispatch.relay import bundles, place
from dispatch.results import room
from dispatch.results import saver as saver_
from nodes import journal
from tests.sim.clock import Bell

if TYPE_CHECKING:
    from tests.sim.parent import Parent

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """In place of a function with a cache: the cache is the machine's."""

    def __init__(self, read: Callable[[int], Value]) -> None:
        self._read = read
        self.known: dict[int, Value] = {}

    def __call__(self, run_id: int) -> Value:
        if run_id not in self.known:
            self.known[run_id] = self._read(run_id)
        return self.known[run_id]


KEPT = {name: Kept(getattr(kept, name).__wrapped__) for name in ("about", "beyond", "remembered", "frozen")}
FRESH: tuple[tuple[Any, str, Callable[[], Any]], ...] = (
    *((each, "known", dict) for each in KEPT.values()),
    (configuration, "_given", lambda: configuration.Given(configuration.NONE, configuration.NONE)),
    (configuration, "_looked", lambda: None),
    (configuration, "_documents", dict),
    (bundles, "_read", lambda: None),
    (revoked, "watch", revoked.Watch),
    (limits, "keys", limits.KeyLimits),
    (beats, "pace", beats.Pace),
    (beats, "gathering", beats.Gathering),
    (logs, "gathering", logs.Gathering),
    (room, "_waiting", int),
    (room, "_looked", lambda: -room.LOOK_SECONDS),
    (ending, "_asked", dict),
    (ending, "_begun", dict),
    (queue, "_wakes", queue.Wakes),
    (rated, "_live", dict),
    (synclog, "_sums", dict),
    (synclog, "_flushed", float),
    (journal, "_sums", dict),
    (journal, "_flushed", float),
    *((events, name, Bell) for name in ("dispatcher", "saver", "relay", "inputs")),
    (events, "_listeners", list),
    (events, "_loop", lambda: None),
    (events, "_count", lambda: itertools.count(1)),
    (events, "_version", int),
    (events, "_logged", dict),
    (events, "_logged_all", int),
    (channels.layers.channel_layers, "backends", dict),
    (place, "here", place.Place),
    (saver_, "_store", lambda: None),
)
"""What a process that has just started knows: where it is kept, and how it begins."""


class Machine:
    """``enter`` puts it in place."""

    current: Machine | None = None

    def __init__(self, server: Parent, database: sqlite3.Connection, settled: Any) -> None:
        self.server = server
        self.database = database
        self.settled = settled
        self._known = [made() for _, _, made in FRESH]

    def enter(self) -> None:
        if Machine.current is self:
            return
        if Machine.current is not None:
            Machine.current._known = [getattr(owner, name) for owner, name, _ in FRESH]
        Machine.current = self
        for (owner, name, _), value in zip(FRESH, self._known, strict=True):
            setattr(owner, name, value)
        connection.connection = self.database
        settings.CASCADE = self.settled

    @contextmanager
    def here(self) -> Iterator[None]:
        """In a ``with``: code of the world itself does what only this server does."""
        before = Machine.current
        self.enter()
        try:
            yield
        finally:
            if before is not None:
                before.enter()

    def forget(self) -> None:
        """What a process knows is gone with it. Call it there."""
        assert Machine.current is self
        for owner, name, made in FRESH:
            setattr(owner, name, made())

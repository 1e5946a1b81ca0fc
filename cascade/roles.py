"""What runs in this process beside the server: by role, which loops. Joins the floors; decides nothing else.

| loop | with SQLite | with PostgreSQL |
|---|---|---|
| dispatcher, saver, reducer, advisor, configuration, webhooks, driver | the one process | the process that leads |
| the own worker | the one process | the process that leads: one node ``local``, whichever process that is |
| bus, sync log, candidate | none | every process |

Of those in the first line the saver must be alone: it writes the result store. The others could run twice without harm
(every change is compare-and-set or under row locks), but would do everything twice: the driver would call nodes twice
as often, the advisor search twice. They go with the saver, so that what they read of the store is as new as can be.
"""

from __future__ import annotations

import atexit
import logging
import threading
from argparse import Namespace

from django.conf import settings
from django.db import DatabaseError

from cascade import __version__
from dispatch import leading
from dispatch.leading import Loop, threads_of
from nodes.agent.config import AgentConfig
from nodes.protocol import CascadeError

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
_agent: AgentConfig | None = None
"""Of a relay: how it reaches its parent."""
_joined = False
"""Whether this process has the loops that every one of several has."""


def loops(options: Namespace) -> list[Loop]:
    """The loops of a server of this role, in the order in which they start; they stop in the reverse order.

    Raises FieldError for an agent's configuration that cannot work.
    """
    settled = settings.CASCADE
    if settled.role == "child":
        from nodes.agent.config import load
        from nodes.agent.hosted import HostedAgent

        return [HostedAgent(load(options, served=True), __version__)]
    if settled.role == "relay":
        from nodes.agent.config import load

        global _agent
        _agent = load(options, served=True, role="relay")
    from dispatch import events
    from nodes import keys

    keys.ended.append(lambda node_id: events.tell([node_id], {"type": "node.keys"}))
    if not settled.database_url:
        return leaders()
    return dispatching() if settled.dispatcher == "embedded" else _beside()


def dispatching() -> list[Loop]:
    """The loops of a process that may lead, beside others on the same PostgreSQL."""
    from dispatch.leading import Candidate

    return [*_beside(), Candidate(lambda: leaders(patient=True))]


def _beside() -> list[Loop]:
    """The loops of every process that is one of several."""
    from dispatch.bus import Bus
    from dispatch.synclog import Writer

    global _joined
    _joined = True
    leading.forgo()
    return [Bus(), Writer()]


def join() -> None:
    """Starts the loops of a process that only serves, if no command has started any: with its first request."""
    if not _joined:
        for loop in _beside():
            loop.start()
            leading.running.append(loop)
            atexit.register(loop.stop)


def leaders(*, patient: bool = False) -> list[Loop]:
    """The loops that run in one process at a time. ``patient``: it leads even while its own worker cannot start."""
    from dispatch.advising import Advisor
    from dispatch.configuration import Configuration
    from dispatch.dispatcher import Dispatcher
    from dispatch.driving import Driver
    from dispatch.results.reducing import Reducer
    from dispatch.results.saver import Saver
    from dispatch.webhooks import Webhooks

    # The saver first: what a crash left in the spool is saved before new results come.
    started: list[Loop] = [Saver(), Reducer(), Advisor(), Configuration(), Webhooks(), Dispatcher(), Driver()]
    if settings.CASCADE.fallback_workers:
        from cascade.embedded import OwnWorker

        worker = OwnWorker(settings.CASCADE.fallback_workers)
        started.append(Later(worker) if patient else worker)
    if settings.CASCADE.role == "relay":
        from dispatch.relay.upward import Upward

        assert _agent is not None
        started.append(Upward(_agent, __version__))
    return started


class Later:
    """A loop that is started as soon as it can be.

    The own worker's folder may still be held by the process that led before, if that is frozen on this machine.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._stopping = threading.Event()
        self._started = False
        self._thread = threading.Thread(target=self._start, name="later", daemon=True)

    @property
    def _threads(self) -> list[threading.Thread]:
        return threads_of(self._loop) if self._started else []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self._started:
            self._loop.stop()

    def _start(self) -> None:
        told = False
        while not self._stopping.is_set():
            try:
                self._loop.start()
                self._started = True
                return
            except (CascadeError, DatabaseError) as error:
                if not told:
                    logger.warning("%s; it is tried again", error)
                told = True
                self._stopping.wait(AGAIN_SECONDS)

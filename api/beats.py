"""Beats of many children: those that come at one moment share a transaction, and many children beat less often each.

A beat is a few reads and one small write; on SQLite its sync to the disk costs more than all the rest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection
from django.utils import timezone

from dispatch import lifecycle, metrics
from dispatch.relay import place
from nodes import messages, registry
from nodes.keys import Caller
from nodes.messages import Beat
from nodes.models import Node
from nodes.protocol import CascadeError

BEATS_A_SECOND = 100.0
"""What this parent likes to hear of all its children together; with more of them each beats less often."""
LEASE_SHARE = 3.0
"""So many beats fit a lease, and the time until a node is offline, however many children there are."""
COUNT_SECONDS = 5.0
TOGETHER = 50
"""Beats in one transaction at most; others wait for it."""

THREAD = ThreadPoolExecutor(1, thread_name_prefix="beats")
"""Of its own: leases depend on it that beats do not wait behind everything else."""

Body = dict[str, Any]
Outcome = Body | CascadeError


def beat(caller: Caller, body: Any) -> Body:
    """One beat. Raises CascadeError."""
    return write_alone(caller, read(body))


def read(body: Any) -> Beat:
    """A beat that is for this server. Raises FieldError, Misdirected."""
    place.check_meant(body)
    return messages.read_beat(body)


def write_alone(caller: Caller, sent: Beat) -> Body:
    """Raises CascadeError."""
    return paced(lifecycle.beat(caller, sent))


def _timed_alone(caller: Caller, sent: Beat) -> Body:
    with metrics.verbs.timed("beat"):
        return write_alone(caller, sent)


def paced(reply: Body) -> Body:
    """The reply with the pace at which this many children should beat."""
    return {**reply, "beat_seconds": pace.seconds()}


class Pace:
    """How often a child should beat."""

    def __init__(self) -> None:
        self._counted = -COUNT_SECONDS
        self._children = 0

    def seconds(self) -> float:
        settled = settings.CASCADE
        now = time.monotonic()
        if now - self._counted >= COUNT_SECONDS:
            self._counted = now
            self._children = Node.objects.filter(registry.online_filter(timezone.now())).count()
        longest = min(settled.lease_seconds, settled.offline_seconds) / LEASE_SHARE
        # In whole seconds, so that it does not change with every child: agents act on a change.
        return float(max(settled.beat_seconds, min(math.ceil(self._children / BEATS_A_SECOND), longest)))


pace = Pace()


def write_together(batch: Sequence[tuple[Caller, Beat]]) -> list[Outcome]:
    """All of them in one transaction, each of which may be refused alone."""
    try:
        with metrics.verbs.timed("beat"):
            outcomes = lifecycle.beat_all(batch)
    except DatabaseError:
        close_old_connections()
        raise
    return [outcome if isinstance(outcome, CascadeError) else paced(outcome) for outcome in outcomes]


class Gathering:
    """Beats on their way to a thread: while one batch is written, the next comes together."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Caller, Beat, asyncio.Future[Outcome]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def beat(self, caller: Caller, sent: Beat) -> Body:
        """Raises CascadeError."""
        from api.agent import in_thread

        # Who comes or goes is told to the dispatcher at once, which must find it committed. PostgreSQL gathers itself.
        if sent.hello or sent.leaving or connection.vendor != "sqlite":
            return await in_thread(_timed_alone, caller, sent)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, sent, answer))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        outcome = await answer
        if isinstance(outcome, CascadeError):
            raise outcome
        return outcome

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
            try:
                together = [(caller, sent) for caller, sent, _ in batch]
                outcomes = await loop.run_in_executor(THREAD, write_together, together)
            except Exception as error:
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, _, answer), outcome in zip(batch, outcomes, strict=True):
                if not answer.done():
                    answer.set_result(outcome)


gathering = Gathering()

"""The loop that keeps work moving: expire, fire schedules, allocate, even out tails, wake nodes, prune."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection
from django.utils import timezone

from dispatch import ending, events, leading, lifecycle, metrics, pruning, queue, schedule, synclog
from dispatch.watching import NodeWatch
from nodes import journal

logger = logging.getLogger(__name__)

PASS_SECONDS = 1.0
"""A pass begins at the latest so long after the last one, whatever was heard meanwhile: other processes write too."""
GATHER_SECONDS = 0.001
"""After a wake-up, what arrives within so long is served by the same pass."""
UNHURRIED_SECONDS = 0.02
"""The same while every node has work queued beyond its slots: nobody waits, and larger batches cost less."""
LONG_PASS = 0.05
GRANT_SECONDS = 0.005
"""A pass that took longer, and longer for each of its grants, than this is followed by a pause twice as long: thousands
of nodes that come back one by one would otherwise have the parent do nothing but passes.
"""
RATE_SECONDS = 0.02
"""Work that only waits for a rate limit's next token causes no more passes than this."""
PRUNE_SECONDS = 600.0
PRUNE_BUDGET = 0.2
PRUNE_PAUSE = 5.0
FIRE_SECONDS = 0.9
"""Schedules are looked at once a second; a busy dispatcher makes many more passes."""
TAIL_SECONDS = 0.1
EXPIRE_SECONDS = 0.5
UNSTICK_SECONDS = 5.0
"""What hangs although its node beats has had minutes already."""
AWAY_SECONDS = 5.0
"""A pass so late, or a clock moved by so much, means that the parent was away: no lease may end for that. Half a lease
does, where that is shorter."""


class Dispatcher:
    """Runs in a thread of the parent's process."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="dispatcher", daemon=True)
        self._pruned = 0.0
        self._gather = GATHER_SECONDS
        self._pause = PASS_SECONDS
        self._expired = 0.0
        self._unstuck = 0.0
        self._fired = 0.0
        self._patient_until = 0.0
        self._evened = 0.0
        self._looked: tuple[float, float] | None = None
        self._watch = NodeWatch()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop after the pass at hand."""
        self._stopping.set()
        events.dispatcher.set()
        self._thread.join(timeout=10)

    def run(self) -> None:
        logger.info("dispatcher started")
        while not self._stopping.is_set():
            if events.dispatcher.wait(self._pause):
                time.sleep(self._gather)
            events.dispatcher.clear()
            metrics.turns["dispatcher"] = time.monotonic()
            if not leading.held():
                continue
            try:
                self.once()
            except Exception:
                # The next pass starts from the database again; a broken connection is replaced.
                logger.exception("a pass of the dispatcher failed")
                close_old_connections()
                self._stopping.wait(PASS_SECONDS)
        with suppress(DatabaseError):
            synclog.flush(now=True)
            journal.flush(now=True)
        connection.close()

    def once(self) -> None:
        """One pass."""
        if self._was_away(time.time(), time.monotonic()):
            logger.info("leases run anew: this parent was away, or its clock was moved")
            self._watch.start_anew(time.monotonic())
            if lifecycle.forgive(timezone.now()):
                # Nor is anything late that could not be told.
                self._patient_until = time.monotonic() + settings.CASCADE.lease_seconds
                # A beat that has read the time before and is written now gives leases a wrong end: none ends until
                # the next beat has corrected it. What runs anew would not end so soon either.
                self._expired = time.monotonic() + settings.CASCADE.lease_seconds / 2
        if time.monotonic() - self._expired > EXPIRE_SECONDS:
            self._expired = time.monotonic()
            lifecycle.expire(timezone.now())
        if time.monotonic() - self._unstuck > UNSTICK_SECONDS:
            self._unstuck = time.monotonic()
            lifecycle.unstick(timezone.now())
        if time.monotonic() - self._fired > FIRE_SECONDS:
            self._fired = time.monotonic()
            schedule.fire(timezone.now())
        began = time.monotonic()
        passed = queue.allocate_now()
        metrics.passes.observe(took := time.monotonic() - began)
        self._gather = _gather(passed, took)
        self._pause = min(PASS_SECONDS, max(passed.wake, RATE_SECONDS)) if passed.wake is not None else PASS_SECONDS
        if passed.nodes:
            self._evened = time.monotonic()
        nodes = passed.nodes or self._even_out()
        events.tell(nodes, {"type": "node.work"})
        synclog.flush()
        journal.flush()
        if self._watch.look(timezone.now(), time.monotonic()):
            events.changed(allocate=False)
        if time.monotonic() - self._pruned > PRUNE_SECONDS:
            began = time.monotonic()
            pruning.prune(timezone.now(), seconds=PRUNE_BUDGET)
            # What did not fit goes on soon, with passes in between.
            unfinished = time.monotonic() - began >= PRUNE_BUDGET
            self._pruned = time.monotonic() - (PRUNE_SECONDS - PRUNE_PAUSE if unfinished else 0)

    def _even_out(self) -> frozenset[int]:
        """A look at the tails of runs, where for a while nothing could be granted; not at every word that is heard."""
        now = time.monotonic()
        if now < self._patient_until:
            return frozenset()
        if now < self._evened + TAIL_SECONDS:
            self._pause = min(self._pause, TAIL_SECONDS)
            return frozenset()
        self._evened = now
        return ending.even_out_now()

    def _was_away(self, clock: float, monotonic: float) -> bool:
        """At the start, after a pause of this process, and when the clock jumps."""
        looked, self._looked = self._looked, (clock, monotonic)
        if looked is None:
            return True
        passed = monotonic - looked[1]
        away = max(min(AWAY_SECONDS, settings.CASCADE.lease_seconds / 2), 2 * PASS_SECONDS)
        return passed > away or abs(clock - looked[0] - passed) > away


def _gather(passed: queue.Passed, took: float) -> float:
    """Seconds in which what comes is left to the next pass, after one that ``took`` so long."""
    if took > LONG_PASS and took > GRANT_SECONDS * passed.grants:
        return 2 * took
    return UNHURRIED_SECONDS if passed.ahead else GATHER_SECONDS

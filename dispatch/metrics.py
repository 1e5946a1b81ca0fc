"""What this process counts and times for ``/metrics``: plain numbers in memory, from its start on.

Whatever is in the database is not counted here: ``api/metrics.py`` reads it when it is asked for. Names are
Prometheus': ``_total`` counts up, ``_seconds`` is a duration, and a label has few values that this project names, never
an item, a run or what somebody sent.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from django.db import transaction

if TYPE_CHECKING:
    from dispatch.deciding import effects


class Sample(NamedTuple):
    """One line: ``suffix`` is added to its family's name."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family:
    """Samples of one name. ``kind`` is counter, gauge or histogram."""

    kind = "counter"

    def __init__(self, name: str, text: str, label: str = "") -> None:
        self.name, self.text, self.label = name, text, label
        self._lock = threading.Lock()
        COUNTED.append(self)

    def samples(self) -> list[Sample]:
        raise NotImplementedError

    def _labels(self, of: str) -> tuple[tuple[str, str], ...]:
        return ((self.label, of),) if self.label else ()


COUNTED: list[Family] = []
"""All there are, in the order in which they are shown."""


class Counter(Family):
    """Grows. ``values``: those of its label that are shown from the start on, as 0."""

    def __init__(self, name: str, text: str, label: str = "", values: Sequence[str] = ()) -> None:
        super().__init__(name, text, label)
        self._counts: dict[str, int] = dict.fromkeys(values if label else [""], 0)

    def add(self, count: int = 1, of: str = "") -> None:
        with self._lock:
            self._counts[of] = self._counts.get(of, 0) + count

    def committed(self, count: int, of: str = "") -> None:
        """Counts when the transaction at hand, if there is one, has been committed."""
        if count > 0:
            transaction.on_commit(partial(self.add, count, of))

    def samples(self) -> list[Sample]:
        with self._lock:
            return [Sample("", self._labels(of), count) for of, count in self._counts.items()]


class Gauge(Counter):
    """Goes up and down."""

    kind = "gauge"

    def set(self, value: int, of: str = "") -> None:
        with self._lock:
            self._counts[of] = value


SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of durations, in seconds."""


class Histogram(Family):
    """Durations in seconds."""

    kind = "histogram"

    def __init__(self, name: str, text: str, label: str = "", values: Sequence[str] = ()) -> None:
        super().__init__(name, text, label)
        self._counts: dict[str, list[int]] = {of: [0] * (len(SHORT) + 1) for of in (values if label else [""])}
        self._sums: dict[str, float] = dict.fromkeys(self._counts, 0.0)

    def observe(self, seconds: float, of: str = "") -> None:
        at = bisect_left(SHORT, seconds)
        with self._lock:
            if of not in self._counts:
                self._counts[of], self._sums[of] = [0] * (len(SHORT) + 1), 0.0
            self._counts[of][at] += 1
            self._sums[of] += seconds

    @contextmanager
    def timed(self, of: str = "") -> Iterator[None]:
        """Also what fails has taken its time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.observe(time.monotonic() - began, of)

    def samples(self) -> list[Sample]:
        with self._lock:
            counted = [(of, list(counts), self._sums[of]) for of, counts in self._counts.items()]
        found = []
        for of, counts, total in counted:
            labels, below = self._labels(of), 0
            for bound, count in zip((*map(str, SHORT), "+Inf"), counts, strict=True):
                below += count
                found.append(Sample("_bucket", (*labels, ("le", bound)), below))
            found += [Sample("_sum", labels, total), Sample("_count", labels, below)]
        return found


turns: dict[str, float] = {}
"""When a loop has begun its last turn, by the monotonic clock: of those that have one each second."""

VERBS = ("accept", "beat", "claim", "release", "report", "tell", "rotate", "retire")

responses = Counter(
    "cascade_http_responses_total",
    "Answers over HTTP: pages, API and children's verbs, by status. 429 and 507 are back-pressure.",
    "code",
    ("200", "429", "500", "503", "507"),
)
replies = Counter(
    "cascade_socket_replies_total", "Answers to children's messages over WebSocket, by status.", "code", ("200", "429")
)
verbs = Histogram(
    "cascade_verb_duration_seconds",
    "What children ask for, over any carrier, from its start in a thread to its answer; a claim without the time that "
    "it waits for work. Of beats, those that share a transaction count together, as one.",
    "verb",
    VERBS,
)
waits = Histogram(
    "cascade_verb_wait_seconds", "How long what needs the database waited for one of this process' threads before."
)
put_off = Counter(
    "cascade_put_off_total",
    "Requests that were asked to come later, by what was short: threads (busy), the share of a key (key), room in the "
    "spool (spool), on disk (disk), or for bodies under way (body).",
    "reason",
    ("busy", "key", "spool", "disk", "body"),
)
sockets = Gauge("cascade_sockets", "Open WebSockets: of children (agent), of pages (page).", "kind", ("agent", "page"))
passes = Histogram("cascade_allocation_pass_seconds", "Passes of the dispatcher: who gets what. The leader's.")
granted = Counter("cascade_allocations_granted_total", "Allocations that were granted. The leader's, mostly.")
ended = Counter(
    "cascade_allocations_ended_total",
    "Allocations that ended, by how. superseded: another copy was first; expired: its lease ran out.",
    "state",
    ("completed", "failed", "expired", "cancelled", "superseded"),
)
items = Counter(
    "cascade_items_total",
    "Items that came to an end, by which; one that is retried counts again.",
    "state",
    ("saved", "failed", "quarantined", "cancelled"),
)
rows = Counter("cascade_rows_saved_total", "Rows that were saved in the result store.")
refused = Counter(
    "cascade_reports_refused_total",
    "Reported allocations that were not accepted, by status: 404 not this node's, 409 its lease was lost (late), "
    "412 its segment is missing, 422 contradicts the record.",
    "code",
    ("404", "409", "412", "422"),
)
repeated = Counter("cascade_reports_repeated_total", "Reported allocations that had been accepted before.")
rate_waits = Counter(
    "cascade_rate_limit_waits_total", "Pieces of work that a pass put off until their rate limit has tokens."
)
batches = Histogram("cascade_saver_batch_seconds", "Batches of the saver, from reading to commit. The leader's.")


def closed(accepted: effects.Accept) -> None:
    """Allocations that a report has ended, once that is committed."""
    for state, count in Tally(each.state for each in accepted.closed).items():
        ended.committed(count, str(state))


def counted(effect: effects.CountItems) -> None:
    """Items and rows, once that is committed. What is taken back (rows were lost on disk) stays counted."""
    for state in ("saved", "failed", "quarantined", "cancelled"):
        items.committed(getattr(effect, state), state)
    rows.committed(effect.rows)

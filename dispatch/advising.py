"""Advising: runs of ``optimization`` that search by TPE get their next trials, by the results of those that have ended.

What is tried next is decided in ``nodes.optimizing.advice``, which is loaded when there is such a run and not before. A
trial counts as ended when its shard is saved, failed or quarantined, so that what a restart finds is what there was.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from django.db import close_old_connections, connection
from django.utils import timezone

from dispatch import events, leading, lifecycle
from dispatch.lifecycle.kept import frozen
from dispatch.models import Run, Shard
from dispatch.results.saver import results
from dispatch.states import RunState, ShardState
from nodes.protocol import Conflict, NotFound

if TYPE_CHECKING:
    from nodes.optimizing.advice import Advice, Told

logger = logging.getLogger(__name__)

TYPE = "optimization"
POLL_SECONDS = 1.0
APPEND_SECONDS = 0.1
"""Trials that were asked for wait so long for others at most: nodes may be idle."""
TROUBLE_SECONDS = 60.0
"""A run that cannot be advised for so long is left with the trials that it has."""
_ENDED = (ShardState.SAVED, ShardState.FAILED, ShardState.QUARANTINED)


class Advisor:
    """The loop; runs in a thread of the process that owns the result store."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="advisor", daemon=True)
        self._searches: dict[int, Advice] = {}
        self._troubled: dict[int, dt.datetime] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A search is taken up again from the run's items and results."""
        self._stopping.set()
        events.advisor.set()
        self._thread.join(timeout=30)

    def run(self) -> None:
        while not self._stopping.is_set():
            events.advisor.wait(POLL_SECONDS)
            events.advisor.clear()
            if not leading.held():
                continue
            try:
                self.once()
            except Exception:
                logger.exception("runs could not be advised; it is tried again")
                close_old_connections()
                self._stopping.wait(POLL_SECONDS)
        connection.close()

    def once(self) -> int:
        """Adds the trials that can be told now; how many."""
        growing = Run.objects.filter(type=TYPE, state=RunState.RUNNING, growing=True).order_by("pk")
        counts = dict(growing.values_list("pk", "count"))
        events.planned = bool(counts)
        self._searches = {pk: search for pk, search in self._searches.items() if pk in counts}
        self._troubled = {pk: since for pk, since in self._troubled.items() if pk in counts}
        added = 0
        for run_id, count in counts.items():
            if self._stopping.is_set():
                break
            try:
                added += self._advise(run_id, count)
                self._troubled.pop(run_id, None)
            except Conflict:
                return added  # another process has the store, or this one is about to give it up
            except Exception:
                self._trouble(run_id, count)
        return added

    def _trouble(self, run_id: int, count: int) -> None:
        """It is tried again for a time: a full disk may come right, params that cannot be will not."""
        self._searches.pop(run_id, None)
        now = timezone.now()
        if run_id not in self._troubled:
            logger.exception("run %s could not be advised; it is tried again", run_id)
        since = self._troubled.setdefault(run_id, now)
        if (now - since).total_seconds() >= TROUBLE_SECONDS:
            logger.error("run %s gets no further trials: it ends with the %s that it has", run_id, count)
            lifecycle.append(run_id, count, [], last=True)

    def _advise(self, run_id: int, count: int) -> int:
        search = self._search(run_id, count)
        added = 0
        while not self._stopping.is_set():
            ended = _ended(run_id, search.told)
            items = []
            until = time.monotonic() + APPEND_SECONDS
            while time.monotonic() < until and (params := search.next(ended)) is not None:
                items.append(_item(search.asked - 1, params))
            last = search.asked >= search.total
            if not items and not last:
                break
            if not lifecycle.append(run_id, search.asked - len(items), items, last=last):
                # The run was cancelled, or another process advises it: it is looked at anew.
                self._searches.pop(run_id, None)
                break
            added += len(items)
            if last:
                break
        return added

    def _search(self, run_id: int, count: int) -> Advice:
        """The search as it stands with ``count`` trials."""
        search = self._searches.get(run_id)
        if search is None or search.asked != count:
            from nodes.optimizing.advice import Advice
            from nodes.optimizing.searching import Search

            search = Advice(Search.of(Run.objects.values_list("params", flat=True).get(pk=run_id)))
            for item in frozen(run_id).slice(0, count):
                assert isinstance(item, dict)
                search.known(item["params"])
            self._searches[run_id] = search
        return search


def _item(number: int, params: dict[str, object]) -> dict[str, object]:
    from nodes.optimizing.searching import trial

    return trial(number, params)


def _ended(run_id: int, since: int) -> dict[int, Told | None]:
    """What came of trials from ``since`` on that have ended, None for no result; nothing while ``since`` goes on."""
    shards = Shard.objects.filter(run=run_id, stop__gt=since, state__in=_ENDED).values_list("start", "stop")
    ended: dict[int, Told | None] = {
        number: None for start, stop in shards for number in range(max(start, since), stop)
    }
    if since not in ended:
        return {}
    from nodes.optimizing.advice import Told

    columns = ("trial", "value", "violation")
    try:
        # Of trials told there are rows or not, so that those from here on may begin earlier, but not later.
        rows = results().select(TYPE, run=run_id, columns=columns, order=["trial"])
    except NotFound:
        return ended  # none had a result yet
    with rows:
        for batch in rows:
            for row in batch.to_pylist():
                # A node may have saved what is no result: without a violation the trial counts as failed.
                violation = row["violation"]
                if row["trial"] in ended and violation is not None and not math.isnan(violation):
                    ended[row["trial"]] = Told(row["value"], violation)
    return ended

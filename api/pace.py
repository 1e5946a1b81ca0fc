"""How fast work goes, in items, failed items and rows a second: of all runs over five minutes, and of each now."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from api.parts import HistoryView, MomentView, Spark, iso, rate
from api.words import Words, words
from dispatch.models import Allocation, Run
from dispatch.states import AllocationState, RunState


class Pace:
    """Items, failed items and rows a second, from the runs' own counters between two looks."""

    BUCKET = 5
    BUCKETS = 60
    WINDOW = 30.0
    STEP = 6
    """Buckets that a line of the history puts together."""
    SEED = 10_000
    """Allocations read to draw the time before the first look: bounded, whatever the size of the table."""

    def __init__(self, *, curves: bool = True) -> None:
        self._drawn = curves
        """Whether ``curves`` will be asked for, which are of the time before the first look, too."""
        self._buckets: dict[int, list[int]] = {}
        self._known: dict[int, Counters] = {}
        self._recent: dict[int, deque[tuple[float, int]]] = {}
        self._waiting: dict[int, int] = {}
        self._looked = 0.0

    def look(self, now: float, runs: Sequence[Mapping[str, Any]], newest: int = 0) -> None:
        """Take in the counters of ``runs`` at ``now``, seconds since the epoch. ``newest``: last allocation's id."""
        current = int(now // self.BUCKET)
        if not 0 <= now - self._looked < 2 * self.BUCKET:
            if self._drawn:
                self._seed(now, newest)
        else:
            bucket = self._buckets.setdefault(current, [0, 0, 0])
            for run, counted in self._gains(runs):
                # A retry takes failures back, so counters may fall.
                for at, (number, was) in enumerate(zip(counted, self._known.get(run, NOTHING), strict=True)):
                    bucket[at] += max(0, number - was)
        for old in [number for number in self._buckets if number < current - self.BUCKETS]:
            del self._buckets[old]
        self._known = {run["id"]: counters(run) for run in runs}
        self._looked = now
        self._follow(now, [run for run in runs if run["state"] == RunState.RUNNING])

    def queue(self, now: float, waiting: int) -> None:
        """So many items are with nobody at ``now``."""
        current = int(now // self.BUCKET)
        self._waiting[current] = waiting
        for old in [number for number in self._waiting if number < current - self.BUCKETS - self.STEP]:
            del self._waiting[old]

    def _gains(self, runs: Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, Counters]]:
        """The counters of all runs that may have moved since the last look."""
        shown = set()
        for run in runs:
            shown.add(run["id"])
            # One not seen before counts from nought only if it is really new.
            if run["id"] in self._known or run["created_at"].timestamp() >= self._looked:
                yield run["id"], counters(run)
        gone = [run for run in self._recent if run not in shown]
        if gone:
            for run in Run.objects.filter(pk__in=gone).values("id", "saved", "failed", "quarantined", "rows"):
                yield run["id"], counters(run)

    def _follow(self, now: float, running: Sequence[Mapping[str, Any]]) -> None:
        recent: dict[int, deque[tuple[float, int]]] = {}
        for run in running:
            created = run["created_at"].timestamp()
            points = self._recent.get(run["id"])
            if points is None:
                points = deque([(created, 0)] if now - created < self.WINDOW else [])
            if not points or now - points[-1][0] >= 1:
                points.append((now, counters(run)[0]))
            while len(points) > 2 and now - points[1][0] >= self.WINDOW:
                points.popleft()
            recent[run["id"]] = points
        self._recent = recent

    def _seed(self, now: float, newest: int) -> None:
        self._buckets = {}
        first = dt.datetime.fromtimestamp(now - self.BUCKET * self.BUCKETS, dt.UTC)
        reported = AllocationState.COMPLETED, AllocationState.FAILED
        latest = Allocation.objects.filter(id__gt=newest - self.SEED, state__in=reported).order_by()
        for at, start, stop, rows, state in latest.values_list("finished_at", "start", "stop", "rows", "state"):
            if at is None or at < first:
                continue
            bucket = self._buckets.setdefault(int(at.timestamp() // self.BUCKET), [0, 0, 0])
            bucket[0] += stop - start
            bucket[1] += stop - start if state == AllocationState.FAILED else 0
            bucket[2] += rows

    def of_run(self, run: int, now: float, done: int) -> float | None:
        """Items per second of a running run, or None while that cannot be said."""
        points = self._recent.get(run)
        if not points or now - points[0][0] < 2:
            return None
        return max(0, done - points[0][1]) / (now - points[0][0])

    def curves(self, now: float) -> tuple[Spark, ...]:
        current = int(now // self.BUCKET)
        # The bucket being filled would always hang down, so it counts for the number but is not drawn.
        full = [self._buckets.get(number, NOTHING) for number in range(current - self.BUCKETS, current)]
        latest = [self._buckets.get(number, NOTHING) for number in (current - 2, current - 1, current)]
        seconds = 2 * self.BUCKET + max(1.0, now % self.BUCKET)
        return tuple(
            _spark(unit, sum(bucket[at] for bucket in latest) / seconds, [bucket[at] / self.BUCKET for bucket in full])
            for at, unit in enumerate((words("items/s"), words("failed/s"), words("rows/s")))
        )

    def history(self, now: float) -> HistoryView:
        """The same as numbers, newest first, in steps that do not move while they are read."""
        step = self.BUCKET * self.STEP
        newest = int(now // step)
        return HistoryView(
            tuple(
                self._moment(number, step) for number in range(newest - 1, newest - 1 - self.BUCKETS // self.STEP, -1)
            )
        )

    def _moment(self, number: int, step: int) -> MomentView:
        first = number * self.STEP
        buckets = [self._buckets.get(at, NOTHING) for at in range(first, first + self.STEP)]
        items, failed, rows = (sum(bucket[at] for bucket in buckets) for at in range(3))
        waiting = self._waiting.get(first + self.STEP - 1)
        return MomentView(
            at=iso(dt.datetime.fromtimestamp(number * step, dt.UTC)),
            items=rate(items / step),
            failed=rate(failed / step) if failed else "",
            share=f"{100 * failed / items:.3g} %" if failed and items else "",
            rows=rate(rows / step),
            waiting="" if waiting is None else f"{waiting:,}",
        )


Counters = Sequence[int]
"""Items, of these failed, and rows."""
NOTHING: Counters = (0, 0, 0)


def counters(run: Mapping[str, Any]) -> Counters:
    failed = run["failed"] + run["quarantined"]
    return run["saved"] + failed, failed, run["rows"]


def _spark(unit: Words, now: float, values: Sequence[float]) -> Spark:
    peak = max(values)
    step = 300 / (len(values) - 1)
    points = [f"{at * step:.1f},{38 - 36 * value / peak if peak else 38:.1f}" for at, value in enumerate(values)]
    return Spark(unit, rate(now), rate(peak), " ".join(points), f"0,40 {' '.join(points)} 300,40")

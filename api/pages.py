"""The pages people see: the overview's numbers and HTML fragments, one-time sign-in links, health.

A page is made of parts: an HTML fragment per node, run, allocation and summary, each with its own id. The page is
these parts put together; ``api.live`` sends those that changed.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.db.models import Count, F, Max, Sum
from django.db.models.functions import Substr
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.template.loader import get_template
from django.templatetags.static import static
from django.urls import path, reverse
from django.utils import timezone
from django.utils.encoding import force_bytes, force_str
from django.utils.http import base36_to_int, urlsafe_base64_decode, urlsafe_base64_encode
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_safe

from dispatch.models import Allocation, Run, Shard
from dispatch.states import LIVE, RUN_ENDED, AllocationState, RunState, ShardState
from nodes.models import Node, Quota
from nodes.transactions import write

NODES_SHOWN = 500
RUNS_SHOWN = 50
ENDED_SHOWN = 20
ALLOCATIONS_SHOWN = 25
FAILURES_SECONDS = 3600
"""Runs that ended longer ago do not redden the totals, the title and the icon any more."""
ERROR_SHOWN = 240
"""Characters of an error on the overview; the whole of it is one click away."""

# ---- words, numbers, bars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """A state as shown: the word, and the tone that decides its glyph and colour."""

    word: str
    tone: str
    glyph: str


_GLYPHS = {
    "pending": "○",
    "allocated": "◔",
    # With the selector that keeps phones from drawing a coloured picture.
    "executing": "▶\ufe0e",
    "saved": "✓",
    "retrying": "↻",
    "failed": "✕",
    "cancelled": "–",
    "expired": "?",
}
_TONES = {
    "running": "executing",
    "completed": "saved",
    "partial": "failed",
    "superseded": "cancelled",
    "online": "saved",
    "draining": "allocated",
    "offline": "expired",
    "inactive": "cancelled",
}


def _state(word: str) -> State:
    tone = _TONES.get(word, word)
    return State(word, tone, _GLYPHS[tone])


@dataclass(frozen=True)
class Segment:
    """A piece of a bar, in percent of its length."""

    kind: str
    x: str
    width: str


def _bar(total: int, *pieces: tuple[str, int]) -> tuple[Segment, ...]:
    """``pieces`` (kind, number) one after the other on a bar ``total`` long; what does not fit is cut off."""
    segments, at = [], 0
    for kind, number in pieces:
        number = max(0, min(number, total - at))
        if number:
            segments.append(Segment(kind, f"{100 * at / total:.2f}", f"{100 * number / total:.2f}"))
            at += number
    return tuple(segments)


def _rate(per_second: float) -> str:
    return (
        f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2g}"
    )


def _lasted(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _left(seconds: float) -> str:
    """A guess, so rounded to what it is worth."""
    if seconds < 10:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 60:
        return f"about {5 * round(seconds / 5)} s left"
    if seconds < 3600:
        return f"about {round(seconds / 60)} min left"
    return f"about {_lasted(seconds)} left"


def _iso(at: dt.datetime | None) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else ""


# ---- what parts show: equal views need no new HTML ---------------------------------------------------------------


@dataclass(frozen=True)
class Gauge:
    """Slots of one type on one node: how many run, wait on the node, are promised (``slots``) and are allowed."""

    name: str
    used: int
    queued: int
    slots: int | None
    limit: int | None
    bar: tuple[Segment, ...]

    @classmethod
    def of(cls, name: str, used: int, queued: int, slots: int | None, limit: int | None = None) -> Gauge:
        within = used if slots is None else min(used, slots)
        total = limit if limit is not None else max(slots or 0, used + queued)
        return cls(
            name, used, queued, slots, limit, _bar(total, ("used", within), ("over", used - within), ("queued", queued))
        )

    @property
    def label(self) -> str:
        words = [f"{self.name}: {self.used} in use"]
        words += [f"{self.queued} queued"] if self.queued else []
        words += ["no quota" if self.slots is None else f"quota {self.slots}"]
        words += [] if self.limit is None else ["never here" if self.limit == 0 else f"limit {self.limit}"]
        return ", ".join(words)


@dataclass(frozen=True)
class NodeView:
    id: int
    name: str
    state: State
    role: str
    carrier: str
    capacity: int
    used: int
    queued: int
    bar: tuple[Segment, ...]
    quotas: tuple[Gauge, ...]
    beat: str
    cpu: str
    memory: str
    executors: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class RunView:
    id: int
    name: str
    type: str
    state: State
    progress: str
    note: str
    failed: int
    bar: tuple[Segment, ...]
    label: str
    rows: str
    created: str
    ended: str
    took: str


@dataclass(frozen=True)
class AllocationView:
    id: int
    run: int
    run_name: str
    type: str
    start: int
    stop: int
    attempt: int
    node: str
    state: State
    reason: str
    granted: str
    progress: str
    rows: str
    error: str


@dataclass(frozen=True)
class TotalsView:
    nodes: int
    online: int
    capacity: int
    used: int
    queued: int
    running: int
    waiting: str
    in_flight: str
    failed: int


@dataclass(frozen=True)
class Spark:
    """A curve of the last five minutes, drawn on 300 by 40."""

    unit: str
    now: str
    peak: str
    line: str
    area: str


@dataclass(frozen=True)
class PaceView:
    curves: tuple[Spark, ...]


View = NodeView | RunView | AllocationView | TotalsView | PaceView


@dataclass(frozen=True)
class Part:
    view: View
    html: str


@dataclass(frozen=True)
class Snapshot:
    """The overview at one moment. ``lists`` gives the ids of the parts in each list, in the order shown."""

    parts: Mapping[str, Part]
    lists: Mapping[str, tuple[str, ...]]

    def html(self, name: str) -> SafeString:
        """The parts of the list ``name``, or the one part of that id. Every part is already escaped by its template."""
        ids = self.lists.get(name, (name,))
        return mark_safe("".join(self.parts[part].html for part in ids))

    def since(self, older: Snapshot | None) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        """What differs from ``older``: HTML by part, and ids by list."""
        if older is None:
            return {name: part.html for name, part in self.parts.items()}, dict(self.lists)
        was = older.parts
        parts = {name: part.html for name, part in self.parts.items() if name not in was or was[name].html != part.html}
        lists = {name: ids for name, ids in self.lists.items() if older.lists.get(name) != ids}
        return parts, lists


# ---- how fast it goes --------------------------------------------------------------------------------------------


class Pace:
    """Items and rows per second, from the runs' own counters between two looks."""

    BUCKET = 5
    BUCKETS = 60
    WINDOW = 30.0
    SEED = 10_000
    """Allocations read to draw the time before the first look: bounded, whatever the size of the table."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[int]] = {}
        self._known: dict[int, tuple[int, int]] = {}
        self._recent: dict[int, deque[tuple[float, int]]] = {}
        self._looked = 0.0

    def look(self, now: float, runs: Sequence[Mapping[str, Any]]) -> None:
        """Take in the counters of ``runs`` at ``now`` (seconds since the epoch)."""
        current = int(now // self.BUCKET)
        if not 0 <= now - self._looked < 2 * self.BUCKET:
            self._seed(now)
        else:
            bucket = self._buckets.setdefault(current, [0, 0])
            for run, (items, rows) in self._gains(runs):
                was_items, was_rows = self._known.get(run, (0, 0))
                # A retry takes failures back, so counters may fall.
                bucket[0] += max(0, items - was_items)
                bucket[1] += max(0, rows - was_rows)
        for old in [number for number in self._buckets if number < current - self.BUCKETS]:
            del self._buckets[old]
        self._known = {run["id"]: _counters(run) for run in runs}
        self._looked = now
        self._follow(now, [run for run in runs if run["state"] == RunState.RUNNING])

    def _gains(self, runs: Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, tuple[int, int]]]:
        """The counters of all runs that may have moved since the last look."""
        shown = set()
        for run in runs:
            shown.add(run["id"])
            # One not seen before counts from nought only if it is really new.
            if run["id"] in self._known or run["created_at"].timestamp() >= self._looked:
                yield run["id"], _counters(run)
        gone = [run for run in self._recent if run not in shown]
        if gone:
            for run in Run.objects.filter(pk__in=gone).values("id", "saved", "failed", "quarantined", "rows"):
                yield run["id"], _counters(run)

    def _follow(self, now: float, running: Sequence[Mapping[str, Any]]) -> None:
        recent: dict[int, deque[tuple[float, int]]] = {}
        for run in running:
            created = run["created_at"].timestamp()
            points = self._recent.get(run["id"])
            if points is None:
                points = deque([(created, 0)] if now - created < self.WINDOW else [])
            if not points or now - points[-1][0] >= 1:
                points.append((now, _counters(run)[0]))
            while len(points) > 2 and now - points[1][0] >= self.WINDOW:
                points.popleft()
            recent[run["id"]] = points
        self._recent = recent

    def _seed(self, now: float) -> None:
        self._buckets = {}
        newest = Allocation.objects.aggregate(newest=Max("id"))["newest"] or 0
        first = dt.datetime.fromtimestamp(now - self.BUCKET * self.BUCKETS, dt.UTC)
        latest = Allocation.objects.filter(id__gt=newest - self.SEED, state=AllocationState.COMPLETED).order_by()
        for at, start, stop, rows in latest.values_list("finished_at", "start", "stop", "rows"):
            if at is None or at < first:
                continue
            bucket = self._buckets.setdefault(int(at.timestamp() // self.BUCKET), [0, 0])
            bucket[0] += stop - start
            bucket[1] += rows

    def of_run(self, run: int, now: float, done: int) -> float | None:
        """Items per second of a running run, or None while that cannot be said."""
        points = self._recent.get(run)
        if not points or now - points[0][0] < 2:
            return None
        return max(0, done - points[0][1]) / (now - points[0][0])

    def curves(self, now: float) -> tuple[Spark, ...]:
        current = int(now // self.BUCKET)
        # The bucket being filled would always hang down, so it counts for the number but is not drawn.
        full = [self._buckets.get(number, (0, 0)) for number in range(current - self.BUCKETS, current)]
        latest = [self._buckets.get(number, (0, 0)) for number in (current - 2, current - 1, current)]
        seconds = 2 * self.BUCKET + max(1.0, now % self.BUCKET)
        return tuple(
            _spark(unit, sum(bucket[at] for bucket in latest) / seconds, [bucket[at] / self.BUCKET for bucket in full])
            for at, unit in enumerate(("items/s", "rows/s"))
        )


def _counters(run: Mapping[str, Any]) -> tuple[int, int]:
    return run["saved"] + run["failed"] + run["quarantined"], run["rows"]


def _spark(unit: str, now: float, values: Sequence[float]) -> Spark:
    peak = max(values)
    step = 300 / (len(values) - 1)
    points = [f"{at * step:.1f},{38 - 36 * value / peak if peak else 38:.1f}" for at, value in enumerate(values)]
    return Spark(unit, _rate(now), _rate(peak), " ".join(points), f"0,40 {' '.join(points)} 300,40")


# ---- reading -----------------------------------------------------------------------------------------------------

Held = tuple[int | None, int, str, str, str, int, int]
"""Live allocations summed up: node, run, type, item, state, how many, their items."""

_RUN_FIELDS = (
    "id",
    "name",
    "type",
    "state",
    "count",
    "saved",
    "failed",
    "quarantined",
    "cancelled",
    "rows",
    "labels",
    "created_at",
    "ended_at",
)


def live_allocations() -> list[Held]:
    """One row per (node, run, type, item, state)."""
    return list(
        Allocation.objects.filter(state__in=LIVE)
        .values_list("node_id", "run_id", "type", "item", "state")
        .annotate(number=Count("id"), items=Sum(F("stop") - F("start")))
        .order_by()
    )


@dataclass
class _Use:
    """What of one node is taken: [running, waiting] in all, by type, and by (type, item)."""

    total: list[int] = field(default_factory=lambda: [0, 0])
    types: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    items: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def add(self, kind: str, item: str, state: str, number: int) -> None:
        at = 0 if state == AllocationState.EXECUTING else 1
        self.total[at] += number
        self.types[kind][at] += number
        if item:
            self.items[kind, item][at] += number


def _use(live: Iterable[Held]) -> dict[int, _Use]:
    use: dict[int, _Use] = defaultdict(_Use)
    for node, _run, kind, item, state, number, _items in live:
        if node is not None:
            use[node].add(kind, item, state, number)
    return use


_NODE_FIELDS = (
    "id",
    "name",
    "role",
    "carrier",
    "capacity",
    "active",
    "draining",
    "labels",
    "last_beat_at",
    "cpu",
    "memory",
    "executors",
    "version",
)


def _node_state(node: Mapping[str, Any], now: dt.datetime) -> str:
    if not node["active"]:
        return "inactive"
    beat = node["last_beat_at"]
    if beat is None or (now - beat).total_seconds() > settings.CASCADE.offline_seconds:
        return "offline"
    return "draining" if node["draining"] else "online"


def _gauges(quotas: Sequence[Mapping[str, Any]], use: _Use) -> tuple[Gauge, ...]:
    gauges = []
    for quota in quotas:
        kind, item = quota["task_type"], quota["item"]
        used, queued = use.items[kind, item] if item else use.types[kind]
        name = f"{kind}[{item}]" if item else kind
        gauges.append(Gauge.of(name, used, queued, quota["slots"], quota["limit"]))
    promised = {quota["task_type"] for quota in quotas if not quota["item"]}
    for kind in sorted(set(use.types) - promised):
        if any(use.types[kind]):
            used, queued = use.types[kind]
            gauges.append(Gauge.of(kind, used, queued, None))
    return tuple(gauges)


def _node_view(node: Mapping[str, Any], state: str, quotas: Sequence[Mapping[str, Any]], use: _Use) -> NodeView:
    used, queued = use.total
    capacity = node["capacity"]
    return NodeView(
        id=node["id"],
        name=node["name"],
        state=_state(state),
        role=node["role"],
        carrier=node["carrier"],
        capacity=capacity,
        used=used,
        queued=queued,
        bar=_bar(capacity, ("used", used), ("queued", queued)),
        quotas=_gauges(quotas, use),
        beat=_iso(node["last_beat_at"]),
        cpu="" if node["cpu"] is None else f"{node['cpu']:.0f}",
        memory="" if node["memory"] is None else f"{node['memory']:.0f}",
        executors=tuple(str(name) for name in node["executors"]),
        version=node["version"],
    )


def _obstacle(
    run: Mapping[str, Any], nodes: Sequence[tuple[Mapping[str, Any], str]], never: set[tuple[int, str]]
) -> str:
    """Why no node may take ``run``: the first sieve that lets none through. Empty: some may, when they have a slot."""
    ready = [node for node, state in nodes if state == "online"]
    if not ready:
        return "no node online"
    ready = [node for node in ready if run["type"] in node["executors"]]
    if not ready:
        return f"no node online runs {run['type']}"
    ready = [node for node in ready if run["labels"].items() <= node["labels"].items()]
    if not ready:
        return "no node online has the labels " + ", ".join(f"{key}={value}" for key, value in run["labels"].items())
    if all((node["id"], run["type"]) in never for node in ready):
        return f"every node's limit for {run['type']} is 0"
    return ""


def _run_view(run: Mapping[str, Any], in_flight: int, spooled: int, rate: float | None, obstacle: str) -> RunView:
    count, saved, failed, cancelled = run["count"], run["saved"], run["failed"] + run["quarantined"], run["cancelled"]
    done = saved + failed + cancelled
    # The last shards of a run may be on two nodes, so what is in flight can sum up to more than is open.
    spooled = min(spooled, count - done)
    in_flight = min(in_flight, count - done - spooled)
    words, note = [f"{done:,}/{count:,}"], ""
    if run["state"] == RunState.RUNNING:
        if not in_flight and not spooled and done < count:
            note = obstacle
            if not obstacle:
                words.append("waiting for a free slot")
        elif done < 20 or not rate:
            words.append("estimating…")
        else:
            words += [f"{_rate(rate)}/s", _left((count - done) / rate)]
    counts = {"saved": saved, "to be saved": spooled, "in flight": in_flight, "failed": failed, "cancelled": cancelled}
    ended = run["ended_at"]
    return RunView(
        id=run["id"],
        name=run["name"],
        type=run["type"],
        state=_state(run["state"]),
        progress=" · ".join(words),
        note=note,
        failed=failed,
        bar=_bar(
            count,
            ("saved", saved),
            ("failed", failed),
            ("cancelled", cancelled),
            ("spooled", spooled),
            ("used", in_flight),
        ),
        label=f"{done:,} of {count:,} items: "
        + (", ".join(f"{number:,} {word}" for word, number in counts.items() if number) or "none yet"),
        rows=f"{run['rows']:,}",
        created=_iso(run["created_at"]),
        ended=_iso(ended),
        took=_lasted((ended - run["created_at"]).total_seconds()) if ended else "",
    )


def _allocation_views() -> list[AllocationView]:
    latest = (
        Allocation.objects.order_by("-id")
        .annotate(brief=Substr("error", 1, ERROR_SHOWN + 1))
        .values(
            "id",
            "run_id",
            "type",
            "start",
            "stop",
            "attempt",
            "state",
            "reason",
            "granted_at",
            "progress",
            "rows",
            "brief",
            "run__name",
            "node__name",
        )[:ALLOCATIONS_SHOWN]
    )
    return [
        AllocationView(
            id=row["id"],
            run=row["run_id"],
            run_name=row["run__name"],
            type=row["type"],
            start=row["start"],
            stop=row["stop"],
            attempt=row["attempt"],
            node=row["node__name"] or "removed",
            state=_state(row["state"]),
            reason=row["reason"],
            granted=_iso(row["granted_at"]),
            progress=f"{row['progress']:,}/{row['stop'] - row['start']:,}"
            if row["state"] == AllocationState.EXECUTING and row["progress"]
            else "",
            rows=f"{row['rows']:,}" if row["rows"] else "",
            error=row["brief"] if len(row["brief"]) <= ERROR_SHOWN else row["brief"][:ERROR_SHOWN] + "…",
        )
        for row in latest
    ]


class Overview:
    """Reads the control database into snapshots. One per process: its measured rates belong to all who look."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._pace = Pace()
        self._last: Mapping[str, Part] = {}

    def look(self, now: dt.datetime | None = None) -> Snapshot:
        """The overview now, in about nine queries whatever the number of nodes and runs."""
        with self._turn:
            return self._look(now or timezone.now())

    def _look(self, now: dt.datetime) -> Snapshot:
        # One right after the other: what one counts, the other lists.
        live, allocation_views = live_allocations(), _allocation_views()
        use = _use(live)
        nodes = [(node, _node_state(node, now)) for node in Node.objects.values(*_NODE_FIELDS)[:NODES_SHOWN]]
        quotas: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for quota in Quota.objects.values("node_id", "task_type", "item", "slots", "limit"):
            quotas[quota["node_id"]].append(quota)
        node_views = [_node_view(node, state, quotas[node["id"]], use[node["id"]]) for node, state in nodes]

        never = {
            (node, q["task_type"]) for node, many in quotas.items() for q in many if q["limit"] == 0 and not q["item"]
        }
        running = Run.objects.filter(state=RunState.RUNNING)
        sums = running.aggregate(
            number=Count("id"),
            open=Sum(F("count") - F("saved") - F("failed") - F("quarantined") - F("cancelled")),
        )
        runs = list(running.order_by("-id").values(*_RUN_FIELDS)[:RUNS_SHOWN])
        ids = [run["id"] for run in runs]
        spooled = dict(
            Shard.objects.filter(run_id__in=ids, state=ShardState.SPOOLED)
            .values_list("run_id")
            .annotate(items=Sum(F("stop") - F("start")))
            .order_by()
        )
        ended = Run.objects.filter(state__in=RUN_ENDED).order_by("-ended_at", "-id")
        runs += ended.values(*_RUN_FIELDS)[:ENDED_SHOWN]

        seconds = now.timestamp()
        self._pace.look(seconds, runs)
        in_flight: dict[int, int] = defaultdict(int)
        for _node, run_id, _kind, _item, _word, _number, items in live:
            in_flight[run_id] += items
        run_views = [
            _run_view(
                run,
                in_flight[run["id"]],
                spooled.get(run["id"], 0),
                self._pace.of_run(run["id"], seconds, _counters(run)[0]),
                _obstacle(run, nodes, never) if run["state"] == RunState.RUNNING else "",
            )
            for run in runs
        ]
        flying = sum(in_flight.values())
        reached = [node for node in node_views if node.state.word in ("online", "draining")]
        totals = TotalsView(
            nodes=len(nodes),
            online=len(reached),
            capacity=sum(node.capacity for node in reached),
            used=sum(node.used for node in reached),
            queued=sum(node.queued for node in reached),
            running=sums["number"],
            waiting=f"{max(0, (sums['open'] or 0) - flying):,}",
            in_flight=f"{flying:,}",
            failed=sum(
                run["failed"] + run["quarantined"]
                for run in runs
                if run["ended_at"] is None or (now - run["ended_at"]).total_seconds() < FAILURES_SECONDS
            ),
        )
        return self._render(
            {"totals": totals, "throughput": PaceView(self._pace.curves(seconds))},
            {"node": node_views, "run": run_views, "allocation": allocation_views},
        )

    def _render(
        self, single: Mapping[str, View], many: Mapping[str, Sequence[NodeView | RunView | AllocationView]]
    ) -> Snapshot:
        wanted: dict[str, tuple[str, View]] = {name: (name, view) for name, view in single.items()}
        lists = {}
        for kind, views in many.items():
            lists[f"{kind}s"] = tuple(f"{kind}-{view.id}" for view in views)
            wanted |= {f"{kind}-{view.id}": (kind, view) for view in views}
        parts = {}
        for name, (kind, view) in wanted.items():
            part = self._last.get(name)
            if part is None or part.view != view:
                part = Part(view, get_template(f"partials/{kind}.html").render({kind: view}).strip())
            parts[name] = part
        self._last = parts
        return Snapshot(parts, lists)


shown = Overview()


def _address(request: HttpRequest) -> str:
    return request.build_absolute_uri("/").rstrip("/")


@require_safe
@never_cache
@staff_member_required
def overview(request: HttpRequest) -> HttpResponse:
    snapshot = shown.look()
    return render(
        request,
        "overview.html",
        {
            "totals": snapshot.html("totals"),
            "throughput": snapshot.html("throughput"),
            "nodes": snapshot.html("nodes"),
            "runs": snapshot.html("runs"),
            "allocations": snapshot.html("allocations"),
            "address": _address(request),
            "now": int(timezone.now().timestamp() * 1000),
        },
    )


# ---- one-time sign-in --------------------------------------------------------------------------------------------

SIGN_IN_SECONDS = 600


class SignInTokens(PasswordResetTokenGenerator):
    """Tokens that end with the next sign-in, whichever way it happens, and after ``SIGN_IN_SECONDS`` at the latest."""

    key_salt = "api.pages.SignInTokens"

    def _make_hash_value(self, user: User, timestamp: int) -> str:
        # Unlike a password reset's, with the microseconds: two sign-ins within a second are two.
        last = user.last_login.isoformat() if user.last_login else ""
        return f"{user.pk}|{user.password}|{last}|{timestamp}"

    def _now(self) -> dt.datetime:
        return timezone.now().astimezone(dt.UTC).replace(tzinfo=None)

    def check_token(self, user: User | None, token: str | None) -> bool:
        if user is None or not token or not super().check_token(user, token):
            return False
        made = base36_to_int(token.partition("-")[0])
        return self._num_seconds(self._now()) - made <= SIGN_IN_SECONDS


sign_in_tokens = SignInTokens()


def sign_in_link(user: User) -> str:
    """The path that signs ``user`` in, once, within ten minutes. To be shown to nobody else."""
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    return reverse("sign-in", args=[uid, sign_in_tokens.make_token(user)])


def _link_holder(uidb64: str, token: str) -> User | None:
    """The user whose link this is, used up by this call; None for a link that does not, or no longer, work."""
    users = User.objects
    try:
        user = users.get(pk=force_str(urlsafe_base64_decode(uidb64)), is_active=True)
    except (User.DoesNotExist, ValueError, OverflowError):
        return None
    if not sign_in_tokens.check_token(user, token):
        return None
    # The one of two clicks at the same moment that moves last_login has used the link; the other has not.
    with write():
        used = users.filter(pk=user.pk, last_login=user.last_login).update(last_login=timezone.now())
    return user if used else None


@require_GET
@never_cache
def sign_in(request: HttpRequest, uidb64: str, token: str) -> HttpResponse:
    user = _link_holder(uidb64, token)
    if user is None:
        response = render(
            request, "sign_in.html", {"minutes": SIGN_IN_SECONDS // 60, "address": _address(request)}, status=403
        )
    else:
        with write():
            login(request, user, backend=settings.AUTHENTICATION_BACKENDS[0])
        response = redirect("overview")
    # The address is the secret: it must not reach another site.
    response["Referrer-Policy"] = "no-referrer"
    return response


@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """The process answers; nothing is looked up, so that a slow database does not get it restarted."""
    return JsonResponse({"status": "ok"})


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """For pages that name no icon of their own, as the admin's."""
    return redirect(static("cascade/favicon.svg"), permanent=True)


urlpatterns = [
    path("", overview, name="overview"),
    path("sign-in/<str:uidb64>/<str:token>/", sign_in, name="sign-in"),
    path("healthz", healthz, name="healthz"),
    path("favicon.ico", favicon),
]

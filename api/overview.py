"""What the overview shows: the nodes, runs and allocations, read from the database and rendered into its parts."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Count, F, Sum
from django.db.models.functions import Substr

from api import journal_page
from api.branches import Branch
from api.pace import Pace, counters
from api.parts import (
    AllocationView,
    Gauge,
    LiveParts,
    NodeView,
    PaceView,
    RunView,
    Seen,
    State,
    StepsView,
    TotalsView,
    bar,
    iso,
    lasted,
    left,
    rate,
)
from api.words import Joined, Text, listed, words
from dispatch import leaves
from dispatch.models import Allocation, Run, Shard
from dispatch.relay import subtree
from dispatch.states import LIVE, RUN_ENDED, AllocationState, RunState, ShardState
from nodes.models import Node, Quota
from nodes.registry import online_filter, state_of

NODES_SHOWN = 1_000
RUNS_SHOWN = 50
ENDED_SHOWN = 20
ALLOCATIONS_SHOWN = 25
FAILURES_SECONDS = 3600
"""Runs that ended longer ago do not redden the totals, the title and the icon any more."""
ERROR_SHOWN = 240
"""Characters of an error on the overview; the whole of it is one click away."""

Held = tuple[int | None, int, str, str, str, int, int]
"""Live allocations summed up: node, run, type, item, state, their slots, their items."""

RUN_FIELDS = (
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


def live_allocations(node: int | None = None) -> list[Held]:
    """One row per (node, run, type, item, state), of all nodes or of one."""
    live = Allocation.objects.filter(state__in=LIVE)
    return list(
        (live if node is None else live.filter(node=node))
        .values_list("node_id", "run_id", "type", "item", "state")
        .annotate(number=Sum("slots"), items=Sum(F("stop") - F("start")))
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
    "dialect",
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
    "subtree",
    "subtree_at",
)


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


def _node_view(node: Node, state: str, quotas: Sequence[Mapping[str, Any]], use: _Use) -> NodeView:
    used, queued = use.total
    capacity = node.capacity
    return NodeView(
        id=node.pk,
        name=node.name,
        state=State.of(state),
        role=node.role,
        carrier=node.carrier,
        capacity=capacity,
        used=used,
        queued=queued,
        bar=bar(capacity, ("used", used), ("queued", queued)),
        quotas=_gauges(quotas, use),
        beat=iso(node.last_beat_at),
        cpu="" if node.cpu is None else f"{node.cpu:.0f}",
        memory="" if node.memory is None else f"{node.memory:.0f}",
        executors=tuple(str(name) for name in node.executors),
        version=node.version,
    )


def node_view(node: Node, state: str) -> NodeView:
    """One node by itself."""
    return _node_view(node, state, list(_quotas().filter(node=node)), _use(live_allocations(node.pk))[node.pk])


def _quotas() -> Any:
    return Quota.objects.values("node_id", "task_type", "item", "slots", "limit")


def _tree(node: Node, view: NodeView) -> dict[str, int]:
    """What the node comes to with all that hangs below it."""
    below = subtree.numbers_of(node.subtree) if node.role == Node.Role.RELAY else None
    slots = {"capacity": view.capacity, "used": view.used, "queued": view.queued}
    return subtree.numbers({"role": node.role, "state": view.state.name, "below": below, **slots})


def _others(shown: Collection[int], use: Mapping[int, _Use], now: dt.datetime) -> dict[str, int]:
    """What nodes that are not among the ``shown`` come to, without what hangs below them."""
    others = Node.objects.exclude(pk__in=shown)
    online = dict(others.filter(online_filter(now)).values_list("pk", "capacity"))
    used, queued = (sum(use[pk].total[at] for pk in online if pk in use) for at in (0, 1))
    slots = {"capacity": sum(online.values()), "used": used, "queued": queued}
    return {"nodes": others.count(), "online": len(online), **slots}


def _pairs(nodes: Sequence[tuple[Node, str]], views: Sequence[NodeView]) -> Iterator[tuple[NodeView, Branch | None]]:
    """Each node with the branch below it, if it has one."""
    for (node, state), view in zip(nodes, views, strict=True):
        relay = node.role == Node.Role.RELAY and node.subtree is not None
        yield view, Branch.kept(node, state) if relay else None


def _obstacle(run: Mapping[str, Any], nodes: Sequence[tuple[Node, str]], never: set[tuple[int, str]]) -> Text:
    """Why no node may take ``run``: the first sieve that lets none through. Empty: some may, when they have a slot."""
    ready = [node for node, state in nodes if state == "online"]
    if not ready:
        return words("no node online")
    ready = [node for node in ready if run["type"] in node.executors]
    if not ready:
        return words("no node online runs {type}", type=run["type"])
    ready = [node for node in ready if run["labels"].items() <= node.labels.items()]
    if not ready:
        labels = ", ".join(f"{key}={value}" for key, value in run["labels"].items())
        return words("no node online has the labels {labels}", labels=labels)
    if all((node.pk, run["type"]) in never for node in ready):
        return words("every node's limit for {type} is 0", type=run["type"])
    return ""


def run_view(
    run: Mapping[str, Any], in_flight: int, spooled: int, pace: float | None, obstacle: Text, *, brief: bool = False
) -> RunView:
    """``run`` with RUN_FIELDS; ``pace`` in items a second; ``obstacle``: why nothing of it can begin. ``brief``: of all
    that only its counts are known.
    """
    count, saved, failed, cancelled = run["count"], run["saved"], run["failed"] + run["quarantined"], run["cancelled"]
    done = saved + failed + cancelled
    # The last shards of a run may be on two nodes, so what is in flight can sum up to more than is open.
    spooled = min(spooled, count - done)
    in_flight = min(in_flight, count - done - spooled)
    progress: list[Text] = [f"{done:,}/{count:,}"]
    note: Text = ""
    if run["state"] == RunState.RUNNING and not brief:
        if not in_flight and not spooled and done < count:
            note = obstacle
            if not obstacle:
                progress.append(words("waiting for a free slot"))
        elif done < 20 or not pace:
            progress.append(words("estimating…"))
        else:
            progress += [words("{n}/s", n=rate(pace)), left((count - done) / pace)]
    counts = (
        (saved, words("{n} saved", n=f"{saved:,}")),
        (spooled, words("{n} to be saved", n=f"{spooled:,}")),
        (in_flight, words("{n} in flight", n=f"{in_flight:,}")),
        (failed, words("{n} failed", n=f"{failed:,}")),
        (cancelled, words("{n} cancelled", n=f"{cancelled:,}")),
    )
    told = listed(said for number, said in counts if number)
    ended = run["ended_at"]
    return RunView(
        id=run["id"],
        name=run["name"],
        type=run["type"],
        state=State.of(run["state"]),
        progress=Joined(" · ", tuple(progress)),
        note=note,
        failed=failed,
        bar=bar(
            count,
            ("saved", saved),
            ("failed", failed),
            ("cancelled", cancelled),
            ("spooled", spooled),
            ("used", in_flight),
        ),
        label=words(
            "{done} of {count} items: {told}", done=f"{done:,}", count=f"{count:,}", told=told or words("none yet")
        ),
        rows=f"{run['rows']:,}",
        created=iso(run["created_at"]),
        ended=iso(ended),
        took=lasted((ended - run["created_at"]).total_seconds()) if ended else "",
    )


def allocation_views(**of: int) -> list[AllocationView]:
    """The newest allocations: of all, or of a ``run`` or a ``node``."""
    found = Allocation.objects.filter(**of)
    latest = list(
        found.order_by("-id")
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
            "node__role",
        )[:ALLOCATIONS_SHOWN]
    )
    paths = leaves.below_relays(row["id"] for row in latest if row["node__role"] == Node.Role.RELAY)
    return [
        AllocationView(
            id=row["id"],
            run=row["run_id"],
            run_name=row["run__name"],
            type=row["type"],
            start=row["start"],
            stop=row["stop"],
            attempt=row["attempt"],
            node=row["node__name"] or words("removed"),
            ran_by=tuple(paths.get(row["id"], ())),
            state=State.of(row["state"]),
            reason=row["reason"],
            granted=iso(row["granted_at"]),
            progress=f"{row['progress']:,}/{row['stop'] - row['start']:,}"
            if row["state"] == AllocationState.EXECUTING and row["progress"]
            else "",
            rows=f"{row['rows']:,}" if row["rows"] else "",
            error=row["brief"] if len(row["brief"]) <= ERROR_SHOWN else row["brief"][:ERROR_SHOWN] + "…",
        )
        for row in latest
    ]


class Overview(LiveParts):
    """Reads the control database into what is shown. One per process: its measured rates belong to all who look."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()
        self._begun = False
        self._journal = journal_page.Brief()

    def _read(self, now: dt.datetime) -> Seen:
        """The overview now, in about a dozen queries whatever the number of nodes and runs."""
        # One right after the other: what one counts, the other lists.
        live, allocations = live_allocations(), allocation_views()
        use = _use(live)
        nodes = [(node, state_of(node, now)) for node in Node.objects.only(*_NODE_FIELDS)[:NODES_SHOWN]]
        quotas: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for quota in _quotas():
            quotas[quota["node_id"]].append(quota)
        node_views = [_node_view(node, state, quotas[node.pk], use[node.pk]) for node, state in nodes]

        never = {
            (node, q["task_type"]) for node, many in quotas.items() for q in many if q["limit"] == 0 and not q["item"]
        }
        running = Run.objects.filter(state=RunState.RUNNING)
        sums = running.aggregate(
            number=Count("id"),
            open=Sum(F("count") - F("saved") - F("failed") - F("quarantined") - F("cancelled")),
        )
        runs = list(running.order_by("-id").values(*RUN_FIELDS)[:RUNS_SHOWN])
        ids = [run["id"] for run in runs]
        spooled = dict(
            Shard.objects.filter(run_id__in=ids, state=ShardState.SPOOLED)
            .values_list("run_id")
            .annotate(items=Sum(F("stop") - F("start")))
            .order_by()
        )
        ended = Run.objects.filter(state__in=RUN_ENDED).order_by("-ended_at", "-id")
        runs += ended.values(*RUN_FIELDS)[:ENDED_SHOWN]

        seconds = now.timestamp()
        self._pace.look(seconds, runs, allocations[0].id if allocations else 0)
        in_flight: dict[int, int] = defaultdict(int)
        for _node, run_id, _kind, _item, _word, _number, items in live:
            in_flight[run_id] += items
        run_views = [
            run_view(
                run,
                in_flight[run["id"]],
                spooled.get(run["id"], 0),
                self._pace.of_run(run["id"], seconds, counters(run)[0]),
                _obstacle(run, nodes, never) if run["state"] == RunState.RUNNING else "",
            )
            for run in runs
        ]
        flying = sum(in_flight.values())
        waiting = max(0, (sums["open"] or 0) - flying)
        self._pace.queue(seconds, waiting)
        untouched = [
            run["created_at"]
            for run in runs
            if run["state"] == RunState.RUNNING and not (in_flight[run["id"]] or spooled.get(run["id"]))
            if not run["cancelled"] and not counters(run)[0]
        ]
        tree = [_tree(node, view) for (node, _), view in zip(nodes, node_views, strict=True)]
        if len(nodes) == NODES_SHOWN:
            tree.append(_others([node.pk for node, _ in nodes], use, now))
        totals = TotalsView(
            **{name: sum(each[name] for each in tree) for name in ("nodes", "online", "capacity", "used", "queued")},
            running=sums["number"],
            waiting=f"{waiting:,}",
            since=iso(min(untouched, default=None)),
            in_flight=f"{flying:,}",
            failed=sum(
                run["failed"] + run["quarantined"]
                for run in runs
                if run["ended_at"] is None or (now - run["ended_at"]).total_seconds() < FAILURES_SECONDS
            ),
        )
        pairs = [each for view, branch in _pairs(nodes, node_views) for each in (view, branch) if each]
        return Seen(
            {
                "steps": self._steps(nodes, runs),
                "totals": totals,
                "throughput": PaceView(self._pace.curves(seconds)),
                "history": self._pace.history(seconds),
            },
            {
                "nodes": [("branch" if isinstance(each, Branch) else "node", each) for each in pairs],
                "runs": [("run", each) for each in run_views],
                "journal": self._journal.look({node.pk for node, _ in nodes}, {run["id"]: run["name"] for run in runs}),
                "allocations": [("allocation", each) for each in allocations],
            },
        )

    def _steps(self, nodes: Sequence[tuple[Node, str]], runs: Sequence[Mapping[str, Any]]) -> StepsView:
        """From what is shown anyway; whoever has more runs behind them than that begins no more."""
        ended = sum(run["ended_at"] is not None for run in runs)
        self._begun = self._begun or ended >= ENDED_SHOWN or any(run["rows"] for run in runs)
        if self._begun:
            return StepsView(True, True, True, True)
        silent = [node.pk for node, _ in nodes if node.last_beat_at is None]
        return StepsView(bool(nodes), len(silent) < len(nodes), bool(runs), False, silent[0] if silent else 0)


shown = Overview()

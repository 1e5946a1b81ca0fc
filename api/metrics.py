"""``/metrics``: what ``dispatch.metrics`` has counted in this process, and what the database says at this moment, in
Prometheus' text format 0.0.4.

The format is written here: https://prometheus.io/docs/instrumenting/exposition_formats/. The reference library takes
2 to 3.5 MB and twice as long for each number counted, for what are forty lines.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import psutil
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.db import DatabaseError, close_old_connections
from django.db.models import Count, F, Min, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from api import health
from api.errors import json_error
from dispatch import leading, metrics
from dispatch.metrics import Sample
from dispatch.models import Allocation, Receipt, Run, Shard
from dispatch.relay import place
from dispatch.results import room
from dispatch.states import LIVE, SHARD_OPEN, AllocationState, RunState, ShardState
from nodes import __version__, executors, registry
from nodes.models import Node
from nodes.protocol import CascadeError, Forbidden, Unauthenticated

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHARE = 0.05
"""Reading the database for this takes at most this share of the time, however many ask however often."""
LEAST_SECONDS = 1.0
TYPES_SHOWN = 100
NODE_STATES = ("online", "draining", "offline", "inactive")
SHARD_STATES = (*SHARD_OPEN, ShardState.FAILED, ShardState.QUARANTINED)
"""Those that do not only grow with time: saved items and rows are counted as they are saved."""


class Gauge(NamedTuple):
    """A family whose samples are made when they are asked for. ``whole``: the same from every process of a parent."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    whole: bool = True


GAUGES = (
    Gauge("cascade_nodes", "Nodes, by state.", ("state",)),
    Gauge("cascade_slots", "Slots of nodes that are online."),
    Gauge("cascade_slots_in_use", "Slots in which something runs, by task type.", ("type",)),
    Gauge("cascade_slots_queued", "Slots' worth of work that waits at its node, by task type.", ("type",)),
    Gauge("cascade_node_up", "1: the node is online or draining. Up to metrics_nodes nodes have these.", ("node",)),
    Gauge("cascade_node_slots", "Slots of the node.", ("node",)),
    Gauge("cascade_node_slots_in_use", "Slots of the node in which something runs.", ("node",)),
    Gauge("cascade_node_slots_queued", "Slots' worth of work that waits at the node.", ("node",)),
    Gauge("cascade_node_beat_age_seconds", "Since the node's last beat.", ("node",)),
    Gauge("cascade_runs", "Runs that are kept, by state.", ("state",)),
    Gauge("cascade_items_uncut", "Items of running runs that are in no shard yet."),
    Gauge("cascade_shards", "Shards that are open, failed or quarantined, by state.", ("state",)),
    Gauge("cascade_receipts_waiting", "Receipts whose rows are not saved yet, or not passed on by a relay."),
    Gauge("cascade_receipts_waiting_oldest_seconds", "Age of the oldest of them; 0: there is none."),
    Gauge("cascade_spool_bytes", "Bytes of results that wait to be saved: segments, and rows in receipts."),
    Gauge("cascade_spool_limit_bytes", "Setting spool_limit."),
    Gauge("cascade_database_up", "1: this process could read the database.", whole=False),
    Gauge("cascade_database_read_seconds", "How long the last look at the database for this page took.", whole=False),
    Gauge("cascade_database_read_age_seconds", "How long ago that was.", whole=False),
    Gauge("cascade_disk_free_bytes", "Bytes that the disk of data_dir has left.", whole=False),
    Gauge("cascade_disk_reserve_bytes", "Setting disk_reserve.", whole=False),
    Gauge("cascade_leads", "1: this process allocates and saves.", whole=False),
    Gauge("cascade_loop_up", "1: the thread of this loop lives.", ("loop",), whole=False),
    Gauge("cascade_relay_connected", "Of a relay: 1, its parent answers.", whole=False),
    Gauge("cascade_relay_silence_seconds", "Of a relay: since its parent's last answer.", whole=False),
    Gauge("cascade_build_info", "1. What this process is.", ("version", "role"), whole=False),
    Gauge("process_resident_memory_bytes", "Memory of this process.", whole=False),
    Gauge("process_cpu_seconds_total", "CPU time of this process, without its workers.", whole=False),
    Gauge("process_open_fds", "Open files and connections.", whole=False),
    Gauge("process_max_fds", "How many it may have.", whole=False),
    Gauge("process_threads", "Threads.", whole=False),
    Gauge("process_start_time_seconds", "When it began, in seconds since 1970.", whole=False),
)

Values = dict[str, dict[tuple[str, ...], float]]
"""Family -> values of its labels -> value."""


class Database:
    """What the database says, read in seven queries whatever there is in it, and not more often than SHARE allows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Values = {}
        self._read = float("-inf")
        self._took = 0.0

    def values(self) -> Values:
        with self._lock:
            began = time.monotonic()
            up = True
            if began - self._read >= max(LEAST_SECONDS, self._took / SHARE):
                try:
                    self._values = _read_all()
                    self._read, self._took = time.monotonic(), time.monotonic() - began
                except DatabaseError:
                    # What was read before is not told again: a wrong number is worse than none.
                    close_old_connections()
                    self._values, self._read = {}, float("-inf")
                    up = False
            about: Values = {"cascade_database_up": {(): float(up)}}
            if up:
                about["cascade_database_read_seconds"] = {(): self._took}
                about["cascade_database_read_age_seconds"] = {(): time.monotonic() - self._read}
            return self._values | about


def _read_all() -> Values:
    settled = settings.CASCADE
    waits = Receipt.objects.filter(saved_at=None).aggregate(count=Count("pk"), oldest=Min("created_at"))
    oldest = (timezone.now() - waits["oldest"]).total_seconds() if waits["oldest"] else 0.0
    running = Run.objects.filter(state=RunState.RUNNING)
    return {
        **_slots(),
        "cascade_runs": _by_state(Run.objects.values_list("state"), RunState),
        "cascade_items_uncut": {(): running.aggregate(items=Sum(F("count") - F("cut")))["items"] or 0},
        "cascade_shards": _by_state(Shard.objects.filter(state__in=SHARD_STATES).values_list("state"), SHARD_STATES),
        "cascade_receipts_waiting": {(): waits["count"]},
        "cascade_receipts_waiting_oldest_seconds": {(): max(oldest, 0.0)},
        "cascade_spool_bytes": {(): room.waiting()},
        "cascade_spool_limit_bytes": {(): settled.spool_limit},
    }


def _by_state(rows: Iterable[object], states: Iterable[str]) -> dict[tuple[str, ...], float]:
    counted = dict(rows.order_by().annotate(number=Count("pk")))  # type: ignore[attr-defined]
    return {(str(state),): counted.get(str(state), 0) for state in states}


def _slots() -> Values:
    now = timezone.now()
    columns = ("pk", "name", "active", "draining", "dialect", "role", "last_beat_at", "capacity", "facts")
    nodes = list(Node.objects.only(*columns).order_by("pk"))
    held: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    types = defaultdict(lambda: [0, 0], {kind: [0, 0] for kind in executors.EXECUTORS})
    live = Allocation.objects.filter(state__in=LIVE, node__isnull=False).order_by()
    for node, kind, state, slots in live.values_list("node_id", "type", "state").annotate(Sum("slots")):
        at = 0 if state == AllocationState.EXECUTING else 1
        held[node][at] += slots
        types[kind][at] += slots
    states = {node.pk: registry.state_of(node, now) for node in nodes}
    counted = Counter(states.values())
    shown = sorted(types)[:TYPES_SHOWN]
    found: Values = {
        "cascade_nodes": {(state,): counted[state] for state in NODE_STATES},
        "cascade_slots": {(): sum(registry.slots(node) for node in nodes if states[node.pk] == "online")},
        "cascade_slots_in_use": {(kind,): types[kind][0] for kind in shown},
        "cascade_slots_queued": {(kind,): types[kind][1] for kind in shown},
    }
    if len(nodes) > settings.CASCADE.metrics_nodes:
        return found
    beats = {node.name: node.last_beat_at for node in nodes if node.last_beat_at is not None}
    return found | {
        "cascade_node_up": {(node.name,): float(states[node.pk] in ("online", "draining")) for node in nodes},
        "cascade_node_slots": {(node.name,): registry.slots(node) for node in nodes},
        "cascade_node_slots_in_use": {(node.name,): held[node.pk][0] for node in nodes},
        "cascade_node_slots_queued": {(node.name,): held[node.pk][1] for node in nodes},
        "cascade_node_beat_age_seconds": {(name,): max((now - at).total_seconds(), 0) for name, at in beats.items()},
    }


def _own() -> Values:
    """What this process knows of itself."""
    settled = settings.CASCADE
    alive = leading.threads()
    found: Values = {
        "cascade_disk_free_bytes": {(): shutil.disk_usage(settled.data_dir).free},
        "cascade_disk_reserve_bytes": {(): settled.disk_reserve},
        "cascade_leads": {(): float(leading.held() and alive.get("dispatcher", False))},
        "cascade_loop_up": {(name,): float(lives) for name, lives in sorted(alive.items())},
        "cascade_build_info": {(__version__, settled.role): 1},
    }
    if told := health.relay():
        found["cascade_relay_connected"] = {(): float(told["parent"] == health.OK)}
        found["cascade_relay_silence_seconds"] = {(): place.here.silence()}
    process = psutil.Process()
    with process.oneshot():
        cpu = process.cpu_times()
        found |= {
            "process_resident_memory_bytes": {(): process.memory_info().rss},
            "process_cpu_seconds_total": {(): cpu.user + cpu.system},
            "process_open_fds": {(): process.num_fds()},
            "process_max_fds": {(): process.rlimit(psutil.RLIMIT_NOFILE)[0]} if hasattr(process, "rlimit") else {},
            "process_threads": {(): process.num_threads()},
            "process_start_time_seconds": {(): process.create_time()},
        }
    return found


# The text


def text() -> str:
    """The whole page. Reads the database: not for the loop that serves."""
    values = database.values() | _own()
    lines: list[str] = []
    for family in metrics.COUNTED:
        lines += _family(family.name, family.kind, family.text, family.samples())
    for gauge in GAUGES:
        if found := values.get(gauge.name):
            kind = "counter" if gauge.name.endswith("_total") else "gauge"
            lines += _family(gauge.name, kind, gauge.text, _samples(gauge, found))
    return "\n".join(lines) + "\n"


def _samples(gauge: Gauge, found: Mapping[tuple[str, ...], float]) -> Iterator[Sample]:
    for of, value in found.items():
        yield Sample("", tuple(zip(gauge.labels, of, strict=True)), value)


def _family(name: str, kind: str, about: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {_escaped(about)}"
    yield f"# TYPE {name} {kind}"
    for suffix, labels, value in samples:
        named = ",".join(f'{label}="{_escaped(each, quotes=True)}"' for label, each in labels)
        yield f"{name}{suffix}{{{named}}} {_number(value)}" if named else f"{name}{suffix} {_number(value)}"


def _escaped(value: str, *, quotes: bool = False) -> str:
    value = value.replace("\\", "\\\\").replace("\n", "\\n")
    return value.replace('"', '\\"') if quotes else value


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


database = Database()
_thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")
"""One, with a connection of its own: who asks for metrics takes no thread from who works."""


def _read_in_thread() -> str:
    close_old_connections()  # one that was lost while nobody asked is made anew
    return text()


# Who may read it


def admit(client: str, authorization: str, forwarded: bool) -> None:
    """Raises Unauthenticated, Forbidden. ``client`` is the address of the connection; ``forwarded``: a proxy's."""
    if token := settings.CASCADE.metrics_token:
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise Unauthenticated("send the setting metrics_token: Authorization: Bearer <token>")
    elif forwarded or not _is_loopback(client):
        raise Forbidden("without the setting metrics_token this is read from the server's own machine only")


def _is_loopback(client: str) -> bool:
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")


@csrf_exempt
async def page(request: HttpRequest) -> HttpResponse:
    if request.method not in ("GET", "HEAD"):
        return json_error(405, "only GET is allowed here")
    try:
        forwarded = any(name in request.headers for name in FORWARDED)
        admit(request.META.get("REMOTE_ADDR") or "", request.headers.get("Authorization", ""), forwarded)
        if not settings.CASCADE.metrics_token:
            # A page in a browser of this machine may have had a name of its own point here.
            request.get_host()
    except DisallowedHost:
        return json_error(400, "the Host header is not one of allowed_hosts")
    except Unauthenticated as error:
        return json_error(401, str(error))
    except CascadeError as error:
        return json_error(error.status, str(error))
    content = await asyncio.get_running_loop().run_in_executor(_thread, _read_in_thread)
    return HttpResponse(content, content_type=CONTENT_TYPE)

"""The one write door for Node, Quota and Heartbeat, and what everybody asks about a node.

Views, admin, commands and the agent's verbs call these functions. Values from outside go through ``fields``, so each
raises FieldError for a bad one, NotFound for an unknown node, and Conflict where the state forbids it. Keys have
a door of their own, ``keys``.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import IntegrityError
from django.db.models import Q, Sum
from django.utils import timezone

from nodes.cooling import losses_after
from nodes.executors.base import shown
from nodes.fields import (
    SLOTS_LIMIT,
    QuotaSpec,
    check_fields,
    check_quotas,
    read_choice,
    read_percent,
    read_task_types,
    read_text,
    read_whole,
)
from nodes.keys import IssuedKey, new_key
from nodes.models import Heartbeat, Node, Nonce, Quota
from nodes.prepared import Change, Given, Prepared
from nodes.protocol import Conflict, FieldError, NotFound
from nodes.transactions import moment, set_rows, write

HISTORY_SECONDS = 15
"""A node beats more often than its history is worth."""
LIVE_ALLOCATION = ("pending", "executing")
"""As dispatch.states.LIVE, which this floor may not import."""


# What is asked


def find_node(name: str) -> Node:
    """The node called ``name``. Raises NotFound, which names those there are."""
    node = Node.objects.filter(name=name).first()
    if node is None:
        known = list(Node.objects.values_list("name", flat=True)[:21])
        more = ", …" if len(known) > 20 else ""
        raise NotFound(f"no node is called {name!r}; there are: {', '.join(known[:20]) or 'none yet'}{more}")
    return node


def offline_after(node: Node) -> float:
    """Seconds of silence after which a node is offline."""
    return float(settings.CASCADE.patient_seconds if node.patient else settings.CASCADE.offline_seconds)


def online_filter(now: dt.datetime) -> Q:
    """Selects nodes that are active and were heard from within ``offline_after`` before ``now``."""
    settled = settings.CASCADE
    soon = Q(last_beat_at__gte=now - dt.timedelta(seconds=settled.offline_seconds))
    patient = Q(dialect__in=Node.PATIENT, last_beat_at__gte=now - dt.timedelta(seconds=settled.patient_seconds))
    return Q(active=True) & (soon | patient)


def is_fresh(node: Node, now: dt.datetime) -> bool:
    """Online, and heard from within a lease: a node silent for longer loses what it has, so it gets nothing new."""
    if not is_online(node, now) or node.last_beat_at is None:
        return False
    if node.patient:
        return True
    return node.last_beat_at >= now - dt.timedelta(seconds=settings.CASCADE.lease_seconds)


_GRANTED = Change(lambda: Node.objects.filter(pk=Given("node")), last_grant=Given("number"))


def granted(node_ids: Sequence[int], now: dt.datetime) -> None:
    """These nodes got work, in this order."""
    base = int(now.timestamp() * 1_000_000)
    for node_id, number in {node_id: base + at for at, node_id in enumerate(node_ids)}.items():
        _GRANTED.run(node=node_id, number=number)


def doubt(node_id: int, now: dt.datetime) -> None:
    """The node's socket closed: unless it beats again within two beats, it gets no new work and its leases run out."""
    settled = settings.CASCADE
    grace = min(settled.lease_seconds, settled.offline_seconds) - 2 * settled.beat_seconds
    with write():
        Node.objects.filter(pk=node_id, last_beat_at__gt=now - dt.timedelta(seconds=max(grace, 0))).update(
            last_beat_at=now - dt.timedelta(seconds=max(grace, 0))
        )


def is_online(node: Node, now: dt.datetime) -> bool:
    """As ``online_filter``, for a node at hand."""
    if not node.active or node.last_beat_at is None:
        return False
    return node.last_beat_at >= now - dt.timedelta(seconds=offline_after(node))


def state_of(node: Node, now: dt.datetime) -> str:
    """inactive, offline, draining or online, for people."""
    if not node.active:
        return "inactive"
    if not is_online(node, now):
        return "offline"
    return "draining" if node.draining else "online"


_SIGNS = Prepared(
    lambda: Node.objects.order_by().values_list("pk", "name", "active", "draining", "last_beat_at", "dialect")
)


def states(now: dt.datetime) -> list[tuple[int, str, str]]:
    """(id, name, state) of all nodes, as ``state_of`` says. Asked once a second, so past the ORM's objects."""
    since = {
        dialect: now - dt.timedelta(seconds=offline_after(Node(dialect=dialect))) for dialect in Node.Dialect.values
    }
    return [
        (
            *(pk, name),
            "inactive"
            if not active
            else "offline"
            if beat is None or beat < since[dialect]
            else "draining"
            if draining
            else "online",
        )
        for pk, name, active, draining, beat, dialect in _SIGNS.rows()
    ]


def ago(at: dt.datetime | None, now: dt.datetime) -> str:
    """How long ago ``at`` was, for people: never, 3 s ago, 5 min ago, 2 h ago, 4 d ago."""
    if at is None:
        return "never"
    seconds = max(0, int((now - at).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def in_use(nodes: Iterable[Node]) -> dict[int, int]:
    """Live allocations by node id, of all ``nodes`` in one query; a node without any is 0."""
    counts = {node.pk: 0 for node in nodes}
    live = Node.objects.filter(pk__in=counts, allocations__state__in=LIVE_ALLOCATION)
    counts.update(live.order_by().values_list("pk").annotate(Sum("allocations__slots")))
    return counts


def told_slots(node: Node) -> int | None:
    """How many shards its machine takes at once now, where the parent was told so; see ``tell_slots``."""
    told = node.facts.get("slots") if isinstance(node.facts, dict) else None
    return told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else None


def slots(node: Node) -> int:
    """How many shards it can be given at once: its capacity, or what its machine takes where that is less."""
    told = told_slots(node)
    return node.capacity if told is None else min(node.capacity, told)


# Nodes and quotas


def add_node(
    name: str,
    *,
    capacity: int = 4,
    quotas: Sequence[QuotaSpec] = (),
    description: str = "",
    role: str = "child",
    labels: Mapping[str, str] | None = None,
    weight: float = 1.0,
    api_url: str = "",
    **fields: Any,
) -> tuple[Node, IssuedKey]:
    """A new node with its first key. ``fields`` are further ones of ``update_node``. A name in use is a Conflict."""
    checked = check_fields(
        fields
        | {
            "name": name,
            "capacity": capacity,
            "description": description,
            "role": role,
            "labels": labels or {},
            "weight": weight,
            "api_url": api_url,
        }
    )
    check_quotas(quotas, capacity)
    with write():
        _check_name_free(name, but=None)
        try:
            node = Node.objects.create(**checked)
        except IntegrityError:
            raise _name_taken(name) from None
        _store_quotas(node, quotas)
        return node, new_key(node)


def own_node(capacity: int, home: str = "") -> Node:
    """The node that stands for a server's own worker, made at its first start. It has no key.

    ``home`` names the server's data folder: servers that share a database have a worker, and a node, each.
    """
    with write():
        mine = Node.objects.select_for_update().filter(role=Node.Role.STANDALONE)
        node = next((each for each in mine if each.facts.get("home", "") == home), None)
        if node is None:
            taken = set(Node.objects.values_list("name", flat=True))
            names = (f"local-{number}" if number > 1 else "local" for number in itertools.count(1))
            name = next(name for name in names if name not in taken)
            node = Node(name=name, role=Node.Role.STANDALONE, description="This server itself.", facts={"home": home})
        node.capacity = capacity
        node.save()
        return node


def update_node(node_id: int, *, quotas: Sequence[QuotaSpec] | None = None, **fields: Any) -> Node:
    """Changes what is given, and checks capacity against quotas as both will be afterwards.

    ``fields``: name, description, role, carrier, api_url, capacity, weight, labels, active, draining, allow_plain_key.
    """
    checked = check_fields(fields)
    with write():
        node = Node.locked(node_id)
        _check_role(node, checked.get("role", node.role))
        for name, value in checked.items():
            setattr(node, name, value)
        if quotas is not None:
            check_quotas(quotas, node.capacity)
        elif "capacity" in checked:
            for quota in node.quotas.filter(slots__gt=node.capacity):
                raise FieldError("capacity", f"{node.capacity} is below the quota {quota}; lower that first")
        if "name" in checked:
            _check_name_free(node.name, but=node_id)
        try:
            node.save(update_fields=[*checked, "updated_at"])
        except IntegrityError:
            raise _name_taken(node.name) from None
        if quotas is not None:
            _store_quotas(node, quotas)
        return node


def _check_role(node: Node, role: str) -> None:
    """This server's own worker is made at its start: no node becomes it, and it becomes no other."""
    own = Node.Role.STANDALONE
    if role != node.role and own in (role, node.role):
        raise FieldError(
            "role", f"{shown(role)} cannot be given to {node.name}; {own} is this server's own worker only"
        )


def set_quotas(node_id: int, quotas: Sequence[QuotaSpec]) -> None:
    """These are the node's quotas from now on. Errors name ``quotas.<index>.<part>``."""
    update_node(node_id, quotas=quotas)


def remove_node(node_id: int, *, force: bool = False) -> None:
    """With its keys and history. A Conflict while it holds live work, unless ``force``: then its leases run out.

    This server's own worker is not removed while it is there: it would have no node until the next start.
    """
    with write():
        node = Node.locked(node_id)
        if node.embedded and is_online(node, timezone.now()):
            raise Conflict(f"node {node.name} is this server's own worker; fallback_workers=0 ends it")
        live = in_use([node])[node_id]
        if live and not force:
            some = f"{live} live allocation{'' if live == 1 else 's'}"
            raise Conflict(f"node {node.name} holds {some}; drain it and wait, or remove it with force")
        node.delete()


def drain(node_id: int) -> Node:
    """It finishes what it has and gets nothing new."""
    return update_node(node_id, draining=True)


def resume(node_id: int) -> Node:
    """It gets work again."""
    return update_node(node_id, draining=False)


# Beats, and what is kept of the past


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life of a node, ``at`` by the parent's clock, read from what it said; see ``read_sign``."""

    at: dt.datetime
    load: dict[str, float | None]
    """cpu, memory and disk, percent."""
    counts: dict[str, int]
    """held and running."""
    known: dict[str, Any]
    """Other columns of the node, where it said something of them."""


def read_sign(
    *,
    at: dt.datetime,
    boot: str = "",
    cpu: float | None = None,
    memory: float | None = None,
    disk: float | None = None,
    held: int = 0,
    running: int = 0,
    version: str | None = None,
    executors: Sequence[str] | None = None,
    carrier: str | None = None,
    leaving: bool = False,
) -> Sign:
    """What a node says of itself. cpu, memory and disk are percent, put within 0 to 100.

    Empty or None for version, executors, carrier and boot leaves what is known. ``leaving`` is the last word of a node
    that stops on purpose: it is offline at once. Raises FieldError.
    """
    load = {name: read_percent(name, value) for name, value in {"cpu": cpu, "memory": memory, "disk": disk}.items()}
    counts = {name: read_whole(name, value, 0, SLOTS_LIMIT) for name, value in (("held", held), ("running", running))}
    known: dict[str, Any] = {}
    if boot:
        known["boot"] = read_text("boot", boot, 64)
    if version:
        known["version"] = read_text("version", version, 40)
    if carrier:
        known["carrier"] = read_choice("carrier", carrier, Node.Carrier.values)
    if executors is not None:
        known["executors"] = read_task_types("executors", executors)
    if leaving:
        # Dated back to where a silent node counts as offline; no second mark for the same thing.
        settled = settings.CASCADE
        at -= dt.timedelta(seconds=max(settled.offline_seconds, settled.patient_seconds) + 1)
    return Sign(at, load, counts, known)


def record_beat(node_id: int, *, history: bool = True, **said: Any) -> None:
    """A sign of life as ``read_sign`` takes it. Raises FieldError, NotFound.

    A row of ``history`` is added every 15 s.
    """
    sign = read_sign(**said)
    with write():
        if not Node.objects.filter(pk=node_id).update(last_beat_at=sign.at, **sign.load, **sign.known):
            raise NotFound(f"there is no node {node_id}")
        if history:
            _remember({node_id: sign})


def record_beats(signs: Sequence[tuple[Node, Sign]]) -> None:
    """Signs of life of nodes that were just read in the caller's transaction, in a few statements for all."""
    with write():
        rows = [(moment(sign.at), *sign.load.values(), node.pk) for node, sign in signs]
        set_rows(Node, ("last_beat_at", "cpu", "memory", "disk"), rows)
        for node, sign in signs:
            news = {name: value for name, value in sign.known.items() if getattr(node, name) != value}
            if news:
                Node.objects.filter(pk=node.pk).update(**news)
        _remember({node.pk: sign for node, sign in signs})


def _remember(signs: Mapping[int, Sign]) -> None:
    if not signs:
        return
    since = min(sign.at for sign in signs.values()) - dt.timedelta(seconds=HISTORY_SECONDS)
    recent = Heartbeat.objects.filter(node_id__in=signs, at__gt=since).values_list("node_id", flat=True)
    due = signs.keys() - set(recent)
    Heartbeat.objects.bulk_create(
        Heartbeat(node_id=pk, at=signs[pk].at, **signs[pk].load, **signs[pk].counts) for pk in sorted(due)
    )


def lost(node_ids: Iterable[int], now: dt.datetime) -> None:
    """These nodes have just lost work that they had: their leases ended, or they came back without it."""
    lease = settings.CASCADE.lease_seconds
    with write():
        for node in Node.objects.select_for_update().filter(pk__in=set(node_ids)).order_by("pk"):
            losses = losses_after(node.losses, node.lost_at, now, lease)
            Node.objects.filter(pk=node.pk).update(losses=losses, lost_at=now)


def tell_slots(node_id: int, slots: int | None) -> None:
    """A driven node takes so many shards at once now, fewer than its capacity perhaps; None: it does not say."""
    with write():
        node = Node.locked(node_id)
        facts = {name: value for name, value in node.facts.items() if name != "slots"}
        Node.objects.filter(pk=node_id).update(facts=facts if slots is None else {**facts, "slots": slots})


def synced(node_id: int, version: int | None, now: dt.datetime) -> None:
    """The node works with this version of the configuration from now on; None: with none."""
    with write():
        Node.objects.filter(pk=node_id).update(config_version=version, synced_at=now if version else None)


def prune(now: dt.datetime) -> dict[str, int]:
    """Forgets nonces whose signatures are out of date and old history; how many rows of each: nonces, heartbeats."""
    oldest = now - dt.timedelta(days=settings.CASCADE.heartbeat_days)
    with write():
        nonces, _ = Nonce.objects.filter(expires_at__lt=now).delete()
        heartbeats, _ = Heartbeat.objects.filter(at__lt=oldest).delete()
    return {"nonces": nonces, "heartbeats": heartbeats}


# Below: one row at a time


def _name_taken(name: str) -> Conflict:
    return Conflict(f"name: a node called {name!r} exists already")


def _check_name_free(name: str, but: int | None) -> None:
    same = Node.objects.filter(name=name)
    if (same if but is None else same.exclude(pk=but)).exists():
        raise _name_taken(name)


def _store_quotas(node: Node, quotas: Sequence[QuotaSpec]) -> None:
    """Rows that stay keep their ids."""
    before = {(quota.task_type, quota.item): quota for quota in node.quotas.all()}
    for spec in quotas:
        old = before.pop((spec.task_type, spec.item), None)
        if old is None:
            Quota.objects.create(
                node=node, task_type=spec.task_type, item=spec.item, slots=spec.slots, limit=spec.limit
            )
        elif (old.slots, old.limit) != (spec.slots, spec.limit):
            old.slots, old.limit = spec.slots, spec.limit
            old.save(update_fields=["slots", "limit"])
    node.quotas.filter(pk__in=[quota.pk for quota in before.values()]).delete()

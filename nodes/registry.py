"""The one write door for Node, Quota, AccessKey, Heartbeat and Nonce, and what everybody asks about a node.

Views, admin, commands and the agent's verbs call these functions. Values from outside are checked here, so each
raises FieldError for a bad one, NotFound for an unknown node or key, and Conflict where the state forbids it.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.db.models import Count, Q
from django.utils import timezone

from nodes import executors, signing
from nodes.models import AccessKey, Heartbeat, Node, Nonce, Quota, name_validator
from nodes.protocol import Conflict, FieldError, NotFound, Unauthenticated
from nodes.transactions import write

LIVE_KEYS_LIMIT = 2
"""Two, so that a child can change over to a new key without a moment when none is valid."""
HISTORY_SECONDS = 15
"""A node beats more often than its history is worth."""
LIVE_ALLOCATION = ("pending", "executing")
"""As dispatch.states.LIVE, which this floor may not import."""
CAPACITY_LIMIT = 10_000
SLOTS_LIMIT = 1_000_000
_TASK_TYPE = re.compile(r"\A[a-z_][a-z0-9_]{0,59}\Z")
_LABEL = re.compile(r"\A[A-Za-z0-9](?:[A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?\Z")
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_QUOTA = re.compile(r"\A([^=\[\]]+)(?:\[(.*)\])?=(\d{1,9})(?:/(\d{1,9}))?\Z", re.DOTALL)


@dataclass(frozen=True)
class QuotaSpec:
    """A quota as somebody asks for it; see ``nodes.models.Quota``."""

    task_type: str
    slots: int
    item: str = ""
    limit: int | None = None


@dataclass(frozen=True)
class IssuedKey:
    """A fresh key, in the only moment when its secret is known here."""

    access_key: str
    secret_key: str = field(repr=False)
    node: Node


@dataclass(frozen=True)
class Caller:
    """An authenticated child. ``content_digest`` is the Content-Digest its signature covers, empty for a plain key."""

    node_id: int
    key_id: int
    access_key: str
    content_digest: str = ""


# What is asked


def get_node(node_id: int) -> Node:
    """Raises NotFound."""
    try:
        return Node.objects.get(pk=node_id)
    except Node.DoesNotExist:
        raise NotFound(f"there is no node {node_id}") from None


def find_node(name: str) -> Node:
    """The node called ``name``. Raises NotFound, which names those there are."""
    node = Node.objects.filter(name=name).first()
    if node is None:
        known = list(Node.objects.values_list("name", flat=True)[:21])
        more = ", …" if len(known) > 20 else ""
        raise NotFound(f"no node is called {name!r}; there are: {', '.join(known[:20]) or 'none yet'}{more}")
    return node


def online_filter(now: dt.datetime) -> Q:
    """Selects nodes that are active and beat within ``offline_seconds`` before ``now``."""
    return Q(active=True, last_beat_at__gte=now - dt.timedelta(seconds=settings.CASCADE.offline_seconds))


def is_fresh(node: Node, now: dt.datetime) -> bool:
    """Online, and heard from within a lease: a node silent for longer loses what it has, so it gets nothing new."""
    if not is_online(node, now) or node.last_beat_at is None:
        return False
    return node.last_beat_at >= now - dt.timedelta(seconds=settings.CASCADE.lease_seconds)


def granted(node_ids: Sequence[int], now: dt.datetime) -> None:
    """These nodes got work, in this order."""
    base = int(now.timestamp() * 1_000_000)
    for node_id, number in {node_id: base + at for at, node_id in enumerate(node_ids)}.items():
        Node.objects.filter(pk=node_id).update(last_grant=number)


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
    return node.last_beat_at >= now - dt.timedelta(seconds=settings.CASCADE.offline_seconds)


def state_of(node: Node, now: dt.datetime) -> str:
    """inactive, offline, draining or online, for people."""
    if not node.active:
        return "inactive"
    if not is_online(node, now):
        return "offline"
    return "draining" if node.draining else "online"


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
    counts.update(live.order_by().values_list("pk").annotate(Count("allocations")))
    return counts


# Nodes and quotas


def parse_quota(text: str) -> QuotaSpec:
    """``data_import=4``, ``data_import[AAPL]=2`` (one item), ``echo=2/4`` (slots/limit). Raises FieldError."""
    match = _QUOTA.match(text)
    if match is None:
        raise FieldError("quota", f"{_shown(text)} is not like data_import=4, data_import[AAPL]=2 or data_import=2/4")
    task_type, item, slots, limit = match.groups()
    if item == "":
        raise FieldError("quota", f"{_shown(text)}: between [ and ] an item is missing")
    return QuotaSpec(task_type, int(slots), item or "", None if limit is None else int(limit))


def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a node that an operator may set, checked one by one. Raises FieldError on the field's name."""
    checked = {}
    for name, value in fields.items():
        if name not in _READERS:
            raise FieldError(name, f"cannot be set; what can is: {', '.join(sorted(_READERS))}")
        checked[name] = _READERS[name](name, value)
    return checked


def check_quota(spec: QuotaSpec, capacity: int, path: str = "") -> None:
    """Raises FieldError on ``path`` + the part's name for a quota that a node with ``capacity`` cannot have."""
    if spec.task_type not in executors.names():
        known = ", ".join(executors.names())
        raise FieldError(f"{path}task_type", f"{_shown(spec.task_type)} is not a task type; known are: {known}")
    _text(f"{path}item", spec.item, 200)
    _whole(f"{path}slots", spec.slots, 0, SLOTS_LIMIT)
    if spec.slots > capacity:
        raise FieldError(f"{path}slots", f"{spec.slots} is above the node's capacity, {capacity}")
    if spec.limit is not None:
        _whole(f"{path}limit", spec.limit, 0, SLOTS_LIMIT)
        if spec.slots > spec.limit:
            raise FieldError(f"{path}slots", f"{spec.slots} is above this quota's own limit, {spec.limit}")


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
    _check_quotas(quotas, capacity)
    with write():
        _check_name_free(name, but=None)
        try:
            node = Node.objects.create(**checked)
        except IntegrityError:
            raise _name_taken(name) from None
        _store_quotas(node, quotas)
        return node, _issue(node)


def update_node(node_id: int, *, quotas: Sequence[QuotaSpec] | None = None, **fields: Any) -> Node:
    """Changes what is given, and checks capacity against quotas as both will be afterwards.

    ``fields``: name, description, role, carrier, api_url, capacity, weight, labels, active, draining, allow_plain_key.
    """
    checked = check_fields(fields)
    with write():
        node = _locked(node_id)
        for name, value in checked.items():
            setattr(node, name, value)
        if quotas is not None:
            _check_quotas(quotas, node.capacity)
        elif "capacity" in checked:
            for quota in node.quotas.filter(slots__gt=node.capacity):
                raise FieldError("capacity", f"{node.capacity} is below the quota {quota}; lower that first")
        if checked:
            if "name" in checked:
                _check_name_free(node.name, but=node_id)
            try:
                node.save(update_fields=list(checked))
            except IntegrityError:
                raise _name_taken(node.name) from None
        if quotas is not None:
            _store_quotas(node, quotas)
        return node


def set_quotas(node_id: int, quotas: Sequence[QuotaSpec]) -> None:
    """These are the node's quotas from now on. Errors name ``quotas.<index>.<part>``."""
    update_node(node_id, quotas=quotas)


def remove_node(node_id: int, *, force: bool = False) -> None:
    """With its keys and history. A Conflict while it holds live work, unless ``force``: then its leases run out."""
    with write():
        node = _locked(node_id)
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


# Keys


def issue_key(node_id: int) -> IssuedKey:
    """A further key. A Conflict when two are live."""
    with write():
        node = _locked(node_id)
        if len(_live_keys(node)) >= LIVE_KEYS_LIMIT:
            raise Conflict(f"node {node.name} has {LIVE_KEYS_LIMIT} live keys already; revoke one, or rotate")
        return _issue(node)


def rotate_key(node_id: int) -> IssuedKey:
    """A new key; the newest before it stays valid, so that the child can change over, and older ones are revoked."""
    with write():
        node = _locked(node_id)
        for key in _live_keys(node)[LIVE_KEYS_LIMIT - 1 :]:
            revoke_key(key.access_key)
        return _issue(node)


def revoke_key(access_key: str) -> AccessKey:
    """From its commit on nothing signed with this key is accepted. Revoking twice changes nothing."""
    # PostgreSQL cannot be asked for a NUL.
    access_key = access_key.replace("\x00", "\ufffd")
    with write():
        AccessKey.objects.filter(access_key=access_key, revoked_at=None).update(revoked_at=timezone.now())
        key = AccessKey.objects.filter(access_key=access_key).select_related("node").first()
    if key is None:
        raise NotFound(f"there is no access key {_shown(access_key)}")
    return key


def revoke_keys(node_id: int) -> int:
    """Revokes all live keys of a node; how many there were."""
    with write():
        return _locked(node_id).keys.filter(revoked_at=None).update(revoked_at=timezone.now())


def is_live(caller: Caller) -> bool:
    """Whether the key is unrevoked and its node active, as of now: for reading, where ``check_live`` is for changes."""
    return AccessKey.objects.filter(pk=caller.key_id, revoked_at=None, node__active=True).exists()


def check_live(caller: Caller) -> Node:
    """The caller's node, read again inside the caller's transaction, which must be open.

    Raises Unauthenticated when the key was revoked, or the node removed or deactivated, since it was authenticated.
    """
    # Locked (PostgreSQL): otherwise a revocation could commit between this look and the caller's commit. On SQLite the
    # transaction is the only writer anyway.
    key = (
        AccessKey.objects.select_for_update(of=("self",), no_key=True)
        .select_related("node")
        .filter(pk=caller.key_id, node_id=caller.node_id, revoked_at=None)
        .first()
    )
    if key is None:
        raise Unauthenticated(f"access key {caller.access_key} was revoked")
    if not key.node.active:
        raise Unauthenticated(f"node {key.node.name} is not active; an operator can activate it")
    return key.node


# Beats, and what is kept of the past


def record_beat(
    node_id: int,
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
) -> None:
    """What a node says of itself, ``at`` by the parent's clock. cpu, memory and disk are percent, put within 0 to 100.

    Empty or None for version, executors, carrier and boot leaves what is known. ``leaving`` is the last word of a node
    that stops on purpose: it is offline at once. A row of history is added every 15 s.
    """
    load = {"cpu": _percent("cpu", cpu), "memory": _percent("memory", memory), "disk": _percent("disk", disk)}
    counts = {"held": _whole("held", held, 0, SLOTS_LIMIT), "running": _whole("running", running, 0, SLOTS_LIMIT)}
    known: dict[str, Any] = {}
    if boot:
        known["boot"] = _text("boot", boot, 64)
    if version:
        known["version"] = _text("version", version, 40)
    if carrier:
        known["carrier"] = _choice("carrier", carrier, Node.Carrier.values)
    if executors is not None:
        known["executors"] = _task_types("executors", executors)
    if leaving:
        # Dated back to where a silent node counts as offline; no second mark for the same thing.
        at -= dt.timedelta(seconds=settings.CASCADE.offline_seconds + 1)
    with write():
        if not Node.objects.filter(pk=node_id).update(last_beat_at=at, **load, **known):
            raise NotFound(f"there is no node {node_id}")
        since = at - dt.timedelta(seconds=HISTORY_SECONDS)
        if not Heartbeat.objects.filter(node_id=node_id, at__gt=since).exists():
            Heartbeat.objects.create(node_id=node_id, at=at, **load, **counts)


def prune(now: dt.datetime) -> dict[str, int]:
    """Forgets nonces whose signatures are out of date and old history; how many rows of each: nonces, heartbeats."""
    oldest = now - dt.timedelta(days=settings.CASCADE.heartbeat_days)
    with write():
        nonces, _ = Nonce.objects.filter(expires_at__lt=now).delete()
        heartbeats, _ = Heartbeat.objects.filter(at__lt=oldest).delete()
    return {"nonces": nonces, "heartbeats": heartbeats}


# Below: one row at a time


def _locked(node_id: int) -> Node:
    try:
        return Node.objects.select_for_update().get(pk=node_id)
    except Node.DoesNotExist:
        raise NotFound(f"there is no node {node_id}") from None


def _name_taken(name: str) -> Conflict:
    return Conflict(f"name: a node called {name!r} exists already")


def _check_name_free(name: str, but: int | None) -> None:
    same = Node.objects.filter(name=name)
    if (same if but is None else same.exclude(pk=but)).exists():
        raise _name_taken(name)


def _issue(node: Node) -> IssuedKey:
    access_key, secret_key, public_key = signing.new_key()
    AccessKey.objects.create(node=node, access_key=access_key, public_key=public_key)
    return IssuedKey(access_key, secret_key, node)


def _live_keys(node: Node) -> list[AccessKey]:
    """Newest first."""
    return list(node.keys.filter(revoked_at=None).order_by("-created_at", "-id"))


def _check_quotas(quotas: Sequence[QuotaSpec], capacity: int) -> None:
    seen = set()
    for index, spec in enumerate(quotas):
        check_quota(spec, capacity, f"quotas.{index}.")
        if (spec.task_type, spec.item) in seen:
            item = f"[{spec.item}]" if spec.item else ""
            raise FieldError(f"quotas.{index}.task_type", f"{spec.task_type}{item} is named twice; once is allowed")
        seen.add((spec.task_type, spec.item))


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


# Below: values from outside. Each returns the value as it is kept, or raises FieldError.


def _shown(value: Any) -> str:
    """For a message: escaped where it cannot be printed, and not longer than a message should be."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FieldError(name, f"{_shown(value)} is not a whole number from {least} to {most}")
    return value


def _number(name: str, value: Any, least: float, most: float) -> float:
    # NaN fails the comparison, as it should.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise FieldError(name, f"{_shown(value)} is not a number from {least} to {most}")
    return float(value)


def _percent(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FieldError(name, f"{_shown(value)} is not a percentage from 0 to 100")
    # A load measured over a short time can come out a little above 100.
    return float(min(100, max(0, value)))


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise FieldError(name, f"{_shown(value)} is not true or false")
    return value


def _text(name: str, value: Any, most: int) -> str:
    if not isinstance(value, str):
        raise FieldError(name, f"{_shown(value)} is not a text")
    if len(value) > most:
        raise FieldError(name, f"has {len(value)} characters; allowed are {most}")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value) or _BIDI.search(value):
        raise FieldError(name, f"{_shown(value)} has control or text-direction characters, which are not allowed")
    return value


def _name(name: str, value: Any) -> str:
    _text(name, value, 100)
    try:
        name_validator(value)
    except ValidationError as error:
        raise FieldError(name, f"{_shown(value)} is not allowed. {error.messages[0]}") from None
    return str(value)


def _choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise FieldError(name, f"{_shown(value)} is not one of: {', '.join(allowed)}")
    return str(value)


def _url(name: str, value: Any) -> str:
    url = _text(name, value, 500)
    if not url:
        return url
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in url
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc:
        raise FieldError(name, f"{_shown(url)} is not an address like http://host:8001 (no user or password in it)")
    return url


def _labels(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > 50:
        raise FieldError(name, f'{_shown(value)} is not an object of at most 50 texts, like {{"region": "eu"}}')
    for label, text in value.items():
        if not isinstance(label, str) or not _LABEL.match(label):
            raise FieldError(name, f"{_shown(label)} is not a label; allowed are 1 to 63 letters, digits or _ . / -")
        _text(f"{name}.{label}", text, 200)
    return dict(value)


def _task_types(name: str, value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or len(value) > 100:
        raise FieldError(name, "is not a list of at most 100 task types")
    for index, task_type in enumerate(value):
        if not isinstance(task_type, str) or not _TASK_TYPE.match(task_type):
            raise FieldError(
                f"{name}.{index}", f"{_shown(task_type)} is not a task type: small letters, digits and _ only"
            )
    return list(dict.fromkeys(value))


_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "name": _name,
    "description": lambda name, value: _text(name, value, 500),
    "role": lambda name, value: _choice(name, value, Node.Role.values),
    "carrier": lambda name, value: _choice(name, value, Node.Carrier.values),
    "api_url": _url,
    "capacity": lambda name, value: _whole(name, value, 1, CAPACITY_LIMIT),
    "weight": lambda name, value: _number(name, value, 0.01, 1000),
    "labels": _labels,
    "active": _boolean,
    "draining": _boolean,
    "allow_plain_key": _boolean,
}

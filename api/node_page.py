"""The page of one node: how it is, what it runs, what it may, its keys, and the command that starts it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone

from api import overview
from api.parts import ROLES, LiveParts, NodeView, Seen, Views, iso, lasted
from api.words import Text, Words, words
from dispatch import events
from dispatch.models import SyncLog
from nodes import keys, registry, starting
from nodes.fields import QuotaSpec, parse_quota, spelled
from nodes.keys import IssuedKey
from nodes.models import AccessKey, Node, Quota
from nodes.protocol import CascadeError, FieldError, NotFound

SYNCS_SHOWN = 12
SPEEDS_SHOWN = 24
PARTS = ("node_head", "keys", "allocations", "syncs")


@dataclass(frozen=True)
class NodeHeadView:
    node: NodeView
    facts: tuple[tuple[Words, Text], ...]
    speeds: tuple[tuple[str, Words], ...]
    draining: bool
    embedded: bool


@dataclass(frozen=True)
class KeyView:
    id: int
    access_key: str
    created: str
    used: str
    revoked: str


@dataclass(frozen=True)
class SyncView:
    id: int
    operation: str
    direction: str
    count: int
    error: str
    at: str


class NodePage(LiveParts):
    """Reads one node; in each process one for all who look at it."""

    def __init__(self, pk: int) -> None:
        super().__init__()
        self._pk = pk

    def _read(self, now: dt.datetime) -> Seen:
        """The page now, in a handful of queries. Raises NotFound."""
        node = _node(self._pk)
        head = NodeHeadView(
            overview.node_view(node, registry.state_of(node, now)),
            _facts(node),
            _speeds(node),
            node.draining,
            node.embedded,
        )
        lists: Mapping[str, Views] = {
            "keys": [("key", each) for each in _keys(node)],
            "allocations": [("allocation", each) for each in overview.allocation_views(node=node.pk)],
            "syncs": [("sync", each) for each in _syncs(node)],
        }
        return Seen({"node_head": head}, lists)


def _node(pk: int) -> Node:
    if (node := Node.objects.filter(pk=pk).first()) is None:
        raise NotFound(f"there is no node {pk}")
    return node


def _facts(node: Node) -> tuple[tuple[Words, Text], ...]:
    percent = (words("CPU"), node.cpu), (words("Memory"), node.memory), (words("Disk"), node.disk)
    facts: list[tuple[Words, Text]] = [
        (words("Role"), words(ROLES.get(node.role, node.role))),
        (words("Carrier"), node.carrier),
        (words("Version"), node.version),
        (words("Last beat"), iso(node.last_beat_at)),
        *((name, "" if value is None else f"{value:.0f} %") for name, value in percent),
        (words("Labels"), ", ".join(f"{key}={value}" for key, value in node.labels.items())),
        (words("Types"), ", ".join(map(str, node.executors))),
        (words("Configuration"), "" if node.config_version is None else words("version {n}", n=node.config_version)),
        (words("Got it"), iso(node.synced_at)),
        (words("Lost its work"), words("{n} times in a row", n=node.losses) if node.losses else ""),
    ]
    return tuple((name, value) for name, value in facts if value)


def _speeds(node: Node) -> tuple[tuple[str, Words], ...]:
    """Seconds an item, by type; not those of single runs (``type@run``)."""
    known = sorted((name, seconds) for name, seconds in node.speeds.items() if "@" not in name)
    return tuple((name, _pace(seconds)) for name, seconds in known[:SPEEDS_SHOWN])


def _pace(seconds: float) -> Words:
    if seconds >= 1:
        return words("{time} an item", time=lasted(seconds))
    return words("{n} ms an item", n=f"{seconds * 1000:.3g}")


def _keys(node: Node) -> list[KeyView]:
    found = AccessKey.objects.filter(node=node).order_by("revoked_at", "-pk")
    return [
        KeyView(each.pk, each.access_key, iso(each.created_at), iso(each.last_used_at), iso(each.revoked_at))
        for each in found[:20]
    ]


def _syncs(node: Node) -> list[SyncView]:
    found = SyncLog.objects.filter(node=node).order_by("-pk")[:SYNCS_SHOWN]
    return [
        SyncView(each.pk, each.operation, each.direction, each.count, each.error[:300], iso(each.started_at))
        for each in found
    ]


# ---- what its buttons and forms do -------------------------------------------------------------------------------


def show(
    request: HttpRequest, pk: int, *, problem: str = "", quotas: str | None = None, made: IssuedKey | None = None
) -> HttpResponse:
    """The page as HTML. ``made``: a key whose secret is shown this once; ``quotas``: as they were typed. Raises
    NotFound.
    """
    snapshot = NodePage(pk).look()
    node = _node(pk)
    address = request.build_absolute_uri("/").rstrip("/")
    key = (made.access_key, made.secret_key) if made else ("ACCESS_KEY", "SECRET_KEY")
    context = {
        **{name: snapshot.html(name) for name in PARTS},
        "pk": pk,
        "node": node,
        "now": int(timezone.now().timestamp() * 1000),
        "problem": problem,
        "made": made,
        "commands": starting.commands(node, address, *key),
        "quotas": "\n".join(map(spelled, Quota.objects.filter(node=node))) if quotas is None else quotas,
        "capacity": request.POST.get("capacity", node.capacity),
        "relay": node.role == Node.Role.RELAY,
        "signs_in": not node.embedded,
    }
    return render(request, "node.html", context, status=400 if problem else 200)


def add(request: HttpRequest) -> HttpResponse:
    """A new node's page, with its key. Raises FieldError, and Conflict for a name in use."""
    made = registry.add_node(request.POST.get("name", ""), capacity=_slots(request))[1]
    events.changed()
    return show(request, made.node.pk, made=made)


def act(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """What a button of the page asks for; what speaks against it is said there, and what was typed stays.

    Raises NotFound.
    """
    _node(pk)
    try:
        made = _VERBS[verb](request, pk)
    except NotFound:
        raise
    except CascadeError as error:
        return show(request, pk, problem=str(error), quotas=request.POST.get("quotas"))
    events.changed()
    if made is not None:
        return show(request, pk, made=made)
    return redirect(reverse("node", args=[pk]))


def _limits(request: HttpRequest, pk: int) -> None:
    """Capacity and quotas, as both will be."""
    lines = re.split(r"[\n,]+", request.POST.get("quotas", ""))
    specs: list[QuotaSpec] = [parse_quota(line.strip()) for line in lines if line.strip()]
    registry.update_node(pk, capacity=_slots(request), quotas=specs)


def _slots(request: HttpRequest) -> int:
    text = request.POST.get("capacity", "").strip()
    if not text.isdecimal() or len(text) > 6:
        raise FieldError("capacity", f"{text[:20]!r} is not a whole number from 1 up")
    return int(text)


def _revoke(request: HttpRequest, pk: int) -> None:
    key = request.POST.get("access_key", "")
    if not AccessKey.objects.filter(node=pk, access_key=key).exists():
        raise FieldError("access_key", "is not a key of this node")
    keys.revoke(key)


def _drain(request: HttpRequest, pk: int) -> None:
    registry.drain(pk)


def _resume(request: HttpRequest, pk: int) -> None:
    registry.resume(pk)


_VERBS: Mapping[str, Callable[[HttpRequest, int], IssuedKey | None]] = {
    "limits": _limits,
    "drain": _drain,
    "resume": _resume,
    "issue": lambda _, pk: keys.issue(pk),
    "rotate": lambda _, pk: keys.rotate(pk),
    "revoke": _revoke,
}

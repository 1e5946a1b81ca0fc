"""What the next pass would give out if something were otherwise, asked in a form and shown beside what it gives out as
it is. All of it is in the address, and nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _

from api import submit_form
from api.parts import State
from dispatch import whatif
from dispatch.explaining import supposed
from dispatch.models import Run
from dispatch.states import RunState
from dispatch.whatif import Changes, NewNode, NodeChange
from nodes import executors, registry
from nodes.executors.base import shown
from nodes.fields import QuotaSpec, parse_quota, spelled
from nodes.models import Node
from nodes.protocol import CascadeError, FieldError

NODES, RUNS = 8, 6
"""Shown where none are named."""
NAMED = 50
"""Nodes, and runs, that an address may name."""
LISTED = 100
_NODE = re.compile(r"\An(\d{1,18})\.(capacity|quotas|draining)\Z")
_RUN = re.compile(r"\Ar(\d{1,18})\.priority\Z")
_NEW = ("capacity", "labels", "quotas", "types")


@dataclass(frozen=True)
class NodeRow:
    """A node as it is, and as it is supposed to be; both as text."""

    id: int
    name: str
    state: State
    now: Mapping[str, str]
    then: Mapping[str, str]


@dataclass(frozen=True)
class RunRow:
    id: int
    name: str
    waits: int
    now: str
    then: str


def show(request: HttpRequest) -> HttpResponse:
    """The page as HTML."""
    asked = {name: str(value).strip() for name, value in request.GET.items()}
    nodes, runs = _nodes(asked), _runs(asked)
    problem, answer, fields = "", None, []
    try:
        changes = _changes(asked, nodes, runs)
        if changes:
            found = whatif.suppose(changes)
            answer = supposed.told(found, most=LISTED)
            fields = [
                (each["what"], each["field"], _worded(each["now"]), _worded(each["then"])) for each in answer["changes"]
            ]
    except CascadeError as error:
        problem = _named(error, asked, nodes, runs)
    context = {
        "nodes": nodes,
        "runs": runs,
        "more_nodes": max(Node.objects.filter(active=True).count() - len(nodes), 0),
        "asked": asked,
        "add": {name: asked.get(f"add.{name}", "") for name in ("name", *_NEW)},
        "problem": problem,
        "answer": answer,
        "changes": fields,
        "types": executors.names(),
        "now": int(timezone.now().timestamp() * 1000),
    }
    return render(request, "what_if.html", context, status=400 if problem else 200)


# ---- what is there, and what is typed ----------------------------------------------------------------------------


def _ids(asked: Mapping[str, str], form: re.Pattern[str], one: str) -> list[int]:
    """Those that the address names, in its order."""
    found = [asked[one]] if asked.get(one, "").isdecimal() and len(asked[one]) < 19 else []
    found += [match[1] for name in asked if (match := form.match(name))]
    return list(dict.fromkeys(map(int, found)))[:NAMED]


def _nodes(asked: Mapping[str, str]) -> list[NodeRow]:
    """Those that the address names, and those whose name has what it looks for, or else the first ones."""
    named = _ids(asked, _NODE, "node")
    known = Node.objects.prefetch_related("quotas").defer("facts", "speeds", "subtree", "description")
    found = {node.pk: node for node in known.filter(pk__in=named)}
    text, active = asked.get("find", "").replace("\x00", ""), known.filter(active=True).order_by("name")
    if text:
        found |= {node.pk: node for node in active.filter(name__icontains=text)[:NODES]}
    else:
        found |= {node.pk: node for node in active[:NODES] if len(found) < NODES}
    now = timezone.now()
    rows = []
    for node in found.values():
        values = {
            "capacity": str(node.capacity),
            "quotas": "\n".join(spelled(quota) for quota in node.quotas.all()),
            "draining": "yes" if node.draining else "no",
        }
        then = {name: asked.get(f"n{node.pk}.{name}", value).replace("\r\n", "\n") for name, value in values.items()}
        rows.append(NodeRow(node.pk, node.name, State.of(registry.state_of(node, now)), values, then))
    return sorted(rows, key=lambda row: (row.id != (named[0] if named else 0), row.name))


def _runs(asked: Mapping[str, str]) -> list[RunRow]:
    """Those that the address names, and the first ones in line."""
    named = _ids(asked, _RUN, "run")
    running = Run.objects.filter(state=RunState.RUNNING).order_by("-priority", "created_at", "pk")
    columns = ("pk", "name", "type", "count", "saved", "failed", "quarantined", "cancelled", "priority")
    found = {row["pk"]: row for row in running.filter(pk__in=named).values(*columns)}
    found |= {row["pk"]: row for row in running.values(*columns)[:RUNS] if row["pk"] not in found}
    rows = []
    for pk, row in found.items():
        left = row["count"] - row["saved"] - row["failed"] - row["quarantined"] - row["cancelled"]
        now = str(row["priority"])
        rows.append(RunRow(pk, row["name"] or row["type"], left, now, asked.get(f"r{pk}.priority", now)))
    return rows


def _changes(asked: Mapping[str, str], nodes: list[NodeRow], runs: list[RunRow]) -> Changes:
    """What is otherwise than it is. Raises FieldError."""
    changed = []
    for row in nodes:
        fields: dict[str, Any] = {}
        if row.then["capacity"] != row.now["capacity"]:
            fields["capacity"] = _whole(f"{row.name}.capacity", row.then["capacity"])
        if row.then["draining"] != row.now["draining"]:
            if row.then["draining"] not in ("yes", "no"):
                raise FieldError(f"{row.name}.draining", f"{shown(row.then['draining'])} is neither yes nor no")
            fields["draining"] = row.then["draining"] == "yes"
        quotas = _quotas(row.then["quotas"]) if row.then["quotas"].split() != row.now["quotas"].split() else None
        if fields or quotas is not None:
            changed.append(NodeChange(row.name, fields, quotas))
    priorities = {row.id: _whole(f"run {row.id}", row.then) for row in runs if row.then != row.now}
    return Changes(nodes=changed, add=_added(asked), priorities=priorities)


def _added(asked: Mapping[str, str]) -> list[NewNode]:
    if not (name := asked.get("add.name", "")):
        for each in _NEW:
            if asked.get(f"add.{each}"):
                raise FieldError(
                    "add.name", f"is empty; the new node of {each} {shown(asked[f'add.{each}'])} needs one"
                )
        return []
    capacity = asked.get("add.capacity", "")
    types = asked.get("add.types", "").replace(",", " ").split()
    labels = submit_form.pairs_of("add.labels", asked.get("add.labels", ""))
    return [
        NewNode(
            name,
            _whole("add.capacity", capacity) if capacity else NewNode.capacity,
            types or None,
            _quotas(asked.get("add.quotas", "")),
            {"labels": labels} if labels else {},
        )
    ]


def _quotas(text: str) -> list[QuotaSpec]:
    return [parse_quota(line.strip()) for line in re.split(r"[\n,]+", text) if line.strip()]


def _whole(field: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise FieldError(field, f"{shown(text)} is not a whole number")
    return int(text)


def _named(error: CascadeError, asked: Mapping[str, str], nodes: list[NodeRow], runs: list[RunRow]) -> str:
    """``error`` with the name of whom it is about for its number in the question."""
    match = (
        re.match(r"\A(nodes|add|runs)\.(\d+)\.(.*)\Z", error.field, re.DOTALL)
        if isinstance(error, FieldError)
        else None
    )
    if match is None or not isinstance(error, FieldError):
        return str(error)
    kind, at, what = match[1], int(match[2]), match[3]
    if kind == "add":
        return f"{asked.get('add.name', '')}: {what}: {error.message}"
    if kind == "runs":
        return f"run {[row.id for row in runs if row.then != row.now][at]}: {what}: {error.message}"
    changed = [row.name for row in nodes if row.then != row.now]
    return f"{changed[at] if at < len(changed) else 'node'}: {what}: {error.message}"


def _worded(value: Any) -> str:
    if value is None:
        return "–"
    return (_("yes") if value else _("no")) if isinstance(value, bool) else str(value)

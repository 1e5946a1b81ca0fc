"""Devices of the ``distribution`` dialect: they register, beat, are looked at and set aside. A device is a node."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from api import authentication
from api.dialects.common import Body, answer, body_of, need, whole
from api.dialects.distribution_keys import Sender, sender
from api.dialects.distribution_stats import assignment_stats, health_stats, held_by
from api.dialects.distribution_words import DEVICE_STATES, choice, device_status, iso, success
from dispatch import lifecycle
from nodes import fields, registrations, registry
from nodes.executors.base import shown
from nodes.models import Node
from nodes.protocol import FieldError

TASKS_AT_ONCE = 3
"""Of a device that does not say."""
HOURS = 24
MOST_HOURS = 24 * 366
SAID = ("network_status", "running_tasks", "system_load", "error_count", "status_info")
"""What a heartbeat says beside the loads; kept as it is."""


def register(request: HttpRequest) -> HttpResponse:
    by = sender(request)
    body = body_of(request)
    device_id = _device_id(body)
    capabilities = _object(body, "capabilities")
    facts = {
        "device_name": _text(body, "device_name") or device_id,
        "device_type": _text(body, "device_type"),
        "ip_address": _text(body, "ip_address") or authentication.client_address(request),
        "capabilities": capabilities,
    }
    _small(facts)
    known = Node.objects.filter(name=device_id).first()
    capacity = _capacity(body, capabilities)
    if capacity is None:
        capacity = known.capacity if known else TASKS_AT_ONCE
    fields.read_whole("max_concurrent_tasks", capacity, 1, fields.CAPACITY_LIMIT)
    node = _registered(by, device_id, facts, capacity)
    by.acting(node)
    return success(f"device {node.name} is registered", device_id=node.name)


def _registered(by: Sender, device_id: str, facts: Mapping[str, Any], capacity: int) -> Node:
    if by.registration:
        return registrations.bind(by.registration, device_id, facts=facts, capacity=capacity)
    if by.access:
        return registrations.admit(by.access.node_id, device_id, facts=facts, capacity=capacity)
    return registrations.set_up(device_id, facts=facts, capacity=capacity)


def _device_id(body: Body) -> str:
    """It becomes the node's name."""
    try:
        return str(fields.check_fields({"name": need(body, "device_id")})["name"])
    except FieldError as error:
        raise FieldError("device_id", error.message) from None


def _small(facts: Mapping[str, Any]) -> None:
    try:
        fields.check_fields({"facts": facts})
    except FieldError as error:
        raise FieldError("capabilities", error.message) from None


def _capacity(body: Body, capabilities: Mapping[str, Any]) -> Any:
    """Some clients tell it within ``capabilities`` only."""
    given = body.get("max_concurrent_tasks")
    return capabilities.get("max_concurrent_tasks") if given is None else given


def listed(request: HttpRequest) -> HttpResponse:
    by = sender(request)
    wanted = request.GET.get("status", "")
    if wanted:
        choice("status", wanted, DEVICE_STATES)
    shaped = shapes(list(by.devices))
    return answer({"devices": [each for each in shaped if wanted in ("", each["status"])]})


def shapes(nodes: list[Node]) -> list[dict[str, Any]]:
    """As lists show them."""
    now = timezone.now()
    held = registry.in_use(nodes)
    return [shape(node, held[node.pk], now) for node in nodes]


def shape(node: Node, held: int, now: dt.datetime) -> dict[str, Any]:
    return {
        "device_id": node.name,
        "device_name": node.facts.get("device_name") or node.name,
        "device_type": node.facts.get("device_type") or "",
        "status": device_status(node, held, now),
        "ip_address": node.facts.get("ip_address") or "",
        "capabilities": node.facts.get("capabilities") or {},
        "current_tasks": held,
        "max_concurrent_tasks": node.capacity,
        "last_heartbeat": iso(node.last_beat_at),
        "created_at": iso(node.created_at),
    }


def latest(node: Node) -> dict[str, Any] | None:
    """Its last heartbeat, or None before the first."""
    if node.last_beat_at is None:
        return None
    loads = {"cpu_usage": node.cpu, "memory_usage": node.memory, "disk_usage": node.disk}
    said = node.facts.get("heartbeat") or {}
    return {"device_id": node.name, "heartbeat_time": iso(node.last_beat_at), **loads, **{k: said.get(k) for k in SAID}}


def one(request: HttpRequest, device_id: str) -> HttpResponse:
    node = sender(request).device(device_id)
    hours = whole(request, "hours", HOURS, 1, MOST_HOURS)
    return answer(
        {
            "device": shapes([node])[0],
            "latest_heartbeat": latest(node),
            "running_tasks": held_by(node),
            "assignment_stats": assignment_stats(node, hours),
            "health_stats": health_stats(node, hours),
        }
    )


def heartbeat(request: HttpRequest, device_id: str) -> HttpResponse:
    by = sender(request)
    node = by.device(device_id)
    body = body_of(request)
    load = {
        ours: fields.read_percent(theirs, body.get(theirs))
        for ours, theirs in (("cpu", "cpu_usage"), ("memory", "memory_usage"), ("disk", "disk_usage"))
    }
    running = body.get("running_tasks")
    # A number with most clients, the tasks themselves with some.
    count = len(running) if isinstance(running, list) else running
    if count is not None:
        fields.read_whole("running_tasks", count, 0, fields.SLOTS_LIMIT)
    by.acting(node, **load, running=count or 0)
    registrations.note(node.pk, {name: body[name] for name in SAID if body.get(name) is not None})
    return success()


def status(request: HttpRequest, device_id: str) -> HttpResponse:
    """``disabled`` drains; ``online`` gives it work again; ``offline`` is its good-bye; ``busy`` follows from its
    tasks and changes nothing."""
    by = sender(request)
    node = by.device(device_id)
    wanted = choice("status", need(body_of(request), "status"), DEVICE_STATES)
    caller = by.acting(node)
    if wanted == "disabled":
        registry.drain(node.pk)
    elif wanted == "online":
        registry.resume(node.pk)
    elif wanted == "offline":
        now = timezone.now()
        registry.record_beat(node.pk, at=now, leaving=True)
        lifecycle.disconnected(caller.node_id, now)
    return success()


def stats(request: HttpRequest, device_id: str) -> HttpResponse:
    node = sender(request).device(device_id)
    hours = whole(request, "hours", HOURS, 1, MOST_HOURS)
    return answer(
        {
            "device_id": node.name,
            "period_hours": hours,
            "assignment_stats": assignment_stats(node, hours),
            "health_stats": health_stats(node, hours),
        }
    )


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    return "" if value is None else fields.read_text(name, value, 200)


def _object(body: Body, name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FieldError(name, f"{shown(value)} is not an object")
    return value

"""Beat: one message renews a node's leases, says what runs, and brings back what to drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.db.models import F, Value
from django.db.models.functions import Least
from django.utils import timezone

from dispatch import configuration, events
from dispatch.lifecycle.grants import release_unheld
from dispatch.lifecycle.leases import renew, start
from dispatch.models import Allocation
from dispatch.ranges import MOST_ITEMS
from dispatch.states import LIVE
from nodes import keys, registry
from nodes.keys import Caller
from nodes.messages import Beat
from nodes.models import Node
from nodes.transactions import retried, write


@retried
def beat(caller: Caller, sent: Beat) -> dict[str, Any]:
    """Renews the leases of what the node holds; the reply is in ``nodes.protocol``. Only the parent's clock counts."""
    now = timezone.now()
    with write():
        node = keys.check_live(caller)
        registry.record_beat(
            node.pk,
            at=now,
            boot=sent.boot,
            cpu=sent.cpu,
            memory=sent.memory,
            disk=sent.disk,
            held=len(sent.held),
            running=len(sent.running),
            version=sent.version,
            executors=list(sent.executors) if sent.executors is not None else None,
            carrier=sent.carrier,
            leaving=sent.leaving,
        )
        if sent.config is not None and (sent.config or None) != node.config_version:
            registry.synced(node.pk, sent.config or None, now)
        if sent.hello:
            release_unheld(node.pk, sent.held)
        live = renew(node, sent.held, now)
        start(node.pk, node.capacity, sent.running, now)
        for pk, done in sent.progress.items():
            Allocation.objects.filter(pk=pk, node_id=node.pk, state__in=LIVE).update(
                progress=Least(Value(min(done, MOST_ITEMS)), F("stop") - F("start"))
            )
        cancel = [pk for pk in sent.held if pk not in live]
    # A beat frees no slot; only a node that was not there before changes what can be granted.
    events.changed(allocate=sent.hello or sent.leaving or not registry.is_online(node, now))
    settled = settings.CASCADE
    in_force = configuration.newest()
    return {
        "node": node.name,
        "cancel": cancel,
        "drain": node.draining,
        "capacity": node.capacity,
        "beat_seconds": settled.beat_seconds,
        "lease_seconds": settled.lease_seconds,
        "long_poll_seconds": settled.long_poll_seconds,
        "time": now.timestamp(),
        "config": in_force.version,
        "config_mark": in_force.mark,
    }


@retried
def seen(caller: Caller, types: Sequence[str] | None = None, **load: float | None) -> Node:
    """A sign of life from a client that does not name what it holds: all its leases run anew.

    ``types`` are the task types it runs, where it is known; ``load`` may have cpu, memory and disk (percent) and
    running: what it does not have stays as it was said last. Raises Unauthenticated for a key revoked since.
    """
    now = timezone.now()
    with write():
        node = keys.check_live(caller)
        was_online = registry.is_online(node, now)
        known = {"cpu": node.cpu, "memory": node.memory, "disk": node.disk}
        registry.record_beat(node.pk, at=now, executors=types, history=bool(load), **{**known, **load})  # type: ignore[arg-type]
        renew(node, None, now)
        node.refresh_from_db()
    events.changed(allocate=not was_online)
    return node

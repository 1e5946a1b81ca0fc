"""Beat: one message renews a node's leases, says what runs, and brings back what to drop."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.conf import settings
from django.utils import timezone

from dispatch import configuration, events
from dispatch.lifecycle.grants import release_unheld
from dispatch.lifecycle.leases import renew, renew_all, start_all
from dispatch.models import Allocation
from dispatch.relay import asking, leased, place
from dispatch.states import LIVE
from nodes import keys, registry
from nodes.keys import Caller
from nodes.messages import Beat, Below
from nodes.models import Node
from nodes.protocol import OLDEST, VERSION, CascadeError, Conflict, TooOld, Unauthenticated
from nodes.transactions import retried, update_rows, write


class Heard(NamedTuple):
    """A beat that was not refused."""

    node: Node
    sent: Beat
    sign: registry.Sign


Outcome = dict[str, Any] | CascadeError


def beat(caller: Caller, sent: Beat) -> dict[str, Any]:
    """Renews the leases of what the node holds; the reply is in ``nodes.protocol``. Only the parent's clock counts.

    Raises Unauthenticated for a key revoked since, FieldError.
    """
    (outcome,) = beat_all([(caller, sent)])
    if isinstance(outcome, CascadeError):
        raise outcome
    return outcome


@retried
def beat_all(batch: Sequence[tuple[Caller, Beat]]) -> list[Outcome]:
    """As ``beat`` for each, any of which may be refused alone: in one transaction, and a few statements for all.

    Thousands of children beat a hundred times a second, and what a beat asks costs little but for the asking.
    """
    now = timezone.now()
    with write():
        nodes = keys.check_all_live([caller for caller, _ in batch])
        heard = [_hear(node, sent, now) for node, (_, sent) in zip(nodes, batch, strict=True)]
        taken = [each for each in heard if isinstance(each, Heard)]
        registry.record_beats([(node, sign) for node, _, sign in taken])
        for node, sent, _ in taken:
            if sent.config is not None and (sent.config or None) != node.config_version:
                registry.synced(node.pk, sent.config or None, now)
            if sent.hello:
                release_unheld(node.pk, sent.held)
        freed = [
            leased.used(node.pk, sent.below.begun, sent.held, now) for node, sent, _ in taken if sent.below is not None
        ]
        live = renew_all([(node, sent.held) for node, sent, _ in taken], now)
        start_all([(node, sent.running) for node, sent, _ in taken], now)
        for node, sent, _ in taken:
            if sent.progress:
                _advance(node.pk, sent.progress)
    # A beat frees no slot; only a node that was not there before changes what can be granted.
    news = any(sent.hello or sent.leaving or not registry.is_online(node, now) for node, sent, _ in taken)
    events.changed(allocate=news or any(freed))
    return [_reply(each, live, now) if isinstance(each, Heard) else each for each in heard]


def _hear(node: Node | Unauthenticated, sent: Beat, now: datetime) -> Heard | CascadeError:
    if isinstance(node, Unauthenticated):
        return node
    try:
        sign = registry.read_sign(
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
        if sent.hello and sent.protocol < OLDEST:
            raise TooOld(
                f"{node.name} speaks version {sent.protocol} of the protocol, this server {OLDEST} to {VERSION}: "
                f"update {node.name}"
            )
        if sent.below is not None:
            if sent.hello:
                place.check(sent.id, node.name)
                _only(node, sent.id)
            sign.known.update(role=Node.Role.RELAY, facts=_facts(node, sent.id, sent.below))
            if sent.subtree is not None:
                sign.known.update(subtree=sent.subtree, subtree_at=now)
    except CascadeError as error:
        return error
    return Heard(node, sent, sign)


def _only(node: Node, relay: str) -> None:
    """Raises Conflict where another node that is here has this id."""
    others = Node.objects.filter(registry.online_filter(timezone.now()), facts__id=relay).exclude(pk=node.pk)
    if other := others.first():
        raise Conflict(
            f"{node.name} and {other.name} have the same id, {relay}: a copied data folder? Remove node_id from one"
        )


def _facts(node: Node, relay: str, below: Below) -> dict[str, Any]:
    told = {"id": relay, "slots": below.slots, "types": below.types, "branches": list(below.branches)}
    told["configs"] = {str(number): count for number, count in below.configs.items()}
    return {**node.facts, **told}


def _reply(heard: Heard, live: Container[tuple[int, int]], now: datetime) -> dict[str, Any]:
    node, sent, _ = heard
    settled = settings.CASCADE
    in_force = configuration.given(node.pk)
    return {
        "node": node.name,
        "cancel": [pk for pk in sent.held if (node.pk, pk) not in live],
        "drain": node.draining,
        "capacity": node.capacity,
        "beat_seconds": settled.beat_seconds,
        "lease_seconds": settled.lease_seconds,
        "long_poll_seconds": settled.long_poll_seconds,
        "time": now.timestamp(),
        "logs": settled.shard_log_limit > 0,
        "config": in_force.version,
        "config_mark": in_force.mark,
        "parent": place.own(),
        **({"protocol": min(sent.protocol, VERSION)} if sent.hello else {}),
        **({} if sent.below is None else _to_relay(node)),
    }


def _to_relay(node: Node) -> dict[str, Any]:
    ask = asking.take(node.pk)
    return {"path": place.path(), "limits": _limits(node), **({"ask": ask} if ask else {})}


def _limits(node: Node) -> dict[str, int]:
    """The most slots that a type may have below ``node``."""
    limited = node.quotas.filter(item="", limit__isnull=False)
    return {name: int(most or 0) for name, most in limited.values_list("task_type", "limit")}


def _advance(node_id: int, progress: Mapping[int, int]) -> None:
    """Notes how far allocations are. Those it has are few, whatever a message names: asked for the other way round, one
    message of a child would hold the database for a minute."""
    live = Allocation.objects.filter(node_id=node_id, state__in=LIVE).values_list("pk", "start", "stop")
    rows = [(min(progress[pk], stop - start), pk) for pk, start, stop in live if pk in progress]
    update_rows(Allocation, ("progress",), rows, [str(state) for state in LIVE])


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
        registry.record_beat(node.pk, at=now, executors=types, history=bool(load), **{**known, **load})
        renew(node, None, now)
        node.refresh_from_db()
    events.changed(allocate=not was_online)
    return node

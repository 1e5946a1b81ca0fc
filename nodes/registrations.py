"""The one write door of RegistrationKey: with one, devices of the ``distribution`` dialect register themselves.

The operator issues a key; a device registers its own id with it and is bound to that key from then on.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.utils import timezone

from nodes import keys, registry
from nodes.executors.base import shown
from nodes.fields import read_text
from nodes.keys import Caller
from nodes.models import Node, RegistrationKey
from nodes.protocol import Conflict, FieldError, Forbidden, NotFound, Unauthenticated
from nodes.transactions import write

MARK = "CR"
"""What every registration key begins with."""
KEY_LENGTH = 42
USED_SECONDS = 60
"""A key's last use is written at most so often."""
FACTS_LIMIT = 4_000
"""Characters of what a device adds to a heartbeat that are kept."""
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class IssuedRegistration:
    """A fresh key, in the only moment when it is known here."""

    key: str = field(repr=False)
    registration: RegistrationKey


def issue(name: str, many: bool = False) -> IssuedRegistration:
    """A new key; with ``many`` it registers any number of devices. Raises FieldError for a name that cannot be."""
    if not read_text("name", name, 100).strip():
        raise FieldError("name", "is empty: say whose key it is")
    key = _new_key()
    with write():
        made = RegistrationKey.objects.create(name=name.strip(), **_kept(key), many=many)
    return IssuedRegistration(key, made)


def rotate(registration_id: int) -> IssuedRegistration:
    """Another key in the place of this one, also of a revoked one: its devices stay bound. The old one is invalid from
    the commit on. Raises NotFound."""
    key = _new_key()
    with write():
        same = RegistrationKey.objects.filter(pk=registration_id)
        same.update(**_kept(key), revoked_at=None, last_used_at=None)
        made = same.first()
    if made is None:
        raise NotFound(f"there is no registration key {registration_id}")
    return IssuedRegistration(key, made)


def revoke(registration_id: int) -> RegistrationKey:
    """From its commit on its devices may change nothing. Revoking twice changes nothing. Raises NotFound."""
    with write():
        same = RegistrationKey.objects.filter(pk=registration_id)
        same.filter(revoked_at=None).update(revoked_at=timezone.now())
        found = same.first()
    if found is None:
        raise NotFound(f"there is no registration key {registration_id}")
    return found


def find(bearer: str) -> RegistrationKey | None:
    """The live key that ``bearer`` is, or None for a wrong or a revoked one. Looked up by digest, so that the time
    does not tell how much of a guess was right."""
    digest = _digest(bearer)
    found = RegistrationKey.objects.filter(digest=digest, revoked_at=None).first()
    right = hmac.compare_digest(digest, found.digest if found else _NO_DIGEST)
    return found if right else None


def used(registration: RegistrationKey) -> None:
    """Writes down that the key was used, once a minute."""
    now = timezone.now()
    if registration.last_used_at is None or (now - registration.last_used_at).total_seconds() > USED_SECONDS:
        with write():
            RegistrationKey.objects.filter(pk=registration.pk).update(last_used_at=now)


def caller(registration: RegistrationKey, node: Node) -> Caller:
    """A device that came with its registration key."""
    return Caller(node.pk, 0, f"{registration.prefix}…", registration=registration.pk)


def bind(registration: RegistrationKey, device_id: str, *, facts: Mapping[str, Any], capacity: int) -> Node:
    """The device's node, made or updated, and bound to this key.

    Raises Conflict for an id that another key or another kind of node has, Forbidden for a second device on a key for
    one, Unauthenticated for a key revoked since, FieldError for values that cannot be.
    """
    with write():
        key = RegistrationKey.objects.select_for_update().filter(pk=registration.pk, revoked_at=None).first()
        if key is None:
            raise Unauthenticated("this registration key was revoked")
        node = Node.objects.select_for_update().filter(name=device_id).first()
        if node is None:
            if not key.many and (other := key.nodes.first()) is not None:
                raise Forbidden(
                    f"this key registers one device, and that is {other.name}; ask the operator for another key,"
                    " or for one that registers many"
                )
            return _bound(_new(device_id, facts, capacity), key)
        if node.registration_id != key.pk:
            raise Conflict(f"device_id: {device_id!r} was registered with another key, or by an operator")
        return _described(node, facts, capacity)


def admit(node_id: int, device_id: str, *, facts: Mapping[str, Any], capacity: int) -> Node:
    """The same for a device that came with an access key of its own node.

    Raises Conflict for an id that is not that node's name, Forbidden for a node that works already and speaks
    another dialect.
    """
    with write():
        node = Node.locked(node_id)
        if node.name != device_id:
            raise Conflict(f"device_id: this key is for {node.name!r}, not for {shown(device_id)}")
        if node.dialect != Node.Dialect.DISTRIBUTION:
            if node.last_beat_at is not None:
                raise Forbidden(f"node {node.name} speaks the dialect {node.dialect}, not distribution")
            registry.update_node(node.pk, dialect=Node.Dialect.DISTRIBUTION)
        return _described(Node.locked(node_id), facts, capacity)


def set_up(device_id: str, *, facts: Mapping[str, Any], capacity: int) -> Node:
    """The same for an operator: what there is is updated, a new device is bound to no key. Raises Conflict for an id
    that another kind of node has."""
    with write():
        node = Node.objects.select_for_update().filter(name=device_id).first()
        if node is None:
            return _new(device_id, facts, capacity)
        if node.dialect != Node.Dialect.DISTRIBUTION:
            raise Conflict(f"device_id: a node called {device_id!r} speaks the dialect {node.dialect}")
        return _described(node, facts, capacity)


def note(node_id: int, said: Mapping[str, Any]) -> None:
    """Keeps what a device added to its last heartbeat, if it is of a size worth keeping."""
    try:
        if len(json.dumps(said, ensure_ascii=False, allow_nan=False)) > FACTS_LIMIT:
            said = {name: value for name, value in said.items() if isinstance(value, int | float)}
    except (ValueError, RecursionError):
        return
    with write():
        node = Node.locked(node_id)
        if node.facts.get("heartbeat") != said:
            registry.update_node(node_id, facts={**node.facts, "heartbeat": dict(said)})


def _new(device_id: str, facts: Mapping[str, Any], capacity: int) -> Node:
    node, key = registry.add_node(
        device_id, capacity=capacity, dialect=Node.Dialect.DISTRIBUTION, facts=dict(facts), labels={}
    )
    # Nobody has this one: the device's key is the one it came with.
    keys.revoke(key.access_key)
    return node


def _bound(node: Node, key: RegistrationKey) -> Node:
    Node.objects.filter(pk=node.pk).update(registration=key)
    node.registration = key
    return node


def _described(node: Node, facts: Mapping[str, Any], capacity: int) -> Node:
    return registry.update_node(node.pk, facts={**node.facts, **facts}, capacity=capacity)


def _new_key() -> str:
    return MARK + secrets.token_urlsafe(30)


def _kept(key: str) -> dict[str, str]:
    """What is stored of it."""
    return {"prefix": key[:8], "digest": _digest(key)}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()

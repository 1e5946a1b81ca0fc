"""The one write door for AccessKey: keys are issued, rotated, revoked; and whether a caller's key is still live.

How a request proves that it has the key is in ``signing``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from nodes import journal, signing
from nodes.executors.base import shown
from nodes.models import AccessKey, Node, RegistrationKey
from nodes.prepared import Given, Prepared
from nodes.protocol import Conflict, FieldError, Forbidden, NotFound, Unauthenticated
from nodes.transactions import retried, write

LIVE_KEYS_LIMIT = 2
"""Two, so that a child can change over to a new key without a moment when none is valid."""


_PUBLIC_KEY = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class IssuedKey:
    """A fresh key, in the only moment when its secret is known here."""

    access_key: str
    secret_key: str = field(repr=False)
    node: Node


@dataclass(frozen=True)
class Caller:
    """An authenticated child. ``content_digest`` is the Content-Digest its signature covers, empty for a plain key.

    ``registration`` is set instead of ``key_id`` for a device that came with a registration key; neither is for this
    parent itself, where it acts for a node that it drives (``inside``).
    """

    node_id: int
    key_id: int
    access_key: str
    content_digest: str = ""
    registration: int = 0


def inside(node_id: int) -> Caller:
    """This process acting for a node that it carries work for itself. Never made from what a request says."""
    return Caller(node_id, 0, "(this server)")


ended: list[Callable[[int], None]] = []
"""Called with a node's id after a commit of this process that ended keys of it: who acts for it is to look again."""


@retried
def issue(node_id: int) -> IssuedKey:
    """A further key. A Conflict when two are live."""
    with write():
        node = _keyed(node_id)
        if len(_live_keys(node)) >= LIVE_KEYS_LIMIT:
            raise Conflict(f"node {node.name} has {LIVE_KEYS_LIMIT} live keys already; revoke one, or rotate")
        return new_key(node)


@retried
def rotate(node_id: int) -> IssuedKey:
    """A new key; the newest before it stays valid, so that the child can change over, and older ones are revoked."""
    with write():
        node = _keyed(node_id)
        for key in _live_keys(node)[LIVE_KEYS_LIMIT - 1 :]:
            revoke(key.access_key)
        return new_key(node)


@retried
def rotate_own(caller: Caller, public_key: str) -> AccessKey:
    """A key that the child has made itself; ``public_key`` is its public half, in hex. Asked again it is the same one.

    The caller's own stays valid until ``retire``. Only a signed request may do this: whoever reads a plain key on its
    way must not get a lasting one for it. Raises Forbidden, FieldError, and Conflict while another key is in use, too.
    """
    if not caller.key_id or not caller.content_digest:
        raise Forbidden("a key is rotated by a request signed with it")
    if not isinstance(public_key, str) or not _PUBLIC_KEY.match(public_key):
        raise FieldError("public_key", f"{shown(public_key)} is not an Ed25519 public key: 64 digits, 0-9 and a-f")
    with write():
        check_live(caller)
        # Of two rotations at once, by either of the node's keys, the second sees what the first has made.
        node = _keyed(caller.node_id)
        same = AccessKey.objects.filter(public_key=public_key).first()
        if same is not None:
            if (same.node_id, same.revoked_at) == (node.pk, None) and same.pk != caller.key_id:
                return same
            raise Conflict("public_key: this key was registered before; make a new one")
        for other in _live_keys(node):
            if other.pk == caller.key_id:
                continue
            if other.last_used_at is not None:
                raise Conflict(f"key {other.access_key} is in use, too; retire the older one first")
            revoke(other.access_key)
        return _kept(node, signing.new_key()[0], public_key)


@retried
def retire(caller: Caller) -> list[str]:
    """Ends the node's keys that are older than the caller's; which they were. Raises Forbidden as ``rotate_own``."""
    if not caller.key_id or not caller.content_digest:
        raise Forbidden("older keys are retired by a request signed with the newer one")
    with write():
        check_live(caller)
        node = _keyed(caller.node_id)
        older = [key.access_key for key in _live_keys(node) if key.pk < caller.key_id]
        for access_key in older:
            revoke(access_key)
    return older


@retried
def revoke(access_key: str) -> AccessKey:
    """From its commit on nothing signed with this key is accepted. Revoking twice changes nothing."""
    # PostgreSQL cannot be asked for a NUL.
    access_key = access_key.replace("\x00", "\ufffd")
    with write():
        ended = AccessKey.objects.filter(access_key=access_key, revoked_at=None).update(revoked_at=timezone.now())
        key = AccessKey.objects.filter(access_key=access_key).select_related("node").first()
        if key is not None:
            _tell(key.node_id)
            if ended:
                journal.record(journal.About.KEY, "revoked", node=key.node, text=key.access_key)
    if key is None:
        raise NotFound(f"there is no access key {shown(access_key)}")
    return key


@retried
def revoke_all(node_id: int) -> int:
    """Revokes all live keys of a node; how many there were."""
    with write():
        _tell(node_id)
        node = Node.locked(node_id)
        ended = node.keys.filter(revoked_at=None).update(revoked_at=timezone.now())
        if ended:
            journal.record(journal.About.KEY, "revoked", node=node, count=ended)
        return ended


def _tell(node_id: int) -> None:
    """After the commit; before it, whoever looks again would still find the key alive."""

    def tell() -> None:
        for hear in ended:
            hear(node_id)

    transaction.on_commit(tell, robust=True)


_UNREVOKED = Prepared(
    lambda: AccessKey.objects.filter(pk=Given("key"), revoked_at=None, node__active=True).order_by().values_list("pk")
)


# Locked (PostgreSQL): otherwise a revocation could commit between this look and the caller's commit. On SQLite the
# transaction is the only writer anyway.
_LOCKED = Prepared(
    lambda: (
        AccessKey.objects.select_for_update(no_key=True)
        .filter(pk__among=Given("keys"), revoked_at=None)
        .order_by("pk")
        .values_list("pk", "node_id")
    )
)
_OWNERS = Prepared(lambda: Node.objects.filter(pk__among=Given("nodes")).order_by())


def is_live(caller: Caller) -> bool:
    """Whether the key is unrevoked and its node active, as of now: for reading, where ``check_live`` is for changes."""
    if caller.key_id:
        return _UNREVOKED.any(key=caller.key_id)
    return _unkeyed(caller).exists()


def live(key_ids: Collection[int]) -> set[int]:
    """Those of ``key_ids`` that are unrevoked, and whose nodes are active. Asked for all open sockets at once."""
    found = AccessKey.objects.filter(revoked_at=None, node__active=True).order_by()
    return set(key_ids) & set(found.values_list("pk", flat=True))


def check_live(caller: Caller) -> Node:
    """The caller's node, read again inside the caller's transaction, which must be open.

    Raises Unauthenticated when the key was revoked, or the node removed or deactivated, since it was authenticated.
    """
    (found,) = check_all_live([caller])
    if isinstance(found, Unauthenticated):
        raise found
    return found


def check_all_live(callers: Sequence[Caller]) -> list[Node | Unauthenticated]:
    """As ``check_live`` for each of them, in two queries for all that have access keys."""
    keyed = {caller.key_id for caller in callers if caller.key_id}
    nodes: dict[int, Node] = {}
    if keyed and (owners := dict(_LOCKED.rows(keys=keyed))):
        by_id = {node.pk: node for node in _OWNERS.objects(nodes=owners.values())}
        nodes = {key: by_id[owner] for key, owner in owners.items() if owner in by_id}
    return [_live(caller, nodes.get(caller.key_id)) if caller.key_id else _live_unkeyed(caller) for caller in callers]


def _live(caller: Caller, owner: Node | None) -> Node | Unauthenticated:
    if owner is None or owner.pk != caller.node_id:
        return Unauthenticated(f"access key {caller.access_key} was revoked")
    if not owner.active:
        return Unauthenticated(f"node {owner.name} is not active; an operator can activate it")
    return owner


def _live_unkeyed(caller: Caller) -> Node | Unauthenticated:
    if caller.registration:
        # Locked for the same reason as an access key above.
        RegistrationKey.objects.select_for_update(no_key=True).filter(pk=caller.registration).first()
    node = _unkeyed(caller).select_for_update(of=("self",), no_key=True).first()
    return node or Unauthenticated(f"{caller.access_key} may not act for node {caller.node_id} any more")


def _unkeyed(caller: Caller) -> QuerySet[Node]:
    """The node of a caller without an access key, if it may still act for it."""
    nodes = Node.objects.filter(pk=caller.node_id, active=True)
    if caller.registration:
        return nodes.filter(registration=caller.registration, registration__revoked_at=None)
    return nodes


def new_key(node: Node) -> IssuedKey:
    """One more, however many are live; the transaction is the caller's."""
    access_key, secret_key, public_key = signing.new_key()
    _kept(node, access_key, public_key)
    return IssuedKey(access_key, secret_key, node)


def _kept(node: Node, access_key: str, public_key: str) -> AccessKey:
    journal.record(journal.About.KEY, "issued", node=node, text=access_key)
    return AccessKey.objects.create(node=node, access_key=access_key, public_key=public_key)


def _keyed(node_id: int) -> Node:
    """A node that signs in with a key. Raises NotFound, and Conflict for this server's own worker."""
    node = Node.locked(node_id)
    if node.embedded:
        raise Conflict(f"node {node.name} is this server's own worker: it needs no key, and gets none")
    return node


def _live_keys(node: Node) -> list[AccessKey]:
    """Newest first."""
    return list(node.keys.filter(revoked_at=None).order_by("-created_at", "-id"))

"""Who speaks ``distribution``: a device with a registration key or its node's access key, or an operator."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

from api import authentication
from api.dialects.common import operator
from api.dialects.distribution_words import TYPE
from api.guesses import keys as guesses
from api.guesses import place
from dispatch import lifecycle
from nodes import keys, registrations
from nodes.executors.base import shown
from nodes.keys import Caller
from nodes.models import Node, RegistrationKey, name_validator
from nodes.protocol import FieldError, Forbidden, NotFound, Unauthenticated

BEARER = "bearer "
_TOKEN = re.compile(r"\A[\w-]+\.[\w-]+\.[\w-]*\Z")
"""What an operator's JWT looks like."""


@dataclass(frozen=True)
class Sender:
    """Whoever sent a request; one of ``registration``, ``access`` and ``staff`` says how it proved that."""

    name: str
    registration: RegistrationKey | None = None
    access: Caller | None = None
    staff: str = ""

    @property
    def devices(self) -> QuerySet[Node]:
        """Those it may look at: all for an operator, its own for a device."""
        found = Node.objects.filter(dialect=Node.Dialect.DISTRIBUTION)
        if self.registration:
            return found.filter(registration=self.registration)
        return found.filter(pk=self.access.node_id) if self.access else found

    def device(self, device_id: Any) -> Node:
        """The device with this id. Raises NotFound for one that is not there, or is bound to another key."""
        node = None
        # What no name can be is not asked of the database.
        if isinstance(device_id, str) and re.match(name_validator.regex, device_id):
            node = self.devices.filter(name=device_id).first()
        if node is None:
            raise NotFound(f"device {shown(device_id)} is not registered{'' if self.staff else ' with this key'}")
        return node

    def one(self, device_id: Any) -> Node:
        """``device``, where the id may be left out by a key that has one device only."""
        if device_id in (None, ""):
            own = list(self.devices[:2]) if not self.staff else []
            if len(own) != 1:
                raise FieldError("device_id", "is required")
            return own[0]
        return self.device(device_id)

    def acting(self, node: Node, **load: float | None) -> Caller:
        """A device speaks, or an operator in its place: that is a sign of life. Raises Unauthenticated."""
        if self.registration:
            caller = registrations.caller(self.registration, node)
        else:
            caller = self.access or keys.inside(node.pk)
        lifecycle.seen(caller, [TYPE], **load)
        return caller

    def only_staff(self) -> None:
        """Raises Forbidden for a device."""
        if not self.staff:
            raise Forbidden("a device's key may not do this; send an operator's token of /api/v1/token")


def sender(request: HttpRequest) -> Sender:
    """Raises Unauthenticated, Forbidden, and TooMany after too many wrong keys from one address."""
    given = request.headers.get("Authorization", "")
    bearer = given[len(BEARER) :].strip() if given[: len(BEARER)].lower() == BEARER else ""
    if ":" in bearer:
        return _with_access_key(bearer, request)
    if not bearer or _TOKEN.match(bearer):
        name = operator(request)
        return Sender(name, staff=name)
    return _with_registration(bearer, request)


def _with_access_key(bearer: str, request: HttpRequest) -> Sender:
    method, url, headers = authentication.request_parts(request)
    others = [pair for pair in headers if pair[0].lower() not in ("authorization", "signature-input")]
    client = authentication.client_address(request)
    given = [*others, ("authorization", authentication.PLAIN + bearer)]
    caller = authentication.authenticate(method, url, given, None, client=client)
    return Sender(caller.access_key, access=caller)


def _with_registration(bearer: str, request: HttpRequest) -> Sender:
    """Wrong ones are counted by address only: a key that is guessed has no name to count by."""
    client = authentication.client_address(request)
    named = place(client)
    found = registrations.find(bearer)
    known = found is not None and guesses.knows(client, found.digest)
    if not known:
        guesses.check(named)
    if found is None:
        guesses.wrong(named)
        raise Unauthenticated("unknown or revoked key")
    _, url, headers = authentication.request_parts(request)
    fields = {name.lower(): value for name, value in headers}
    authentication.check_private(url, fields, client, f"the registration key {found.prefix}…")
    guesses.right(client, found.digest)
    registrations.used(found)
    return Sender(f"{found.name} ({found.prefix}…)", registration=found)

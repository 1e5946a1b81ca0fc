"""``manage.py registration_key``: keys with which devices register themselves, over ``nodes.registrations``."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.utils import timezone

from nodes import registrations, registry
from nodes.models import RegistrationKey
from nodes.protocol import CascadeError, NotFound
from nodes.registrations import IssuedRegistration


class Command(BaseCommand):
    help = "Issue, list, rotate or revoke a key with which devices (the dialect 'distribution') register themselves."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", default="", help="Whose key it is, in your words. Without: all keys.")
        parser.add_argument("--many", action="store_true", help="It registers any number of devices, not just one.")
        parser.add_argument("--revoke", action="store_true", help="Makes the keys with this name invalid, at once.")
        parser.add_argument("--rotate", action="store_true", help="Another key in its place; its devices stay bound.")
        parser.add_argument("--json", action="store_true", help="For programs.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if not options["name"]:
                self._list(options["json"])
            elif options["revoke"]:
                self._revoke(options["name"])
            elif options["rotate"]:
                self._show(registrations.rotate(self._one(options["name"]).pk), options)
            else:
                self._show(registrations.issue(options["name"], options["many"]), options)
        except CascadeError as error:
            raise CommandError(str(error)) from None
        except DatabaseError as error:
            raise CommandError(f"the database: {error}; is it made? python manage.py migrate makes it") from error

    def _show(self, made: IssuedRegistration, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({**_as_dict(made.registration), "key": made.key}, indent=2))
            return
        count = "any number of devices" if made.registration.many else "one device"
        self.stdout.write(f"""{made.key}

  The key of {made.registration.name}, for {count}. It is shown this once.
  Devices send it as: Authorization: Bearer {made.registration.prefix}…
""")

    def _list(self, as_json: bool) -> None:
        keys = list(RegistrationKey.objects.prefetch_related("nodes"))
        if as_json:
            self.stdout.write(json.dumps([_as_dict(key) for key in keys], indent=2))
            return
        if not keys:
            self.stdout.write("No registration keys yet. Issue one: python manage.py registration_key NAME")
        now = timezone.now()
        for key in keys:
            devices = ", ".join(node.name for node in key.nodes.all()) or "no devices yet"
            state = "revoked" if key.revoked_at else f"last used {registry.ago(key.last_used_at, now)}"
            self.stdout.write(f"{key.prefix}…  {key.name}  {'many' if key.many else 'one'}  {state}  {devices}")

    def _one(self, name: str) -> RegistrationKey:
        """The newest with this name, a live one if there is any; names need not differ."""
        found = RegistrationKey.objects.filter(name=name)
        key = found.filter(revoked_at=None).first() or found.first()
        if key is None:
            raise NotFound(f"no registration key is called {name!r}")
        return key

    def _revoke(self, name: str) -> None:
        live = list(RegistrationKey.objects.filter(name=name, revoked_at=None))
        if not live:
            raise NotFound(f"no live registration key is called {name!r}")
        for key in live:
            registrations.revoke(key.pk)
        self.stdout.write(f"Revoked {len(live)} {'key' if len(live) == 1 else 'keys'} of {name}.")


def _as_dict(key: RegistrationKey) -> dict[str, Any]:
    return {
        "id": key.pk,
        "name": key.name,
        "prefix": key.prefix,
        "many": key.many,
        "created_at": key.created_at.isoformat(),
        "last_used_at": key.last_used_at.isoformat() if key.last_used_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
        "devices": [node.name for node in key.nodes.all()],
    }

"""``manage.py registration_key``: keys with which devices register themselves, over ``nodes.registrations``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.utils import timezone

from cascade import console
from nodes import registrations, registry
from nodes.models import RegistrationKey
from nodes.protocol import NotFound
from nodes.registrations import IssuedRegistration


class Command(console.Command):
    help = "Issue, list, rotate or revoke a key with which devices (the dialect 'distribution') register themselves."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", default="", help="Whose key it is, in your words. Without: all keys.")
        parser.add_argument("--many", action="store_true", help="It registers any number of devices, not just one.")
        parser.add_argument("--revoke", action="store_true", help="Makes the keys with this name invalid, at once.")
        parser.add_argument("--rotate", action="store_true", help="Another key in its place; its devices stay bound.")
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["name"]:
            self._list(options["json"])
        elif options["revoke"]:
            self._revoke(options)
        elif options["rotate"]:
            self._show(registrations.rotate(self._one(options["name"]).pk), options)
        else:
            self._show(registrations.issue(options["name"], options["many"]), options)

    def _show(self, made: IssuedRegistration, options: dict[str, Any]) -> None:
        if options["json"]:
            self.tell_json({**_as_dict(made.registration), "key": made.key})
            return
        count = "any number of devices" if made.registration.many else "one device"
        self.stdout.write(f"""{made.key}

  The key of {made.registration.name}, for {count}. It is shown this once.
  Devices send it as: Authorization: Bearer {made.registration.prefix}…
""")

    def _list(self, as_json: bool) -> None:
        keys = list(RegistrationKey.objects.prefetch_related("nodes"))
        if as_json:
            self.tell_json([_as_dict(key) for key in keys])
            return
        now = timezone.now()
        self.tell_table(
            ("key", "name", "devices", "state", "registered"),
            [
                (
                    f"{key.prefix}…",
                    key.name,
                    "many" if key.many else "one",
                    "revoked" if key.revoked_at else f"last used {registry.ago(key.last_used_at, now)}",
                    ", ".join(node.name for node in key.nodes.all()),
                )
                for key in keys
            ],
            empty="No registration keys yet. Issue one: python manage.py registration_key NAME",
        )

    def _one(self, name: str) -> RegistrationKey:
        """The newest with this name, a live one if there is any; names need not differ."""
        found = RegistrationKey.objects.filter(name=name)
        key = found.filter(revoked_at=None).first() or found.first()
        if key is None:
            raise NotFound(f"no registration key is called {name!r}")
        return key

    def _revoke(self, options: dict[str, Any]) -> None:
        name = options["name"]
        live = list(RegistrationKey.objects.filter(name=name, revoked_at=None))
        if not live:
            raise NotFound(f"no live registration key is called {name!r}")
        for key in live:
            registrations.revoke(key.pk)
        if options["json"]:
            self.tell_json([_as_dict(key) for key in RegistrationKey.objects.filter(pk__in=[key.pk for key in live])])
            return
        self.stdout.write(f"Revoked {len(live)} {'key' if len(live) == 1 else 'keys'} of {name}.")


def _as_dict(key: RegistrationKey) -> dict[str, Any]:
    return {
        "id": key.pk,
        "name": key.name,
        "prefix": key.prefix,
        "many": key.many,
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
        "devices": [node.name for node in key.nodes.all()],
    }

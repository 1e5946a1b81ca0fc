"""``manage.py check``: Django's, which looks at the databases and the port, too."""

from __future__ import annotations

from typing import Any

from django.core.management.commands.check import Command as DjangoCommand


class Command(DjangoCommand):
    help = "Looks whether settings, data folder, databases, clock, keys and port are as they should be."

    def handle(self, *app_labels: list[str], **options: Any) -> None:
        if not options["databases"] and not options["tags"] and not app_labels:
            options["databases"] = ["default"]
        super().handle(*app_labels, **options)

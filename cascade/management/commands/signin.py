"""``manage.py signin``: a one-time link to the pages, for whoever has the command line."""

from __future__ import annotations

import argparse
from typing import Any

from django.contrib.auth import get_user_model

from api import pages
from cascade import console, reach
from nodes.protocol import NotFound


class Command(console.Command):
    help = "Prints a link that signs a member of the staff in, once, within ten minutes."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--url", help="where the parent is reached (default: where it runs)")

    def handle(self, *args: Any, **options: Any) -> None:
        user = get_user_model().objects.filter(username=options["username"], is_active=True, is_staff=True).first()
        if user is None:
            raise NotFound(
                f"{options['username']!r} is no active member of the staff; make one: python manage.py createsuperuser"
            )
        self.stdout.write(
            (options["url"] or reach.server() or "http://127.0.0.1:8000").rstrip("/") + pages.sign_in_link(user)
        )

"""``manage.py dispatcher``: a process that leads, or stands by to, beside web processes."""

from __future__ import annotations

import argparse
import logging
import signal
import time
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.management import CommandError

from cascade import checks, console, roles, serving, watched
from dispatch import leading

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.5


class Command(console.Command):
    help = (
        "Allocates, saves and does whatever else one process does for all, beside web processes on the same "
        "PostgreSQL. Of several one leads, and the others stand by."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--status", action="store_true", help="only say who leads; the exit status is 1 when nobody does"
        )
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        settled = settings.CASCADE
        if not settled.database_url:
            raise CommandError(
                "without database_url there is one process, `runserver`, which does all of it; set database_url to the "
                "PostgreSQL that several processes share",
                returncode=console.WRONG,
            )
        if options["status"]:
            self._tell_status(options["json"])
            return
        wrong = [message for message in checks.check_settings(None) if message.is_serious()]
        if wrong:
            raise CommandError("\n".join(str(message.msg) for message in wrong), returncode=console.WRONG)
        serving.check_migrated()
        serving.steady()
        loops = roles.dispatching()
        if settled.dispatcher_port:
            loops.append(watched.Watched(settled.host, settled.dispatcher_port))
        with suppress(_Asked), serving.running(loops):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _end)
            logger.info("%s takes part in leading", settings.PROCESS)
            while True:
                # In turns: the system may tell another thread of a signal, and Python's handlers run in this one.
                time.sleep(TURN_SECONDS)

    def _tell_status(self, as_json: bool) -> None:
        found = leading.leader()
        if as_json:
            self.tell_json({"leader": None if found is None else leading.as_dict(found)})
        else:
            self.stdout.write(f"{found} leads" if found else "nobody leads")
        if found is None:
            raise SystemExit(console.FAILED)


class _Asked(Exception):
    """To end, by a signal. An exception, since a flag could be set just before the wait for it begins."""


def _end(number: int, frame: object) -> None:
    raise _Asked

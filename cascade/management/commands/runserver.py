"""``runserver``: Daphne's, plus the loops of this process' role."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
from typing import Any

from daphne.management.commands.runserver import Command as DaphneCommand
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from cascade import roles
from nodes.agent import config as agent_config
from nodes.protocol import CascadeError

SWITCH_SECONDS = 0.0005
"""A message passes through several threads; at Python's 5 ms each of them could wait that long for a busy one."""


class Command(DaphneCommand):
    help = "Serves this node: pages, API and sockets of a parent with its dispatcher, or a child with its agent."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--role", choices=["parent", "child"], help="what this process is (CASCADE_ROLE; default parent)"
        )
        parser.add_argument("--reload", action="store_true", help="restart when a source file changes, for development")
        agent_config.arguments(parser.add_argument_group("child"))  # type: ignore[arg-type]

    def handle(self, *args: Any, **options: Any) -> None:
        if options["role"]:
            settings.CASCADE.role = options["role"]
        # Restarting whenever a file changes would end running shards, so it has to be asked for.
        options["use_reloader"] = options["reload"]
        super().handle(*args, **options)

    def inner_run(self, *args: Any, **options: Any) -> None:
        child = settings.CASCADE.role == "child"
        if not child:
            self._migrate()
        _steady()
        started: list[roles.Loop] = []
        try:
            for loop in roles.loops(argparse.Namespace(**options)):
                loop.start()
                started.append(loop)
            super().inner_run(*args, **options)
        except CascadeError as error:
            raise CommandError(str(error)) from None
        finally:
            _second_signal_ends()
            for loop in reversed(started):
                loop.stop()

    def check_migrations(self) -> None:
        """Done before the loops start; a child has no database."""

    def _migrate(self) -> None:
        """Embedded databases are brought up to date by themselves; a shared server's are the operator's to migrate."""
        plan = MigrationExecutor(connection)
        if not plan.migration_plan(plan.loader.graph.leaf_nodes()):
            return
        if connection.vendor != "sqlite":
            raise CommandError("the database is behind this version; run: python manage.py migrate")
        self.stdout.write(f"bringing {settings.CASCADE.database} up to date")
        call_command("migrate", verbosity=0)


def _steady() -> None:
    """No long pauses: neither for a thread that waits for its turn, nor for a collector that walks the whole heap.

    What is loaded by now stays for good, so the collector need not look at it again; a full collection over it stops
    every thread for some 80 ms.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _second_signal_ends() -> None:
    """While the loops wind down, being asked again means at once."""

    def end(number: int, frame: object) -> None:
        os._exit(1)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)

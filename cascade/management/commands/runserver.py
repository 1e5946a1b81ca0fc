"""``runserver``: Daphne's, plus the loops of this process' role."""

from __future__ import annotations

import argparse
from typing import Any

from daphne.management.commands.runserver import Command as DaphneCommand
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection

from cascade import bounded, checks, config, console, reach, roles, serving


class Command(DaphneCommand):
    server_cls = bounded.Server
    help = "Serves this node: pages, API and sockets of a parent with its dispatcher, or a child with its agent."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--reload", action="store_true", help="restart when a source file changes, for development")
        # They are read before Django's settings are, by manage.py; here they only stand in the help.
        config.add_arguments(parser.add_argument_group("settings"))  # type: ignore[arg-type]

    def handle(self, *args: Any, **options: Any) -> None:
        settled = settings.CASCADE
        if (role := options.get("role")) and role != settled.role:
            settled.role = role
        host = f"[{settled.host}]" if ":" in settled.host else settled.host
        if not (given := options["addrport"]):
            options["addrport"] = f"{host}:{settled.listens_on}"
        elif given.isdigit():
            options["addrport"] = f"{host}:{given}"
        # Restarting whenever a file changes would end running shards, so it has to be asked for.
        options["use_reloader"] = options["reload"]
        super().handle(*args, **options)

    def inner_run(self, *args: Any, **options: Any) -> None:
        settings.CASCADE.host = self.addr  # what the checks judge is where we really listen
        wrong = [message for message in checks.check_settings(None) if message.is_serious()]
        if wrong:
            raise CommandError("\n".join(str(message.msg) for message in wrong), returncode=console.WRONG)
        child = settings.CASCADE.role == "child"
        if not child:
            self._migrate()
        serving.steady()
        with serving.running(roles.loops(argparse.Namespace(**options))):
            try:
                super().inner_run(*args, **options)
            finally:
                reach.withdraw()

    def _tell(self) -> None:
        """Where things are, for people; and where this server is, for commands that ask it."""
        settled, found = settings.CASCADE, config.current().found
        host = self.addr if self._raw_ipv6 is False else f"[{self.addr}]"
        local = "127.0.0.1" if self.addr in ("0.0.0.0", "0") else "[::1]" if self.addr == "::" else host
        url = f"http://{local}:{self.port}"
        if settled.role != "child":
            reach.announce(url)
        sources = ", ".join(dict.fromkeys(each.origin for each in found.given.values() if each.place))
        lines = [
            ("role", settled.role),
            ("settings", f"{found.file or 'no file'}{'; ' if sources else ''}{sources}"),
            ("data", str(settled.data_dir)),
            ("listens on", f"{host}:{self.port}"),
        ]
        if settled.role != "child":
            lines.append(("sign in", f"python manage.py signin NAME --url {url} (manage.py createsuperuser makes one)"))
        for name, text in lines:
            self.stdout.write(f"{name:11} {text}")
        for note in found.notes:
            self.stdout.write(f"note        {note}")
        self.stdout.flush()

    def check(self, *args: Any, **options: Any) -> None:
        """What is about this server. A look at models and the admin, which loads all its pages, is for `check`."""
        super().check(*args, **{**options, "tags": console.Command.requires_system_checks})

    def check_migrations(self) -> None:
        """Called after the checks: what they found comes before our own lines. The migrations were seen to before."""
        self._tell()

    def _migrate(self) -> None:
        """Embedded databases are brought up to date by themselves; a shared server's are the operator's to migrate."""
        if connection.vendor != "sqlite":
            serving.check_migrated()
        elif serving.behind():
            self.stdout.write(f"bringing {settings.CASCADE.database} up to date")
            call_command("migrate", verbosity=0)

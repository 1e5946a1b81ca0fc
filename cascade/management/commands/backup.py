"""``manage.py backup``: the whole parent as one file, while it runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from cascade import backup, console


class Command(console.Command):
    help = "Writes the whole parent to one file: database, results, spool, secret key, configuration. It may run on."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="where to; must not be there yet. It holds secrets: keep it safe")

    def handle(self, *args: Any, **options: Any) -> None:
        file: Path = options["file"]
        made = backup.backup(file)
        self.stdout.write(f"{file}: {made.files} files, {made.size / 1e6:.1f} MB, of {made.made_at[:19]} UTC")

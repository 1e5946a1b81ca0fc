"""``manage.py restore``: a parent out of the file that ``manage.py backup`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from cascade import backup, console


class Command(console.Command):
    help = "Makes an empty data folder that of the parent in a backup; start `runserver` with it afterwards."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="what `manage.py backup` wrote")
        parser.add_argument("--data-dir", type=Path, metavar="DIR", help="into this folder, not the settings' data_dir")

    def handle(self, *args: Any, **options: Any) -> None:
        into: Path = (options["data_dir"] or settings.CASCADE.data_dir).resolve()
        made = backup.restore(options["file"], into)
        self.stdout.write(f"{into} is the parent as it was at {made.made_at[:19]} UTC (version {made.version}).")
        for file in sorted((into / "settings").glob("*")):
            self.stdout.write(f"Its configuration file is {file}; it is not in force by itself.")
        self.stdout.write(f"Start it: CASCADE_DATA_DIR={into} python manage.py runserver")

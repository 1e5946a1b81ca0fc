"""``manage.py move``: a parent from its own files into PostgreSQL and a lake, for several processes to serve it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from pydantic import ValidationError

from cascade import moving
from cascade.config import Config, allowed
from cascade.console import Command as Base
from cascade.console import add_json
from nodes.protocol import FieldError


class Command(Base):
    help = (
        "Copies everything this parent knows, from SQLite and DuckDB, to an empty PostgreSQL database and a lake, and "
        "says which settings to start the servers with. The parent must not run; its files stay as they are."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--to", required=True, metavar="URL", help="postgresql://user:password@host/name")
        parser.add_argument("--lake", metavar="PATH", help="where rows go: a shared folder, or s3://bucket/prefix")
        parser.add_argument("--data-dir", metavar="DIR", help="a shared folder that takes the place of data_dir")
        add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        to = self._settled(options)
        moved = moving.move(to, (lambda text: None) if options["json"] else self.stdout.write)
        lines = {"database_url": moving.shown(to.database_url)}
        lines |= {"data_dir": str(to.data_dir)} if to.data_dir != settings.CASCADE.data_dir else {}
        lines |= {"lake_path": to.lake_path} if to.lake_path else {}
        lines |= {"result_store": "lake"} if settings.CASCADE.result_store != "auto" else {}
        if options["json"]:
            self.tell_json({"settings": lines, "records": moved.records, "rows": moved.rows})
            return
        self.stdout.write("\nmoved. Start the servers with these settings (the password is the one you gave):\n")
        for name, value in lines.items():
            self.stdout.write(f'{name} = "{value}"')
        self.stdout.write(f"\nThe files in {settings.CASCADE.data_dir} that they replace are not used any more.")

    def _settled(self, options: dict[str, Any]) -> Config:
        here: Config = settings.CASCADE
        given = {"database_url": options["to"], "lake_path": options["lake"], "result_store": "lake"}
        given |= {"data_dir": Path(options["data_dir"])} if options["data_dir"] else {}
        values = {name: getattr(here, name) for name in here.model_fields_set}
        try:
            return Config(**{**values, **{name: value for name, value in given.items() if value is not None}})
        except ValidationError as errors:
            name = str(errors.errors()[0]["loc"][0])
            field = {"database_url": "to", "lake_path": "lake"}.get(name, name)
            raise FieldError(field, f"is not {allowed(name)}") from None

"""``manage.py config``: writes a file with every setting, or shows which hold and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from cascade import config, config_file, console
from nodes.given import ROLES, is_secret, unlocked
from nodes.protocol import Conflict, FieldError


class Command(console.Command):
    help = (
        "Writes a commented file with every setting of a role, its default, unit, what is allowed, and what other "
        "systems call it; with --show: the values in force, and where each comes from."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--role", choices=ROLES, help="which settings to write (default parent)")
        parser.add_argument("--format", choices=("toml", "json", "yaml"), help="default: by --out's suffix, else toml")
        parser.add_argument("--out", metavar="FILE", help="write there; default: print")
        parser.add_argument("--force", action="store_true", help="write over a file that is there")
        parser.add_argument("--show", action="store_true", help="show the values in force instead; secrets are masked")
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["show"]:
            self._show(options)
            return
        path = Path(options["out"]) if options["out"] else None
        suffix = path.suffix.lower().lstrip(".") if path else "toml"
        format = options["format"] or {"yml": "yaml"}.get(suffix, suffix)
        if format not in config_file.WRITERS:
            raise FieldError("--out", f"{str(path)!r} does not end in .toml, .json or .yaml; or give --format")
        text = config_file.write(options["role"] or "parent", format)
        if path is None:
            self.stdout.write(text, ending="")
            return
        if path.exists() and not options["force"]:
            raise Conflict(f"{path} is there already; --force writes over it")
        try:
            # It is the place for keys, so nobody else is to read it.
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise console.Unreachable(f"{path}: {error.strerror}") from None
        self.stdout.write(f"Wrote {path}. Nothing in it is set yet: take the # from what you want to change.")

    def _show(self, options: dict[str, Any]) -> None:
        loaded = config.current()
        if options["role"] not in (None, loaded.found.role):
            raise FieldError(
                "--role",
                f"in force is the role {loaded.found.role} ({loaded.found.origin('role')}); to see what would hold for "
                f"another: --show --set role={options['role']}",
            )
        rows = []
        for name in config_file.names(loaded.found.role):
            value = loaded.agent.get(name, config_file.default(name, loaded.found.role))
            if name in config.Config.model_fields:
                value = getattr(loaded.config, name)
            if is_secret(name) and value:
                value = "***"
            if isinstance(value, str | Path):
                value = unlocked(str(value))
            rows.append((name, value, loaded.found.origin(name)))
        if options["json"]:
            self.tell_json(
                {
                    "file": str(loaded.found.file) if loaded.found.file else None,
                    "role": loaded.found.role,
                    "settings": {name: {"value": value, "from": origin} for name, value, origin in rows},
                    "notes": loaded.found.notes,
                }
            )
            return
        self.stdout.write(f"file: {loaded.found.file or 'none'}; role: {loaded.found.role}")
        for note in loaded.found.notes:
            self.stdout.write(f"note: {note}")
        self.tell_table(
            ("setting", "value", "from"),
            [(name, "" if value == [] else value, origin) for name, value, origin in rows],
            empty="",
        )

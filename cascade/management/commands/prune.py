"""``manage.py prune``: forgets old runs and records now, not within ten minutes as the parent does by itself."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from cascade.console import Command as Base
from cascade.console import add_json
from dispatch import pruning
from nodes.protocol import FieldError


class Command(Base):
    help = "Removes runs, logs and calls that are older than the settings say. Rows of results stay."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days", type=float, help="older than so many days, instead of the settings run_days and log_days"
        )
        parser.add_argument("--dry-run", action="store_true", help="only count")
        add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        days = options["days"]
        if days is not None and not 0.01 <= days <= 36_500:
            raise FieldError("days", f"{days:g} is not from 0.01 to 36500")
        counts = pruning.prune(timezone.now(), days=days, dry_run=options["dry_run"])
        if options["json"]:
            self.tell_json(counts)
            return
        words = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items() if count)
        self.stdout.write(f"{'would remove' if options['dry_run'] else 'removed'}: {words or 'nothing'}")

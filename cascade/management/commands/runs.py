"""``manage.py runs``: the runs, newest first."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from cascade import console
from dispatch import lifecycle
from dispatch.models import Run
from dispatch.states import RunState
from nodes.protocol import FieldError


class Command(console.Command):
    help = "Lists the runs, newest first."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--state", action="append", choices=[state.value for state in RunState], help="repeatable")
        parser.add_argument("--type", help="only runs of this task type")
        parser.add_argument("--name", help="only runs with this in their name")
        parser.add_argument("--since", metavar="WHEN", help="submitted since: 2h, 30min, 3d ago, or a time in ISO 8601")
        parser.add_argument("--limit", type=int, default=20, help="at most so many (default 20)")
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["limit"] < 1:
            raise FieldError("--limit", f"{options['limit']} is not a whole number from 1 up")
        found = Run.objects.defer("items").order_by("-id")
        if options["state"]:
            found = found.filter(state__in=options["state"])
        if options["type"]:
            found = found.filter(type=options["type"])
        if options["name"]:
            found = found.filter(name__icontains=options["name"])
        if options["since"]:
            found = found.filter(created_at__gte=console.moment("--since", options["since"]))
        runs = list(found[: options["limit"]])
        if options["json"]:
            self.tell_json([about(run) for run in runs])
            return
        self.tell_table(
            ("run", "name", "type", "state", "#done", "#failed", "#rows", "submitted", "ended"),
            [
                (
                    run.pk,
                    run.name,
                    run.type,
                    run.state,
                    f"{run.done}/{run.count}",
                    run.failed + run.quarantined,
                    run.rows,
                    run.created_at,
                    run.ended_at,
                )
                for run in runs
            ],
            empty="No such run." if Run.objects.exists() else "No runs yet: python manage.py submit echo --item hello",
        )


def about(run: Run) -> dict[str, Any]:
    """A run for scripts: ``lifecycle.progress``, and what it is."""
    return {
        **lifecycle.progress(run),
        "name": run.name,
        "type": run.type,
        "task": run.task_id,
        "priority": run.priority,
        "balancer": run.balancer,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
        "submitted_by": run.submitted_by,
    }

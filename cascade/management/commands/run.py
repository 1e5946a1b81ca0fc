"""``manage.py run``: one run: show, cancel, retry, its rows."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from api.views_runs import item_page, shares
from cascade import console, rows_out
from cascade.management.commands.runs import about
from dispatch import lifecycle
from dispatch.models import Run
from dispatch.states import RUN_ENDED, RunState, ShardState
from nodes import executors
from nodes.protocol import NotFound
from nodes.registry import ago

REDUCED = 10
"""Rows of a reduction that are shown."""
LOST = (ShardState.FAILED, ShardState.QUARANTINED)


def _short(value: Any) -> Any:
    """A cell of a reduction: numbers to six digits, as nobody reads more in a table."""
    return f"{value:.6g}" if isinstance(value, float) else value


class Command(console.Command):
    help = "Shows, cancels or retries a run, or gives its rows."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        show = verbs.add_parser(
            "show", help="How far it is, what each node did, what failed. Status 1 if it ended badly."
        )
        show.add_argument("id", type=int)
        show.add_argument("--failed", type=int, default=10, metavar="N", help="failed items to show (default 10)")
        console.add_json(show)
        for verb, text in (
            ("cancel", "Stops what is not finished; what was reported already is saved."),
            ("retry", "Opens again what failed or was quarantined."),
        ):
            added = verbs.add_parser(verb, help=text)
            added.add_argument("id", type=int)
            console.add_json(added)
        results = verbs.add_parser("results", help="The rows it saved, as a file or to standard output.")
        results.add_argument("id", type=int)
        rows_out.add_arguments(results)

    def handle(self, *args: Any, **options: Any) -> None:
        run = Run.objects.filter(pk=options["id"]).first()
        if run is None:
            raise NotFound(f"there is no run {options['id']}; see: python manage.py runs")
        getattr(self, f"_{options['verb']}")(run, options)

    def _show(self, run: Run, options: dict[str, Any]) -> None:
        lost = run.shards.filter(state__in=LOST).order_by("start")
        failed = item_page(run, lost[: options["failed"]], 0, options["failed"]) if options["failed"] > 0 else []
        if options["json"]:
            self.tell_json(
                {
                    **about(run),
                    "nodes": shares(run),
                    "failed_items": failed,
                    "reduction": run.reduction,
                }
            )
        else:
            self._tell(run, failed)
        if run.state in RUN_ENDED and run.state != RunState.COMPLETED:
            raise console.Ended(f"run {run.pk} ended {run.state}")

    def _tell(self, run: Run, failed: list[dict[str, Any]]) -> None:
        told = lifecycle.progress(run)
        states = ("saved", "spooled", "in_flight", "pending", "failed", "quarantined", "cancelled")
        self.tell_pairs(
            [
                ("run", f"{run.pk} {run.name}".strip()),
                ("type", run.type),
                ("state", run.state),
                ("items", ", ".join(f"{told[state]} {state.replace('_', ' ')}" for state in states if told[state])),
                ("of", run.count),
                ("rows", run.rows),
                (
                    "submitted",
                    f"{ago(run.created_at, timezone.now())}" + (f" by {run.submitted_by}" * bool(run.submitted_by)),
                ),
                ("ended", run.ended_at),
                ("priority", run.priority),
                ("balancer", run.balancer),
            ]
        )
        for name, found in (run.reduction or {}).items():
            self._tell_reduction(name, found)
        self.stdout.write("")
        self.tell_table(
            ("node", "#shards", "#items", "#rows", "why"),
            [
                (
                    each["node"],
                    each["shards"],
                    each["items"],
                    each["rows"],
                    ", ".join(f"{reason} ({count})" for reason, count in each["reasons"].items()),
                )
                for each in shares(run)
            ],
            empty="No node has finished a shard of it yet.",
        )
        if failed:
            self.stdout.write("")
            self.tell_table(
                ("#index", "item", "state", "node", "#attempts", "error"),
                [[each[name] for name in ("index", "item", "state", "node", "attempts", "error")] for each in failed],
                empty="",
            )
            more = run.failed + run.quarantined - len(failed)
            if more > 0:
                self.stdout.write(f"… and {more} more: --failed N")

    def _tell_reduction(self, name: str, found: Any) -> None:
        """What was computed of its rows, the first ones."""
        self.stdout.write(f"\n{name}:")
        if not isinstance(found, list):
            self.stdout.write(f"  {found.get('error')}")
            return
        columns = list(found[0]) if found else []
        rows = [[_short(row[column]) for column in columns] for row in found[:REDUCED]]
        self.tell_table(columns, rows, empty="no rows")
        if (more := len(found) - REDUCED) > 0:
            self.stdout.write(f"… and {more} more: --json")

    def _cancel(self, run: Run, options: dict[str, Any]) -> None:
        run = lifecycle.cancel(run.pk)
        if options["json"]:
            self.tell_json(about(run))
        else:
            self.stdout.write(f"run {run.pk} is {run.state}: {run.cancelled} of {run.count} items cancelled.")

    def _retry(self, run: Run, options: dict[str, Any]) -> None:
        items = lifecycle.retry(run.pk)
        if options["json"]:
            self.tell_json({"run": run.pk, "retried": items})
        else:
            self.stdout.write(f"run {run.pk} goes on: {items} item{'' if items == 1 else 's'} opened again.")

    def _results(self, run: Run, options: dict[str, Any]) -> None:
        dataset = executors.get(run.type).dataset
        rows_out.send(self, dataset.table, options, run=run.pk, dataset=dataset)

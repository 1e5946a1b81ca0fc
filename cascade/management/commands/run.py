"""``manage.py run``: one run: show, cancel, retry, its rows, its logs."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from api.views_runs import item_page, shares
from cascade import console, rows_out
from cascade.management.commands.runs import about
from dispatch import lifecycle, log_lines
from dispatch.log_lines import Line, Wanted
from dispatch.models import Run
from dispatch.ranges import Range
from dispatch.states import RUN_ENDED, RunState, ShardState
from nodes import executors
from nodes.executors.base import shown
from nodes.protocol import FieldError, NotFound
from nodes.registry import ago

REDUCED = 10
"""Rows of a reduction that are shown."""
LINES = 1000
FOLLOW_SECONDS = 0.5
LOST = (ShardState.FAILED, ShardState.QUARANTINED)


def _short(value: Any) -> Any:
    """A cell of a reduction: numbers to six digits, as nobody reads more in a table."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _printable(text: str) -> str:
    """What a node printed, without what would command the terminal."""
    return "".join(each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in text)


def _ranges(text: str) -> list[Range]:
    """``0-4,9`` as ranges. Raises FieldError."""
    found = []
    for each in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", each, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise FieldError("--items", f"{shown(each)} is neither a number nor like 0-4")
        found.append((first, last + 1))
    return found


class Command(console.Command):
    help = "Shows, cancels or retries a run, or gives its rows or logs."

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
            if verb == "retry":
                added.add_argument(
                    "--items", metavar="NUMBERS", help="only of these items, as in 0-4,9; shards are tried again whole"
                )
            console.add_json(added)
        results = verbs.add_parser("results", help="The rows it saved, as a file or to standard output.")
        results.add_argument("id", type=int)
        rows_out.add_arguments(results)
        logs = verbs.add_parser("logs", help="What its shards have printed.")
        logs.add_argument("id", type=int)
        logs.add_argument("--follow", action="store_true", help="go on with what comes, until the run has ended")
        logs.add_argument(
            "--lines", type=int, default=LINES, metavar="N", help=f"the last so many (default {LINES}); 0: all"
        )
        logs.add_argument("--item", type=int, metavar="NUMBER", help="only of shards with this item")
        logs.add_argument("--allocation", type=int, metavar="ID", help="only of this attempt")
        logs.add_argument("--search", default="", metavar="TEXT", help="only lines with this text, in whatever case")
        logs.add_argument("--json", action="store_true", help="a JSON object for each line")

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
        items = lifecycle.retry(run.pk, _ranges(options["items"]) if options["items"] is not None else None)
        if options["json"]:
            self.tell_json({"run": run.pk, "retried": items})
        else:
            self.stdout.write(f"run {run.pk} goes on: {items} item{'' if items == 1 else 's'} opened again.")

    def _logs(self, run: Run, options: dict[str, Any]) -> None:
        if options["lines"] < 0:
            raise FieldError("--lines", f"{options['lines']} is not a whole number from 0 up")
        wanted = Wanted(allocation=options["allocation"], item=options["item"], search=options["search"])
        seen = log_lines.newest(run.pk)
        if options["lines"]:
            for line in log_lines.latest(run.pk, seen + 1, options["lines"], wanted).lines:
                self._tell_line(line, options)
        else:
            for line in log_lines.every(run.pk, wanted, before=seen + 1):
                self._tell_line(line, options)
        while options["follow"]:
            # Asked before: what came until then is shown once more.
            run.refresh_from_db(fields=["state"])
            page = log_lines.since(run.pk, seen, LINES, wanted)
            for line in page.lines:
                self._tell_line(line, options)
            self.stdout.flush()
            if page.last == seen:
                if run.state in RUN_ENDED:
                    break
                time.sleep(FOLLOW_SECONDS)
            seen = page.last

    def _tell_line(self, line: Line, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({**line._asdict(), "at": line.at.isoformat()}))
            return
        if line.missing:
            self.stdout.write(f"[… {line.missing} characters are missing]")
        at = f"{line.at.astimezone(timezone.get_current_timezone()):%H:%M:%S}"
        of = f"{line.start}" if line.stop == line.start + 1 else f"{line.start}-{line.stop - 1}"
        attempt = f"#{line.attempt}" if line.attempt > 1 else ""
        self.stdout.write(f"{at} {line.node_name or '-'} {of}{attempt} | {_printable(line.text)}")

    def _results(self, run: Run, options: dict[str, Any]) -> None:
        dataset = executors.get(run.type).dataset
        rows_out.send(self, dataset.table, options, run=run.pk, dataset=dataset)

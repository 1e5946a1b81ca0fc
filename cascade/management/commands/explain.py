"""``manage.py explain``: why a run waits, node by node; or why an allocation went where it did."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import CommandParser

from cascade import console
from dispatch import leaves, lifecycle, queue
from dispatch.models import Allocation, Run
from dispatch.states import RunState
from nodes.models import Node
from nodes.protocol import FieldError, NotFound


class Command(console.Command):
    help = "Says why a run waits, node by node, and what would be given out now; or why an allocation went to its node."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("run", type=int, nargs="?", help="a run's id")
        parser.add_argument("--allocation", type=int, metavar="ID", help="why it went where it did")
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if (options["run"] is None) == (options["allocation"] is None):
            raise FieldError("run", "is needed, or --allocation ID")
        if options["allocation"] is not None:
            self._allocation(options)
            return
        run = Run.objects.defer("items").filter(pk=options["run"]).first()
        if run is None:
            raise NotFound(f"there is no run {options['run']}; see: python manage.py runs")
        names = dict(Node.objects.values_list("pk", "name"))
        plan = queue.explain(run.pk)
        refusals = [(names.get(each.node, ""), each.code, each.reason) for each in plan.refusals]
        grants = [(names.get(each.node, ""), each.piece.start, each.piece.stop, each.reason) for each in plan.grants]
        told = lifecycle.progress(run)
        if options["json"]:
            self.tell_json(
                {
                    "run": run.pk,
                    "state": run.state,
                    "pending": told["pending"],
                    "in_flight": told["in_flight"],
                    "grants": [dict(zip(("node", "start", "stop", "reason"), each, strict=True)) for each in grants],
                    "refusals": [dict(zip(("node", "code", "reason"), each, strict=True)) for each in refusals],
                    "counts": Counter(code for _, code, _ in refusals),
                }
            )
            return
        waiting = f"{told['pending']} of {run.count} items wait, {told['in_flight']} are with nodes"
        self.stdout.write(f"run {run.pk} is {run.state}: {waiting}.")
        if run.state != RunState.RUNNING:
            return
        if grants:
            lines = [(node, f"{start} to {stop - 1}", reason) for node, start, stop, reason in grants]
            self.tell_table(("node", "items", "why"), lines, empty="", title="The next pass would give out:")
        self.tell_table(
            ("node", "code", "why it takes no more"),
            refusals,
            empty="" if grants or names else "There are no nodes. Add one: python manage.py node add NAME",
        )

    def _allocation(self, options: dict[str, Any]) -> None:
        found = Allocation.objects.filter(pk=options["allocation"]).select_related("node").first()
        if found is None:
            raise NotFound(f"there is no allocation {options['allocation']}")
        ran_by = leaves.of_allocations([found])[found.pk]
        about = {
            "allocation": found.pk,
            "run": found.run_id,
            "start": found.start,
            "stop": found.stop,
            "attempt": found.attempt,
            "node": found.node.name if found.node else None,
            "ran_by": ran_by if options["json"] else ", ".join(ran_by),
            "state": found.state,
            "reason": found.reason,
            "granted_at": found.granted_at,
            "started_at": found.started_at,
            "finished_at": found.finished_at,
            "seconds": found.seconds,
            "error": found.error,
        }
        if options["json"]:
            self.tell_json(about)
        else:
            self.tell_pairs(about.items())

"""``manage.py status``: nodes and runs at a glance."""

from __future__ import annotations

import argparse
from typing import Any

from django.conf import settings
from django.utils import timezone

from cascade import console
from dispatch import leading, lifecycle
from dispatch.models import Run
from dispatch.states import RunState
from nodes import registry
from nodes.models import Node


class Command(console.Command):
    help = "Shows the nodes with their slots in use, what runs, what ended last, and which of several processes leads."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--runs", type=int, default=10, help="how many ended runs to show")
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        nodes = list(Node.objects.prefetch_related("quotas"))
        used = registry.in_use(nodes)
        running = list(Run.objects.defer("items").filter(state=RunState.RUNNING))
        ended = list(Run.objects.defer("items").exclude(state=RunState.RUNNING)[: max(options["runs"], 0)])
        shared = bool(settings.CASCADE.database_url)
        leader = leading.leader() if shared else None
        if options["json"]:
            self.tell_json(
                {
                    "leader": leading.as_dict(leader) if leader else None,
                    "nodes": [
                        {
                            "name": node.name,
                            "state": registry.state_of(node, now),
                            "carrier": node.carrier,
                            "capacity": node.capacity,
                            "in_use": used[node.pk],
                            "quotas": [str(quota) for quota in node.quotas.all()],
                        }
                        for node in nodes
                    ],
                    "runs": [
                        {**lifecycle.progress(run), "name": run.name, "type": run.type} for run in running + ended
                    ],
                }
            )
            return
        if shared:
            self.stdout.write(f"{leader} leads" if leader else "nobody leads: nothing is allocated or saved")
        self.tell_table(
            ("node", "state", "carrier", "slots", "quotas"),
            [
                (
                    node.name,
                    registry.state_of(node, now),
                    node.carrier,
                    f"{used[node.pk]}/{node.capacity}",
                    ", ".join(str(quota) for quota in node.quotas.all()),
                )
                for node in nodes
            ],
            empty="No nodes yet: python manage.py node add NAME --capacity 8",
            title="Nodes",
        )
        self.tell_table(
            ("run", "type", "state", "items", "#rows"),
            [(f"{run.pk} {run.name}".strip(), run.type, run.state, _items(run), run.rows) for run in running + ended],
            empty="No runs yet: python manage.py submit echo --item hello --wait",
            title="Runs",
        )


def _items(run: Run) -> str:
    lost = run.failed + run.quarantined
    return f"{run.saved}/{run.count} saved" + (f", {lost} failed" if lost else "")

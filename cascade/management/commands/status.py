"""``manage.py status``: nodes and runs at a glance."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management import BaseCommand
from django.utils import timezone

from dispatch import lifecycle
from dispatch.models import Run
from dispatch.states import RunState
from nodes import registry
from nodes.models import Node


class Command(BaseCommand):
    help = "Shows the nodes with their slots in use, what runs, and what ended last."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--runs", type=int, default=10, help="how many ended runs to show")
        parser.add_argument("--json", action="store_true", help="print JSON instead of tables")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        nodes = list(Node.objects.prefetch_related("quotas"))
        used = registry.in_use(nodes)
        running = list(Run.objects.defer("items").filter(state=RunState.RUNNING))
        ended = list(Run.objects.defer("items").exclude(state=RunState.RUNNING)[: max(options["runs"], 0)])
        if options["json"]:
            self.stdout.write(
                json.dumps(
                    {
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
                        "runs": [lifecycle.progress(run) for run in running + ended],
                    }
                )
            )
            return
        from rich.console import Console
        from rich.table import Table

        console = Console(file=self.stdout, highlight=False, soft_wrap=True)  # type: ignore[arg-type]
        table = Table("node", "state", "carrier", "slots", "quotas", title="Nodes", title_justify="left")
        for node in nodes:
            quotas = ", ".join(str(quota) for quota in node.quotas.all())
            table.add_row(
                node.name, registry.state_of(node, now), node.carrier, f"{used[node.pk]}/{node.capacity}", quotas
            )
        console.print(table if nodes else "No nodes yet: python manage.py node add NAME --capacity 8")
        table = Table("run", "type", "state", "items", "rows", title="Runs", title_justify="left")
        for run in running + ended:
            lost = f", {run.failed + run.quarantined} failed" if run.failed + run.quarantined else ""
            name = f"{run.pk} {run.name}".strip()
            table.add_row(name, run.type, run.state, f"{run.saved}/{run.count} saved{lost}", str(run.rows))
        console.print(table if running or ended else "No runs yet: python manage.py submit echo --item hello --wait")

"""``manage.py export``: rows of a table, or of one run, as a file."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from cascade import console, rows_out
from dispatch.models import Run
from nodes import executors
from nodes.protocol import FieldError, NotFound


class Command(console.Command):
    help = "Writes rows to a file: the newest row of each fact of a table, or what one run saved."

    def add_arguments(self, parser: CommandParser) -> None:
        tables = sorted({executors.get(name).dataset.table for name in executors.names()})
        parser.add_argument("table", nargs="?", help=f"one of: {', '.join(tables)}")
        parser.add_argument("--run", type=int, metavar="ID", help="only what this run saved")
        rows_out.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        table, run = options["table"], None
        if options["run"] is not None:
            run = Run.objects.defer("items").filter(pk=options["run"]).first()
            if run is None:
                raise NotFound(f"there is no run {options['run']}; see: python manage.py runs")
            own = executors.get(run.type).dataset
            if table not in (None, own.table):
                raise FieldError("table", f"{table!r} is not the table of run {run.pk}, {own.table}")
            rows_out.send(self, own.table, options, run=run.pk, dataset=own)
            return
        if table is None:
            raise FieldError("table", "is needed, or --run ID")
        datasets = {dataset.table: dataset for dataset in (executors.get(name).dataset for name in executors.names())}
        rows_out.send(self, table, options, run=None, dataset=datasets.get(table))

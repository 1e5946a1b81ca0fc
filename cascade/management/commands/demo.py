"""``manage.py demo``: a parent and three children as real processes import real daily bars into one table."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from cascade.config import BASE_DIR
from cascade.local import Child, LocalTree, LocalTreeError
from nodes.providers.sample import Sample

CHILDREN = [
    Child("north", capacity=4, quotas=[{"task_type": "data_import", "slots": 3}], carrier="push"),
    Child("east", capacity=4, quotas=[{"task_type": "data_import", "slots": 1}], carrier="pull"),
    Child("south", capacity=2, carrier="push"),
]
EVERY_SECONDS = 0.05
DEFAULT_DIR = BASE_DIR / "data" / "demo"


class Command(BaseCommand):
    help = "Starts a parent and three children here and imports the sample bars; nothing outside its folder changes."
    requires_system_checks = ()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data-dir", type=Path, default=DEFAULT_DIR, help="made anew each time")
        parser.add_argument("--port", type=int, default=0, help="the parent's port; 0: any free one")
        parser.add_argument("--exit", action="store_true", help="do not go on serving, even at a terminal")

    def handle(self, *args: Any, **options: Any) -> None:
        folder: Path = options["data_dir"].resolve()
        _clear(folder)
        serve = sys.stdout.isatty() and not options["exit"]
        names = ", ".join(f"{child.name} ({child.carrier}, {child.capacity} slots)" for child in CHILDREN)
        self.stdout.write(f"Starting a parent and three children: {names} …")
        try:
            with LocalTree(folder, children=CHILDREN, port=options["port"]) as tree:
                link = tree.manage("signin", tree.username, "--url", tree.url).stdout.strip()
                if serve:
                    self.stdout.write(f"Watch it live: {link}")
                self._import(tree)
                if serve:
                    link = tree.manage("signin", tree.username, "--url", tree.url).stdout.strip()
                    self.stdout.write(f"Still serving; Ctrl-C ends it. The live page (a link for one sign-in):\n{link}")
                    threading.Event().wait()
        except LocalTreeError as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            self.stdout.write("\nStopped; no process is left.")

    def _import(self, tree: LocalTree) -> None:
        symbols = Sample({}).symbols()
        began = time.monotonic()
        run = tree.submit(
            "data_import",
            symbols,
            params={"source": "sample"},
            split="year",
            shard_size=1,
            name="all sample bars by year",
        )
        count = tree.progress(run)["count"]
        self.stdout.write(f"Importing {len(symbols)} symbols, split by year into {count} items:")
        self._watch(tree, run, count)
        seconds = time.monotonic() - began
        end = tree.progress(run)
        self.stdout.write(f"Run {run} is {end['state']}: {end['rows']} rows saved in {seconds:.1f} s.\n")
        self._tell_nodes(tree, run)
        self._tell_symbols(tree)
        self._tell_database(tree)

    def _watch(self, tree: LocalTree, run: int, count: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("  items saved"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rows]} rows"),
        )
        console = Console(file=sys.stdout)
        with Progress(*columns, console=console, refresh_per_second=10) as bar:
            shown = bar.add_task("", total=count, rows=0)

            def show(progress: dict[str, Any]) -> bool:
                bar.update(shown, completed=progress["saved"], rows=progress["rows"])
                return bool(progress["state"] != "running")

            tree.wait(run, until=show, timeout=120, every=EVERY_SECONDS)

    def _tell_nodes(self, tree: LocalTree, run: int) -> None:
        table = [
            (
                share["node"],
                str(share["shards"]),
                str(share["rows"]),
                ", ".join(f"{number} by {reason}" for reason, number in share["reasons"].items()),
            )
            for share in tree.json("GET", f"/api/v1/runs/{run}/nodes")
        ]
        self._table(("node", "shards", "rows", "why this node"), table)

    def _tell_symbols(self, tree: LocalTree) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        content = tree.request("GET", "/api/v1/tables/kline/rows?format=arrow&columns=symbol,datetime").content
        bars = pa.ipc.open_stream(io.BytesIO(content)).read_all()
        spans = bars.group_by("symbol").aggregate([("datetime", "count"), ("datetime", "min"), ("datetime", "max")])
        table = [
            (
                row["symbol"],
                str(row["datetime_count"]),
                f"{row['datetime_min']:%Y-%m-%d}",
                f"{row['datetime_max']:%Y-%m-%d}",
            )
            for row in spans.sort_by("symbol").to_pylist()
        ]
        self._table(("symbol", "rows", "first", "last"), table)
        self.stdout.write(f"{pc.sum(spans['datetime_count']).as_py()} rows in table kline, each bar once.\n")

    def _tell_database(self, tree: LocalTree) -> None:
        database = tree.data_dir / "results.duckdb"
        shown = database.relative_to(Path.cwd()) if database.is_relative_to(Path.cwd()) else database
        self.stdout.write(
            f"The database: {shown} (the parent holds it while it runs). A query to try when it has ended:\n"
            f"  .venv/bin/python -c \"import duckdb; print(duckdb.connect('{shown}', read_only=True).sql("
            "'SELECT symbol, year(datetime) AS y, max(high) AS top FROM kline GROUP BY ALL ORDER BY ALL LIMIT 8'))\""
        )

    def _table(self, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(*head, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row)
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


def _clear(folder: Path) -> None:
    """Empties the folder of an earlier demo; any other folder must be empty already."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "local.json").exists():
        raise CommandError(f"--data-dir {folder} is not empty and was not made by the demo; choose another folder")
    shutil.rmtree(folder)

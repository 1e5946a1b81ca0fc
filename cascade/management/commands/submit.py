"""``manage.py submit``: a run from the command line."""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from django.core.management import CommandError

from cascade import console, reach
from cascade.management.commands import types
from dispatch import lifecycle
from dispatch.lifecycle import origins
from dispatch.lifecycle.submit import with_settings
from dispatch.models import Fallback, Run
from dispatch.states import RUN_ENDED, RunState
from nodes import executors
from nodes.executors.base import Item
from nodes.protocol import FieldError

EVERY_SECONDS = 0.2


class Command(console.Command):
    help = "Submits a run; a running parent (manage.py runserver) allocates it."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("type", help=f"task type: {', '.join(executors.names())}; manage.py types shows them")
        parser.add_argument(
            "--item", action="append", default=[], metavar="ITEM", help="a text or a JSON object; repeatable"
        )
        parser.add_argument(
            "--items-file",
            metavar="FILE",
            help="a text or a JSON object a line; with --file-column a CSV with a header",
        )
        parser.add_argument("--file-column", default="", metavar="NAME", help="the column of it that holds the items")
        parser.add_argument("--source-kind", default="", help="all active sources of this kind: feed, symbol, url")
        parser.add_argument(
            "--items-column", default="", metavar="TABLE.COLUMN", help="each value of a table of results: kline.symbol"
        )
        parser.add_argument("--all", action="store_true", help="every symbol the source can list")
        parser.add_argument(
            "--param", action="append", default=[], metavar="NAME=VALUE", help="repeatable; objects and lists as JSON"
        )
        parser.add_argument("--params", action="store_true", help="only print the type's parameters; submits nothing")
        parser.add_argument("--split", default="", help="cut items finer, like 'year' (data_import)")
        parser.add_argument("--name", default="", help="what people call this run")
        parser.add_argument("--priority", type=int, help="1 to 10; higher goes first (setting default_priority)")
        parser.add_argument("--timeout", type=float, help="seconds one shard may run (setting default_timeout)")
        parser.add_argument("--max-attempts", type=int, help="default: setting default_max_attempts")
        parser.add_argument("--backoff", type=float, default=1.0, help="seconds before the second attempt; doubles")
        parser.add_argument("--shard-size", type=int, default=0, help="items per shard; 0: sized for each node")
        parser.add_argument("--balancer", help="chooses the node (default: setting default_balancer)")
        parser.add_argument(
            "--label", action="append", default=[], metavar="NAME=VALUE", help="only nodes with this label"
        )
        parser.add_argument(
            "--wait", action="store_true", help="wait for the end; the exit status is 0 only for 'completed'"
        )
        parser.add_argument(
            "--prefer", action="append", default=[], metavar="NAME=VALUE", help="nodes with this label are preferred"
        )
        parser.add_argument("--rate-key", default="", help="which rate limit holds, like 'host:{host}'")
        parser.add_argument(
            "--fallback", choices=Fallback.values, default=Fallback.ALLOWED, help="may this parent run it itself"
        )
        parser.add_argument(
            "--island-seconds",
            type=float,
            help="so long a relay that is cut off goes on with it; 0: not at all (default: as long as it takes)",
        )
        console.add_json(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["params"]:
            executor = types.executor_called(options["type"])
            types.tell_params(self, executor, types.variants_of(executor))
            return
        params = _pairs(options["param"], "--param")
        run = lifecycle.submit(
            type=options["type"],
            items=self._items(options, params),
            params=params,
            split=options["split"],
            name=options["name"],
            priority=options["priority"],
            timeout=options["timeout"],
            max_attempts=options["max_attempts"],
            backoff=options["backoff"],
            shard_size=options["shard_size"],
            balancer=options["balancer"],
            labels=_pairs(options["label"], "--label"),
            affinity=_pairs(options["prefer"], "--prefer"),
            rate_key=options["rate_key"],
            fallback=options["fallback"],
            island_seconds=options["island_seconds"],
            submitted_by="command line",
        )
        if not options["json"]:
            planned = f" to begin with, {run.expected} in all" if run.growing else ""
            self.stdout.write(f"run {run.pk}: {run.count} items of {run.type}{planned}")
        if options["wait"]:
            run = self._wait(run, quiet=options["json"])
        if options["json"]:
            self.tell_json(lifecycle.progress(run))
        elif options["wait"]:
            self._tell(run)
        if options["wait"] and run.state != RunState.COMPLETED:
            raise console.Ended(f"run {run.pk} ended {run.state}")

    def _items(self, options: dict[str, Any], params: dict[str, Any]) -> list[Item]:
        items = [_item(text) for text in options["item"]]
        if options["items_file"]:
            items += _file_items(options["items_file"], options["file_column"])
        if options["source_kind"]:
            items += origins.items_from({"source_kind": options["source_kind"]})
        if options["items_column"]:
            items += _column_items(options["items_column"])
        if options["all"]:
            items += _all_items(options["type"], params)
        return items

    def _wait(self, run: Run, *, quiet: bool) -> Run:
        with console.progress(f"run {run.pk}", run.expected or run.count, quiet=quiet) as tell:
            try:
                while run.state not in RUN_ENDED:
                    time.sleep(EVERY_SECONDS)
                    run.refresh_from_db(
                        fields=["state", "count", "saved", "failed", "quarantined", "cancelled", "rows"]
                    )
                    tell(run.done)
            except KeyboardInterrupt:
                raise CommandError(
                    f"interrupted; run {run.pk} goes on: python manage.py run cancel {run.pk} ends it",
                    returncode=console.INTERRUPTED,
                ) from None
        return run

    def _tell(self, run: Run) -> None:
        self.stdout.write(
            f"run {run.pk} {run.state}: {run.saved} of {run.count} items saved, {run.rows} rows"
            + (f", {run.failed} failed" if run.failed else "")
            + (f", {run.quarantined} quarantined" if run.quarantined else "")
            + (f", {run.cancelled} cancelled" if run.cancelled else "")
        )
        lost = run.shards.filter(state__in=("failed", "quarantined"))
        for shard in lost[:10]:
            self.stdout.write(f"  {shard.error}")
        if (more := lost.count() - 10) > 0:
            self.stdout.write(f"  … and {more} more: python manage.py run show {run.pk} --failed {more + 10}")


def _all_items(task_type: str, params: dict[str, Any]) -> list[Item]:
    """Every symbol of the source that ``params`` name. Raises FieldError."""
    checked = executors.get(task_type).check(with_settings(task_type, params))
    return origins.symbols_of(task_type, checked, "--all", "--items-column")


def _file_items(path: str, column: str) -> list[Item]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--items-file: {error}", returncode=console.WRONG) from None
    if not column:
        return [_item(line.strip()) for line in text.splitlines() if line.strip()]
    rows = csv.DictReader(text.splitlines())
    if column not in (rows.fieldnames or ()):
        known = ", ".join(rows.fieldnames or ()) or "none"
        raise FieldError("--file-column", f"{column!r} is not a column of {path}; there are: {known}")
    return [row[column].strip() for row in rows if (row[column] or "").strip()]


def _column_items(text: str) -> list[Item]:
    table, column = origins.parts(text)
    try:
        with reach.rows(table, "json", columns=[column], order=[column], distinct=True) as pieces:
            found = [row[column] for row in json.loads(b"".join(pieces))]
    except FieldError as error:
        raise FieldError("--items-column", error.message) from None
    return origins.plain(text, [value for value in found if value not in (None, "")])


def _item(text: str) -> Item:
    if not text.startswith("{"):
        return text
    try:
        item: Item = json.loads(text)
    except ValueError as error:
        raise CommandError(f"--item {text!r}: {error}", returncode=console.WRONG) from None
    return item


def _pairs(texts: list[str], option: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CommandError(f"{option} {text!r} is not NAME=VALUE", returncode=console.WRONG)
        pairs[name] = value
        if value[:1] in ("{", "["):
            try:
                pairs[name] = json.loads(value)
            except ValueError as error:
                raise CommandError(f"{option} {text!r}: {error}", returncode=console.WRONG) from None
    return pairs

"""``manage.py sources``: feeds, symbols and addresses at a terminal. ``dispatch.sources`` does the work."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.utils import timezone

from cascade import console
from dispatch import source_files, sources
from dispatch.models import ItemMemory, Source
from nodes.protocol import FieldError
from nodes.registry import ago


class Command(console.Command):
    help = "Import, list, add, remove, enable, disable what recurring work goes through."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

        reading = verbs.add_parser("import", help="Adds or changes all sources of a file, or none.")
        reading.add_argument("file", help="CSV, JSON, JSON lines, OPML or a key a line; - for standard input")
        reading.add_argument("--kind", choices=sources.KINDS, default="", help="of rows that do not say theirs")
        reading.add_argument("--format", choices=list(source_files.READERS), default="", help="default: by the ending")
        reading.add_argument("--keep", action="store_true", help="leave sources that are there as they are")
        console.add_json(reading)

        listing = verbs.add_parser("list", help="The sources, by kind and key.")
        listing.add_argument("--kind", choices=sources.KINDS)
        listing.add_argument("--active", action="store_true", help="without the disabled ones")
        console.add_json(listing)

        add = verbs.add_parser("add", help="One more.")
        _add_which(add)
        add.add_argument("--name", default="")
        add.add_argument("--address", default="", help="http or https")
        console.add_json(add)

        for verb, text in (
            ("remove", "Forgets one."),
            ("disable", "Runs of tasks that name its kind leave it out."),
            ("enable", "They take it again."),
        ):
            one = verbs.add_parser(verb, help=text)
            _add_which(one)
            console.add_json(one)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['verb']}")(options)
        except sources.Refused as error:
            lines = [f"{each.line}: {each.field}: {each.detail}" for each in error.problems]
            more = error.count - len(lines)
            lines += [f"and {more} more"] if more else []
            raise CommandError("nothing was imported\n" + "\n".join(lines), returncode=console.WRONG) from None

    def _import(self, options: dict[str, Any]) -> None:
        name = options["file"]
        try:
            content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        except OSError as error:
            raise FieldError("file", f"{name}: {error.strerror}") from None
        lines = source_files.read(content, options["format"], "" if name == "-" else name)
        if not lines:
            raise FieldError("file", f"{name} has no source in it")
        counts = sources.import_rows(
            [line.row for line in lines],
            options["kind"],
            not options["keep"],
            named=lambda at: f"line {lines[at].number}",
        )
        if options["json"]:
            self.tell_json(asdict(counts))
            return
        self.stdout.write(
            f"{counts.total} sources: {counts.added} added, {counts.changed} changed, "
            f"{counts.unchanged + counts.kept} left as they were."
        )

    def _list(self, options: dict[str, Any]) -> None:
        found = Source.objects.order_by("kind", "key")
        if options["kind"]:
            found = found.filter(kind=options["kind"])
        if options["active"]:
            found = found.filter(active=True)
        rows = []
        for some in batched(found.iterator(2000), 500):
            times = sources.last_times(some)
            rows += [_as_dict(source) | {"last": _last(times.get((source.kind, source.key)))} for source in some]
        if options["json"]:
            self.tell_json(rows)
            return
        self.tell_table(
            ("kind", "key", "name", "address", "state", "last time"),
            [
                (
                    *(row["kind"], row["key"], row["name"], row["address"]),
                    "active" if row["active"] else "disabled",
                    _told(row["last"]),
                )
                for row in rows
            ],
            empty="No sources. Import some: python manage.py sources import FILE --kind feed",
        )

    def _add(self, options: dict[str, Any]) -> None:
        source = sources.add(options["kind"], options["key"], name=options["name"], address=options["address"])
        self._say(source, f"Added {source}.", options)

    def _remove(self, options: dict[str, Any]) -> None:
        source = sources.find(options["kind"], options["key"])
        sources.remove(source.pk)
        self._say(source, f"Removed {source}.", options)

    def _disable(self, options: dict[str, Any]) -> None:
        source = sources.update(sources.find(options["kind"], options["key"]).pk, active=False)
        self._say(source, f"Disabled {source}.", options)

    def _enable(self, options: dict[str, Any]) -> None:
        source = sources.update(sources.find(options["kind"], options["key"]).pk, active=True)
        self._say(source, f"Enabled {source}.", options)

    def _say(self, source: Source, text: str, options: dict[str, Any]) -> None:
        if options["json"]:
            self.tell_json(_as_dict(source))
        else:
            self.stdout.write(text)


def _add_which(parser: ArgumentParser) -> None:
    parser.add_argument("kind", choices=sources.KINDS)
    parser.add_argument("key")


def _as_dict(source: Source) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "key": source.key,
        "name": source.name,
        "address": source.address,
        "active": source.active,
        "extra": source.extra,
    }


def batched(found: Iterator[Source], size: int) -> Iterator[list[Source]]:
    while some := list(islice(found, size)):
        yield some


def _last(time: ItemMemory | None) -> dict[str, Any] | None:
    if time is None:
        return None
    return {"status": time.status, "failed": time.failed, "counts": time.counts, "at": time.at, "run": time.run_id}


def _told(last: dict[str, Any] | None) -> str:
    """Like "ok: 3 new, 1 changed, 2 minutes ago"."""
    if last is None:
        return ""
    counts = ", ".join(f"{count} {name}" for name, count in last["counts"].items() if count)
    status = f"failed: {last['status']}" if last["failed"] else last["status"]
    return f"{status}{f': {counts}' if counts and not last['failed'] else ''}, {ago(last['at'], timezone.now())}"

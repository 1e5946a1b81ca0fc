"""What all commands share: tables for people, JSON for scripts, progress at a terminal, and the exit statuses.

| status | meaning |
|---|---|
| 0 | done |
| 1 | the thing asked about failed: a run ended partial, failed or cancelled; a check found an error |
| 2 | wrong usage, or a wrong value |
| 3 | there is no such thing |
| 4 | a conflict: the name is taken, the run has ended, the node holds work |
| 5 | cannot reach what is needed: the server, the database, a file that another process holds |
| 130 | interrupted |
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils import timezone

from dispatch import bus, events
from dispatch.results.store import StoreBusy
from nodes.protocol import CascadeError, Conflict, FieldError, NotFound, StorageFull, Unprocessable

DONE, FAILED, WRONG, MISSING, CONFLICT, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
_STATUS: tuple[tuple[type[CascadeError], int], ...] = (
    (FieldError, WRONG),
    (Unprocessable, WRONG),
    (NotFound, MISSING),
    (Conflict, CONFLICT),
    (StoreBusy, UNREACHABLE),
    (StorageFull, UNREACHABLE),
)
_SINCE = re.compile(r"\A(\d{1,6})\s*(s|min|m|h|d|w)\Z")
_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Unreachable(CascadeError):
    """What a command needs does not answer, or another process holds it; the message says what to do."""

    status = 503


class Ended(CommandError):
    """What was asked about did not end well; status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(message, returncode=FAILED)


def status_of(error: BaseException) -> int:
    """The exit status that stands for ``error``."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, DatabaseError) or getattr(error, "status", None) == Unreachable.status:
        return UNREACHABLE
    return next((status for kind, status in _STATUS if isinstance(error, kind)), FAILED)


class Command(BaseCommand):
    """The base of this project's commands: whatever goes wrong becomes one line and an exit status."""

    # Django's own look at models, admin and addresses, and load all that these name: that is for `check`.
    requires_system_checks: Any = ("cascade",)

    def execute(self, *args: Any, **options: Any) -> str | None:
        if settings.CASCADE.database_url:
            # What a command changes, the servers hear of at once.
            events.abroad = bus.AtOnce()
        try:
            return super().execute(*args, **options)
        except CommandError:
            raise
        except CascadeError as error:
            raise CommandError(self.explained(error, options), returncode=status_of(error)) from None
        except DatabaseError as error:
            raise CommandError(
                f"the database: {error}; is it made? python manage.py migrate makes it", returncode=UNREACHABLE
            ) from error
        except BrokenPipeError:
            # Whoever read us has had enough, as `head` does; nothing may be flushed to it at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(DONE) from None
        except KeyboardInterrupt:
            raise CommandError("interrupted", returncode=INTERRUPTED) from None

    def explained(self, error: CascadeError, options: dict[str, Any]) -> str:
        """What is said of ``error``; for commands whose arguments are called otherwise than the fields they set."""
        return str(error)

    def tell_json(self, document: Any) -> None:
        """One JSON document, times in ISO 8601."""
        self.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))

    def tell_table(self, head: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str, title: str = "") -> None:
        """A table for people; ``empty`` is said where there are no rows. Columns named with a # are numbers.

        Where it goes to no terminal the columns are only aligned, for `grep` and `awk`.
        """
        lines = [[_cell(value) for value in row] for row in rows]
        if not lines:
            self.stdout.write(empty)
        elif self.stdout.isatty():
            self._draw(head, lines, title)
        else:
            if title:
                self.stdout.write(title)
            lines.insert(0, [name.lstrip("#").upper() for name in head])
            widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
            for line in lines:
                cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
                self.stdout.write("  ".join(cells).rstrip())

    def _draw(self, head: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> None:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
        for name in head:
            table.add_column(name.lstrip("#"), justify="right" if name.startswith("#") else "left", overflow="fold")
        for line in lines:
            table.add_row(*map(escape, line))
        Console(file=self.stdout, highlight=False).print(table)  # type: ignore[arg-type]

    def tell_pairs(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Names and values below each other."""
        shown = [(name, _cell(value)) for name, value in pairs]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.stdout.write(f"{name.ljust(width)}  {value}".rstrip())


def add_json(parser: CommandParser | Any) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document, for scripts")


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, dt.datetime):
        return f"{value.astimezone(timezone.get_current_timezone()):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(str(value).split())


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def moment(option: str, text: str) -> dt.datetime:
    """A point in time: ``2h``, ``30min``, ``3d`` ago, or ISO 8601. Raises FieldError."""
    if match := _SINCE.match(text.strip()):
        return timezone.now() - dt.timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    try:
        found = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise FieldError(option, f"{text!r} is neither like 2h, 30min or 3d nor a time in ISO 8601") from None
    return found if timezone.is_aware(found) else timezone.make_aware(found)


@contextmanager
def progress(label: str, total: int | None = None, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, at a terminal only; gives a function that is told how much is done in all."""
    stream: TextIO = sys.stderr
    if quiet or not stream.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        shown = bar.add_task(label, total=total)
        yield lambda done: bar.update(shown, completed=done)

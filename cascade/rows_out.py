"""Rows to a file or to standard output, for ``run results`` and ``export``: their arguments, and the copying."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from cascade import console, reach
from dispatch.results.formats import FORMATS
from nodes.executors.base import Dataset
from nodes.protocol import Conflict, FieldError

SUFFIXES = {"csv": "csv", "json": "json", "jsonl": "jsonl", "ndjson": "jsonl", "parquet": "parquet", "pq": "parquet"}
SUFFIXES |= {"arrow": "arrow", "arrows": "arrow", "feather": "arrow"}
BINARY = ("parquet", "arrow")
SHOWN_BYTES = 1_000_000


def add_arguments(parser: CommandParser | Any) -> None:
    parser.add_argument("--format", choices=sorted(FORMATS), help="default: by --out's suffix, else csv")
    parser.add_argument("--out", metavar="FILE", help="write there; default: standard output")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only rows with this value, or COLUMN__gte=VALUE and the like; repeatable",
    )
    parser.add_argument("--columns", default="", metavar="A,B", help="only these columns")
    parser.add_argument(
        "--order", default="", metavar="A,-B", help="sorted by; - before one turns it round: --order=-B"
    )
    parser.add_argument("--limit", type=int, help="at most so many rows")
    parser.add_argument("--offset", type=int, default=0, help="rows to leave out first")
    parser.add_argument("--raw", action="store_true", help="every row that was saved, with where it came from")


def send(
    command: console.Command, table: str, options: dict[str, Any], *, run: int | None, dataset: Dataset | None
) -> None:
    """Raises FieldError, NotFound, Conflict for a file that is there, and Unreachable or StoreBusy."""
    out = Path(options["out"]) if options["out"] else None
    format = options["format"] or _format_of(out)
    how = {
        "where": dict(_pair(text) for text in options["where"]),
        "columns": _names(options["columns"]) or None,
        "order": _names(options["order"]),
        "limit": options["limit"],
        "offset": options["offset"],
        "raw": options["raw"],
    }
    for name in ("limit", "offset"):
        if how[name] is not None and how[name] < 0:
            raise FieldError(f"--{name}", f"{how[name]} is not a whole number from 0 up")
    if out is None:
        if format in BINARY and sys.stdout.isatty():
            raise FieldError("--out", f"{format} is not for a terminal; name a file, or redirect")
        with reach.rows(table, format, run=run, dataset=dataset, **how) as pieces:
            for piece in pieces:
                _print(command, piece)
        return
    if out.exists() and not options["force"]:
        raise Conflict(f"{out} is there already; --force writes over it")
    # Beside it first: half a file must not pass for the whole.
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with (
            beside.open("wb") as file,
            reach.rows(table, format, run=run, dataset=dataset, **how) as pieces,
            console.progress(f"{out.name} (bytes)") as tell,
        ):
            size = 0
            for piece in pieces:
                size += file.write(piece)
                tell(size)
        beside.replace(out)
    except OSError as error:
        raise console.Unreachable(f"{out}: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)
    # In plain letters: what goes there is red otherwise, as errors are.
    command.stderr.write(f"Wrote {out}: {size} bytes of {format}.", str)


def _print(command: console.Command, piece: bytes) -> None:
    stream: Any = command.stdout._out if hasattr(command.stdout, "_out") else command.stdout
    if (binary := getattr(stream, "buffer", None)) is not None:
        binary.write(piece)
        binary.flush()
    elif isinstance(piece, bytes):
        stream.write(piece.decode("utf-8"))


def _format_of(out: Path | None) -> str:
    if out is None:
        return "csv"
    try:
        return SUFFIXES[out.suffix.lower().lstrip(".")]
    except KeyError:
        known = ", ".join(f".{suffix}" for suffix in SUFFIXES)
        raise FieldError("--out", f"{str(out)!r} does not end in one of: {known}; or give --format") from None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise FieldError("--where", f"{text!r} is not like symbol=AAPL")
    return name, value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

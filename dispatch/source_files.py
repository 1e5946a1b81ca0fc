"""Files of sources, read into rows for ``sources.import_rows``: CSV, JSON, JSON lines, OPML (feeds), plain text.

Pure: text in, numbered rows out. Columns that a source does not have go into its ``extra``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath
from typing import Any, NamedTuple
from xml.parsers import expat

from nodes.executors.base import shown
from nodes.protocol import FieldError

FIELDS = ("kind", "key", "name", "address", "active", "extra")
ALIASES = {"symbol": "key", "title": "name", "url": "address", "xmlurl": "address"}
SUFFIXES = {
    ".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".opml": "opml", ".xml": "opml",
    ".txt": "txt",
}  # fmt: skip
CELL_LIMIT = 1_000_000


class Line(NamedTuple):
    """One row, and where in the file it stands."""

    number: int
    row: Any


def read(content: bytes, form: str = "", filename: str = "") -> list[Line]:
    """The rows of a file in ``form``, or in the one that the ending of ``filename`` names. Raises FieldError."""
    form = form or SUFFIXES.get(PurePath(filename).suffix.lower(), "")
    if form not in READERS:
        known = ", ".join(READERS)
        raise FieldError("format", f"{shown(form or filename)} does not say one of: {known}; name it with --format")
    return list(READERS[form](content))


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FieldError(f"line {line}", "is not UTF-8") from None


def _csv(content: bytes) -> Iterator[Line]:
    """With a heading that has a column ``key`` (or ``symbol``). Empty cells say nothing."""
    before = csv.field_size_limit(CELL_LIMIT)
    reader = csv.DictReader(io.StringIO(_text(content), newline=""), strict=True)
    try:
        names = [(name or "").strip() for name in reader.fieldnames or ()]
        if "key" not in _known(dict.fromkeys(names, "")):
            raise FieldError("line 1", f"has no column key (or symbol); the columns are: {', '.join(names)[:200]}")
        for cells in reader:
            if None in cells or None in cells.values():
                raise FieldError(f"line {reader.line_num}", f"has not the {len(names)} columns of the heading")
            row = {name.strip(): value.strip() for name, value in cells.items()}
            yield Line(reader.line_num, _known({name: value for name, value in row.items() if value}))
    except csv.Error as error:
        raise FieldError(f"line {reader.line_num}", f"is not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _json(content: bytes) -> Iterator[Line]:
    """A list of objects or of keys, or {"sources": [that]}."""
    try:
        value = json.loads(_text(content))
    except json.JSONDecodeError as error:
        raise FieldError(f"line {error.lineno}", f"is not JSON: {error.msg}") from None
    except RecursionError:
        raise FieldError("file", "is nested too deep") from None
    except ValueError as error:  # a number of thousands of digits
        raise FieldError("file", f"is not JSON: {error}") from None
    if isinstance(value, dict) and isinstance(value.get("sources"), list):
        value = value["sources"]
    if not isinstance(value, list):
        raise FieldError("file", "is not a list of sources")
    for number, row in enumerate(value, 1):
        yield Line(number, _object(row))


def _jsonl(content: bytes) -> Iterator[Line]:
    for number, line in enumerate(_text(content).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FieldError(f"line {number}", f"is not JSON: {error}") from None
            yield Line(number, _object(row))


def _plain(content: bytes) -> Iterator[Line]:
    """A key a line; empty lines and those with a # in front say nothing."""
    for number, line in enumerate(_text(content).splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield Line(number, {"key": text})


def _opml(content: bytes) -> Iterator[Line]:
    """Its outlines with an xmlUrl, which is address and key. What they lie in is kept as ``folder``."""
    found: list[Line] = []
    open_: list[str] = []
    root: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if not root:
            root.append(tag)
        if tag != "outline":
            return
        text = " ".join((attributes.get("text") or attributes.get("title") or "").split())
        address = next((value for name, value in attributes.items() if name.lower() == "xmlurl"), "").strip()
        if address:
            extra = {"folder": "/".join(filter(None, open_))} if any(open_) else {}
            extra |= {"page": attributes["htmlUrl"]} if attributes.get("htmlUrl") else {}
            key = attributes.get("key", "").strip() or address[:200]
            row = {"kind": "feed", "key": key, "name": text[:200], "address": address, "extra": extra}
            found.append(Line(parser.CurrentLineNumber, row))
        open_.append("" if address else text)

    def end(tag: str) -> None:
        if tag == "outline":
            open_.pop()

    def refuse(*_: Any) -> None:
        # Entities are how a small file becomes a large one, or reads another.
        raise FieldError(f"line {parser.CurrentLineNumber}", "has a document type, which is not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise FieldError(f"line {error.lineno}", f"is not XML: {expat.ErrorString(error.code)}") from None
    except (ValueError, LookupError) as error:
        raise FieldError("file", f"is not XML: {error}") from None
    if root != ["opml"]:
        raise FieldError("file", f"is not OPML: it begins with {shown(root[0])}")
    if not found:
        raise FieldError("file", "has no outline with an xmlUrl")
    yield from found


def _object(row: Any) -> Any:
    if isinstance(row, dict):
        return _known(row)
    return {"key": row} if isinstance(row, str) else row


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields under their names, everything else in ``extra``."""
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in row.items():
        lowered = name.lower()
        own = lowered if lowered in FIELDS else ALIASES.get(lowered, "")
        # A column's own name comes before another one that may stand for it.
        if own and (own not in known or lowered == own):
            if own in known:
                extra[next(alias for alias in row if ALIASES.get(alias.lower()) == own)] = known[own]
            known[own] = value
        else:
            extra[name] = value
    if isinstance(known.get("extra"), str):
        with suppress(ValueError, RecursionError):  # what is no JSON is refused where extra is checked
            known["extra"] = json.loads(known["extra"])
    if extra:
        own_extra = known.get("extra", {})
        known["extra"] = {**own_extra, **extra} if isinstance(own_extra, dict) else own_extra
    return known


READERS: Mapping[str, Callable[[bytes], Iterator[Line]]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "opml": _opml,
    "txt": _plain,
}

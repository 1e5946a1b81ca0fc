"""The SQL box as a page: one SELECT, what it answers, and the same as a file. What was typed stays."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from api.tables_page import FORMATS, STATEMENT, Cell, cell
from dispatch.results import formats, reading_pages, saver, sql
from dispatch.results.reading_filters import quoted
from nodes.executors.base import shown
from nodes.protocol import CascadeError, FieldError

EXAMPLE = "SELECT symbol, count(*) AS bars, max(close) AS highest\nFROM kline\nGROUP BY symbol\nORDER BY highest DESC"


def show(request: HttpRequest) -> HttpResponse:
    """The box, with the statement that the address has; it is run when somebody says so. Raises CascadeError."""
    return _page(request, request.GET.get("query", "")[: sql.QUERY_LENGTH])


def run(request: HttpRequest) -> HttpResponse:
    """The answer to what was typed, beside it, or as a file. Raises CascadeError where results cannot be read here."""
    query = request.POST.get("query", "").replace("\r\n", "\n")
    format = request.POST.get("format", "")
    config = settings.CASCADE
    try:
        if format and format not in formats.FORMATS:
            raise FieldError("format", f"{shown(format)} is not one of: {', '.join(formats.FORMATS)}")
        rows = config.sql_download_rows if format else config.sql_rows
        limits = sql.Limits(rows, config.sql_seconds, config.sql_megabytes)
        answer = sql.run(saver.results(), query, limits, format=format or None)
    except CascadeError as error:
        return _page(request, query, problem=error)
    if format:
        response = HttpResponse(answer.body, content_type=formats.FORMATS[format])
        response["Content-Disposition"] = f'attachment; filename="query.{format}"'
        return response
    return _page(request, query, answer=json.loads(answer.body))


def _page(
    request: HttpRequest, query: str, *, answer: dict[str, Any] | None = None, problem: CascadeError | None = None
) -> HttpResponse:
    config = settings.CASCADE
    link = urlencode({"query": query})
    context: dict[str, Any] = {
        "now": int(timezone.now().timestamp() * 1000),
        "query": query,
        "example": EXAMPLE,
        "tables": _tables(),
        "formats": FORMATS,
        "seconds": f"{config.sql_seconds:g}",
        "most": f"{config.sql_rows:,}",
        "most_in_file": f"{config.sql_download_rows:,}",
        "problem": _said(problem) if problem else "",
        "link": f"?{link}" if query and len(link) < STATEMENT else "",
    }
    if answer is not None:
        context |= {
            "columns": answer["columns"],
            "heads": [{**each, "kind": _kind(each["type"])} for each in answer["columns"]],
            "rows": [_cells(answer["columns"], row) for row in answer["rows"]],
            "amount": f"{len(answer['rows']):,}",
            "truncated": answer["truncated"],
            "took": f"{answer['took']:,.3g}" if answer["took"] < 100 else f"{answer['took']:,.0f}",
        }
    return render(request, "sql.html", context, status=problem.status if problem else 200)


def _said(problem: CascadeError) -> str:
    return problem.message if isinstance(problem, FieldError) and problem.field == "query" else str(problem)


def _kind(arrow: str) -> str:
    """Numbers stand to the right."""
    return "number" if arrow.startswith(("int", "uint", "float", "double", "decimal")) else ""


def _cells(columns: list[dict[str, str]], row: list[Any]) -> list[Cell]:
    return [
        cell(
            each["name"],
            "float64" if _kind(each["type"]) else "",
            json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value,
        )
        for each, value in zip(columns, row, strict=True)
    ]


def _tables() -> list[tuple[str, list[tuple[str, str]]]]:
    """What a statement may read: each table's name, and its columns with their types."""
    found = []
    with reading_pages.within(saver.results(), settings.CASCADE.read_seconds) as connection:
        for name in sql.tables(connection):
            described = connection.execute(f"DESCRIBE {quoted(name)}").fetchall()
            found.append((name, [(column, kind) for column, kind, *_ in described]))
    return found

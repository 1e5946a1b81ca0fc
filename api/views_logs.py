"""The logs of a run's shards: a page of lines, what is new after a number, or text to be kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param

from api.serializers_logs import LogLines
from api.views import LARGEST_ID, Native, number, only_known
from api.views_tables import Async
from dispatch import log_lines
from dispatch.log_lines import Line, Page, Wanted
from dispatch.models import Run
from nodes.executors.base import shown
from nodes.protocol import FieldError, NotFound

DEFAULT_LIMIT, MAX_LIMIT = 1000, 5000
SEARCH_LENGTH = 200
LOOK_SECONDS = 1.0
"""A page looks through logs for so long; ``previous`` and ``next`` go on where it stopped."""
BATCH = 500
CR, CR_SHOWN = "\r", "\u240d"
"""Within a line, as bars of progress have it: left there, it would be an end of line to some readers."""
TEXT = "text/plain; charset=utf-8"
FILTERS = ("shard", "allocation", "node", "item")
KNOWN = (*FILTERS, "search", "after", "before", "limit", "format")


class RunLogs(Native):
    @extend_schema(
        operation_id="runs_logs",
        parameters=[
            OpenApiParameter("after", int, description="The first lines above this number: what is new, to follow."),
            OpenApiParameter("before", int, description="The last lines below this number: older ones."),
            OpenApiParameter("limit", int, description=f"At most {MAX_LIMIT}. Default {DEFAULT_LIMIT}; as text: all."),
            OpenApiParameter("shard", int, description="A shard's id."),
            OpenApiParameter("allocation", int, description="An allocation's id."),
            OpenApiParameter("node", int, description="A node's id."),
            OpenApiParameter("item", int, description="The number of an item: of every attempt at a shard with it."),
            OpenApiParameter("search", str, description="Only lines with this text, in whatever case."),
            OpenApiParameter("format", str, enum=["json", "text"], description="Default json."),
        ],
        responses={
            (200, "application/json"): LogLines,
            (200, "text/plain"): OpenApiResponse(
                OpenApiTypes.STR, "Streamed: number, time, node, items, attempt and text of each line, with tabs."
            ),
        },
    )
    def get(self, request: Request, pk: str) -> HttpResponseBase:
        """What the run's shards have printed: the newest lines, those after or before a number, or all as text."""
        only_known(request, KNOWN)
        run = int(pk)
        if not Run.objects.filter(pk=run).exists():
            raise NotFound(f"there is no run {run}")
        wanted = _wanted(request)
        after, before = _maybe(request, "after"), _maybe(request, "before")
        format = request.query_params.get("format", "json")
        if format == "text":
            return _as_text(request, run, wanted, after, before)
        if format != "json":
            raise FieldError("format", f"{shown(format)} is not one of: json, text")
        limit = min(number(request, "limit", DEFAULT_LIMIT, 1), MAX_LIMIT)
        if after is None:
            page = log_lines.latest(run, before, limit, wanted, seconds=LOOK_SECONDS)
        else:
            page = log_lines.since(run, after, limit, wanted, before=before, seconds=LOOK_SECONDS)
        return Response(_shown(request, page))


def _maybe(request: Request, name: str) -> int | None:
    return number(request, name, 0, 0) if name in request.query_params else None


def _wanted(request: Request) -> Wanted:
    search = request.query_params.get("search", "").replace("\x00", "\ufffd")
    if len(search) > SEARCH_LENGTH:
        raise FieldError("search", f"has {len(search)} characters; at most {SEARCH_LENGTH} are allowed")
    if "\n" in search or "\r" in search:
        raise FieldError("search", "has more than one line; lines are searched one by one")
    ids: dict[str, Any] = {
        name: number(request, name, 0, 0, LARGEST_ID) for name in FILTERS if name in request.query_params
    }
    return Wanted(**ids, search=search)


def _shown(request: Request, page: Page) -> dict[str, Any]:
    here = request.build_absolute_uri()
    ahead, back = remove_query_param(here, "before"), remove_query_param(here, "after")
    return {
        "newest": page.newest,
        "first": page.first,
        "last": page.last,
        "previous": replace_query_param(back, "before", page.first) if page.first > 1 and page.newest else None,
        "next": replace_query_param(ahead, "after", page.last),
        "results": [line._asdict() for line in page.lines],
    }


def _as_text(
    request: Request, run: int, wanted: Wanted, after: int | None, before: int | None
) -> StreamingHttpResponse:
    limit = number(request, "limit", -1, 1)
    lines: Iterator[Line]
    if limit < 0:
        lines = log_lines.every(run, wanted, after or 0, before)
    elif after is None:
        lines = iter(log_lines.latest(run, before, min(limit, MAX_LIMIT), wanted).lines)
    else:
        lines = iter(log_lines.since(run, after, min(limit, MAX_LIMIT), wanted, before=before).lines)
    # Under ASGI on a thread of its own, whose connection is closed with it.
    asgi = isinstance(request._request, ASGIRequest)
    body: Any = Async(lambda: (TEXT, _closing(_encoded(lines)))) if asgi else _encoded(lines)
    response = StreamingHttpResponse(body, content_type=TEXT)
    response["Content-Disposition"] = f'attachment; filename="run-{run}-log.txt"'
    return response


def _encoded(lines: Iterator[Line]) -> Iterator[bytes]:
    while batch := list(islice(lines, BATCH)):
        yield "".join(map(_plain, batch)).encode()


def _closing(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        connection.close()


def _plain(line: Line) -> str:
    at = line.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    gap = f"[… {line.missing} characters are missing] " if line.missing else ""
    where = f"{line.node_name or '-'}\t[{line.start}, {line.stop})\t{line.attempt}"
    return f"{line.number}\t{at}\t{where}\t{gap}{line.text.replace(CR, CR_SHOWN)}\n"

"""Tables: what they are; rows by table or by run, streamed in the format asked for; pages, counts and facets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from api.serializers import Table, unknown
from api.serializers_tables import AboutTable, Facet, TablePage
from api.views import LARGEST_ID, Native, flag, number, only_known
from dispatch.results import reading_filters as filters
from dispatch.results import reading_pages as pages
from dispatch.results import saver
from dispatch.results.base import Store
from dispatch.results.datasets import LINEAGE, schema
from dispatch.results.formats import FORMATS, plain, stream
from nodes.executors.base import Dataset, shown
from nodes.protocol import FieldError, NotFound

STREAMED = ("format", "limit", "offset", "columns", "ordering", "run", "raw", "distinct")
"""What a query may say beside columns."""
PAGED = ("limit", "columns", "ordering", "run", "raw", "after", "count")
COUNTED = ("run", "raw", "column", "limit")
PREFIX = "where."
ROWS = [
    OpenApiParameter("format", str, enum=sorted(FORMATS), description="Default json."),
    OpenApiParameter("limit", int, description="At most so many rows; without it, all."),
    OpenApiParameter("offset", int, description="Rows to leave out first."),
    OpenApiParameter("columns", str, description="Names with commas. Default: all."),
    OpenApiParameter("ordering", str, description="Columns with commas; - before one turns it round."),
    OpenApiParameter("raw", bool, description="Every row that was saved, replaced ones too, with where it came from."),
    OpenApiParameter("distinct", bool, description="Each combination of the columns' values once."),
    OpenApiParameter("<column>", str, description="Only rows with this value; where.<column> for a name used above."),
    OpenApiParameter(
        "<column>__<operator>",
        str,
        description="; ".join(f"__{name}: {meaning}" for name, meaning in filters.OPERATORS.items()),
    ),
]
RUN = OpenApiParameter("run", int, description="Only rows of the run with this id.")
USUAL_ROWS = 100
MOST_ROWS = 1000
MOST_FACETS = 10
MOST_VALUES = 100
_OBJECTS = {"type": "array", "items": {"type": "object", "additionalProperties": True}}
STREAM = {
    (200, content_type.partition(";")[0]): OpenApiResponse(
        _OBJECTS if name == "json" else OpenApiTypes.BINARY,
        "The rows, streamed. JSON: an array of objects, times in ISO 8601.",
    )
    for name, content_type in FORMATS.items()
}


class Pieces:
    """A body made piece by piece on a thread of its own, as a connection of DuckDB serves one thread only.

    The first piece is made at once: what goes wrong up to there is answered as an error, not as half a body.
    """

    def __init__(self, make: Callable[[], tuple[str, Iterator[bytes]]]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._pieces: Iterator[bytes] = iter(())
        try:
            self.content_type, self._first = self._thread.submit(self._begin, make).result()
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    def _begin(self, make: Callable[[], tuple[str, Iterator[bytes]]]) -> tuple[str, bytes | None]:
        content_type, self._pieces = make()
        return content_type, next(self._pieces, None)

    def close(self) -> None:
        """Also called by Django when the client has gone away."""
        if (end := getattr(self._pieces, "close", None)) is not None:
            self._thread.submit(end)
        self._pieces = iter(())
        self._thread.shutdown(wait=False)


class Sync(Pieces):
    def __iter__(self) -> Iterator[bytes]:
        piece = self._first
        while piece is not None:
            yield piece
            piece = self._thread.submit(next, self._pieces, None).result()


class Async(Pieces):
    """Under ASGI Django would otherwise read a synchronous iterator to its end before it sends anything."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        piece = self._first
        while piece is not None:
            yield piece
            piece = await loop.run_in_executor(self._thread, next, self._pieces, None)


def _names(request: Request, option: str) -> list[str] | None:
    given = request.query_params.get(option)
    return None if given is None else [name.strip() for name in given.split(",")]


def _filters(request: Request, columns: Sequence[str], allowed: Sequence[str]) -> dict[str, str]:
    """What the query says of columns, beside the options ``allowed``. Raises FieldError for unknown, repeated ones."""
    found: dict[str, str] = {}
    for name in request.query_params:
        if name in allowed:
            continue
        told = name.removeprefix(PREFIX)
        if filters.split(told, dict.fromkeys(columns)) is None:
            column, mark, operator = told.rpartition("__")
            if mark and column in columns:
                message = f"{shown(operator)} is no operator; there are: {', '.join(filters.OPERATORS)}"
                raise FieldError(name[:100], message)
            raise FieldError(name[:100], unknown(told, [*columns, *allowed]))
        if told in found or len(request.query_params.getlist(name)) > 1:
            raise FieldError(name, "is given twice; a row has one value")
        if "\x00" in (value := request.query_params[name]):
            raise FieldError(name, "holds a NUL character")
        found[told] = value
    return found


def _run(request: Request) -> int | None:
    run = number(request, "run", -1, 0, LARGEST_ID)
    return None if run < 0 else run


def table_response(
    request: Request, name: str, *, run: int | None, dataset: Dataset | None = None
) -> StreamingHttpResponse:
    """The rows of table ``name`` as the query asks. ``dataset`` stands in for a table that has no rows yet.

    Raises FieldError, NotFound, and Conflict where this process has no results.
    """
    store = saver.results()
    format = request.query_params.get("format", "json")
    if format not in FORMATS:
        raise FieldError("format", f"{shown(format)} is not one of: {', '.join(FORMATS)}")
    raw = flag(request, "raw")
    known = {each["name"]: [column["name"] for column in each["columns"]] for each in store.tables()}
    if name not in known and dataset is None:
        raise NotFound(f"there is no table {shown(name)}; there are: {', '.join(known) or 'none yet'}")
    columns = known[name] if name in known else list(dataset.names if dataset else ())
    where = _filters(request, [*columns, *LINEAGE] if raw else columns, STREAMED)
    limit = number(request, "limit", -1, 0)
    how = {
        "run": run,
        "where": where,
        "columns": _names(request, "columns"),
        "order": _names(request, "ordering") or (),
        "limit": None if limit < 0 else limit,
        "offset": number(request, "offset", 0, 0),
        "raw": raw,
        "distinct": flag(request, "distinct"),
    }
    pieces = _pieces(request, lambda: _read(store, name, format, how, dataset if name not in known else None))
    response = StreamingHttpResponse(pieces, content_type=pieces.content_type)  # type: ignore[arg-type]
    if format != "json":
        response["Content-Disposition"] = f'attachment; filename="{name}.{format}"'
    return response


def _pieces(request: Request, make: Callable[[], tuple[str, Iterator[bytes]]]) -> Pieces:
    return Async(make) if isinstance(request._request, ASGIRequest) else Sync(make)


def _read(
    store: Store, name: str, format: str, how: dict[str, Any], empty: Dataset | None
) -> tuple[str, Iterator[bytes]]:
    import pyarrow as pa

    if empty is not None:
        return stream(pa.RecordBatchReader.from_batches(schema(empty), []), format)
    try:
        return stream(store.select(name, **how), format)
    except FieldError as error:
        raise theirs(error) from None


def theirs(error: FieldError) -> FieldError:
    """The store's names for its arguments are not what the client wrote."""
    return FieldError({"order": "ordering"}.get(error.field, error.field.removeprefix(PREFIX)), error.message)


class Tables(Native):
    @extend_schema(responses=Table(many=True))
    def get(self, request: Request) -> Response:
        """The tables of results, with the number of rows saved in each."""
        only_known(request, ())
        return Response(saver.results().tables())


class TableAbout(Native):
    @extend_schema(operation_id="tables_about", responses=AboutTable)
    def get(self, request: Request, name: str) -> Response:
        """A table's columns, key, lineage and views, how many rows and runs it has, and when one was saved last."""
        only_known(request, ())
        return Response(pages.about(saver.results(), name, settings.CASCADE.count_seconds))


class Rows(Native):
    @extend_schema(operation_id="tables_rows", parameters=[*ROWS, RUN], responses=STREAM)
    def get(self, request: Request, name: str) -> StreamingHttpResponse:
        """The newest row of each fact (natural key), streamed."""
        return table_response(request, name, run=_run(request))


class PageOfRows(Native):
    @extend_schema(
        operation_id="tables_page",
        parameters=[
            *(each for each in ROWS if each.name not in ("format", "limit", "offset", "distinct")),
            RUN,
            OpenApiParameter("limit", int, description=f"Rows of a page: 100, at most {MOST_ROWS}."),
            OpenApiParameter("after", str, description="The `next` of the page before."),
            OpenApiParameter("count", bool, description="false: do not count the rows. Default true."),
        ],
        responses=TablePage,
    )
    def get(self, request: Request, name: str) -> Response:
        """A page of rows in an order that stays, where the next one begins, and how many rows there are."""
        store = saver.results()
        began = time.perf_counter()
        limit = min(number(request, "limit", USUAL_ROWS, 1), MOST_ROWS)
        try:
            with pages.within(store, settings.CASCADE.read_seconds) as connection:
                shape = pages.found(connection, name)
                wanted = asked(request, shape, PAGED)
                made = pages.page(connection, shape, wanted, limit, request.query_params.get("after"))
            took = time.perf_counter() - began
            counted = None
            if "count" not in request.query_params or flag(request, "count"):
                counted = pages.count(store, shape, wanted, settings.CASCADE.count_seconds)
        except FieldError as error:
            raise theirs(error) from None
        return Response(
            {
                "columns": made.columns,
                "rows": [[plain(value) for value in row] for row in made.rows],
                "next": made.next,
                "count": counted and {"rows": counted.rows, "exact": counted.exact},
                "took": round(1000 * took, 1),
                "sql": pages.as_sql(shape, wanted, limit),
            }
        )


class Facets(Native):
    @extend_schema(
        operation_id="tables_facets",
        parameters=[
            OpenApiParameter("column", str, many=True, required=True, description="Repeat it for several: at most 10."),
            OpenApiParameter("limit", int, description=f"Values of each: 10, at most {MOST_VALUES}."),
            *(each for each in ROWS if each.name.startswith("<") or each.name == "raw"),
            RUN,
        ],
        responses=Facet(many=True),
    )
    def get(self, request: Request, name: str) -> Response:
        """The most frequent values of columns among the rows that the filters leave."""
        store = saver.results()
        columns = list(dict.fromkeys(request.query_params.getlist("column")))
        if not 1 <= len(columns) <= MOST_FACETS:
            raise FieldError("column", f"is given {len(columns)} times; 1 to {MOST_FACETS} are allowed")
        most = min(number(request, "limit", 10, 1), MOST_VALUES)
        try:
            with store.reader() as connection:
                shape = pages.found(connection, name)
            wanted = asked(request, shape, COUNTED)
            seconds = settings.CASCADE.facet_seconds
            told = [pages.facet(store, shape, wanted, column, most, seconds) for column in columns]
        except FieldError as error:
            raise theirs(error) from None
        for each in told:
            each["values"] = [{**found, "value": plain(found["value"])} for found in each["values"]]
        return Response(told)


def asked(request: Request, shape: pages.Shape, allowed: Sequence[str]) -> pages.Asked:
    """What the query asks for, which may have the options ``allowed``. Raises FieldError."""
    raw = flag(request, "raw")
    columns = [*shape.types, *(LINEAGE if raw and not shape.of else ())]
    return pages.Asked(
        run=_run(request),
        where=_filters(request, columns, allowed),
        columns=_names(request, "columns"),
        order=_names(request, "ordering") or (),
        raw=raw,
    )

"""The SQL box: one SELECT over the tables of results."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from api.serializers_tables import SqlAnswer, SqlStatement, SqlTable
from api.views import Native, TakesForms, only_known
from dispatch.results import reading_pages, saver, sql
from dispatch.results.formats import FORMATS
from nodes.executors.base import shown
from nodes.protocol import FieldError

_BINARY = {
    (200, content_type.partition(";")[0]): OpenApiResponse(OpenApiTypes.BINARY, "The file that `format` asks for.")
    for name, content_type in FORMATS.items()
    if name != "json"
}
FIELDS = ("query", "limit", "format", "csrfmiddlewaretoken")


class Sql(TakesForms):
    """Also as a form, so that a page can offer the file."""

    @extend_schema(
        operation_id="sql", request=SqlStatement, responses={(200, "application/json"): SqlAnswer, **_BINARY}
    )
    def post(self, request: Request) -> HttpResponse:
        """What one SELECT answers, over the newest rows (`kline`), all rows (`kline_rows`) and views.

        It ends after `sql_seconds`, and takes `sql_megabytes` at most. With `format` it is a file of up to
        `sql_download_rows` rows, whose headers `Cascade-Rows`, `Cascade-Truncated` and `Cascade-Took` say the rest.
        """
        only_known(request, ())
        query, limit, format = _asked(request.data)
        config = settings.CASCADE
        answer = sql.run(
            saver.results(), query, sql.Limits(limit, config.sql_seconds, config.sql_megabytes), format=format
        )
        response = HttpResponse(answer.body, content_type=FORMATS[format or "json"])
        response["Cascade-Rows"] = str(answer.rows)
        response["Cascade-Truncated"] = "true" if answer.truncated else "false"
        response["Cascade-Took"] = f"{answer.took:g}"
        if format is not None:
            response["Content-Disposition"] = f'attachment; filename="query.{format}"'
        return response


class SqlTables(Native):
    @extend_schema(operation_id="sql_tables", responses=SqlTable(many=True))
    def get(self, request: Request) -> Response:
        """What a statement may read, with the types that columns have there."""
        only_known(request, ())
        found = []
        with reading_pages.within(saver.results(), settings.CASCADE.read_seconds) as connection:
            for name in sql.tables(connection):
                described = connection.execute(f'DESCRIBE "{name}"').fetchall()
                found.append(
                    {"name": name, "columns": [{"name": column, "type": kind} for column, kind, *_ in described]}
                )
        return Response(found)


def _asked(body: Any) -> tuple[str, int, str | None]:
    """Query, limit and format of a body. Raises FieldError."""
    if not hasattr(body, "get"):
        raise FieldError("body", "is no object with a query")
    for name in body:
        if name not in FIELDS:
            raise FieldError(str(name)[:100], f"is not known here; known are: {', '.join(FIELDS[:3])}")
    query, format = body.get("query"), body.get("format") or None
    if not isinstance(query, str):
        raise FieldError("query", f"{shown(query)} is not a text" if "query" in body else "is missing")
    if format is not None and format not in FORMATS:
        raise FieldError("format", f"{shown(format)} is not one of: {', '.join(FORMATS)}")
    setting = "sql_rows" if format is None else "sql_download_rows"
    most = getattr(settings.CASCADE, setting)
    limit = body.get("limit")
    if limit in (None, ""):
        return query, most, format
    if isinstance(limit, str) and limit.isascii() and limit.isdigit() and len(limit) < 19:
        limit = int(limit)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= most:
        raise FieldError("limit", f"{shown(limit)} is not a whole number from 1 to {most} (the setting {setting})")
    return query, limit, format

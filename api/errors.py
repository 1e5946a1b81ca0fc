"""How errors leave the API: one JSON shape, ``{"detail", "field"?, "errors"?}``, for DRF and for plain views.

``field`` is a dotted path into what was sent, or ``body`` where it could not be read at all; ``errors`` lists every
wrong field of a form-like body.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.exceptions import BadRequest, RequestDataTooBig, SuspiciousOperation
from django.db import DatabaseError, InterfaceError, OperationalError, connection
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.views import defaults
from rest_framework import views
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.response import Response

from nodes.protocol import CascadeError, FieldError, Unauthenticated

logger = logging.getLogger(__name__)


class DatabaseAway(CascadeError):
    """The database server restarts or cannot be reached: nothing is known of what was asked, so it is sent again."""

    status = 503
    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("the database cannot be reached; try again")


def is_away(error: DatabaseError) -> bool:
    """Whether ``error`` is of a connection to PostgreSQL that is lost or refused, and not of what was asked."""
    lost = isinstance(error, InterfaceError | OperationalError) and connection.vendor == "postgresql"
    # Connection refused has no SQLSTATE; classes 08 and 57 are lost connections and shutdowns, 53 is no room for one.
    state = getattr(error.__cause__, "sqlstate", None)
    return lost and (state is None or state[:2] in ("08", "57") or state == "53300")


def json_error(status: int, detail: str, **more: Any) -> JsonResponse:
    """``{"detail": detail, …more}`` with ``status``; ``field`` is the usual one of ``more``."""
    return JsonResponse({"detail": detail, **more}, status=status)


def respond(error: CascadeError) -> JsonResponse:
    """The answer of a plain view to ``error``."""
    return JsonResponse(error.as_dict(), status=error.status, headers=_headers(error))


def _headers(error: CascadeError) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": 'AK-SK realm="cascade"'}
    return {"Retry-After": str(math.ceil(error.retry_after))} if error.retry_after else {}


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's EXCEPTION_HANDLER. None for a fault of our own: Django logs it and ``handler500`` answers."""
    if isinstance(exc, ValidationError):
        response = views.exception_handler(exc, context)
        assert response is not None
        response.data = _reshaped(exc.detail)
        return response
    if isinstance(exc, CascadeError):
        if exc.status >= 500:
            logger.error("%s: %s", type(exc).__name__, exc)
        return Response(exc.as_dict(), status=exc.status, headers=_headers(exc))
    if isinstance(exc, DatabaseError) and is_away(exc):
        logger.warning("the database cannot be reached: %s", exc)
        return Response({"detail": str(DatabaseAway())}, status=503, headers={"Retry-After": "1"})
    if isinstance(exc, RequestDataTooBig):
        return Response({"field": "body", "detail": "is larger than this server's upload_limit"}, status=413)
    if isinstance(exc, (UnreadablePostError, BadRequest, SuspiciousOperation)):
        return Response({"field": "body", "detail": str(exc) or "the request could not be read"}, status=400)
    if isinstance(exc, OperationalError) and "locked" in str(exc):
        # Out of the busy time-out: nothing was changed, so the same request may be sent again.
        logger.warning("the control database was locked for longer than its time-out")
        return Response({"detail": "the database is busy; try again"}, status=503, headers={"Retry-After": "1"})
    if isinstance(exc, Http404):
        # Django's own words name a model and a query, which is not what was asked.
        return Response({"detail": f"{context['request'].path} does not exist"}, status=404)
    response = views.exception_handler(exc, context)
    if response is not None and isinstance(exc, APIException) and not isinstance(response.data, dict):
        response.data = {"detail": str(response.data)}
    return response


def _reshaped(detail: Any) -> dict[str, Any]:
    """DRF's nested messages with the first of them, and its path, on top."""
    path, message = next(flat(detail, ()), ((), "is not valid"))
    return {"field": ".".join(path) or "body", "detail": message, "errors": detail}


def flat(detail: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, message) of each of DRF's nested messages."""
    if isinstance(detail, Mapping):
        for name, part in detail.items():
            yield from flat(part, path if name == "non_field_errors" else (*path, str(name)))
    elif isinstance(detail, list):
        for number, part in enumerate(detail):
            # A list of texts is one field's messages; of anything else, one entry per element sent.
            yield from flat(part, path if isinstance(part, str) else (*path, str(number)))
    else:
        yield path, str(detail)


def _wants_json(request: HttpRequest) -> bool:
    return f"{request.path}/".startswith("/api/")


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _wants_json(request):
        return defaults.bad_request(request, exception)
    if isinstance(exception, RequestDataTooBig):
        return json_error(413, "is larger than this server's upload_limit", field="body")
    if isinstance(exception, FieldError):
        return respond(exception)
    return json_error(400, "the request could not be read")


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _wants_json(request):
        return defaults.permission_denied(request, exception)
    return json_error(403, str(exception) or "not allowed")


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _wants_json(request):
        return defaults.page_not_found(request, exception)
    return json_error(404, f"{request.path} does not exist; /api/docs lists what does")


def handler500(request: HttpRequest) -> HttpResponse:
    if not _wants_json(request):
        return defaults.server_error(request)
    return json_error(500, "this server failed; its log says how")

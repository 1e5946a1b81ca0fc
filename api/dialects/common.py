"""What the dialects share: bodies read as their clients send them, who is calling, answers with a length.

Routes answer with and without a trailing slash and never redirect: deployed clients drop the body of what they repeat.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import RequestAborted
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication

from api import authentication
from dispatch import lifecycle
from nodes.executors.base import shown
from nodes.keys import Caller
from nodes.models import Node
from nodes.protocol import CascadeError, FieldError, Forbidden, TooLarge, Unauthenticated

Body = dict[str, Any]
View = Callable[..., HttpResponse]
Shape = Callable[[CascadeError], HttpResponse]
"""How a dialect words an error."""

BODY_LIMIT = 64 * 1024 * 1024


def route(path: str, view: View, name: str) -> URLPattern:
    """``path`` with ``<word>`` for variable parts, without leading and trailing slash; both forms are served."""
    pattern = re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", path)
    return re_path(rf"^{pattern}/?$", view, name=name)


def methods(shape: Shape, **views: View) -> View:
    """One address: ``get=``, ``post=``, ``put=``, ``delete=``. Errors leave as ``shape`` words them."""

    @csrf_exempt
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        view = views.get((request.method or "").lower())
        if view is None and request.method == "HEAD":
            view = views.get("get")
        if view is None:
            response = shape(NotAllowed(f"{request.method} is not allowed here"))
            response["Allow"] = ", ".join(name.upper() for name in views)
            return response
        try:
            return view(request, *args, **kwargs)
        except CascadeError as error:
            return shape(error)
        except (UnreadablePostError, RequestAborted):
            return shape(FieldError("body", "was cut off"))
        except OperationalError as error:
            if "locked" not in str(error):
                raise
            # Out of the busy time-out: nothing was changed, so the same request may be sent again.
            response = shape(Busy("the database is busy; try again"))
            response["Retry-After"] = "1"
            return response

    return answer


class NotAllowed(CascadeError):
    status = 405


class Busy(CascadeError):
    status = 503


def content(request: HttpRequest) -> bytes:
    """The whole body, at most BODY_LIMIT. Raises TooLarge."""
    found = getattr(request, "_content", None)
    if found is None:
        found = request.read(BODY_LIMIT + 1)
        if len(found) > BODY_LIMIT:
            raise TooLarge(f"body: is larger than {BODY_LIMIT} bytes")
        request._content = found  # type: ignore[attr-defined]
    return bytes(found)


def body_of(request: HttpRequest) -> Body:
    """The JSON object that was sent; an empty body is an empty object, whatever its Content-Type."""
    raw = content(request).strip()
    if not raw:
        return {}
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FieldError("body", f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise FieldError("body", f"{shown(found)} is not an object")
    return found


def need(body: Mapping[str, Any], name: str, kind: type = str) -> Any:
    """``body[name]``. Raises FieldError where it is missing, or no ``kind``."""
    value = body.get(name)
    if value is None:
        raise FieldError(name, "is required")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FieldError(name, f"{shown(value)} is not {_WORDS[kind]}")
    return value


_WORDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    dict: "an object",
    list: "a list",
    bool: "true or false",
}


def whole(request: HttpRequest, name: str, default: int, least: int = 0, most: int = 1000) -> int:
    """A number of the query, put within its bounds. Raises FieldError for what is no number."""
    text = request.GET.get(name, "").strip()
    if not text:
        return default
    try:
        return min(max(int(text), least), most)
    except ValueError:
        raise FieldError(name, f"{shown(text)} is not a whole number") from None


def child(request: HttpRequest, dialect: str, types: list[str], **load: float | None) -> tuple[Caller, Node]:
    """Whose AK/SK this came with; it counts as a sign of life, as some clients send no other. ``load`` as in ``seen``.

    Raises as ``authenticated``.
    """
    caller = authenticated(request, dialect)
    return caller, lifecycle.seen(caller, types, **load)


def authenticated(request: HttpRequest, dialect: str) -> Caller:
    """Whose AK/SK this came with. Raises Unauthenticated, TooMany, and Forbidden for a node of another dialect."""
    method, url, headers = authentication.request_parts(request)
    sha256 = hashlib.sha256(content(request)).digest()
    client = authentication.client_address(request)
    caller = authentication.authenticate(method, url, headers, sha256, client=client)
    node = Node.objects.filter(pk=caller.node_id).first()
    if node is None:
        raise Unauthenticated("the node of this key was removed")
    if node.dialect != dialect:
        raise Forbidden(f"node {node.name} speaks the dialect {node.dialect}, not {dialect}")
    return caller


def operator(request: HttpRequest) -> str:
    """The name of the staff member whose token or session this came with. Raises Unauthenticated, Forbidden."""
    wrapped = Request(request, authenticators=[JWTAuthentication(), SessionAuthentication()])
    try:
        user = wrapped.user
    except APIException as error:
        # Of a token that is wrong the detail is an object, with the words in it.
        told = error.detail.get("detail", "") if isinstance(error.detail, dict) else error.detail
        raise (Unauthenticated if error.status_code == 401 else Forbidden)(str(told)) from None
    if not user.is_authenticated:
        raise Unauthenticated("sign in, or send 'Authorization: Bearer <token>' with a token of /api/v1/token")
    if not user.is_staff:
        raise Forbidden(f"{user.get_username()} is not staff")
    return str(user.get_username())


def answer(content: Any, status: int = 200, **headers: str) -> HttpResponse:
    """JSON with its Content-Length."""
    response = JsonResponse(content, status=status, safe=False, json_dumps_params={"ensure_ascii": False})
    response["Content-Length"] = str(len(response.content))
    for name, value in headers.items():
        response[name.replace("_", "-")] = value
    return response

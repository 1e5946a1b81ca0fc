"""What hangs below a relay, asked down the tree while somebody waits: for programs, and as a page for people.

Plain asynchronous views beside the middlewares that are made for browsers, as for the agent's verbs: an answer may take
seconds, and a thread each would be held meanwhile.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import override
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from api import branches, languages
from api.agent import in_thread
from api.errors import respond
from api.serializers_tree import Picture
from api.views import Native, only_known
from dispatch.relay import asking
from nodes.fields import read_path
from nodes.models import Node
from nodes.protocol import CascadeError, Forbidden


class Below(Native):
    """What DRF does of it: who asks, and for what. The answer is waited for outside."""

    @extend_schema(
        operation_id="nodes_below",
        responses=Picture,
        parameters=[
            OpenApiParameter("path", str, description="Names below this node, like paris/lyon. Default: its own nodes.")
        ],
    )
    def get(self, request: Request, pk: int) -> Response:
        """The nodes of a relay in full, asked of it now; with 'path', those of a relay further down.

        Of a relay that is not there it is what it said last. 404: no relay, or nobody of that name. 504: a relay on the
        way does not answer.
        """
        only_known(request, ("path",))
        return Response(read_path("path", request.query_params.get("path", "")))


_checked = Below.as_view()


def _admit(request: HttpRequest) -> None:
    """What the middlewares would do: who is signed in, and which token the forms of the page get."""
    if settings.SECURE_SSL_REDIRECT and not request.is_secure():
        raise Forbidden("this server is reached by https only")
    known: Any = request
    known.session = import_module(settings.SESSION_ENGINE).SessionStore(
        request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    )
    known.user = get_user(request)
    CsrfViewMiddleware(lambda _: HttpResponse()).process_request(request)


def _path(request: HttpRequest, pk: int) -> list[str] | HttpResponse:
    """Where to look; or the refusal."""
    try:
        _admit(request)
    except CascadeError as error:
        return respond(error)
    response = _checked(request, pk=pk)
    if response.status_code == 200 and request.method in ("GET", "HEAD"):
        return list(response.data)
    other: HttpResponse = response.render()
    return other


@csrf_exempt
async def children(request: HttpRequest, pk: int) -> HttpResponse:
    """The answer of the API."""
    path = await in_thread(_path, request, pk)
    if isinstance(path, HttpResponse):
        return path
    try:
        return JsonResponse(await asking.ask(in_thread, pk, path))
    except CascadeError as error:
        return respond(error)


children.cls = Below  # type: ignore[attr-defined]  # for the API's description
children.initkwargs = {}  # type: ignore[attr-defined]


def _looking(request: HttpRequest, pk: int) -> tuple[list[str], str] | HttpResponse:
    """Where to look and how the node is called; or the refusal."""
    try:
        _admit(request)
        user: Any = request.user
        if not (user.is_active and user.is_staff):
            if "fragment" in request.GET:
                return HttpResponse("Sign in", status=403)
            return redirect_to_login(request.get_full_path())
        name = Node.objects.filter(pk=pk).values_list("name", flat=True).first() or str(pk)
        return read_path("path", request.GET.get("path", "")), name
    except CascadeError as error:
        return HttpResponse(str(error), status=error.status, content_type="text/plain; charset=utf-8")


@csrf_exempt
async def page(request: HttpRequest, pk: int) -> HttpResponse:
    """The same for people; with ``fragment`` the list alone, for a page that has the rest."""
    looking = await in_thread(_looking, request, pk)
    if isinstance(looking, HttpResponse):
        return looking
    path, name = looking
    status, problem, picture = 200, "", None
    try:
        picture = await asking.ask(in_thread, pk, path)
    except CascadeError as error:
        status, problem = error.status, str(error)
    shown = branches.Branch.of(pk, name, path, picture, problem)
    now = int(timezone.now().timestamp() * 1000)
    template = "partials/below.html" if "fragment" in request.GET else "below.html"

    def draw() -> HttpResponse:
        with override(languages.of_request(request)):
            return render(request, template, {"branch": shown, "now": now}, status=status)

    return await in_thread(draw)

"""Which language a page is in: what its reader chose, else what the browser asks for. The API speaks English."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.decorators import sync_and_async_middleware

from nodes.sentences import ENGLISH

API = "/api/"


def of_request(request: HttpRequest) -> str:
    return ENGLISH if request.path_info.startswith(API) else translation.get_language_from_request(request)


def of_socket(scope: Mapping[str, Any]) -> str:
    """The language of the page that opens a socket: as it says itself, else as a request of that browser has it."""
    said: str = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("language", [""])[0]
    if said in dict(settings.LANGUAGES):
        return said
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    request = HttpRequest()
    request.META["HTTP_ACCEPT_LANGUAGE"] = headers.get("accept-language", "")
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        cookies = SimpleCookie()
    request.COOKIES = {name: morsel.value for name, morsel in cookies.items()}
    return translation.get_language_from_request(request)


@sync_and_async_middleware
def middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Makes what follows speak the language of the request. Unlike Django's, it costs the API nothing but a look at the
    path: no thread is asked, and nothing is added to the answer.
    """

    def told(request: HttpRequest, response: HttpResponse, language: str) -> HttpResponse:
        if not request.path_info.startswith(API):
            patch_vary_headers(response, ("Accept-Language", "Cookie"))
            response.headers.setdefault("Content-Language", language)
        return response

    if iscoroutinefunction(get_response):

        async def answer(request: HttpRequest) -> HttpResponse:
            with translation.override(language := of_request(request)):
                return told(request, await get_response(request), language)

        return answer

    def answer_now(request: HttpRequest) -> HttpResponse:
        with translation.override(language := of_request(request)):
            return told(request, get_response(request), language)

    return answer_now

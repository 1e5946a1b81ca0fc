"""The Content-Security-Policy of every response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

_ALWAYS = "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
STRICT = f"default-src 'self'; {_ALWAYS}"
"""Operational pages: no inline script or style, nothing from elsewhere."""
LOOSER = {
    # The admin's widgets bring inline styles and data: icons.
    "/admin/": f"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; {_ALWAYS}",
}


def policy_for(path: str) -> str:
    return next((policy for prefix, policy in LOOSER.items() if path.startswith(prefix)), STRICT)


class ContentSecurityPolicyMiddleware:
    """Adds the header where a view has not set its own."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> None:
        self.get_response = get_response
        self.awaits = iscoroutinefunction(get_response)
        if self.awaits:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.awaits:
            return self._later(request)
        return self._add(request, cast(HttpResponseBase, self.get_response(request)))

    async def _later(self, request: HttpRequest) -> HttpResponseBase:
        return self._add(request, await cast(Awaitable[HttpResponseBase], self.get_response(request)))

    def _add(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        response.headers.setdefault("Content-Security-Policy", policy_for(request.path))
        return response

"""The way to the agent's verbs: Django's request handling without the middlewares that are made for browsers."""

from __future__ import annotations

from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response


class AgentHandler(ASGIHandler):
    """Serves requests that need no session, no CSRF token and no static file.

    One middleware that cannot wait asynchronously (whitenoise's) would hold a thread for each claim that waits for
    work, and keep the process from ending while one waits; all of them together cost more than most verbs.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        bare: Any = self  # what Django's own load_middleware sets; django-stubs leaves it out
        bare._view_middleware = []
        bare._template_response_middleware = []
        bare._exception_middleware = []
        bare._middleware_chain = convert_exception_to_response(bare._get_response_async)

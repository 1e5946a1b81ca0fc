"""The way to the agent's verbs: Django's request handling without the middlewares that are made for browsers."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.handlers.exception import convert_exception_to_response
from django.http import HttpRequest
from django.urls import set_script_prefix


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

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """As Django's, without the signals of a request's start and end: who hears them is called in a thread, and that
        would be one for each request, kept as long as a claim waits. The verbs' own threads look after connections.
        """
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        with closing(body):
            set_script_prefix(get_script_prefix(scope))
            request, error = self.create_request(scope, body)
            if error is not None or request is None:
                await self.send_response(error, send)  # type: ignore[arg-type]  # one of the two is there
                return
            answering = asyncio.create_task(self._answer(request, send))
            leaving = asyncio.create_task(self.listen_for_disconnect(receive))
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                answering.cancel()
                leaving.cancel()
                ended = await asyncio.gather(answering, leaving, return_exceptions=True)
            if isinstance(ended[0], Exception):
                raise ended[0]

    async def _answer(self, request: HttpRequest, send: Any) -> None:
        response = await self.run_get_response(request)
        try:
            await self.send_response(response, send)
        finally:
            response.close()

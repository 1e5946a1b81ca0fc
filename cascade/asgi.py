"""The ASGI application: pages and API by Django, sockets by Channels; of a child its own dialect only."""

from __future__ import annotations

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402  (needs the apps to be loaded)

from api.handler import AgentHandler  # noqa: E402
from api.middleware import SecurityHeaders  # noqa: E402
from api.slashes import OneSlash  # noqa: E402


def _parent() -> Any:
    from channels.auth import AuthMiddlewareStack
    from channels.routing import ProtocolTypeRouter, URLRouter
    from channels.security.websocket import AllowedHostsOriginValidator
    from django.core.asgi import get_asgi_application
    from django.urls import re_path

    from api import live, sockets
    from api.dialects import node

    http: Any = get_asgi_application()
    agents: Any = AgentHandler()
    browser = AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(live.websocket_urlpatterns)))
    bare = r"^(?:api/v1/agent/|api/v1/nodes/\d+/below$|nodes/\d+/below$|healthz$|readyz$|metrics$)"
    alone = settings.CASCADE.role == "standalone"
    mine = [re_path(node.PREFIXES, agents)] if alone else []
    routes = ProtocolTypeRouter(
        {
            # What watches this process knows no host name of ours, and no TLS.
            "http": URLRouter([re_path(bare, agents), *mine, re_path(r"", http)]),
            # An agent is no browser: it has no cookie that another site could use, and every upgrade is authenticated.
            "websocket": URLRouter([*sockets.websocket_urlpatterns, re_path(r"", browser)]),
        }
    )
    return node.HealthFirst(routes) if alone else routes


def _child() -> Any:
    from api.dialects import node

    answer: Any = AgentHandler()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await answer(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    return node.HealthFirst(application)


def _one_of_several(served: Any) -> Any:
    """With PostgreSQL, also where a server such as daphne has nothing of ours around it."""
    from cascade import roles

    async def application(scope: Any, receive: Any, send: Any) -> None:
        roles.join()
        await served(scope, receive, send)

    return application


application = SecurityHeaders(OneSlash(_child() if settings.SERVES_CHILD else _parent()))
if settings.CASCADE.database_url and not settings.SERVES_CHILD:
    application = _one_of_several(application)

"""The ASGI application: pages and API by Django, sockets by Channels."""

from __future__ import annotations

import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cascade.settings")
http: Any = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402  (needs the apps to be loaded)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import re_path  # noqa: E402

from api import live, sockets  # noqa: E402
from api.handler import AgentHandler  # noqa: E402

agents: Any = AgentHandler()
browser = AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(live.websocket_urlpatterns)))
application = ProtocolTypeRouter(
    {
        "http": URLRouter([re_path(r"^api/v1/agent/", agents), re_path(r"", http)]),
        # An agent is no browser: it has no cookie that another site could use, and every upgrade is authenticated.
        "websocket": URLRouter([*sockets.websocket_urlpatterns, re_path(r"", browser)]),
    }
)

"""Addresses of the dialects with a slash too many: their clients join a base address and a path as both come."""

from __future__ import annotations

import re
from typing import Any

_DIALECTS = re.compile(r"/api/(?:distribution|v1/(?:(?:wx/)?cascade|health|statistics|task|node))(?:/|\Z)")
_SLASHES = re.compile("/{2,}")


class OneSlash:
    """ASGI: an address of a dialect means the same with ``//`` as with ``/``. ``raw_path``, which is what clients
    sign, stays as it was sent."""

    def __init__(self, rest: Any) -> None:
        self._rest = rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and "//" in scope["path"]:
            path = _SLASHES.sub("/", scope["path"])
            if _DIALECTS.match(path):
                scope = {**scope, "path": path}
        await self._rest(scope, receive, send)

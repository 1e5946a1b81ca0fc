"""Security headers on every answer: pages, API, agents' verbs, errors, static files, and what never reaches Django."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from django.conf import settings

from dispatch.metrics import responses

Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_DIRECTIVES = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "font-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}


def _policy(**change: str) -> bytes:
    said = _DIRECTIVES | {name.replace("_", "-"): sources for name, sources in change.items()}
    return "; ".join(f"{name} {sources}" for name, sources in said.items()).encode()


POLICY = _policy()
"""No inline script or style, nothing from elsewhere, on any page outside /admin/."""
ADMIN = "/admin/"
ADMIN_POLICY = _policy(script_src="'self' 'unsafe-eval'", style_src="'self' 'unsafe-inline'")
"""The admin's theme has its menus and dialogs by Alpine, which makes functions of attributes' texts, and sets styles.
Still no inline script, nothing from elsewhere, and no frames."""
_UNUSED = (
    *("accelerometer", "camera", "display-capture", "geolocation", "gyroscope", "magnetometer", "microphone", "midi"),
    *("payment", "publickey-credentials-get", "screen-wake-lock", "serial", "usb", "xr-spatial-tracking"),
)

HEADERS: dict[bytes, bytes] = {
    b"content-security-policy": POLICY,
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    # Not no-referrer: browsers then send Origin: null, and a form's CSRF check has nothing to go by.
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": ", ".join(f"{name}=()" for name in _UNUSED).encode(),
    # What is served is somebody's in particular. Static files say otherwise.
    b"cache-control": b"no-store",
}


class SecurityHeaders:
    """ASGI: adds what an answer does not say itself."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                responses.add(of=str(message["status"]))
                headers = list(message.get("headers", ()))
                said = {name.lower() for name, _ in headers}
                headers += [pair for pair in _wanted(scope) if pair[0] not in said]
                message = {**message, "headers": headers}
            await send(message)

        await self._application(scope, receive, told)


_ALWAYS = list(HEADERS.items())
_IN_ADMIN = list((HEADERS | {b"content-security-policy": ADMIN_POLICY}).items())


def _wanted(scope: Scope) -> list[tuple[bytes, bytes]]:
    always = _IN_ADMIN if scope["path"].startswith(ADMIN) else _ALWAYS
    if not settings.SECURE_HSTS_SECONDS:
        return always
    # Only where the answer goes out over TLS; browsers ignore it elsewhere, and RFC 6797 forbids it.
    proxied = (b"x-forwarded-proto", b"https") in [(name.lower(), value) for name, value in scope["headers"]]
    if scope.get("scheme") != "https" and not proxied:
        return always
    kept = f"max-age={settings.SECURE_HSTS_SECONDS}; includeSubDomains; preload".encode()
    return [*always, (b"strict-transport-security", kept)]

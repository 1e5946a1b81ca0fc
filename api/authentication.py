"""Who is a child's request from: both presentations of its key, for REST and for the WebSocket upgrade.

Signed requests (RFC 9421, ``nodes.signing``) are what the shipped agent sends; ``Authorization: AK-SK <access
key>:<secret key>`` is for curl and for clients that know no signatures. Operators are DRF's and Django's matter.
"""

from __future__ import annotations

import datetime as dt
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.db import IntegrityError
from django.http import HttpRequest

from api import limits
from api.guesses import keys as guesses
from api.guesses import place
from nodes import signing
from nodes.keys import Caller
from nodes.models import AccessKey, Nonce
from nodes.protocol import FieldError, Forbidden, Unauthenticated
from nodes.transactions import insert_rows, moment, write

logger = logging.getLogger(__name__)

PLAIN = "AK-SK "
USED_SECONDS = 60
START_SECONDS = 5.0
"""A signature may be so much older than this process, or than the moment when its clock was set back."""
"""An access key's last use is written at most so often: every exchange would be a write otherwise."""
WRONG = "unknown access key or wrong secret"
"""One text for unknown, revoked and wrong, so that an answer does not tell which access keys exist."""
NO_PUBLIC_KEY = "0" * 64
_HOST = re.compile(r"\A(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")

Headers = list[tuple[str, str]]


def authenticate(
    method: str,
    url: str,
    headers: Headers,
    body_sha256: bytes | None,
    *,
    now: float | None = None,
    client: str = "",
) -> Caller:
    """The child that sent this, by the parent's clock ``now`` (seconds since 1970). Synchronous; asks the database.

    ``body_sha256`` is None for a body not yet read: then ``check_body`` must follow once it is. ``client`` is the
    address the request came from, for throttling and for whether a plain key has passed over a network.
    Raises Unauthenticated (ClockError for a signature out of the window), Forbidden where plain keys are switched
    off or were readable on their way, TooMany after too many wrong ones. A revocation after this look is met by
    ``keys.check_live``.
    """
    earliest = 0.0
    if now is None:
        now, earliest = clock.look()
    fields = {name.lower(): value for name, value in headers}
    if "signature-input" in fields:
        return _signed(method, url, headers, body_sha256, now, earliest, client)
    if fields.get("authorization", "")[: len(PLAIN)].upper() == PLAIN:
        return _plain(fields["authorization"][len(PLAIN) :], now, client, url, fields)
    raise Unauthenticated(
        "no key: sign the request (RFC 9421), or send 'Authorization: AK-SK <access key>:<secret key>'"
    )


def check_body(caller: Caller, body_sha256: bytes) -> None:
    """Raises Unauthenticated unless the body, read after ``authenticate``, is the one that was signed."""
    # A plain key covers no body; nothing was promised about it.
    if caller.content_digest and not signing.digest_matches(caller.content_digest, body_sha256):
        raise Unauthenticated("the body is not the one that was signed: its Content-Digest differs")


def request_parts(request: HttpRequest) -> tuple[str, str, Headers]:
    """(method, URL as on the wire, headers) of Django's request, or of DRF's around it."""
    request = getattr(request, "_request", request)
    scope = getattr(request, "scope", None)
    if scope is not None:
        return scope_parts(scope)
    host = request.META.get("HTTP_HOST") or request.META.get("SERVER_NAME", "")
    url = _url(request.scheme or "http", host, request.get_full_path())
    return request.method or "GET", url, list(request.headers.items())


def scope_parts(scope: Mapping[str, Any]) -> tuple[str, str, Headers]:
    """The same of an ASGI scope, http or websocket.

    Raises Unauthenticated for a request whose Host header is missing, sent twice (it could mean either) or no host.
    """
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = [value for name, value in headers if name == "host"]
    if len(hosts) != 1:
        raise Unauthenticated(f"the request has {len(hosts)} Host headers; allowed is one")
    raw_path = scope.get("raw_path")
    # As sent: an encoded slash and a slash are different paths, and only one of them was signed.
    path = raw_path.decode("latin-1").partition("?")[0] if raw_path else quote(scope["path"])
    query = scope.get("query_string", b"").decode("latin-1")
    target = f"{path}?{query}" if query else path
    return scope.get("method", "GET"), _url(scope.get("scheme", "http"), hosts[0], target), headers


def _url(scheme: str, host: str, target: str) -> str:
    # A host with a slash in it would shift what the signature takes for the path.
    if not _HOST.match(host):
        raise Unauthenticated(f"the Host header {host[:100]!r} is not a host")
    return f"{scheme}://{host}{target}"


def client_address(source: HttpRequest | Mapping[str, Any]) -> str:
    """The address that a request or an ASGI scope came from; empty where there is none (a Unix socket).

    Behind TLS (setting ``https``) that is what the proxy in front has added to X-Forwarded-For: the last part of it, as
    everything before is the client's own word. Else nothing but the connection counts.
    """
    if isinstance(source, Mapping):
        peer = str((source.get("client") or ("",))[0])
        said = [value.decode("latin-1") for name, value in source["headers"] if name.lower() == b"x-forwarded-for"]
        forwarded = ",".join(said)
    else:
        request = getattr(source, "_request", source)
        peer = str(request.META.get("REMOTE_ADDR") or "")
        forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "")
    if settings.CASCADE.https and forwarded:
        return forwarded.rpartition(",")[2].strip()[:100] or peer
    return peer


def private(url: str, fields: Mapping[str, str], client: str) -> bool:
    """Whether nobody on the way could read the request: it came over TLS, or never left this machine.

    By the scheme, or what the proxy in front of TLS says of it where the setting ``https`` says that there is one; and
    by the client's address, not by a Host header that anybody may write. ``fields`` are the headers, in small letters.
    """
    if url.startswith(("https:", "wss:")) or (settings.CASCADE.https and fields.get("x-forwarded-proto") == "https"):
        return True
    if any(name in fields for name in ("forwarded", "x-forwarded-for", "x-forwarded-host", "via")):
        return False  # a proxy on this machine speaks for somebody else
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def check_private(url: str, fields: Mapping[str, str], client: str, named: str) -> None:
    """Raises Forbidden for a key that was right but readable on its way; ``named`` says whose, for the log."""
    if settings.CASCADE.plain_keys_unencrypted or private(url, fields, client):
        return
    logger.warning("%s was sent unencrypted by %s: whoever listens there has it now; replace it", named, client or "?")
    raise Forbidden(
        "this key came over a connection that others can read: use https, or sign requests (RFC 9421); the server's "
        "setting plain_keys_unencrypted allows it all the same. Replace the key"
    )


class EvenClock:
    """The parent's time, and since when it has run evenly: nonces of signatures older than that may be forgotten.

    They are pruned by this clock. Where it was ahead for a while, or signatures were good for a shorter time before
    this process began (the setting was another), one that is good now may have been used, and its nonce may be gone.
    So what was signed before is refused as if by a wrong clock; a child signs it anew, with the time that it is told.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._ahead = wall() - steady()
        self._earliest = wall() - START_SECONDS

    def look(self) -> tuple[float, float]:
        """(now, the earliest time that a signature may tell), both in seconds since 1970."""
        now = self._wall()
        ahead = now - self._steady()
        if ahead < self._ahead - START_SECONDS / 2:
            self._earliest = now - START_SECONDS
            self._ahead = ahead
        elif ahead > self._ahead:
            self._ahead = ahead
        return now, self._earliest


clock = EvenClock()


def _signed(
    method: str, url: str, headers: Headers, body_sha256: bytes | None, now: float, earliest: float, client: str
) -> Caller:
    found: list[AccessKey] = []
    named = place(client)

    def find_public_key(access_key: str) -> str:
        named.append(f"key {access_key[:40]}")
        key = _find(access_key)
        if key is None:
            raise Unauthenticated(WRONG)
        found.append(key)
        return key.public_key

    try:
        verified = signing.verify(
            method,
            url,
            headers,
            find_public_key=find_public_key,
            now=now,
            max_age=settings.CASCADE.signature_seconds,
            earliest=earliest,
        )
        if body_sha256 is not None and not signing.digest_matches(verified.digest, body_sha256):
            raise Unauthenticated("the body is not the one that was signed: its Content-Digest differs")
    except signing.ClockError:
        raise
    except Unauthenticated:
        # Only wrong ones are throttled: nobody guesses a signature, and a stranger who knows an access key must not
        # be able to lock its node out.
        guesses.check(named)
        guesses.wrong(named)
        raise
    return _admit(found[0], now, nonce=verified.nonce, content_digest=verified.digest)


def _plain(credentials: str, now: float, client: str, url: str, fields: Mapping[str, str]) -> Caller:
    access_key, _, secret_key = credentials.strip().partition(":")
    named = [f"key {access_key[:40]}", *place(client)]
    if not guesses.knows(client, access_key):
        guesses.check(named)
    key = _find(access_key)
    try:
        public_key = signing.public_key_of(secret_key)
    except FieldError:
        public_key = ""
    # Compared for an unknown access key, too, so that the time does not tell it from a wrong secret.
    right = hmac.compare_digest(public_key, NO_PUBLIC_KEY if key is None else key.public_key)
    if key is None or not right:
        guesses.check(named)
        guesses.wrong(named)
        raise Unauthenticated(WRONG)
    if not settings.CASCADE.allow_plain_keys or not key.node.allow_plain_key:
        where = f"node {key.node.name}" if settings.CASCADE.allow_plain_keys else "this server"
        raise Forbidden(f"plain keys are switched off for {where}; sign requests instead (RFC 9421)")
    check_private(url, fields, client, f"the secret key of {key.access_key}")
    guesses.right(client, access_key)
    return _admit(key, now)


def _find(access_key: str) -> AccessKey | None:
    """Asked at every request and not remembered: a revoked key must not outlive its revocation in some cache."""
    # A NUL cannot be asked for on PostgreSQL, and no longer text is an access key.
    if len(access_key) > 40 or "\x00" in access_key:
        return None
    found = AccessKey.objects.filter(access_key=access_key, revoked_at=None).select_related("node")
    # Only these: a node has columns of JSON, which would be read in vain at every request.
    wanted = ("access_key", "public_key", "last_used_at", "node__name", "node__active", "node__allow_plain_key")
    return found.only(*wanted).order_by().first()


def _admit(key: AccessKey, now: float, *, nonce: str = "", content_digest: str = "") -> Caller:
    """Writes down that the key was used, and the nonce. Raises Unauthenticated for one seen before, TooMany for a key
    that has used up its share: before anything is written, and counted after that, so that a replay costs it nothing.
    """
    limits.keys.check(key.access_key)
    if not key.node.active:
        raise Unauthenticated(f"node {key.node.name} is not active; an operator can activate it")
    at = dt.datetime.fromtimestamp(now, tz=dt.UTC)
    stale = key.last_used_at is None or (at - key.last_used_at).total_seconds() > USED_SECONDS
    if nonce or stale:
        try:
            with write():
                if nonce:
                    # Twice the window: a signature may be dated that far ahead and is good for as long after it.
                    ends = at + dt.timedelta(seconds=2 * settings.CASCADE.signature_seconds)
                    insert_rows(Nonce, ("value", "expires_at"), [(f"{key.access_key}:{nonce}", moment(ends))])
                if stale:
                    AccessKey.objects.filter(pk=key.pk).update(last_used_at=at)
        except IntegrityError:
            raise Unauthenticated("replayed: this nonce was used before; sign each request anew") from None
    limits.keys.charge(key.access_key)
    return Caller(key.node_id, key.pk, key.access_key, content_digest)

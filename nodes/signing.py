"""Keys, and requests signed with them (RFC 9421): the one module that both makes and checks signatures.

Shared by agent and parent: no Django, no clock of its own. A secret key is an Ed25519 seed; the parent keeps the
public key only. Whether a nonce was seen before is asked in ``api.authentication``, where there is a database.

What is accepted is written out below and checked here, because the library's defaults accept a replay, an old
signature, an empty list of covered components and a body that nobody compared:

signature    one with tag "cascade", Ed25519 by a registered key, under any label (labels are not signed); others
             beside it are not looked at, four in all
covered      exactly @method, @authority, @path, @query and content-digest, in any order, none with parameters
created      whole seconds, at most ``max_age`` before or after the server's time
expires      if given: not over, and not before ``created``
nonce, keyid required, of the letters and lengths below; alg, if given, ed25519; no other parameter
headers      of 2,000 characters each, all lines of a name together
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import http_sf
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
)
from http_message_signatures.algorithms import ED25519

from nodes.protocol import FieldError, Unauthenticated

TAG = "cascade"
COVERED = ("@method", "@authority", "@path", "@query", "content-digest")
"""What every signature covers. Only the scheme is left out: a proxy may end TLS."""
NONCE_LENGTH = range(16, 65)
_NONCE = re.compile(r"[A-Za-z0-9+/=_.~-]*\Z")
"""Base64 in both alphabets, hex, UUIDs."""
_KEY_ID = re.compile(r"CN[0-9A-Za-z]{8,38}\Z")
SIGNATURES_LIMIT = 4
"""Ours, and those that proxies add."""
HEADER_LIMIT = 2000
"""Characters of a signature header; ours have about 250. It bounds what is parsed for strangers."""


class ClockError(Unauthenticated):
    """Rightly signed, but outside the window of time. The answer tells the server's time, for the signer to adjust."""

    def __init__(self, created: float, now: float, max_age: float) -> None:
        side = "behind" if created < now else "ahead of"
        super().__init__(
            f"signed at {_iso(created)}, which is {abs(now - created):.0f} s {side} the server's time {_iso(now)}; "
            f"allowed are {max_age:.0f} s"
        )
        self.now = now

    def as_dict(self) -> dict[str, str]:
        """``time`` is the server's, in seconds since 1970, as text."""
        return {"detail": str(self), "time": f"{self.now:.3f}"}


@dataclass(frozen=True)
class Verified:
    """What a good signature says: whose it is, its nonce, and the Content-Digest header that it covers."""

    access_key: str
    nonce: str
    digest: str


def new_key() -> tuple[str, str, str]:
    """A fresh (access key, secret key, public key in hex)."""
    seed = secrets.token_bytes(32)
    secret_key = f"CS{_base64url(seed)}"
    return f"CN{secrets.token_hex(16)}", secret_key, public_key_of(secret_key)


def public_key_of(secret_key: str) -> str:
    """The public half, in hex. Raises FieldError, which does not repeat the value, for a text that is no secret key."""
    return _load(secret_key).public_key().public_bytes_raw().hex()


def sign(
    method: str,
    url: str,
    body: bytes = b"",
    *,
    access_key: str,
    secret_key: str,
    created: int | None = None,
    nonce: str | None = None,
    body_sha256: bytes | None = None,
) -> dict[str, str]:
    """The headers to add to a request: Content-Digest, Signature-Input, Signature.

    ``url`` is absolute and percent-encoded, exactly as it goes out (http, https, ws or wss). ``created`` is in seconds
    since 1970, for a signer that knows its clock to be wrong. ``body_sha256`` stands for a body that is streamed.
    Raises FieldError for a URL or a secret key that cannot be used.
    """
    private_key = _private_key(secret_key)
    digest = body_sha256 if body_sha256 is not None else hashlib.sha256(body).digest()
    headers = {"Content-Digest": f"sha-256=:{_base64(digest)}:"}
    try:
        prepared = HTTPMessageSigner(signature_algorithm=ED25519).prepare(
            _Message(method.upper(), _http(url), headers),
            key_id=access_key,
            created=dt.datetime.fromtimestamp(int(time.time()) if created is None else created, tz=dt.UTC),
            nonce=secrets.token_urlsafe(18) if nonce is None else nonce,
            tag=TAG,
            label=TAG,
            include_alg=True,
            covered_component_ids=COVERED,
            use_existing_digest=True,
        )
    except HTTPMessageSignaturesException as error:
        raise FieldError("url", f"{url!r} cannot be signed for: {error}") from None
    signature = private_key.sign(prepared.signature_base)
    return {
        **headers,
        "Signature-Input": f"{TAG}={prepared.signature_params}",
        "Signature": f"{TAG}=:{_base64(signature)}:",
    }


def verify(
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    *,
    find_public_key: Callable[[str], str],
    now: float,
    max_age: float,
    earliest: float = 0.0,
) -> Verified:
    """Who signed this request. That its body has the covered digest, and the nonce is new, is the caller's to check.

    ``find_public_key`` maps an access key to a public key in hex and may raise. ``now`` is in seconds since 1970;
    a signature more than ``max_age`` seconds older or newer, or from before ``earliest``, raises ClockError, anything
    else that is wrong with it Unauthenticated.
    """
    fields = _combined(headers)
    for name in ("signature-input", "signature", "content-digest"):
        if name not in fields:
            raise Unauthenticated(f"the request is not signed: header {name} is missing")
        if len(fields[name]) > HEADER_LIMIT:
            raise Unauthenticated(f"header {name} has {len(fields[name])} characters; allowed are {HEADER_LIMIT}")
    # Each has a list of components in brackets. A text that has them too may only make them look like more.
    if fields["signature-input"].count("=(") > SIGNATURES_LIMIT:
        raise Unauthenticated(f"the request has more than {SIGNATURES_LIMIT} signatures")
    resolver = _Resolver(find_public_key)
    try:
        results = _Verifier(signature_algorithm=ED25519, key_resolver=resolver).verify(
            _Message(method.upper(), _http(url), fields), max_age=None, expect_tag=TAG
        )
    except Exception as error:
        # Several parsers of hostile text lie below; whatever they raise, the request is not signed as it should be.
        # What the look-up of the key raised is not theirs, though: a database that is away is no wrong signature.
        if resolver.error is not None:
            raise resolver.error from None
        detail = _printable(error) or "another key made it, or what was signed has changed since"
        raise Unauthenticated(f"the signature does not fit: {detail}") from None
    if len(results) != 1:
        raise Unauthenticated(f"{len(results)} signatures with tag {TAG!r}; allowed is one")
    parameters: Mapping[str, Any] = results[0].parameters
    created = parameters["created"]
    if created < earliest:
        raise ClockError(created, now, min(max_age, now - earliest))
    if abs(now - created) > max_age or parameters.get("expires", now) < now:
        raise ClockError(created, now, max_age)
    return Verified(parameters["keyid"], parameters["nonce"], results[0].covered_components['"content-digest"'])


def digest_matches(content_digest: str, sha256_digest: bytes) -> bool:
    """Whether a Content-Digest header names this SHA-256 (32 bytes). Other algorithms beside it are not looked at."""
    try:
        parsed = http_sf.parse(content_digest.encode("ascii"), tltype="dictionary")
        named = parsed["sha-256"][0]  # type: ignore[index, call-overload]
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    return isinstance(named, bytes) and hmac.compare_digest(named, sha256_digest)


@dataclass
class _Message:
    """A request, as the library wants it."""

    method: str
    url: str
    headers: dict[str, str]


class _Resolver(HTTPSignatureKeyResolver):
    """Looks a key up, and keeps the exception that the library would swallow."""

    def __init__(self, find_public_key: Callable[[str], str]) -> None:
        self.find_public_key = find_public_key
        self.error: Exception | None = None

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:
        try:
            return _public_key(self.find_public_key(key_id))
        except Exception as error:
            self.error = error
            return None


class _Verifier(HTTPMessageVerifier):
    """The library's, except that it has no clock of its own: times are compared once the signature is known good."""

    def validate_created_and_expires(self, sig_input: Any, max_age: dt.timedelta | None = None) -> None:
        """Called first for each signature with our tag: before its key is looked up, and anything is computed."""
        parameters = sig_input.params
        created, expires = parameters.get("created"), parameters.get("expires")
        if type(created) is not int:
            raise ValueError('parameter "created" is missing or not a whole number')
        if expires is not None and expires < created:
            raise ValueError('parameter "expires" is before "created"')
        nonce = parameters.get("nonce") or ""
        if len(nonce) not in NONCE_LENGTH:
            raise ValueError(f"the nonce has {len(nonce)} characters; it needs {NONCE_LENGTH[0]} to {NONCE_LENGTH[-1]}")
        if not _NONCE.match(nonce):
            raise ValueError("the nonce has other characters than letters, digits and + / = _ . ~ -")
        if not _KEY_ID.match(parameters.get("keyid") or ""):
            raise ValueError('parameter "keyid" is not an access key, which starts with CN')
        covered = [each.value for each in sig_input]
        if missing := set(COVERED).difference(covered):
            raise ValueError(f"it does not cover {', '.join(sorted(missing))}")
        if len(covered) > len(COVERED) or any(each.params for each in sig_input):
            raise ValueError(f"it covers more than {', '.join(COVERED)}, or parts of them")


@lru_cache(maxsize=8)
def _private_key(secret_key: str) -> Ed25519PrivateKey:
    """Remembered where requests are signed; the checking side must not keep secrets that strangers show it."""
    return _load(secret_key)


def _load(secret_key: str) -> Ed25519PrivateKey:
    try:
        seed = base64.urlsafe_b64decode(f"{secret_key[2:]}=")
        # Compared with its own spelling: base64 has four for the same seed, and skips letters it does not know.
        if len(seed) == 32 and hmac.compare_digest(secret_key.encode(), f"CS{_base64url(seed)}".encode()):
            return Ed25519PrivateKey.from_private_bytes(seed)
    except (binascii.Error, ValueError):
        pass
    raise FieldError("secret_key", "is not a secret key; allowed are the letters CS and 43 more, as they were issued")


@lru_cache(maxsize=1024)
def _public_key(public_key: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))


def _combined(headers: list[tuple[str, str]]) -> dict[str, str]:
    """One value per name, repeated lines joined as RFC 9421 (2.1) says."""
    fields: dict[str, str] = {}
    for name, value in headers:
        name, value = name.lower(), value.strip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _http(url: str) -> str:
    """A WebSocket's address as that of the HTTP request which opens it, so that default ports fall away alike."""
    if "#" in url:
        # Never sent by honest clients, and no component covers what follows it.
        raise HTTPMessageSignaturesException("a fragment (#) in the URL")
    return f"http{url[2:]}" if url[:2].lower() == "ws" else url


def _printable(error: Exception) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(error))[:200]


def _iso(seconds: float) -> str:
    try:
        return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

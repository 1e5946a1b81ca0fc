"""Addresses of pages in one canonical form, so that a page is known again however it is linked to. Pure.

The form: what browsers make of an address (WHATWG URL Standard: no tabs and line ends, a backslash is a slash, numbers
as IPv4) after the normalisations that change nothing (RFC 3986, 6.2.2 and 6.2.3: case of scheme, host and escapes,
escaped letters, dot segments, default port, empty path), without fragment, an empty query and, where wished, the
parameters that only say where a visitor came from. The order of the query is kept.
"""

from __future__ import annotations

import hashlib
import re
import socket
from ipaddress import IPv6Address
from urllib.parse import quote, unquote, urljoin, urlsplit

ADDRESS_LIMIT = 2000
KEY_LIMIT = 200
"""Of an item's key, as the parent keeps it."""
DEFAULT_PORTS = {"http": 80, "https": 443}
TRACKING = re.compile(
    r"utm_\w+|gclid|gclsrc|dclid|gbraid|wbraid|fbclid|msclkid|yclid|twclid|ttclid|li_fat_id|igshid|mc_cid|mc_eid"
    r"|_hsenc|_hsmi|mkt_tok|vero_id|oly_anon_id|oly_enc_id",
    re.IGNORECASE,
)
"""Names of parameters that advertising and mailing systems add to links."""

_CONTROLS = "".join(map(chr, range(0x21)))
_LINE_ENDS = re.compile(r"[\t\r\n]")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
# RFC 3986: pchar and "/", without what is never escaped anyway.
_PATH = "/:@!$&'()*+,;=~%"
_QUERY = _PATH + "?"


def canonical(address: str, base: str = "", *, tracking: bool = True, encoding: str = "utf-8") -> str:
    """``address``, relative to ``base``, in canonical form; without ``tracking``, such parameters are dropped.

    Letters beyond ASCII become escapes of their UTF-8, in the query of ``encoding``, the page's own.
    Raises ValueError for anything but an http or https address of ADDRESS_LIMIT characters at most.
    """
    # Longer ones cannot become short enough by what is done here, and mostly are pictures (data:).
    if len(address) > 2 * ADDRESS_LIMIT:
        raise ValueError(f"an address has {ADDRESS_LIMIT} characters at most, not {len(address)}")
    text = _LINE_ENDS.sub("", address.strip(_CONTROLS)).partition("#")[0]
    before, mark, query = text.partition("?")
    if not re.match(r"[a-z][a-z0-9+.-]*:", before, re.IGNORECASE) or before[:4].lower() == "http":
        before = before.replace("\\", "/")
    text = before + mark + query
    parts = urlsplit(urljoin(base, text) if base else text)
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise ValueError(f"{_short(address)} is not an http or https address")
    if "@" in parts.netloc:
        raise ValueError(f"{_short(address)} has a user name in it, which would end up in results and logs")
    place = _host(parts.hostname or "", address)
    if parts.port is not None and parts.port != DEFAULT_PORTS[scheme]:
        place += f":{parts.port}"
    path = _undotted(_escaped(parts.path, _PATH))
    query = _escaped(parts.query, _QUERY, encoding)
    if query and not tracking:
        query = "&".join(each for each in query.split("&") if not TRACKING.fullmatch(each.partition("=")[0]))
    found = f"{scheme}://{place}{path}{'?' if query else ''}{query}"
    if len(found) > ADDRESS_LIMIT:
        raise ValueError(f"an address has {ADDRESS_LIMIT} characters at most, not {len(found)}")
    return found


def key_of(address: str) -> str:
    """What the item of a canonical address is called: the address; a long one's beginning, and a digest."""
    if len(address) <= KEY_LIMIT:
        return address
    # No canonical address has a # in it.
    return f"{address[: KEY_LIMIT - 33]}#{hashlib.sha256(address.encode()).hexdigest()[:32]}"


def host_of(address: str) -> str:
    """The host in a canonical address, without its port."""
    return urlsplit(address).hostname or ""


def path_of(address: str) -> str:
    """The path in a canonical address, with its query."""
    parts = urlsplit(address)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def origin_of(address: str) -> str:
    """Scheme, host and port of a canonical address."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"


def _host(host: str, address: str) -> str:
    if ":" in host:
        try:
            if "%" in host:  # names one of this machine's own networks
                raise ValueError
            return f"[{IPv6Address(host).compressed}]"
        except ValueError:
            raise ValueError(f"{_short(address)} has no host that can be") from None
    host = unquote(host).lower()
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError(f"{_short(address)} has no host that can be") from None
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        # A last part that is a number makes it an IPv4 address, in any of the forms that C knows: 127.1, 0x7f000001.
        try:
            return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
        except OSError:
            raise ValueError(f"{_short(address)} has no host that can be") from None
    if not _HOST.fullmatch(host) or len(host) > 253:
        raise ValueError(f"{_short(address)} has no host that can be")
    return host


def _escaped(text: str, kept: str, encoding: str = "utf-8") -> str:
    """Escapes in capitals, of nothing that needs none; a % that escapes nothing becomes %25."""

    def one(found: re.Match[str]) -> str:
        if found[1] is None:
            return "%25"
        letter = chr(int(found[1], 16))
        unreserved = letter.isascii() and (letter.isalnum() or letter in "-._~")
        return letter if unreserved else f"%{found[1].upper()}"

    def beyond(found: re.Match[str]) -> str:
        try:
            return quote(found[0], safe="", encoding=encoding)
        except UnicodeEncodeError:
            return f"%26%23{ord(found[0])}%3B"

    if not text.isascii():
        text = _BEYOND_ASCII.sub(beyond, text)
    return quote(_ESCAPE.sub(one, text), safe=kept)


def _undotted(path: str) -> str:
    """RFC 3986, 5.2.4, for a path that is empty or begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for at, segment in enumerate(segments):
        last = at == len(segments) - 1
        if segment in (".", ".."):
            if segment == ".." and kept:
                kept.pop()
            if last:
                kept.append("")
        else:
            kept.append(segment)
    return "/" + "/".join(kept)


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:97]}...")

"""Where may be fetched from: how an address is written, and which networks its name may lead to.

Django-free and light to import.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Place = tuple[socket.AddressFamily, tuple[Any, ...]]
"""Family and socket address: (IP address, port, …)."""
Resolver = Callable[[str, int], Sequence[Place]]
"""Of a host and a port, all places."""

ADDRESS_LENGTH = 4096
NAMED_LENGTH = 160
"""Of an address in a message."""
PORTS = {"http": 80, "https": 443}

# RFC 6890 and the two IANA registries of special-purpose addresses, written out: what Python's is_global says differs
# from release to release, and it takes multicast, 6to4 and NAT64 for global.
_CLOSED_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # the platform's own address within Azure, whatever the registries say
    )
)
_OPEN_6 = ipaddress.IPv6Network("2000::/3")
"""All that IANA has given out as global unicast."""
_CLOSED_6 = tuple(
    ipaddress.IPv6Network(text)
    # Teredo, ORCHID and others; documentation; 6to4, which leads to any IPv4 address; documentation.
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_BRACKETED = re.compile(r"\[([^\]%]*)\](:\d*)?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_IN_PATH = "%/:=&!$'()*+,;@~[]|"
"""What stays as it is; servers need not know that %5B is a bracket."""
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Unusable(ValueError):
    """Why an address is not fetched from, in words that fit behind "cannot be fetched: "."""


@dataclass(frozen=True)
class Address:
    """An http or https address, taken apart once: what is checked is what is connected to.

    ``host``: lower case, IDNA, an IPv6 address without brackets. ``target``: path and query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def confides(self, other: Address) -> bool:
        """Whether secrets for this are for ``other``, too: of the same origin, or the same host by https."""
        safer = (self.scheme, self.port, other.scheme, other.port) == ("http", 80, "https", 443)
        return self.origin == other.origin or (safer and self.host == other.host)


def parsed(url: str) -> Address:
    """``url`` normalised, without its fragment. Raises Unusable."""
    if len(url) > ADDRESS_LENGTH:
        raise Unusable(f"the address has {len(url)} characters; {ADDRESS_LENGTH} are allowed")
    text = url.strip(" ")
    # urlsplit would drop some of these silently, and read another address than the one that was written.
    if any(character < " " or character == "\x7f" for character in text):
        raise Unusable("the address has a control character in it")
    try:
        text.encode()
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Unusable("this is no address: host or port are not as they should be") from None
    scheme = parts.scheme.lower()
    if scheme not in PORTS:
        raise Unusable(f"{scheme[:20] or 'no scheme'} is not http or https")
    if "@" in parts.netloc:
        raise Unusable("user names and passwords do not belong in an address")
    if port == 0:
        raise Unusable("there is no port 0")
    return Address(scheme, _host(parts.netloc, parts.hostname or ""), port or PORTS[scheme], _target(parts))


def joined(base: str, reference: str) -> str:
    """Where ``reference``, as a page or a redirect of ``base`` gives it, leads. Raises Unusable."""
    try:
        return urljoin(base, reference.strip(" "))
    except ValueError:
        raise Unusable("what it refers to is no address") from None


def named(url: str) -> str:
    """``url`` as messages show it: keys and passwords stand before the host and behind the path, so both are left out;
    printable, and cut where it is long."""
    text = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, slashes, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    if not re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host):
        host = "…"  # a part of a password, perhaps
    text = f"{scheme}{slashes}{host}{slash}{path}"
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= NAMED_LENGTH else f"{text[: NAMED_LENGTH - 1]}…"


def networks(texts: Iterable[str]) -> tuple[IPNetwork, ...]:
    """CIDR networks, or single addresses. Raises ValueError naming the first that is none."""
    return _networks(tuple(texts))


def check(found: str, allowed: Iterable[IPNetwork] = (), *, name: str = "") -> None:
    """Raises Unusable where the IP address ``found``, to which ``name`` leads, is neither public nor in ``allowed``."""
    try:
        address = ipaddress.ip_address(found.partition("%")[0])
    except ValueError:
        raise Unusable(f"{found!r} is not an IP address") from None
    if not public(address) and not any(_inside(address, network) for network in allowed):
        what = f"{name} leads to {found}, which" if name else found
        raise Unusable(f"{what} is not a public address, and not in the setting allowed_networks")


def public(address: IPAddress) -> bool:
    """Whether everybody on the Internet reaches the same machine by it. What embeds an IPv4 address and is translated
    on the way (IPv4-mapped, NAT64) is as public as that; what is tunnelled (6to4, Teredo) is not."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_4)
    inner = _embedded(address)
    if inner is not None:
        return public(inner)
    return address in _OPEN_6 and not any(address in network for network in _CLOSED_6)


def _inside(address: IPAddress, network: IPNetwork) -> bool:
    if address.version == network.version and address in network:
        return True
    inner = _embedded(address) if isinstance(address, ipaddress.IPv6Address) else None
    return inner is not None and network.version == 4 and inner in network


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


def resolved(host: str, port: int) -> Sequence[Place]:
    """Where ``host`` is, as this machine knows it. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found if family in (socket.AF_INET, socket.AF_INET6)]


def places(address: Address, allowed: Sequence[IPNetwork], resolver: Resolver, seconds: float) -> Sequence[Place]:
    """Where ``address`` is: asked for once, and every place of it public or in ``allowed``. Raises Unusable, OSError,
    and TimeoutError after ``seconds``."""
    literal = _literal(address)
    if literal is not None:
        check(address.host, allowed)
        return [literal]
    found = _in_time(seconds, resolver, address)
    for _, place in found:
        check(place[0], allowed, name=address.host)
    return found


def _literal(address: Address) -> Place | None:
    """Where an address is whose host is an IP address."""
    try:
        found = ipaddress.ip_address(address.host)
    except ValueError:
        return None
    if found.version == 4:
        return socket.AF_INET, (address.host, address.port)
    return socket.AF_INET6, (address.host, address.port, 0, 0)


def _in_time(seconds: float, resolver: Resolver, address: Address) -> Sequence[Place]:
    """What ``resolver`` finds; the system's own cannot be told how long it may take."""
    found: queue.SimpleQueue[Sequence[Place] | Exception] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found.put(resolver(address.host, address.port))
        except Exception as error:
            found.put(error)

    threading.Thread(target=resolve, name="resolving", daemon=True).start()
    try:
        answer = found.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    if not answer:
        raise OSError("its name has no address")
    return answer


@lru_cache(maxsize=16)
def _networks(texts: tuple[str, ...]) -> tuple[IPNetwork, ...]:
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError:
            raise ValueError(f"{text!r} is not a network like 10.1.0.0/16 or fd00::/8") from None
    return tuple(found)


def _host(netloc: str, host: str) -> str:
    if "[" in netloc:
        try:
            bracketed = _BRACKETED.fullmatch(netloc)
            return ipaddress.IPv6Address(bracketed[1] if bracketed else "").compressed
        except ValueError:
            raise Unusable("what stands in brackets is not an IPv6 address") from None
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host, uts46=True).decode()
        except UnicodeError:
            raise Unusable("the host is not a name that the domain name system can have") from None
    host = host.lower().removesuffix(".")
    if not host:
        raise Unusable("the address has no host")
    labels = host.split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise Unusable("the host is not a name")
    if _NUMBER.fullmatch(labels[-1]):
        # 0x7f.1, 0177.0.0.1, 2130706433: some libraries read these as IPv4 addresses, and not all as the same.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise Unusable("the host is not an IPv4 address in its plain form, like 192.0.2.1") from None
    return host


def _target(parts: SplitResult) -> str:
    path = quote(_STRAY_PERCENT.sub("%25", parts.path or "/"), safe=_IN_PATH)
    query = quote(_STRAY_PERCENT.sub("%25", parts.query), safe=f"{_IN_PATH}?")
    return f"{path}?{query}" if query else path

"""One HTTP connection to a place that was checked before, and bodies unpacked in bounded steps.

Below it is http.client; every read and write of its socket is held to what the call may still cost. Imported when
something is fetched, not before. Django-free.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from select import select
from typing import Any

from nodes.addresses import Address, Place

MEBIBYTE = 1024 * 1024
HEADER_BYTES = MEBIBYTE // 4
"""Of one answer, what goes before it (100 Continue) included; http.client takes 100 headers."""
PIECE = 64 * 1024
MOST_PLACES = 8
"""Of one name that are tried."""
UNKNOWN_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Environment variables that name a file of trusted authorities, as elsewhere; without one, certifi's."""


class Exceeded(Exception):
    """More bytes came than a call may cost."""


class Malformed(Exception):
    """What came, or was found here, cannot be read."""


# ValueError: http.client's, for a chunk of a negative size.
FAULTS = (OSError, ValueError, http.client.HTTPException, zlib.error, Malformed)
"""What goes wrong on the way, beside Exceeded."""


@dataclass
class Budget:
    """What a call may still cost. ``ends``: time.monotonic(); ``silence``: seconds without a byte; ``size``: bytes as
    they come by the wire."""

    ends: float
    silence: float
    size: int = 0

    def wait(self) -> float:
        """Seconds that the next step may take. Raises TimeoutError when there are none left."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, self.silence)

    def take(self, size: int) -> None:
        self.size -= size
        if self.size < 0:
            raise Exceeded


class _Budgeted:
    """A time-out of a socket is for one read, so that a byte a second would hold it for ever: it is set anew."""

    budget: Budget

    def recv_into(self, *args: Any, **options: Any) -> int:
        self.settimeout(self.budget.wait())  # type: ignore[attr-defined]
        got: int = super().recv_into(*args, **options)  # type: ignore[misc]
        self.budget.take(got)
        return got

    def send(self, *args: Any, **options: Any) -> int:
        self.settimeout(self.budget.wait())  # type: ignore[attr-defined]
        sent: int = super().send(*args, **options)  # type: ignore[misc]
        return sent

    def sendall(self, *args: Any, **options: Any) -> None:
        self.settimeout(self.budget.wait())  # type: ignore[attr-defined]
        super().sendall(*args, **options)  # type: ignore[misc]


class _Plain(_Budgeted, socket.socket):
    pass


class _Sealed(_Budgeted, ssl.SSLSocket):
    pass


class Connection(http.client.HTTPConnection):
    """Connects to one of ``places`` and nowhere else; the name is for TLS and the Host header."""

    auto_open = 0  # it would connect again, unasked, to places that were checked long ago

    def __init__(self, address: Address, places: Sequence[Place], budget: Budget, seconds: float) -> None:
        """``seconds``: for the connection, its TLS included."""
        super().__init__(address.host, address.port)
        self.address = address
        self.place: Place | None = None
        self._places = places[:MOST_PLACES]
        self._budget = budget
        self._seconds = seconds
        self._socket: _Plain | _Sealed | None = None

    def connect(self) -> None:
        """Raises OSError: that of the last place, where none can be reached."""
        ends = min(time.monotonic() + self._seconds, self._budget.ends)
        plain = self._reach(ends)
        self._socket = self.sock = plain
        if self.address.scheme == "https":
            # The handshake as a whole takes no longer than the time-out that the socket has.
            plain.settimeout(max(0.001, ends - time.monotonic()))
            try:
                sealed: _Sealed = _tls().wrap_socket(plain, server_hostname=self.address.host)  # type: ignore[assignment]
            except BaseException:
                plain.close()
                raise
            self._socket = self.sock = sealed
        self._spend(self._budget)

    def ask(
        self, address: Address, budget: Budget, method: str, headers: Mapping[str, str], content: bytes | None
    ) -> http.client.HTTPResponse:
        """The head of the answer to ``address``, which is of the same origin. Raises OSError, HTTPException, Exceeded;
        it is closed then."""
        try:
            self._spend(budget)
            budget.size = HEADER_BYTES
            written = {"Host": address.authority} | {name.title(): text for name, text in headers.items()}
            self.request(method, address.target, content, written)
            return self.getresponse()
        except BaseException:
            self.close()
            raise

    def idle(self) -> bool:
        """Whether another request can be sent: the other side has neither closed it nor sent what nobody asked for."""
        if self.sock is None or self.sock.fileno() < 0:
            return False
        try:
            return not select([self.sock], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def _spend(self, budget: Budget) -> None:
        """What happens from now on is held to ``budget``."""
        assert self._socket is not None
        self._socket.budget = self._budget = budget

    def _reach(self, ends: float) -> _Plain:
        failure: OSError = OSError("no address to connect to")
        for number, (family, place) in enumerate(self._places):
            left = ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                made = _connected(family, place, left / (len(self._places) - number))
            except OSError as error:
                failure = error
                continue
            self.place = family, place
            return made
        raise failure


def _connected(family: socket.AddressFamily, place: tuple[Any, ...], seconds: float) -> _Plain:
    made = _Plain(family, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        made.connect(place)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made


class Unpacking:
    """A body packed with gzip or deflate (RFC 9110, 8.4.1), piece by piece."""

    def __init__(self, coding: str) -> None:
        self._gzip = coding in ("gzip", "x-gzip")
        self._inflate: Any = None
        self._begun = False

    def __call__(self, piece: bytes, most: int) -> bytes:
        """What comes out of ``piece``, but no more than ``most`` bytes of it. Raises zlib.error."""
        found = bytearray()
        while piece and len(found) < most:
            if self._inflate is None or self._inflate.eof:
                # Members of gzip may follow each other; anything else behind the end is padding.
                if self._begun and not (self._gzip and piece[0] == 0x1F):
                    break
                self._inflate = zlib.decompressobj(31 if self._gzip else 15)
            found += self._step(piece, most - len(found))
            self._begun = True
            piece = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return bytes(found)

    @property
    def whole(self) -> bool:
        """Whether it has come to its end, or never began."""
        return not self._begun or self._inflate.eof

    def _step(self, piece: bytes, most: int) -> bytes:
        try:
            found: bytes = self._inflate.decompress(piece, most)
        except zlib.error:
            if self._gzip or self._begun:
                raise
            # Servers that say deflate mean one of two formats: this is the one without a header.
            self._inflate = zlib.decompressobj(-15)
            found = self._inflate.decompress(piece, most)
        return found


def headers(response: http.client.HTTPResponse) -> dict[str, str]:
    """Lower-case names; what comes more than once joined with commas, as RFC 9110 (5.2) has it."""
    found: dict[str, str] = {}
    for name, text in response.headers.items():
        name = name.lower()
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def content(response: http.client.HTTPResponse, most: int, budget: Budget) -> bytes:
    """The body of ``response``, unpacked. Raises Exceeded where it has more than ``most`` bytes, packed or unpacked,
    and OSError, HTTPException, Malformed, zlib.error."""
    unpack = _unpacking(response)
    # Chunks of a byte cost six; a flood of their extensions ends here.
    budget.size = 2 * most + MEBIBYTE
    if (response.length or 0) > most:
        raise Exceeded
    found, came = bytearray(), 0
    while piece := response.read(PIECE):
        came += len(piece)
        found += piece if unpack is None else unpack(piece, most + 1 - len(found))
        if max(came, len(found)) > most:
            raise Exceeded
    if response.length or not (unpack is None or unpack.whole):
        raise http.client.IncompleteRead(b"")
    return bytes(found)


def fault(error: BaseException) -> tuple[str, bool]:
    """One of FAULTS in words, and whether another attempt may end differently."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}", False
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "the secure connection was closed", True
    if isinstance(error, ssl.SSLError):
        return f"no secure connection: {(error.reason or 'TLS failed').lower().replace('_', ' ')}", False
    if isinstance(error, socket.gaierror):
        return f"its name leads nowhere: {error.strerror}", error.errno not in UNKNOWN_NAME
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer", True
    if isinstance(error, http.client.IncompleteRead):
        return "the answer broke off", True
    if isinstance(error, OSError):
        return error.strerror or str(error), True
    if isinstance(error, zlib.error):
        return f"what it has packed cannot be unpacked: {error}", False
    if isinstance(error, Malformed):
        return str(error), False
    return f"its answer is not HTTP: {shortened(str(error) or type(error).__name__)}", False


def shortened(words: str) -> str:
    """What a server has sent, for a message."""
    return "".join(character if character.isprintable() else "�" for character in words.strip()[:80])


def _unpacking(response: http.client.HTTPResponse) -> Unpacking | None:
    transfer = response.headers.get("Transfer-Encoding", "chunked")
    if transfer.strip().lower() != "chunked":
        raise Malformed(f"transfer encoding {shortened(transfer)!r} is not known here")
    listed = ",".join(response.headers.get_all("Content-Encoding", []))
    codings = [each for coding in listed.split(",") if (each := coding.strip().lower()) not in ("", "identity")]
    if not codings:
        return None
    if codings not in (["gzip"], ["x-gzip"], ["deflate"]):
        raise Malformed(f"content encoding {shortened(', '.join(codings))!r} was not asked for and is not known here")
    return Unpacking(codings[0])


@cache
def _tls() -> ssl.SSLContext:
    chosen = next((os.environ[name] for name in CERTIFICATES if os.environ.get(name)), None)
    folder = os.environ.get("SSL_CERT_DIR")
    if chosen is None and not folder:
        import certifi

        chosen = certifi.where()
    if chosen is not None and os.path.isdir(chosen):
        chosen, folder = None, chosen
    try:
        context = ssl.create_default_context(cafile=chosen, capath=folder)
    except OSError as error:
        where = chosen or folder
        raise Malformed(f"the certificates to trust, in {where}, cannot be read: {error.strerror}") from None
    context.sslsocket_class = _Sealed
    return context

"""The one place from which executors and the parent fetch over HTTP: limits on all an answer costs, and no way into
networks that are not public.

Of each hop the name is resolved once, every address is checked (``nodes.addresses``), and the connection goes to an
address that was checked; TLS and the Host header keep the name. Networks that are not public can be fetched from where
``surroundings.current().allowed_networks`` has them. Proxies of the environment are not used: a proxy would resolve
names again, out of our sight. Nor are .netrc and cookies.

Not for what operators drive by addresses of their own: ``nodes.peer`` and ``nodes.agent.carriers`` call the machines of
the tree, which are in private networks as a rule, and ``cascade.client`` the parent that it was given.

    FetchFailed
    ├── Refused         the address, or where it leads, is not fetched from
    ├── NoConnection    nobody there, or no TLS with them
    └── TooLarge        more than Limits.max_bytes, packed or unpacked
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nodes import addresses, surroundings
from nodes.addresses import Address, Place, Resolver, Unusable, named

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from nodes.wire import Connection

MOST_IDLE = 8
"""Connections that are kept open."""
IDLE_SECONDS = 20.0
"""Servers close what is idle for longer, and then a request meets a closed door."""
REDIRECTS = {301, 302, 303, 307, 308}
PERMANENT = {301, 308}
PASSING_STATUS = {408, 425, 429}
"""Answers below 500 that another attempt may turn into a good one."""
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
ANYWHERE = {"accept", "accept-encoding", "accept-language", "user-agent"}
"""Headers that go along to another origin, beside the conditional ones: any other may be a secret of the first."""


class FetchFailed(Exception):
    """Nothing usable came. ``retry``: another attempt may end differently. ``status``: of the answer, if any.
    ``reason``: the message without the address, which may have a secret in its path."""

    def __init__(self, message: str, *, retry: bool = False, status: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.retry = retry
        self.status = status
        self.reason = reason or message


class Refused(FetchFailed):
    """The address, or where it leads, is not fetched from."""


class NoConnection(FetchFailed):
    """Nobody there, or no TLS with them."""


class TooLarge(FetchFailed):
    """More than the limit came, packed or unpacked."""


@dataclass(frozen=True)
class Limits:
    """``max_bytes`` counts what is unpacked, too; ``seconds`` is for everything together, redirects included;
    ``silence``: seconds without a single byte."""

    max_bytes: int = 16 * 1024 * 1024
    seconds: float = 30.0
    connect_seconds: float = 10.0
    redirects: int = 5
    silence: float = 30.0


@dataclass(frozen=True)
class Answer:
    """``url``: where it came from in the end. ``headers`` have lower-case names. ``moved``: the new address of a
    permanent redirect (301, 308), if every hop was one; "" otherwise."""

    url: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    moved: str = ""


class Fetcher:
    """Fetches; keeps connections open between calls of one thread. ``close`` it, or use it in ``with``."""

    def __init__(
        self, limits: Limits = Limits(), *, user_agent: str = "cascade", resolver: Resolver = addresses.resolved
    ) -> None:
        self._limits = limits
        self._user_agent = user_agent
        self._resolver = resolver
        self._idle: dict[tuple[tuple[str, str, int], Place], tuple[Connection, float]] = {}
        """By origin and checked place, the one kept longest first; with the time since when."""

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Providers have no end of their own.
        self.close()

    def close(self) -> None:
        """Closes the connections that were kept."""
        for connection, _ in self._idle.values():
            connection.close()
        self._idle.clear()

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        accept: frozenset[int] = frozenset(),
        types: frozenset[str] = frozenset(),
    ) -> Answer:
        """The answer with a status of 200 or one of ``accept`` (304, say; with a redirect's status in it, redirects
        are not followed). ``types``: content types without parameters, text/html say; any other is not read, an answer
        that names none is. Raises FetchFailed: a bad or refused address, no answer in time, too large, too many
        redirects, any other status or type."""
        call = _Call(self._limits, url)
        with call.failures():
            sent = self._headers(call, headers)
            while True:
                connection, response = self._asked(call, "GET", sent)
                try:
                    if response.status == 200 or response.status in accept:
                        return call.answer(response, call.content(response, types))
                    if response.status not in REDIRECTS:
                        raise call.answered(response)
                finally:
                    self._keep(connection, response)
                if call.redirect(response):
                    sent = {name: text for name, text in sent.items() if name in ANYWHERE or name.startswith("if-")}

    def post(self, url: str, content: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer, whatever its status; its body is not read, and redirects are not followed. Raises FetchFailed:
        a bad or refused address, no connection, no answer in time."""
        call = _Call(self._limits, url)
        with call.failures():
            connection, response = self._asked(call, "POST", self._headers(call, headers), content)
            self._keep(connection, response)
            return call.answer(response)

    def _headers(self, call: _Call, given: Mapping[str, str] | None) -> dict[str, str]:
        headers = {"user-agent": self._user_agent, "accept": "*/*"}
        headers |= {name.lower(): text for name, text in (given or {}).items()}
        headers |= {"accept-encoding": "gzip, deflate"}
        headers.pop("host", None)
        for name, text in headers.items():
            if not HEADER_NAME.fullmatch(name) or not text.isascii() or not text.replace("\t", " ").isprintable():
                raise call.failed(f"the header {name[:100]!r} has characters that no header may have")
        return headers

    def _asked(
        self, call: _Call, method: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> tuple[Connection, HTTPResponse]:
        """The answer's head has come. Raises Unusable, OSError, HTTPException, Exceeded."""
        from nodes.wire import Connection

        places = self._places(call)
        kept = self._kept(call.address, places)
        if kept is not None:
            call.stage = "answer"
            try:
                return kept, kept.ask(call.address, call.budget, method, headers, content)
            except ConnectionError:
                # The server closed it while it was idle. What was posted may have been heard all the same.
                if method != "GET":
                    raise
        call.stage = "connection"
        fresh = Connection(call.address, places, call.budget, self._limits.connect_seconds)
        fresh.connect()
        call.stage = "answer"
        return fresh, fresh.ask(call.address, call.budget, method, headers, content)

    def _places(self, call: _Call) -> Sequence[Place]:
        """Where the address is, every place of it allowed. Raises Unusable, OSError."""
        try:
            allowed = addresses.networks(surroundings.current().allowed_networks)
        except ValueError as error:
            raise Unusable(f"the setting allowed_networks is wrong: {error}") from None
        seconds = min(call.budget.wait(), self._limits.connect_seconds)
        call.stage = "name"
        return addresses.places(call.address, allowed, self._resolver, seconds)

    def _kept(self, address: Address, places: Sequence[Place]) -> Connection | None:
        """An open connection to one of ``places``: a name that leads elsewhere by now has none."""
        for place in places:
            connection, since = self._idle.pop((address.origin, place), (None, 0.0))
            if connection is None:
                continue
            if time.monotonic() - since < IDLE_SECONDS and connection.idle():
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection, response: HTTPResponse) -> None:
        """Keeps what can be used again: the answer was read to its end, and the server does not close."""
        if response.length == 0:
            response.read(1)  # marks it as read
        if not response.isclosed() or response.will_close or connection.place is None:
            response.close()
            connection.close()
            return
        self._idle[connection.address.origin, connection.place] = connection, time.monotonic()
        while len(self._idle) > MOST_IDLE:
            self._idle.pop(next(iter(self._idle)))[0].close()


class _Call:
    """One call through all its hops: where it is, what it may still cost, and how its failures read."""

    def __init__(self, limits: Limits, url: str) -> None:
        from nodes import wire

        self._wire = wire
        self.limits = limits
        self.budget = wire.Budget(time.monotonic() + limits.seconds, limits.silence)
        self.stage = "address"
        self.hops = [url]
        self._moved = True
        with self.failures():
            self.address = addresses.parsed(url)
        self.hops[0] = self.address.url

    def redirect(self, response: HTTPResponse) -> bool:
        """Goes on to where ``response`` says; whether secrets stay behind. Raises FetchFailed, Unusable."""
        self.stage = "address"
        self._moved = self._moved and response.status in PERMANENT
        location = str(response.headers.get("Location", ""))
        if not location:
            raise self.failed("it redirects without saying where to")
        with suppress(UnicodeError):
            # http.client reads headers as Latin-1, and servers write UTF-8.
            location = location.encode("latin-1").decode()
        before, url = self.address, addresses.joined(self.address.url, location)
        # Noted before it is read, so that the message names it.
        self.hops.append(url)
        self.address = addresses.parsed(url)
        self.hops[-1] = self.address.url
        if self.address.url in self.hops[:-1]:
            circle = " -> ".join(map(named, self.hops[self.hops.index(self.address.url) :]))
            raise self.failed(f"redirects in a circle: {circle}")
        if len(self.hops) - 1 > self.limits.redirects:
            raise self.failed(f"too many redirects, more than {self.limits.redirects}")
        return not before.confides(self.address)

    def answer(self, response: HTTPResponse, content: bytes = b"") -> Answer:
        url = self.address.url
        moved = url if self._moved and len(self.hops) > 1 else ""
        return Answer(url, response.status, self._wire.headers(response), content, moved)

    def content(self, response: HTTPResponse, types: frozenset[str]) -> bytes:
        """The body. Raises FetchFailed for another type than one of ``types``, and what ``wire.content`` does."""
        self.stage = "body"
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if types and kind and response.status == 200 and kind not in types:
            raise self.failed(f"it is {self._wire.shortened(kind)}, not {' or '.join(sorted(types))}")
        return self._wire.content(response, self.limits.max_bytes, self.budget)

    # How failures read

    @property
    def _shown(self) -> str:
        first, last = self.hops[0], self.hops[-1]
        return named(last) if first == last else f"{named(last)}, to which {named(first)} redirects,"

    def failed(self, reason: str, *, retry: bool = False, kind: type[FetchFailed] = FetchFailed) -> FetchFailed:
        return kind(f"{self._shown} cannot be fetched: {reason}", retry=retry, reason=reason)

    def answered(self, response: HTTPResponse) -> FetchFailed:
        status = response.status
        reason = f"answered {status} {self._wire.shortened(response.reason)}".rstrip()
        passing = status >= 500 or status in PASSING_STATUS
        after = self._wire.headers(response).get("retry-after", "")
        if passing and 0 < len(after) < 40 and after.isprintable():
            reason += f" (again after: {after})"
        return FetchFailed(f"{self._shown} {reason}", retry=passing, status=status, reason=reason)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Everything that can go wrong on the way comes out as FetchFailed."""
        try:
            yield
        except FetchFailed:
            raise
        except Unusable as error:
            raise self.failed(str(error), kind=Refused) from None
        except TimeoutError as error:
            raise self._late(error) from None
        except self._wire.Exceeded:
            raise self._large() from None
        except self._wire.FAULTS as error:
            reason, retry = self._wire.fault(error)
            kind = NoConnection if self.stage in ("name", "connection") else FetchFailed
            raise self.failed(reason, retry=retry, kind=kind) from None

    def _late(self, error: TimeoutError) -> FetchFailed:
        if self.stage in ("name", "connection"):
            # ETIMEDOUT of the system itself comes here, too.
            seconds = min(self.limits.connect_seconds, self.limits.seconds)
            what = "connecting" if self.stage == "connection" else "asking where its name leads"
            return self.failed(error.strerror or f"{what} took {seconds:g} s", retry=True, kind=NoConnection)
        if time.monotonic() < self.budget.ends:
            return self.failed(error.strerror or f"nothing came for {self.limits.silence:g} s", retry=True)
        late = "no answer" if self.stage == "answer" else "the answer had not ended"
        return self.failed(f"{late} within {self.limits.seconds:g} s", retry=True)

    def _large(self) -> FetchFailed:
        if self.stage == "answer":
            return self.failed("its headers are too long")
        return self.failed(f"it has more than {self.limits.max_bytes} bytes, or unpacks to more", kind=TooLarge)

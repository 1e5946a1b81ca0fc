"""Throttled guessing: wrong keys and wrong passwords are counted, by where they came from and by what they were for.

The counts are this process': with several web processes a guesser has the limit in each of them. That makes guessing
slow; what makes it hopeless is the length of the keys. What was right is never counted.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

from nodes.protocol import TooMany

Value = TypeVar("Value")


def place(client: str) -> list[str]:
    """What guesses from this address are counted under: of IPv6 its /64, of which one machine has all; of none nothing.

    ``client`` is as ``authentication.client_address`` gives it.
    """
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return [f"client {client[:100]}"] if client else []
    if address.version == 6:
        if mapped := address.ipv4_mapped:
            return [f"client {mapped}"]
        return [f"client {ipaddress.ip_network((address, 64), strict=False)}"]
    return [f"client {address}"]


class Guesses:
    """Counts wrong tries by name, and refuses when there are too many of one name in ``seconds``."""

    KNOWN_SECONDS = 3600
    ENTRIES = 10_000
    """Of more, the oldest are forgotten: who has so many addresses has guesses enough, and memory stays bounded."""

    def __init__(self, limit: int = 20, seconds: float = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.seconds = seconds
        self.clock = clock
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._known: OrderedDict[str, float] = OrderedDict()

    def check(self, names: Iterable[str]) -> None:
        """Raises TooMany when one of ``names`` has used up its guesses."""
        with self._lock:
            self._check(names, self.clock())

    def wrong(self, names: Iterable[str]) -> None:
        with self._lock:
            self._count(names, self.clock())

    def attempt(self, names: Iterable[str]) -> None:
        """``check`` and ``wrong`` in one, for what takes long to judge: a burst of tries must not pass together.

        Raises TooMany. ``forgive`` takes it back where it was right.
        """
        names = list(names)
        now = self.clock()
        with self._lock:
            self._check(names, now)
            self._count(names, now)

    def forgive(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                began, count = self._wrong.get(name, (0.0, 0))
                if count > 1:
                    self._wrong[name] = (began, count - 1)
                else:
                    self._wrong.pop(name, None)

    def right(self, client: str, access_key: str) -> None:
        """From this address this key was right, so others' guesses do not lock it out there for an hour."""
        with self._lock:
            _put(self._known, f"{client} {access_key}", self.clock(), self.ENTRIES)

    def knows(self, client: str, access_key: str) -> bool:
        with self._lock:
            at = self._known.get(f"{client} {access_key}")
        return at is not None and at + self.KNOWN_SECONDS > self.clock()

    def forget(self) -> None:
        with self._lock:
            self._wrong.clear()
            self._known.clear()

    def _check(self, names: Iterable[str], now: float) -> None:
        for name in names:
            began, count = self._wrong.get(name, (now, 0))
            rest = began + self.seconds - now
            if count >= self.limit and rest > 0:
                raise TooMany(
                    f"{count} wrong tries within {self.seconds:.0f} s; try again in {rest:.0f} s", retry_after=rest
                )

    def _count(self, names: Iterable[str], now: float) -> None:
        for name in names:
            began, count = self._wrong.get(name, (now, 0))
            fresh = (began, count + 1) if began + self.seconds > now else (now, 1)
            _put(self._wrong, name, fresh, self.ENTRIES)


def _put(table: OrderedDict[str, Value], name: str, value: Value, most: int) -> None:
    table[name] = value
    table.move_to_end(name)
    if len(table) > most:
        table.popitem(last=False)


keys = Guesses(limit=20)
"""Access keys, registration keys, signatures."""
passwords_from = Guesses(limit=30)
"""Passwords, by address: of the sign-in page and the token endpoint together."""
passwords_for = Guesses(limit=10)
"""Passwords, by user name: an attacker with many addresses still has one name to try."""


class PasswordTry:
    """One try of a password, or of a token without a user's name, counted from its beginning.

    Raises TooMany before anything is compared. From where a name's password was right within an hour, others' guesses
    at that name do not count: nobody can keep an operator out by guessing.
    """

    def __init__(self, client: str, user: str | None = None) -> None:
        self._client = client
        self._user = (user or "").strip().casefold()[:150]
        known = user is None or passwords_for.knows(client, self._user)
        self._named = [] if known else [f"user {self._user}"]
        self._placed = place(client)
        passwords_for.attempt(self._named)
        try:
            passwords_from.attempt(self._placed)
        except TooMany:
            passwords_for.forgive(self._named)
            raise

    def right(self) -> None:
        passwords_for.forgive(self._named)
        passwords_from.forgive(self._placed)
        if self._user:
            passwords_for.right(self._client, self._user)

"""Rates: token buckets and their keys. Pure: no ORM, no clock.

A rate limit is a bucket that holds up to ``burst`` tokens and gets ``per_second`` new ones a second; giving out an item
takes one. So in any t seconds at most burst + per_second * t items of its key are given out, by all nodes together.

What is given out begins a moment later, longer for one node than for another. Where a rate must hold at the other end,
a run has a pace of its own (``nodes.executors.base.Pace``): a shard takes a lane, which rests when the shard has ended.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from string import Formatter
from urllib.parse import urlsplit

from nodes.executors.base import Item, Pace, item_key
from nodes.protocol import FieldError

PLACES = ("host", "source", "item")
OF_ITEMS = {"host", "item"}
"""Places whose text depends on the item."""
KEY_LIMIT = 200
GATHER_SECONDS = 0.25
"""Tokens of so long are gathered before the next shard, or a quick rate would cut a run into single items."""
LANE_SECONDS = 1.0
LATEST = 30.0
"""Seconds after which what waits is looked at again at the latest: the limit may have been changed meanwhile."""
JUMP = timedelta(seconds=60)
"""Processes' clocks differ by less; a bucket filled later than that in the future was filled by a wrong clock."""
ADDRESS_NAMES = ("url", "address", "link")
_HOST_FIRST = re.compile(r"[\w-]+(\.[\w-]+)+(:\d+)?/")


@dataclass(frozen=True, slots=True)
class Rate:
    """Items a second, and at once after a pause."""

    per_second: float
    burst: int

    def least(self, length: int) -> int:
        """Tokens that a shard of ``length`` items waits for; it may be cut to what there is then."""
        return min(length, max(1, min(self.burst, int(self.per_second * GATHER_SECONDS))))

    def __str__(self) -> str:
        return f"{self.per_second:g} a second, {self.burst} at once"


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is left of ``rate`` now, ``tokens`` as of ``at``. There is no room for those that are ``leased``: relays
    have them, and may use them at any moment.
    """

    rate: Rate
    tokens: float
    at: datetime
    leased: int = 0

    @property
    def most(self) -> int:
        """Tokens that there is room for."""
        return max(self.rate.burst - self.leased, 0)

    def filled(self, now: datetime) -> Bucket:
        """The bucket ``now``. A clock a little behind the one that filled it last adds nothing."""
        if self.at - JUMP < now <= self.at:
            return replace(self, tokens=min(self.tokens, self.most))
        gained = max((now - self.at).total_seconds(), 0.0) * self.rate.per_second
        return replace(self, tokens=min(self.tokens + gained, self.most), at=now)

    def wait(self, count: float) -> float:
        """Seconds until it holds ``count`` tokens, if nobody takes any."""
        return max(count - self.tokens, 0.0) / self.rate.per_second


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes that a run's pace has for one key: ``busy`` ones have a live shard; ``resting`` are the seconds, least
    first, for which others must stay empty."""

    pace: Pace
    busy: int = 0
    resting: tuple[float, ...] = ()

    @property
    def free(self) -> int:
        return max(self.pace.lanes - self.busy - len(self.resting), 0)

    @property
    def most(self) -> int:
        """Items that one shard gets, about a second's worth."""
        return max(1, int(LANE_SECONDS / self.pace.spacing))

    def opens(self, given: int) -> float | None:
        """Seconds until there is one, of which ``given`` are given out now; None: not before some shard has ended."""
        if given < self.free:
            return 0.0
        return self.resting[0] if self.resting else None


def whole(tokens: float) -> int:
    """Items that ``tokens`` are enough for; sums of fractions end a little below a whole one."""
    return math.floor(tokens + 1e-9)


# Keys


def places(template: str) -> set[str]:
    """The names in braces. Raises FieldError on ``rate_key`` for any but those there are."""
    found = set()
    try:
        for _, name, form, conversion in Formatter().parse(template):
            if name is None:
                continue
            if name not in PLACES or form or conversion:
                known = ", ".join(f"{{{place}}}" for place in PLACES)
                raise FieldError("rate_key", f"{{{name}}} in {template!r} is not one of: {known}")
            found.add(name)
    except ValueError as error:
        raise FieldError("rate_key", f"{template!r}: {error}") from None
    return found


def fill(template: str, *, source: str = "", host: str = "", item: str = "") -> str:
    """The key that ``template`` makes; one too long for its column ends in a digest."""
    key = template.format(source=source, host=host, item=item)
    if len(key) <= KEY_LIMIT:
        return key
    return f"{key[: KEY_LIMIT - 33]}#{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def address_of(item: Item) -> str:
    """The address that the item itself tells; "" for none."""
    texts = [item.get(name) for name in ADDRESS_NAMES] if isinstance(item, dict) else []
    for text in [*texts, item_key(item)]:
        if isinstance(text, str) and host_of(text):
            return text
    return ""


def host_of(address: str) -> str:
    """The host in an address, in small letters: of https://News.example/feed, or news.example/feed; "" for none."""
    if "://" not in address:
        if not _HOST_FIRST.match(address):
            return ""
        address = f"//{address}"
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def stretches(keys: Sequence[str], start: int) -> list[tuple[int, int, str]]:
    """(start, stop, key) of the longest parts with one key, of items numbered from ``start``."""
    found: list[tuple[int, int, str]] = []
    for at, key in enumerate(keys, start):
        if found and found[-1][2] == key:
            found[-1] = (found[-1][0], at + 1, key)
        else:
            found.append((at, at + 1, key))
    return found


class Limits:
    """The rate limits there are, by key or pattern, where * stands for any text."""

    def __init__(self, limits: Iterable[tuple[str, Rate]]) -> None:
        self._given: Mapping[str, Rate] = dict(limits)
        # The one that says most goes first.
        patterns = sorted((key for key in self._given if "*" in key), key=lambda key: (-len(key), key))
        self._patterns = [(_compiled(key), key) for key in patterns]
        self._found: dict[str, str | None] = {}

    def __bool__(self) -> bool:
        return bool(self._given)

    def supposing(self, changes: Mapping[str, Rate | None]) -> Limits:
        """These limits with ``changes``; None is for one that is not there any more."""
        return Limits((key, rate) for key, rate in {**self._given, **changes}.items() if rate is not None)

    def exactly(self, key: str) -> Rate | None:
        """The limit whose own key or pattern is ``key``."""
        return self._given.get(key)

    def of(self, key: str) -> Rate | None:
        """The limit that holds for ``key``: its own, or else that of the longest pattern it fits."""
        found = self.named(key)
        return found[1] if found else None

    def named(self, key: str) -> tuple[str, Rate] | None:
        """As ``of``, with the limit's own key before it."""
        if key not in self._found:
            fitting = (name for pattern, name in self._patterns if pattern.fullmatch(key))
            self._found[key] = key if key in self._given and "*" not in key else next(fitting, None)
        name = self._found[key]
        return None if name is None else (name, self._given[name])


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)

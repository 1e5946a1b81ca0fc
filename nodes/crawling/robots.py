"""robots.txt: what a host lets robots fetch, and how fast (RFC 9309; Crawl-delay is older than that and not in it).

One answer holds for all shards of a node for a while: it is kept in this process and, where there is one, in the
agent's cache folder.

What an answer means, by RFC 9309: 2xx, its rules (2.3.1.1), of which the longest that fits decides, "allow" between
equals (2.2.2); redirects, five of them, are followed (2.3.1.2); 4xx, no rules at all (2.3.1.3); 5xx and no answer,
nothing may be fetched for now (2.3.1.4), which is tried again. 429 counts among the latter: it asks for fewer requests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from nodes.crawling.addresses import origin_of
from nodes.fetching import Answer, Fetcher, FetchFailed

if TYPE_CHECKING:
    from protego import Protego

KEPT_SECONDS = 3600.0
"""RFC 9309, 2.4: not longer than 24 hours."""
AGAIN_SECONDS = 10.0
"""A host that could not say it is not asked again by the next item."""
READ_BYTES = 500 * 1024
"""RFC 9309, 2.5: at least so much must be read."""
FETCH_BYTES = 4 * READ_BYTES
MOST_KEPT = 2000
MOST_CHARACTERS = 20_000_000
"""Answers in this process, and what they have together; beyond, the oldest are forgotten."""
ABSENT = frozenset(range(400, 500)) - {429}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """Of one host for one robot. ``why_not`` is set where nothing may be fetched; ``retry``: for now."""

    text: str = ""
    why_not: str = ""
    retry: bool = False

    def refusal(self, address: str, agent: str) -> str:
        """The rule that keeps ``agent`` from ``address``, as the file has it; "" for none."""
        if not self.text:
            return ""
        parsed = _parsed(self.text)
        if parsed.can_fetch(address, agent):
            return ""
        return _ruling(parsed, address, agent)

    def delay(self, agent: str) -> float:
        """Seconds that the host wants between two requests (Crawl-delay, Request-rate)."""
        if not self.text:
            return 0.0
        parsed = _parsed(self.text)
        rate = parsed.request_rate(agent)
        return max(parsed.crawl_delay(agent) or 0.0, rate.seconds / rate.requests if rate else 0.0)


NO_RULES = Rules()


class Book:
    """The rules of hosts, each asked for once while they hold; for all threads of a process.

    ``folder``: where other processes of this node find them, too.
    """

    def __init__(self, folder: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._turn = threading.Lock()
        self._known: dict[str, tuple[float, Rules]] = {}
        """Origin -> until when, and what."""
        self._asking: dict[str, threading.Lock] = {}

    def rules(self, address: str, fetcher: Fetcher, before: Callable[[], Any] = lambda: None) -> Rules:
        """Of the host of ``address``; ``before`` is called before the host is asked."""
        origin = origin_of(address)
        if (found := self._now(origin)) is not None:
            return found
        with self._turn:
            asking = self._asking.setdefault(origin, threading.Lock())
        # One of its threads asks; the others wait for the same answer.
        with asking:
            if (found := self._now(origin)) is None:
                found, seconds = self._read(origin) or self._ask(origin, fetcher, before)
                self._keep(origin, found, self._clock() + seconds)
            with self._turn:
                self._asking.pop(origin, None)
        return found

    def _now(self, origin: str) -> Rules | None:
        with self._turn:
            until, rules = self._known.get(origin, (0.0, None))
        return rules if self._clock() < until <= self._clock() + KEPT_SECONDS else None

    def _keep(self, origin: str, rules: Rules, until: float) -> None:
        with self._turn:
            self._known.pop(origin, None)
            self._known[origin] = until, rules
            size = sum(len(each.text) for _, each in self._known.values())
            while len(self._known) > MOST_KEPT or size > MOST_CHARACTERS:
                size -= len(self._known.pop(next(iter(self._known)))[1].text)

    def _ask(self, origin: str, fetcher: Fetcher, before: Callable[[], Any]) -> tuple[Rules, float]:
        before()
        try:
            rules = _meant(fetcher.get(f"{origin}/robots.txt", accept=ABSENT))
        except FetchFailed as error:
            retry = error.retry or error.status == 429 or (error.status or 0) >= 500
            rules = Rules(why_not=f"its robots.txt cannot be read: {error.reason}", retry=retry)
        if rules.why_not:
            return rules, AGAIN_SECONDS
        self._write(origin, rules)
        return rules, KEPT_SECONDS

    # Between processes

    def _path(self, origin: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / "robots" / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.json"

    def _read(self, origin: str) -> tuple[Rules, float] | None:
        path = self._path(origin)
        if path is None:
            return None
        try:
            kept = json.loads(path.read_text())
            left = float(kept["until"]) - self._clock()
            if kept["origin"] == origin and isinstance(kept["text"], str) and 0 < left <= KEPT_SECONDS:
                return Rules(kept["text"]), left
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or written half by somebody who was killed: it is asked for anew
        return None

    def _write(self, origin: str, rules: Rules) -> None:
        path = self._path(origin)
        if path is None:
            return
        content = json.dumps({"origin": origin, "until": self._clock() + KEPT_SECONDS, "text": rules.text})
        temp = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temp.write_text(content)
            os.replace(temp, path)
        except OSError as error:
            logger.warning("robots.txt of %s cannot be kept: %s", origin, error)
            with suppress(OSError):
                temp.unlink()


def _meant(answer: Answer) -> Rules:
    if answer.status != 200:
        return Rules()
    content = answer.content[:READ_BYTES]
    if len(answer.content) > READ_BYTES:
        # The last line may be half a rule, which would forbid or allow something else.
        content = content[: content.rfind(b"\n") + 1]
    return Rules(content.decode("utf-8-sig", errors="replace").replace("\x00", ""))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Protego:
    from protego import Protego

    return Protego.parse(text)


def _ruling(parsed: Protego, address: str, agent: str) -> str:
    """The longest rule that forbids ``address``; Protego says only whether there is one."""
    try:
        from protego._utils import _quote_path

        rules = parsed._get_matching_rule_set(agent)
        quoted = _quote_path(address)
        assert rules is not None
        fitting = next(rule for rule in rules._rules if rule.value.match(quoted))
        return f"Disallow: {unquote(fitting.value._pattern)} for {rules.user_agent}"
    except Exception:  # what is within it may change; the message then is all that suffers
        return "a rule of it"

"""The parent's clock as far as the agent knows it: a wrong clock here must not lock the agent out.

Only the parent that checks a signature can say that it is out of the window, but who said so is not proven: over plain
http somebody in between can answer. So a time that was told is a trial until a request signed with it was accepted,
one that is refused is dropped, and of those that were not accepted only a few are tried in a minute: a lie costs as
long as the liar stays in the way, and next to nothing afterwards. What was accepted does not count, however often
clocks are set. What an agent can be made to sign ahead of time that way is in docs/security.md.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time

logger = logging.getLogger(__name__)

EARLIEST = 1_767_225_600
"""2026-01-01: no parent of this version lives before."""
LATEST = 253_402_300_800
"""The end of year 9999, after which no date can be written in a signature."""
LEAST_SECONDS = 2.0
"""A smaller difference is not what a signature was refused for."""
TRIALS = 6
TRIAL_SECONDS = 60.0
"""Of times that were told, no more than TRIALS are tried within so long without that one of them is accepted."""


class ParentClock:
    """This machine's clock plus what a refused signature has taught about the difference. Requests in many threads ask
    and tell at once."""

    def __init__(self) -> None:
        self._known = 0.0
        self._since = -math.inf
        """When what is known was told (monotonic)."""
        self._trial: float | None = None
        self._tried: dict[float, float] = {}
        """Offsets that were told and that no accepted request has confirmed -> when (monotonic)."""
        self._turn = threading.Lock()

    @property
    def offset(self) -> float:
        """Seconds by which the parent is ahead of this machine: what signatures are made with now."""
        trial = self._trial
        return self._known if trial is None else trial

    def now(self, offset: float | None = None) -> int:
        """Seconds since 1970, for signatures only."""
        return int(time.time() + (self.offset if offset is None else offset))

    def learn(self, refusal: str, used: float | None = None) -> bool:
        """Reads the parent's time out of the body of a 401; True when it is worth to sign the request again.

        ``used`` is the offset with which the refused one was signed.
        """
        try:
            parent = float(json.loads(refusal)["time"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        if not EARLIEST <= parent < LATEST:
            return False
        offset = parent - time.time()
        with self._turn:
            if abs(offset - (self.offset if used is None else used)) < LEAST_SECONDS:
                return False  # refused for something else: not to be tried for ever
            if abs(offset - self.offset) < LEAST_SECONDS:
                return True  # another request has learnt it meanwhile
            now = time.monotonic()
            lately = {told: at for told, at in self._tried.items() if now - at < TRIAL_SECONDS or told == self._trial}
            if len(lately) >= TRIALS:
                return False
            self._tried = {**lately, offset: now}
            self._trial = offset
        logger.warning("this machine's clock is %.0f s off the parent's; signatures are adjusted", -offset)
        return True

    def accepted(self, used: float) -> None:
        """The parent took a request that was signed with this offset."""
        with self._turn:
            told = self._tried.pop(used, None)
            # A claim may be answered half a minute after it was accepted, and says nothing of what was learnt since.
            if told is not None and told >= self._since:
                self._known, self._since = used, told
            if self._trial == used:
                self._trial = None

    def refused(self, used: float) -> None:
        """It did not, though the time was the one that was told: what was known before holds again."""
        with self._turn:
            if self._trial == used:
                self._trial = None

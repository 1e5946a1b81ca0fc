"""The parent's clock as far as the agent knows it: a wrong clock here must not lock the agent out.

Only the parent that checks a signature can say that it is out of the window, but who said so is not proven: over plain
http somebody in between can answer. So a time that was told is a trial until a request signed with it was accepted,
one that is refused is dropped, and only a few are tried in a minute: a lie costs as long as the liar stays in the way,
and next to nothing afterwards. What an agent can be made to sign ahead of time that way is in docs/security.md.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque

logger = logging.getLogger(__name__)

EARLIEST = 1_767_225_600
"""2026-01-01: no parent of this version lives before."""
LATEST = 253_402_300_800
"""The end of year 9999, after which no date can be written in a signature."""
LEAST_SECONDS = 2.0
"""A smaller difference is not what a signature was refused for."""
TRIALS = 6
TRIAL_SECONDS = 60.0
"""Of times that were told, no more than TRIALS are tried within so long."""


class ParentClock:
    """This machine's clock plus what a refused signature has taught about the difference."""

    def __init__(self) -> None:
        self._known = 0.0
        self._trial: float | None = None
        self._tried: deque[float] = deque(maxlen=TRIALS)

    @property
    def offset(self) -> float:
        """Seconds by which the parent is ahead of this machine: what signatures are made with now."""
        return self._known if self._trial is None else self._trial

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
        if abs(offset - (self.offset if used is None else used)) < LEAST_SECONDS:
            return False  # refused for something else: not to be tried for ever
        if abs(offset - self.offset) < LEAST_SECONDS:
            return True  # another request has learnt it meanwhile
        now = time.monotonic()
        if len(self._tried) == TRIALS and now - self._tried[0] < TRIAL_SECONDS:
            return False
        self._tried.append(now)
        self._trial = offset
        logger.warning("this machine's clock is %.0f s off the parent's; signatures are adjusted", -offset)
        return True

    def accepted(self, used: float) -> None:
        """The parent took a request that was signed with this offset."""
        self._known = used
        if self._trial == used:
            self._trial = None

    def refused(self, used: float) -> None:
        """It did not, though the time was the one that was told: what was known before holds again."""
        if self._trial == used:
            self._trial = None

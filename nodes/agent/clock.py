"""The parent's clock as far as the agent knows it: a wrong clock here must not lock the agent out."""

from __future__ import annotations

import json
import logging
import time

logger = logging.getLogger(__name__)

LATEST = 253_402_300_800
"""The end of year 9999, after which no date can be written in a signature."""


class ParentClock:
    """This machine's clock plus what a refused signature has taught about the difference."""

    def __init__(self) -> None:
        self._offset = 0.0

    def now(self) -> int:
        """Seconds since 1970, for signatures only."""
        return int(time.time() + self._offset)

    def learn(self, refusal: str) -> bool:
        """Reads the parent's time out of the body of a 401; True when that says something new."""
        try:
            parent = float(json.loads(refusal)["time"])
        except (ValueError, KeyError, TypeError):
            return False
        if not 0 < parent < LATEST:
            return False
        offset = parent - time.time()
        if abs(offset - self._offset) < 2:
            return False
        self._offset = offset
        logger.warning("this machine's clock is %.0f s off the parent's; signatures are adjusted", -offset)
        return True

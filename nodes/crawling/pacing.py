"""How long to wait before the next request to a host, in this process and in the shard that asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MOST_HOSTS = 10_000


class Turns:
    """When each host may be asked next by any thread of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._next: dict[str, float] = {}

    def take(self, host: str, gap: float, earliest: float = 0.0) -> float:
        """The moment of the next request to ``host``, at ``earliest`` or later; the one after it is ``gap`` seconds
        later. The caller waits for it."""
        with self._turn:
            at = max(self._clock(), earliest, self._next.pop(host, 0.0))
            self._next[host] = at + gap
            while len(self._next) > MOST_HOSTS:
                # The one that was asked least recently.
                self._next.pop(next(iter(self._next)))
        return at

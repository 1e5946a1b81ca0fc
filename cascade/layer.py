"""The channel layer: within this process only, because ``dispatch.bus`` tells the other processes."""

from __future__ import annotations

import time

from channels.layers import InMemoryChannelLayer

CLEAN_SECONDS = 1.0


class Layer(InMemoryChannelLayer):
    """Channels' own, which looks through all of its channels and groups before each message that it passes on.

    With thousands of sockets that was a quarter of all that the event loop did; once a second is as good.
    """

    _cleaned = 0.0

    def _clean_expired(self) -> None:
        now = time.monotonic()
        if now - self._cleaned >= CLEAN_SECONDS:
            self._cleaned = now
            super()._clean_expired()

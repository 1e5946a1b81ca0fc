"""How much one key may ask of this process: requests and bytes a second, and requests at once.

The defaults (settings ``key_…``) are such that no honest child meets them; they keep a child that has gone wild from
taking the threads and the disk from all others. Counted in memory, by access key, after the key was proven: a stranger
uses up nobody's share. With several web processes a key has its share in each of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings

from dispatch import metrics
from nodes.protocol import TooMany

BURST_SECONDS = 2.0
"""What was not asked for in so many seconds may be asked for at once."""


@dataclass(slots=True)
class _Share:
    """``requests`` and ``bytes`` may be below zero: what has begun is served, and the next one waits for it."""

    at: float
    requests: float
    bytes: float
    running: int = 0


class KeyLimits:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}

    def check(self, access_key: str) -> None:
        """Raises TooMany while this key has used up its share."""
        settled = settings.CASCADE
        with self._lock:
            share = self._refilled(access_key)
            wait = max((1 - share.requests) / settled.key_requests, -share.bytes / (settled.key_megabytes * 1e6))
            running = share.running
        if running >= settled.key_concurrent or wait > 0:
            metrics.put_off.add(of="key")
        if running >= settled.key_concurrent:
            raise TooMany(f"{running} requests of this key are being answered; allowed are so many", retry_after=1)
        if wait > 0:
            raise TooMany(
                f"more than {settled.key_requests:g} requests or {settled.key_megabytes:g} MB a second with this key",
                retry_after=wait,
            )

    def charge(self, access_key: str, *, requests: int = 1, size: int = 0) -> None:
        """``size`` in bytes, where it is known by now."""
        with self._lock:
            share = self._refilled(access_key)
            share.requests -= requests
            share.bytes -= size

    def running(self, access_key: str, change: int) -> None:
        """So many more are being answered."""
        with self._lock:
            self._refilled(access_key).running += change

    def _refilled(self, access_key: str) -> _Share:
        settled = settings.CASCADE
        most, most_bytes = settled.key_requests * BURST_SECONDS, settled.key_megabytes * 1e6 * BURST_SECONDS
        now = self._clock()
        share = self._shares.get(access_key)
        if share is None:
            share = self._shares[access_key] = _Share(now, most, most_bytes)
            return share
        passed = now - share.at
        share.at = now
        share.requests = min(most, share.requests + passed * settled.key_requests)
        share.bytes = min(most_bytes, share.bytes + passed * settled.key_megabytes * 1e6)
        return share


class Hold:
    """One place among those that a key may have at once, from ``take`` to ``release``.

    Either may come first, and from different threads: a client that has gone ends its request while a thread still
    looks at whose it is.
    """

    def __init__(self, limits: KeyLimits | None = None) -> None:
        self._limits = limits or keys
        self._lock = threading.Lock()
        self._access_key: str | None = None
        self._over = False

    def take(self, access_key: str) -> None:
        with self._lock:
            if not self._over and self._access_key is None:
                self._access_key = access_key
                self._limits.running(access_key, 1)

    def release(self) -> None:
        with self._lock:
            if not self._over and self._access_key is not None:
                self._limits.running(self._access_key, -1)
            self._over = True


keys = KeyLimits()

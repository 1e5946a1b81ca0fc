"""Signs what the agent sends, with the key that it has now: a key file may be replaced while the agent runs."""

from __future__ import annotations

import logging

from nodes import signing
from nodes.agent.clock import ParentClock
from nodes.agent.config import AgentConfig, read_key_file
from nodes.protocol import FieldError

logger = logging.getLogger(__name__)


class Signer:
    """``offset`` is the clock's at the time of signing; whoever sends says with it how that went."""

    def __init__(self, config: AgentConfig, clock: ParentClock) -> None:
        self._pair = (config.access_key, config.secret_key)
        self._file = config.key_file
        self._clock = clock

    def headers(self, method: str, url: str, data: bytes = b"", *, offset: float | None = None) -> dict[str, str]:
        access_key, secret_key = self._pair
        return signing.sign(
            method, url, data, access_key=access_key, secret_key=secret_key, created=self._clock.now(offset)
        )

    def renewed(self) -> bool:
        """Whether the key file holds another pair by now, which is used from here on. Asked after a refusal only."""
        if not self._file:
            return False
        try:
            found = read_key_file(self._file)
        except (OSError, ValueError, FieldError):
            return False
        if found[:2] == self._pair:
            return False
        self._pair = found[:2]
        logger.info("the key file has another key now: %s", found[0])
        return True

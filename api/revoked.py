"""Open sockets whose keys were revoked, or whose nodes were switched off or removed: they are closed within seconds.

A revocation in this process, or in one that shares its bus, is told at once (``keys.ended``). This look is for all
others: ``manage.py node revoke`` beside an embedded server, an edit in the database.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from api.agent import in_thread
from nodes import keys

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0


class Socket(Protocol):
    def look_again(self) -> None:
        """Its key may be revoked: to be called on its loop."""


class Watch:
    """Looks after the keys of all sockets in this process together, while there are any."""

    def __init__(self) -> None:
        self._sockets: dict[Socket, int] = {}
        self._task: asyncio.Task[None] | None = None

    def join(self, socket: Socket, key_id: int) -> None:
        self._sockets[socket] = key_id
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())

    def leave(self, socket: Socket) -> None:
        self._sockets.pop(socket, None)

    async def _look(self) -> None:
        while self._sockets:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                alive = await in_thread(keys.live, set(self._sockets.values()))
            except Exception:
                logger.exception("revoked keys could not be looked for; the next look is in %g s", LOOK_SECONDS)
                continue
            for socket, key_id in list(self._sockets.items()):
                if key_id not in alive:
                    socket.look_again()


watch = Watch()

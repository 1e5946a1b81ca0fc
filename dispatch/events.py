"""Who is woken when something has changed. Called after commit only; a lost wake-up costs latency, never work.

``changed()`` tells this process: the dispatcher's next pass, the saver, the live page. ``tell()`` reaches whoever waits
for one node, over the channel layer: a socket, or a claim that long-polls; and the listeners in this process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

logger = logging.getLogger(__name__)

dispatcher = threading.Event()
"""Set when there may be something to allocate."""
saver = threading.Event()
"""Set when there may be something to save."""
planned = False
"""Whether there are runs that the parent plans as they go, as far as this process knows."""
reducer = threading.Event()
"""Set when a run has ended."""
advisor = threading.Event()
"""Set when a trial may have ended."""
webhooks = threading.Event()
"""Set when there may be a webhook to call."""

Listener = Callable[[Sequence[int], Mapping[str, Any]], None]
_listeners: list[Listener] = []

_count = itertools.count(1)
_version = 0
_loop: asyncio.AbstractEventLoop | None = None


def version() -> int:
    """Grows with every committed change in this process."""
    return _version


def changed(*, allocate: bool = True) -> None:
    """Something was committed that is worth a look by the pages and, with ``allocate``, a pass of the dispatcher."""
    global _version
    _version = next(_count)
    if allocate:
        dispatcher.set()


def reported() -> None:
    """Rows wait in the spool, or items have failed."""
    saver.set()
    advise()


def advise() -> None:
    """There may be something to learn for runs that the parent plans, as far as there are any."""
    if planned:
        advisor.set()


def plan() -> None:
    """Such a run was submitted."""
    global planned
    planned = True
    advisor.set()


def group(node_id: int) -> str:
    """The channel-layer group of everything that waits for this node."""
    return f"node.{node_id}"


def bind(loop: asyncio.AbstractEventLoop) -> None:
    """The loop that serves sockets in this process; in-memory channels live on it."""
    global _loop
    _loop = loop


def listen(listener: Listener) -> None:
    """From now on ``listener`` hears what this process tells nodes: their ids and the message. It must be quick, for
    it is called by the thread that tells.
    """
    _listeners.append(listener)


def unlisten(listener: Listener) -> None:
    _listeners.remove(listener)


def tell(node_ids: Iterable[int], message: dict[str, Any]) -> None:
    """Send ``message`` (its ``type`` names the consumer's method) to whoever waits for these nodes."""
    ids = list(node_ids)
    if not ids:
        return
    for listener in list(_listeners):
        listener(ids, message)
    if _loop is not None and _loop.is_running():
        _loop.call_soon_threadsafe(lambda: asyncio.ensure_future(_send(ids, message)))
    else:
        async_to_sync(_send)(ids, message)


async def _send(node_ids: list[int], message: dict[str, Any]) -> None:
    layer = get_channel_layer()
    if layer is None:
        return
    for node_id in node_ids:
        try:
            await layer.group_send(group(node_id), message)
        except Exception:
            # Polling and beats bring the same news a little later.
            logger.warning("could not wake node %s", node_id, exc_info=True)

"""Who is woken when something has changed. Called after commit only; a lost wake-up costs latency, never work.

``changed()`` and the signals tell loops: the dispatcher's next pass, the saver, the live page. ``tell()`` reaches
whoever waits for one node, over the channel layer: a socket, or a claim that long-polls; and the listeners in this
process. Where a parent has several processes, ``abroad`` takes all of it to the others (``dispatch.bus``), and ``hear``
is how it arrives there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from channels.layers import get_channel_layer

logger = logging.getLogger(__name__)


class Abroad(Protocol):
    """The way to the other processes of this parent. Neither waits nor fails."""

    def note(self, name: str) -> None:
        """The signal ``name`` was set."""

    def tell(self, node_ids: Sequence[int], message: Mapping[str, Any]) -> None: ...


abroad: Abroad | None = None
"""None where there are no other processes, or none that could be told."""


class Signal(threading.Event):
    """An event that the loop which waits for it hears in whichever process it runs."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def set(self) -> None:
        super().set()
        if abroad is not None:
            abroad.note(self.name)

    def hear(self) -> None:
        """It was set elsewhere."""
        super().set()


dispatcher = Signal("dispatcher")
"""Set when there may be something to allocate."""
saver = Signal("saver")
"""Set when there may be something to save."""
reducer = Signal("reducer")
"""Set when a run has ended."""
advisor = Signal("advisor")
"""Set when a trial may have ended."""
webhooks = Signal("webhooks")
"""Set when there may be a webhook to call."""
relay = Signal("relay")
"""Set when there may be something to pass on to the parent above."""
inputs = Signal("inputs")
"""Set when somebody waits for rows of the tables above."""
SIGNALS = {signal.name: signal for signal in (dispatcher, saver, reducer, advisor, webhooks, relay, inputs)}
CHANGED, PLANNED, LOGGED = "changed", "planned", "logged"
"""What else is noted abroad: something for the pages; a run that the parent plans; new lines of logs."""
FOR_PAGES = (CHANGED, LOGGED)

planned = False
"""Whether there are runs that the parent plans as they go, as far as this process knows."""
Listener = Callable[[Sequence[int], Mapping[str, Any]], None]
_listeners: list[Listener] = []

LOGS_KNOWN = 1000
_log_turn = threading.Lock()
_logged: dict[int, int] = {}
_logged_all = 0
"""Of runs that are not among them."""

_count = itertools.count(1)
_version = 0
_loop: asyncio.AbstractEventLoop | None = None


def version() -> int:
    """Grows with every committed change that this process knows of."""
    return _version


def changed(*, allocate: bool = True) -> None:
    """Something was committed that is worth a look by the pages and, with ``allocate``, a pass of the dispatcher."""
    global _version
    _version = next(_count)
    if abroad is not None:
        abroad.note(CHANGED)
    if allocate:
        dispatcher.set()


def logged(runs: Iterable[int]) -> None:
    """New lines of logs of these runs were committed. The overview, which shows none, is not told."""
    with _log_turn:
        if len(_logged) > LOGS_KNOWN:
            _forget_logs()
        for run in runs:
            _logged[run] = next(_count)
    if abroad is not None:
        abroad.note(LOGGED)


def log_version(run_id: int) -> int:
    """Grows with the lines of this run's logs, as far as this process knows; now and then without any."""
    return max(_logged.get(run_id, 0), _logged_all)


def _forget_logs() -> None:
    """There may be new lines of any run."""
    global _logged_all
    _logged_all = next(_count)
    _logged.clear()


def reported() -> None:
    """Rows wait in the spool, or items have failed."""
    saver.set()
    relay.set()
    advise()


def advise() -> None:
    """There may be something to learn for runs that the parent plans, as far as there are any."""
    if planned:
        advisor.set()


def plan() -> None:
    """Such a run was submitted."""
    global planned
    planned = True
    if abroad is not None:
        abroad.note(PLANNED)
    advisor.set()


def group(node_id: int) -> str:
    """The channel-layer group of everything that waits for this node."""
    return f"node.{node_id}"


def bind(loop: asyncio.AbstractEventLoop) -> None:
    """The loop that serves sockets in this process; in-memory channels live on it."""
    global _loop
    _loop = loop


def listen(listener: Listener) -> None:
    """From now on ``listener`` hears what nodes are told: their ids and the message. It must be quick, for
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
    if abroad is not None:
        abroad.tell(ids, message)
    _tell_here(ids, message)


def hear(names: Iterable[str], told: Iterable[tuple[list[int], dict[str, Any]]]) -> None:
    """Something was committed in another process: the signals set there, and what nodes were told."""
    global _version, planned
    for name in names:
        if name == CHANGED:
            _version = next(_count)
        elif name == LOGGED:
            with _log_turn:
                _forget_logs()
        elif name == PLANNED:
            planned = True
        elif name in SIGNALS:
            SIGNALS[name].hear()
    for ids, message in told:
        _tell_here(ids, message)


def _tell_here(ids: list[int], message: dict[str, Any]) -> None:
    for listener in list(_listeners):
        listener(ids, message)
    # Without a loop there is nobody in this process who could wait.
    if _loop is not None and _loop.is_running():
        _loop.call_soon_threadsafe(lambda: asyncio.ensure_future(_send(ids, message)))


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

"""Named points at which a test has a process fail. Inert unless CASCADE_FAILPOINTS names some, or ``armed`` is used.

``CASCADE_FAILPOINTS="spool.synced=kill,store.committed=stop@3"``: an action at a point, when it is reached the first
or the n-th time. Actions: ``kill`` (as kill -9), ``stop`` (as SIGSTOP, until somebody continues it), ``full`` (the disk
has no room), ``error`` (an error that nobody expects), ``timeout`` (the database does not answer), ``hold`` (a thread
waits there as long as the file FAILPOINTS_HOLD is there).
Several points, with commas; a name or an action that is not known is an error at the start.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POINTS = {
    "write.committing": "a change of the control database is made, not committed",
    "write.committed": "it is committed, its caller does not know",
    "effect": "one of a decision's effects is about to be written",
    "spool.written": "a segment's bytes are written, not synced",
    "spool.synced": "its file is synced, and has no name yet",
    "spool.renamed": "it has its name; the folder is not synced",
    "report.committed": "a report is accepted; its receipt is not sent",
    "store.rows": "rows are in the result store's transaction, not committed",
    "store.committed": "rows and ledger are committed; the control database does not know",
    "saver.told": "the control database knows, too",
    "spool.purging": "a checkpoint is made; what it has made superfluous is not removed",
    "spool.purged": "the control database says that it is removed; the files are there",
    "relay.taken": "a relay has made runs of what came from above, and has told nobody",
    "relay.numbered": "what a relay passes on has its numbers; it is not committed",
    "relay.passed": "the node above has what a relay passed on; the relay does not know",
    "move.rows": "a parent that moves has its rows in the lake, and none of its records in the new database",
    "dispatcher.granted": "work is granted; nobody was woken",
    "worker.taken": "a worker has a bundle and has done nothing of it",
    "worker.worked": "its items are done; nothing of what they brought is kept",
    "worker.written": "their rows are in a file under its temporary name",
    "worker.kept": "the file has its name; the agent has not heard of it",
    "agent.taken": "the agent has work in its hands and has told nobody",
    "agent.finished": "a worker has finished; nothing of it is kept",
    "outbox.written": "a finished entry is written under its temporary name",
    "outbox.kept": "a finished entry is in the outbox, not sent",
    "agent.uploaded": "the parent has a segment; no report has named it",
    "agent.receipt": "the receipt is heard; the outbox has the entry still",
    "rotate.accepted": "the parent has accepted a child's new key; its file has the old one",
    "rotate.replaced": "the file has the new key; the old one is valid still",
}
"""Every point and what has happened there."""
Hook = Callable[[str], None]


class Injected(RuntimeError):
    """What the action ``error`` raises."""


_lock = threading.Lock()
_reached: Counter[str] = Counter()
_plan: dict[str, tuple[str, int]] = {}
_hook: Hook | None = None


def reach(name: str) -> None:
    """This process is at ``name``."""
    if _hook is not None:
        _hook(name)
    elif _plan and name in _plan:
        _fire(name)


@contextmanager
def armed(hook: Hook) -> Iterator[None]:
    """``hook`` hears every point that this process reaches, and may raise."""
    global _hook
    earlier, _hook = _hook, hook
    try:
        yield
    finally:
        _hook = earlier


def read(text: str) -> dict[str, tuple[str, int]]:
    """Point -> (action, at which time). Raises ValueError naming what is wrong."""
    plan: dict[str, tuple[str, int]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = part.partition("=")
        action, _, at = rest.partition("@")
        if name not in POINTS:
            raise ValueError(f"CASCADE_FAILPOINTS: {name!r} is not one of: {', '.join(POINTS)}")
        if action not in _ACTIONS:
            raise ValueError(f"CASCADE_FAILPOINTS: {name}={action!r} is not one of: {', '.join(_ACTIONS)}")
        if at and not (at.isascii() and at.isdecimal() and int(at)):
            raise ValueError(f"CASCADE_FAILPOINTS: {name}={action}@{at}: after @ stands a whole number from 1")
        plan[name] = action, int(at or 1)
    return plan


def _fire(name: str) -> None:
    action, at = _plan[name]
    with _lock:
        _reached[name] += 1
        if _reached[name] != at:
            return
    _ACTIONS[action]()


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _error() -> None:
    raise Injected("a fail-point raised this")


def _timeout() -> None:
    raise TimeoutError("a fail-point raised this: no answer in time")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hold() -> None:
    file = os.environ.get("FAILPOINTS_HOLD", "")
    while os.path.exists(file):
        time.sleep(0.05)


_ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "stop": _stop,
    "full": _full,
    "error": _error,
    "timeout": _timeout,
    "hold": _hold,
}
_plan = read(os.environ.get("CASCADE_FAILPOINTS", ""))

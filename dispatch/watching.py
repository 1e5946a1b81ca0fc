"""Who watches the nodes come and go: nobody tells when one falls silent, so the leader looks once a second."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict

from django.conf import settings

from nodes import journal, registry
from nodes.transactions import write

LOOK_SECONDS = 1.0
EACH = 20
"""Up to so many nodes that change alike at once have an entry each; more of them share one."""
NAMED = 10
"""So many of these are named."""
OFFLINE, REMOVED = "offline", "removed"

Known = dict[int, tuple[str, str]]
"""Node -> name and state."""


class NodeWatch:
    """Writes changes of nodes' states into the journal. Times in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._known: Known = {}
        self._next = 0.0

    def start_anew(self, monotonic: float) -> None:
        """This server was away, or begins to lead: what is known is what the journal says, and whoever beats again in
        time was never gone.
        """
        self._known = journal.last_words()
        self._next = monotonic + (settings.CASCADE.offline_seconds if self._known else 0)

    def look(self, now: dt.datetime, monotonic: float) -> bool:
        """Whether anything changed; looks once a second at most."""
        if monotonic < self._next:
            return False
        self._next = monotonic + LOOK_SECONDS
        known = {pk: (name, state) for pk, name, state in registry.states(now)}
        changes = _changes(self._known, known)
        if changes:
            with write():
                for word, nodes in changes.items():
                    _record(word, nodes)
        self._known = known
        return bool(changes)


def _changes(before: Known, after: Known) -> dict[str, list[tuple[int, str]]]:
    """Word -> the nodes that it now holds for. One not known before was offline; it is news when it comes."""
    changes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for pk, (name, state) in after.items():
        if state != before.get(pk, ("", OFFLINE))[1]:
            changes[state].append((pk, name))
    for pk, (name, state) in before.items():
        if pk not in after and state != REMOVED:
            changes[REMOVED].append((pk, name))
    return changes


def _record(word: str, nodes: list[tuple[int, str]]) -> None:
    if len(nodes) <= EACH:
        journal.record_all(journal.About.NODE, word, nodes)
        return
    names = ", ".join(name for _, name in nodes[:NAMED])
    journal.record(journal.About.NODE, word, count=len(nodes), text=f"{names}, …")

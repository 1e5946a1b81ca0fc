"""The journal: what happened to nodes, runs, allocations, keys and the configuration, for people who look later.

What is rare is written in the transaction that does it (``record``). What may happen thousands of times a second, as
leases that end, is summed in memory (``note``) and written once a second by a loop (``flush``).
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from django.db import DatabaseError, transaction
from django.db.models import Max
from django.utils import timezone

from nodes.models import JournalEntry, Node
from nodes.transactions import insert_rows, moment, write

About = JournalEntry.About
KEPT = 5_000
"""Sums that wait to be written; what goes beyond is not told. A second brings some per node and run."""
FLUSH_SECONDS = 1.0
TEXT_LENGTH = 500
MOST = 2**31 - 1
COLUMNS = ("at", "about", "word", "node", "name", "run", "count", "text")

_Key = tuple[str, str, int | None, int | None]
"""about, word, node, run"""


@dataclass(slots=True)
class _Sum:
    at: dt.datetime
    count: int
    text: str


_lock = threading.Lock()
_sums: dict[_Key, _Sum] = {}
_flushed = 0.0


def record(
    about: About, word: str, *, node: Node | None = None, run: int | None = None, count: int = 1, text: str = ""
) -> None:
    """It happened, as far as the caller's transaction is committed."""
    of = (node.pk, node.name) if node else (None, "")
    _insert([(moment(timezone.now()), str(about), word, *of, run, min(count, MOST), _clean(text))])


def record_all(about: About, word: str, nodes: Iterable[tuple[int, str]]) -> None:
    """As ``record`` for each of these nodes, by id and name."""
    at = moment(timezone.now())
    _insert([(at, str(about), word, pk, name, None, 1, "") for pk, name in nodes])


def _insert(rows: Sequence[tuple[object, ...]]) -> None:
    insert_rows(JournalEntry, COLUMNS, rows)


def note(
    about: About, word: str, *, node: int | None = None, run: int | None = None, count: int = 1, text: str = ""
) -> None:
    """It happened ``count`` times. Never waits, never fails; of many alike within a second the first text is kept."""
    key = (str(about), word, node, run)
    with _lock:
        found = _sums.get(key)
        if found is not None:
            found.count += count
        elif len(_sums) < KEPT:
            _sums[key] = _Sum(timezone.now(), count, text[:TEXT_LENGTH])


def committed(
    about: About, word: str, *, node: int | None = None, run: int | None = None, count: int = 1, text: str = ""
) -> None:
    """As ``note``, when the transaction at hand has been committed."""
    transaction.on_commit(partial(note, about, word, node=node, run=run, count=count, text=text))


def flush(*, now: bool = False) -> int:
    """Writes what was noted; how many rows. Does nothing within a second of the last time, unless ``now``.

    Raises DatabaseError; what could not be written waits for the next time.
    """
    global _sums, _flushed
    if not now and time.monotonic() - _flushed < FLUSH_SECONDS:
        return 0
    _flushed = time.monotonic()
    with _lock:
        taken, _sums = _sums, {}
    if not taken:
        return 0
    try:
        with write():
            names = dict(Node.objects.filter(pk__in={key[2] for key in taken if key[2]}).values_list("pk", "name"))
            _insert([_row(key, each, names) for key, each in taken.items()])
    except DatabaseError:
        with _lock:
            _sums = {**_sums, **taken}
        raise
    return len(taken)


def _row(key: _Key, each: _Sum, names: Mapping[int, str]) -> tuple[object, ...]:
    about, word, node, run = key
    known = names.get(node, "") if node is not None else ""
    return (moment(each.at), about, word, node, known, run, min(each.count, MOST), _clean(each.text))


def _clean(text: str) -> str:
    return text[:TEXT_LENGTH].replace("\x00", "\ufffd")


def clear() -> None:
    """Forgets what is not written yet."""
    with _lock:
        _sums.clear()


def last_words() -> dict[int, tuple[str, str]]:
    """Node -> its name and the last word about it, of those that the journal names one by one."""
    of_nodes = JournalEntry.objects.filter(about=About.NODE, node__isnull=False).order_by()
    newest = of_nodes.values("node").annotate(newest=Max("id")).values("newest")
    found = JournalEntry.objects.filter(pk__in=newest).values_list("node", "name", "word")
    return {node: (name, word) for node, name, word in found if node is not None}

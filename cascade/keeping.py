"""Where a ``Bridge`` keeps rows: in a DuckDB file, or as a run of the parent in whose Django this program runs.

Neither Django nor a library for tables is imported before there is something to keep.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cascade.sharing import Fate
from nodes import executors
from nodes.executors.base import Item
from nodes.protocol import CascadeError

if TYPE_CHECKING:
    from nodes.keys import Caller

HERE = "(here)"
"""As a run, where this program is a parent's own; otherwise nowhere."""
SAVE_SECONDS = 120.0
"""A parent that owns the store has saved what was reported by then."""
BRIDGE = "bridge"
PIECES = 1_000
PIECE_ROWS = 20_000

_turn = threading.Lock()


class Keeper(Protocol):
    """Saves what is done, once. Returns what the task's result says of it. Raises CascadeError."""

    def save(
        self, task_id: str, type: str, params: Mapping[str, Any], items: Sequence[Item], fates: Sequence[Fate]
    ) -> dict[str, Any]: ...


def keeper(store: str | Path | None) -> Keeper | None:
    if store is None:
        return None
    if store != HERE:
        return File(Path(store))
    return Control() if _inside() else None


def _inside() -> bool:
    """Whether this program has the control database of a parent."""
    if "django.conf" not in sys.modules:
        return False
    from django.apps import apps
    from django.conf import settings

    return settings.configured and apps.ready and apps.is_installed("dispatch")


class File:
    """A DuckDB file with the tables, the ledger and the lineage that a parent's has.

    Its runs count downwards from -1, so that the file may become a parent's later without a number used twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(
        self, task_id: str, type: str, params: Mapping[str, Any], items: Sequence[Item], fates: Sequence[Fate]
    ) -> dict[str, Any]:
        from dispatch.results import datasets
        from dispatch.results.store import Part, ResultStore

        dataset = executors.get(type).dataset
        done = [(number, fate) for number, fate in enumerate(fates) if not fate.error]
        rows = [row for _, fate in done for row in fate.rows]
        table = datasets.from_rows(dataset, rows)
        # One after the other in this process; other processes are refused by the store itself.
        with _turn, ResultStore(self._path) as store:
            store.ensure(dataset)
            with store.reader() as reading:
                lowest = reading.execute("SELECT least(min(run), 0) FROM ledger").fetchone()
            run = int(lowest[0] or 0) - 1 if lowest else -1
            table = datasets.with_lineage(
                table,
                run=run,
                start=[number for number, fate in done for _ in fate.rows],
                allocation=[run for _ in rows],
                node=[fate.node for _, fate in done for _ in fate.rows],
                saved_at=dt.datetime.now(dt.UTC),
            )
            digest = hashlib.sha256(json.dumps([task_id, type, dict(params)], sort_keys=True).encode()).hexdigest()
            entries = [(run, number, number + 1, run, digest, len(fate.rows)) for number, fate in done]
            store.append([Part(dataset, table, entries)])
        return {"run": run}


class Control:
    """A run like every other: submitted, granted to a node called ``bridge``, reported, and saved by the saver.

    Should this program end in between, the items that it has not reported are run by the parent's nodes.
    """

    def save(
        self, task_id: str, type: str, params: Mapping[str, Any], items: Sequence[Item], fates: Sequence[Fate]
    ) -> dict[str, Any]:
        from django.db import connection

        from nodes import keys

        inside = connection.in_atomic_block
        try:
            caller = keys.inside(_bridge_node())
            run_id = _granted(task_id, type, params, items, fates, caller)
            _report(run_id, type, caller, fates)
            self._wait(run_id)
            return {"run": run_id}
        finally:
            if threading.current_thread() is not threading.main_thread() and not inside:
                connection.close()

    def _wait(self, run_id: int) -> None:
        """Until the store's owner has saved it; where nobody owns the store, this program does it."""
        from dispatch.models import Run
        from dispatch.results.saver import Saver
        from dispatch.results.store import StoreBusy
        from dispatch.states import RunState

        until = time.monotonic() + SAVE_SECONDS
        while Run.objects.only("state").get(pk=run_id).state == RunState.RUNNING:
            saver = Saver()
            try:
                with saver.store:
                    while saver.once():
                        pass
            except StoreBusy:
                time.sleep(0.05)
            if time.monotonic() > until:
                raise CascadeError(f"run {run_id} is safe in the spool, but nobody has saved it yet")


def _bridge_node() -> int:
    """The node that stands for programs like this one; made when there is none. The allocator never gives it work."""
    from nodes import keys, registry
    from nodes.models import Node
    from nodes.protocol import Conflict

    node = Node.objects.filter(name=BRIDGE).first()
    if node is None:
        try:
            node, _ = registry.add_node(
                BRIDGE, capacity=PIECES, draining=True, description="Stands for programs that bring rows."
            )
            keys.revoke_all(node.pk)
        except Conflict:
            node = registry.find_node(BRIDGE)
    return node.pk


def _granted(
    task_id: str,
    type: str,
    params: Mapping[str, Any],
    items: Sequence[Item],
    fates: Sequence[Fate],
    caller: Caller,
) -> int:
    """A run over ``items`` that is the bridge's from its first moment: nobody else can be given a part of it."""
    from django.utils import timezone

    from dispatch import lifecycle
    from dispatch.models import Allocation
    from dispatch.plans import Grant, Phase, Piece, Plan
    from nodes.transactions import write

    with write():
        run = lifecycle.submit(
            type=type,
            items=list(items),
            params=dict(params),
            name=task_id[:200],
            max_attempts=1,
            submitted_by=BRIDGE,
        )
        grants = [
            Grant(run.pk, type, caller.node_id, Piece(start, stop), Phase.FREE, "done by a bridge already")
            for start, stop in _pieces(fates)
        ]
        lifecycle.grant(Plan(grants, [], []), timezone.now())
        # Nothing of it is an offer that could run out before the rows are told: this program has done it already.
        lifecycle.accept(caller, list(Allocation.objects.filter(run=run).values_list("pk", flat=True)))
    return run.pk


def _pieces(fates: Sequence[Fate]) -> Iterator[tuple[int, int]]:
    """Ranges of items with about PIECE_ROWS rows each, at most PIECES of them."""
    most_items = max(len(fates) // (PIECES // 2), 1_000)
    rows = sum(len(fate.rows) for fate in fates)
    most_rows = max(rows // (PIECES // 4), PIECE_ROWS)
    start = held = 0
    for number, fate in enumerate(fates):
        if number > start and (held + len(fate.rows) > most_rows or number - start >= most_items):
            yield start, number
            start, held = number, 0
        held += len(fate.rows)
    yield start, len(fates)


def _report(run_id: int, type: str, caller: Caller, fates: Sequence[Fate]) -> None:
    from dispatch import lifecycle
    from dispatch.models import Allocation
    from dispatch.results.arriving import read_entry
    from dispatch.states import LIVE

    mine = Allocation.objects.filter(run=run_id, node=caller.node_id, state__in=LIVE).order_by("start")
    for allocation, start, stop in list(mine.values_list("pk", "start", "stop")):
        entry = read_entry(type, _entry(allocation, start, stop, fates))
        (answer,) = lifecycle.report(caller, [entry])["results"]
        if answer["status"] != 200:
            raise CascadeError(f"run {run_id} did not take its rows: {answer.get('detail')}")


def _entry(allocation: int, start: int, stop: int, fates: Sequence[Fate]) -> dict[str, Any]:
    done = [number for number in range(start, stop) if not fates[number].error]
    return {
        "allocation": allocation,
        "ranges": [[number, number + 1, len(fates[number].rows)] for number in done],
        "errors": [[number, fates[number].error[:2000], False] for number in range(start, stop) if fates[number].error],
        "rows": [row for number in done for row in fates[number].rows],
    }

"""``Bridge``: a task of a main program shared over nodes, with its rows saved once. For sync and async programs.

    bridge = get_distributed_bridge()
    bridge.add_node("node_001", "localhost", 8900)
    result = await bridge.execute_task("import-1", "data_import", {"symbols": [...], "data_source": "sample"})

With no healthy node the work is done on this machine. How items are shared is in ``sharing``, where rows are kept in
``keeping``.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade import keeping
from cascade.sharing import LOCAL, Fate, Seat, Sharing, default_workers
from nodes import drive, executors
from nodes.executors.base import Item, item_key, shown
from nodes.peer import Health, Peer, PeerError, Refused, Unknown
from nodes.protocol import CascadeError, Conflict, FieldError

if TYPE_CHECKING:
    from cascade.client import Client

logger = logging.getLogger(__name__)

HEALTH_SECONDS = 30.0
"""How long what a node said of its health is believed."""
MOST_LANES = 32
LANES = 4
"""Tasks at once on a node that does not say how many it takes."""
ASK_SECONDS = 3.0


@dataclass
class BridgeNode:
    """A node that was added. ``health`` None: it did not answer, or was not asked yet; ``error`` says why."""

    node_id: str
    url: str
    api_key: str = field(default="", repr=False)
    health: Health | None = None
    error: str = ""
    slots: int | None = None
    asked: float = field(default=float("-inf"), repr=False)

    @property
    def available(self) -> bool:
        return self.health is not None and self.health.alive

    @property
    def score(self) -> float:
        """100 - CPU * 0.5 - memory * 0.3 - tasks * 10; the higher, the sooner it is given work."""
        return self.health.score if self.health is not None else float("-inf")


@dataclass
class TaskResult:
    """What became of a task. ``status``: completed (also where some items failed), failed, or cancelled.

    ``result`` is as a node words it (for data_import: symbols_count, imported_count, total_records, kdata, errors by
    symbol …), with distributed, nodes_used, failed_nodes, saved_to_db and, where saving failed, save_error.
    """

    task_id: str
    status: str
    result: dict[str, Any]
    error: str | None = None
    started_at: dt.datetime = field(default_factory=dt.datetime.now)
    completed_at: dt.datetime | None = None
    execution_time: float = 0.0


class Bridge:
    """Nodes, and the tasks that are shared over them.

    ``store`` is where rows go: a DuckDB file, written as a parent writes its own; None leaves them in the result.
    By default they are saved as a run of the parent whose Django this program runs in, and nowhere outside of one.
    ``parent`` (an address, with ``username`` and ``password`` or ``token``) hands tasks to a running parent instead:
    its nodes run them, and it saves the rows. ``local_workers`` processes of this machine work where no node can; 0:
    none ever.
    """

    def __init__(
        self,
        *,
        store: str | Path | None = keeping.HERE,
        parent: str = "",
        local_workers: int | None = None,
        username: str = "",
        password: str = "",
        token: str = "",
    ) -> None:
        self._nodes: dict[str, BridgeNode] = {}
        self._turn = threading.Lock()
        self._sharings: set[Sharing] = set()
        self._closed = False
        self._store = store
        self._local_workers = default_workers() if local_workers is None else max(local_workers, 0)
        self._client: Client | None = None
        if parent:
            from cascade.client import Client

            self._client = Client(parent, username=username, password=password, token=token)

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Nodes

    def add_node(self, node_id: str, host: str, port: int, api_key: str | None = None) -> BridgeNode:
        """From the next task on this node takes part. The same id again replaces what was known of it.

        ``host`` may begin with https://. Raises FieldError; Conflict where tasks go to a parent, which has nodes of
        its own.
        """
        if self._client is not None:
            raise Conflict("this bridge hands its tasks to a parent; add the node there, with carrier http")
        if not isinstance(node_id, str) or not node_id:
            raise FieldError("node_id", f"{shown(node_id)} is not a name")
        if not isinstance(host, str) or not host:
            raise FieldError("host", f"{shown(host)} is not a host's name or address")
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535:
            raise FieldError("port", f"{shown(port)} is not a whole number from 1 to 65535")
        scheme, mark, rest = host.rpartition("://")
        rest = f"[{rest}]" if ":" in rest and not rest.startswith("[") else rest
        node = BridgeNode(node_id, f"{scheme if mark else 'http'}://{rest}:{port}", api_key or "")
        with self._turn:
            self._nodes[node_id] = node
        return node

    def remove_node(self, node_id: str) -> bool:
        """It gets no further task; False where there was none of that name."""
        with self._turn:
            return self._nodes.pop(node_id, None) is not None

    def get_available_nodes(self) -> list[BridgeNode]:
        """The healthy ones, the best first. Asks those whose last answer is older than 30 s, all at once."""
        now = time.monotonic()
        with self._turn:
            nodes = list(self._nodes.values())
        old = [node for node in nodes if now - node.asked > HEALTH_SECONDS]
        threads = [threading.Thread(target=_ask, args=(node,), daemon=True) for node in old]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted((node for node in nodes if node.available), key=lambda node: (-node.score, node.node_id))

    def close(self) -> None:
        """Ends what runs, as cancelled, and takes no more."""
        with self._turn:
            self._closed = True
            sharings = list(self._sharings)
        for sharing in sharings:
            sharing.stop()
        if self._client is not None:
            self._client.close()

    # Tasks

    async def execute_task(
        self, task_id: str, task_type: str, task_data: Mapping[str, Any], priority: int = 5, timeout: float = 300
    ) -> TaskResult:
        """As ``run_task``, without holding up the event loop. Cancelled with the coroutine that awaits it."""
        made: list[Sharing] = []
        work = asyncio.to_thread(self._run, task_id, task_type, task_data, priority, timeout, made)
        try:
            return await asyncio.shield(running := asyncio.ensure_future(work))
        except asyncio.CancelledError:
            for sharing in made:
                sharing.stop()
            running.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    def run_task(
        self, task_id: str, task_type: str, task_data: Mapping[str, Any], priority: int = 5, timeout: float = 300
    ) -> TaskResult:
        """Shares the items of ``task_data`` over the healthy nodes, or works through them here; saves their rows once.

        ``task_data`` for data_import: symbols, data_source, start_date, end_date, freq; for other types items and
        params. ``timeout`` in seconds, for the whole. Raises FieldError for a task that could never be run.
        """
        return self._run(task_id, task_type, task_data, priority, timeout, [])

    def _run(
        self,
        task_id: str,
        task_type: str,
        task_data: Mapping[str, Any],
        priority: int,
        timeout: float,
        made: list[Sharing],
    ) -> TaskResult:
        if self._closed:
            raise Conflict("this bridge is closed")
        if not isinstance(task_id, str) or not task_id:
            raise FieldError("task_id", f"{shown(task_id)} is not a name")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 7 * 86_400:
            raise FieldError("timeout", f"{shown(timeout)} is not a number of seconds up to a week")
        if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= 10:
            raise FieldError("priority", f"{shown(priority)} is not a whole number from 1 to 10")
        type, params, items = drive.work_of(task_type, dict(task_data))
        params, items = _checked(type, params, items, begin=self._client is None)
        result = TaskResult(task_id, "running", {})
        began = time.monotonic()
        if self._client is not None:
            self._hand_over(result, type, params, items, priority, timeout)
        else:
            self._share(result, type, params, items, priority, timeout, made)
        result.completed_at = dt.datetime.now()
        result.execution_time = time.monotonic() - began
        return result

    def _share(
        self,
        result: TaskResult,
        type: str,
        params: dict[str, Any],
        items: list[Item],
        priority: int,
        timeout: float,
        made: list[Sharing],
    ) -> None:
        seats = [Seat(node.node_id, node.url, node.api_key, _lanes(node)) for node in self.get_available_nodes()]
        sharing = Sharing(
            result.task_id,
            type,
            params,
            items,
            seats,
            priority=priority,
            timeout=timeout,
            local_workers=self._local_workers,
            lost=self._lost,
        )
        with self._turn:
            self._sharings.add(sharing)
        made.append(sharing)
        try:
            sharing.run()
        finally:
            with self._turn:
                self._sharings.discard(sharing)
        fates = [sharing.fates[number] for number in range(len(items))]
        result.result = _merged(type, params, items, fates)
        result.result |= {
            "distributed": any(name != LOCAL for name in sharing.used),
            "nodes_used": sorted(name for name in sharing.used if name != LOCAL),
            "failed_nodes": sorted(sharing.failed),
            "saved_to_db": False,
        }
        _conclude(result, [fate.error for fate in fates], cancelled=sharing.cancelled)
        if any(not fate.error for fate in fates):
            self._keep(result, type, params, items, fates)

    def _keep(
        self, result: TaskResult, type: str, params: dict[str, Any], items: list[Item], fates: Sequence[Fate]
    ) -> None:
        """What is done is saved, also where other items failed or the task was cancelled."""
        keeper = keeping.keeper(self._store)
        if keeper is None:
            return
        try:
            result.result |= {"saved_to_db": True, **keeper.save(result.task_id, type, params, items, fates)}
        except Exception as error:
            # The rows are in the result; whoever called must hear that they are nowhere else.
            logger.exception("the rows of %s were not saved", result.task_id)
            result.result |= {"saved_to_db": False, "save_error": f"{error}"}
            result.error = "; ".join(filter(None, [result.error, f"the rows were not saved: {error}"]))

    def _lost(self, node_id: str, why: str) -> None:
        """The next task asks it again instead of trusting what it said before."""
        with self._turn:
            node = self._nodes.get(node_id)
            if node is not None:
                node.asked = float("-inf")

    def _hand_over(
        self,
        result: TaskResult,
        type: str,
        params: dict[str, Any],
        items: list[Item],
        priority: int,
        timeout: float,
    ) -> None:
        assert self._client is not None
        run = self._client.submit(type, items, params, name=result.task_id[:200], priority=priority, timeout=timeout)
        cancelled = False
        try:
            ended = run.wait(timeout)
        except TimeoutError:
            cancelled = True
            try:
                run.cancel()
            except Conflict:
                cancelled = False  # it has just ended
            ended = run.wait(timeout)
        errors = {each["item"] if isinstance(each["item"], str) else item_key(each["item"]): each["error"]
                  for each in run.failures()}  # fmt: skip
        shares = run.nodes()
        fates = [Fate("", error=errors.get(item_key(item), "")) for item in items]
        rows = run.results()
        result.result = _merged(type, params, items, fates) | {
            "imported_count" if type == drive.IMPORT else "done_count": ended["saved"],
            "total_records": ended["rows"],
            "kdata" if type == drive.IMPORT else "rows": rows,
            "errors": errors,
            "distributed": True,
            "nodes_used": sorted(str(share["node"]) for share in shares),
            "failed_nodes": [],
            "saved_to_db": ended["saved"] > 0,
            "run": run.id,
        }
        messages = list(errors.values())
        if cancelled:
            messages.append(f"not done within {timeout:g} s")
        result.status = "completed" if ended["saved"] else "failed"
        result.error = "; ".join(messages[:3]) or None


_shared: Bridge | None = None
_sharing_turn = threading.Lock()


def get_distributed_bridge(**options: Any) -> Bridge:
    """The bridge of this program, made at the first call, with ``options`` of ``Bridge``; a closed one is replaced."""
    global _shared
    with _sharing_turn:
        if _shared is None or _shared._closed:
            _shared = Bridge(**options)
        return _shared


def _ask(node: BridgeNode) -> None:
    peer = Peer(node.url, node.api_key)
    try:
        health = peer.health(ASK_SECONDS)
        node.slots = health.slots
        try:
            if (workers := peer.workers()) is not None:
                node.slots = workers
        except (Unknown, Refused):
            pass  # a route that not every node has
        node.health, node.error = health, ""
    except PeerError as error:
        node.health, node.error = None, str(error)
    finally:
        node.asked = time.monotonic()
        peer.close()


def _lanes(node: BridgeNode) -> int:
    """Its free capacity, at least one: what it said may be half a minute old, and 503 costs little."""
    most = LANES if node.slots is None else node.slots
    active = node.health.active if node.health is not None else 0
    return min(max(most - active, 1), MOST_LANES)


def _checked(
    type: str, params: Mapping[str, Any], items: Sequence[Item], *, begin: bool
) -> tuple[dict[str, Any], list[Item]]:
    """Each item once, and everything checked by the executor; ``begin``: no parent will. Raises FieldError."""
    checked = dict(executors.get(type).check(params))
    once = list({json.dumps(item, sort_keys=True): item for item in items}.values())
    try:
        made = drive.begun(type, checked, once) if begin else once
    except FieldError as error:
        raise FieldError(f"task_data.{error.field}", error.message) from None
    return checked, made


def _merged(type: str, params: Mapping[str, Any], items: Sequence[Item], fates: Sequence[Fate]) -> dict[str, Any]:
    rows = [row for fate in fates for row in fate.rows]
    ranges = [[at, at + 1, len(fate.rows)] for at, fate in enumerate(fates) if not fate.error]
    errors = [[at, fate.error, True] for at, fate in enumerate(fates) if fate.error]
    result = drive.result_of(type, params, items, {"ranges": ranges, "errors": errors}, rows)
    for name in ("ranges", "item_errors"):
        result.pop(name, None)
    return result


def _conclude(result: TaskResult, errors: Sequence[str], *, cancelled: bool) -> None:
    failed = [error for error in errors if error]
    if cancelled:
        result.status = "cancelled"
    else:
        result.status = "failed" if len(failed) == len(errors) else "completed"
    if failed:
        result.error = f"{len(failed)} of {len(errors)} items failed; the first: {failed[0]}"


__all__ = ["Bridge", "BridgeNode", "CascadeError", "TaskResult", "get_distributed_bridge"]

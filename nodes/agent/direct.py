"""Work handed directly to this node over HTTP: its tasks by id, from the order to the result's end of life.

A task takes a slot of the agent like an allocation, and its result is a file until it is fetched, so that what waits
here costs no memory. Everything but ``read_order`` and ``get`` happens on the agent's loop.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes import drive, executors
from nodes.agent.health import Tally
from nodes.executors.base import Item, shown
from nodes.protocol import CascadeError, Conflict, FieldError, NotFound

if TYPE_CHECKING:
    from nodes.agent.pool import Entries, Pool

logger = logging.getLogger(__name__)

KEPT_TASKS = 1_000
KEPT_SECONDS = 3_600.0
KEPT_BYTES = 512 * 1024 * 1024
"""Ended tasks are forgotten, the oldest first, when they are more or older, or their results larger."""
ID_LENGTH = 200
LEAST_TIMEOUT, MOST_TIMEOUT = 10, 604_800
ENDED = ("completed", "failed", "cancelled")


class Busy(CascadeError):
    """No free worker now, or this node is about to stop."""

    status = 503


@dataclass(frozen=True)
class Order:
    """A task as it was asked for, checked. ``digest`` is the same for the same order; ``timeout`` in seconds."""

    task_id: str
    type: str
    params: dict[str, Any]
    items: list[Item]
    timeout: float
    digest: str


@dataclass(eq=False)
class Task:
    """``number`` is negative, as no allocation's id is. ``seconds`` and ``result`` are there when it has ended;
    ``read``: somebody has asked since."""

    task_id: str
    type: str
    digest: str
    timeout: float
    number: int
    state: str = "running"
    started: dt.datetime = field(default_factory=dt.datetime.now)
    began: float = field(default_factory=time.monotonic)
    ended: dt.datetime | None = None
    seconds: float = 0.0
    error: str | None = None
    result: Path | None = None
    size: int = 0
    read: bool = False

    def status(self) -> dict[str, Any]:
        """Without its result, which may be large. Times are local, without zone; no number is ever null."""
        return {
            "task_id": self.task_id,
            "status": self.state,
            "error": self.error,
            "started_at": self.started.isoformat(),
            "completed_at": self.ended.isoformat() if self.ended else None,
            "execution_time": self.seconds if self.ended else time.monotonic() - self.began,
        }


def read_order(body: Any, seconds: int = 300) -> Order:
    """What ``POST task/execute`` brought; ``seconds``: its time-out where it names none.

    Raises FieldError, naming the key and what is allowed.
    """
    if not isinstance(body, dict):
        raise FieldError("body", f"{shown(body)} is not an object")
    for name in ("task_id", "task_type"):
        if not isinstance(body.get(name), str) or not body[name]:
            raise FieldError(name, f"{shown(body.get(name))} is not a text with at least one character")
    task_id, task_type = body["task_id"], body["task_type"]
    if len(task_id) > ID_LENGTH or not task_id.isprintable() or "/" in task_id:
        raise FieldError("task_id", f"{shown(task_id)} is not 1 to {ID_LENGTH} printable characters other than /")
    if task_type not in executors.runnable():
        raise FieldError(
            "task_type", f"{shown(task_type)} is not run here; there are: {', '.join(executors.runnable())}"
        )
    priority = _whole(body, "priority", 5, 1, 10)
    timeout = _whole(body, "timeout", max(seconds, LEAST_TIMEOUT), LEAST_TIMEOUT, MOST_TIMEOUT)
    data = body.get("task_data")
    task_type, params, items = drive.work_of(task_type, {} if data is None else data)
    executor = executors.get(task_type)
    try:
        checked = executor.check(params)
    except FieldError as error:
        raise FieldError(f"task_data.{_dialect(error.field, data)}", error.message) from None
    try:
        items = drive.begun(task_type, checked, items)
    except FieldError as error:
        raise FieldError(f"task_data.{_dialect(error.field, data)}", error.message) from None
    said = json.dumps([task_type, data, priority, timeout], sort_keys=True, separators=(",", ":"))
    return Order(task_id, task_type, checked, items, timeout, hashlib.sha256(said.encode(errors="replace")).hexdigest())


class Direct:
    """The tasks of one agent. ``free``: is there a slot; ``pool`` has its workers; ``changed`` hears of an end."""

    def __init__(
        self,
        folder: Path,
        tally: Tally,
        *,
        free: Callable[[], bool],
        pool: Callable[[], Pool],
        changed: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._tally = tally
        self._free = free
        self._pool = pool
        self._changed = changed
        self._tasks: dict[str, Task] = {}
        self._futures: dict[Task, Future[Entries]] = {}
        self._numbers = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = ""
        """Why nothing more is taken; empty while something is."""

    def open(self) -> None:
        """Call it on the agent's loop. Results of an earlier process go: nobody knows their tasks any more."""
        if self._folder.exists():
            import shutil  # it loads three compression libraries, which an idle agent does without

            shutil.rmtree(self._folder, ignore_errors=True)
        self._loop = asyncio.get_running_loop()

    @property
    def active(self) -> int:
        """Slots in use; a cancelled task holds its own until its worker is gone, or has let go of it."""
        return len(self._futures)

    @property
    def kept(self) -> int:
        """Ended tasks that can still be asked for."""
        return sum(task.state in ENDED for task in list(self._tasks.values()))

    def submit(self, order: Order) -> Task:
        """Starts it; the same order again is the same task. Raises Conflict for a known id with another order, Busy."""
        self.forget()
        known = self._tasks.get(order.task_id)
        if known is not None:
            if known.digest != order.digest:
                raise Conflict(f"task {order.task_id!r} is already known, with another body")
            return known
        if self.closed:
            raise Busy(self.closed)
        if not self._free():
            raise Busy("all workers are busy")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._numbers -= 1
        task = Task(order.task_id, order.type, order.digest, order.timeout, self._numbers)
        shard = {
            "allocation": task.number,
            "type": order.type,
            "params": order.params,
            "start": 0,
            "items": order.items,
            "result": str(self._folder / f"{-task.number}.json"),
        }
        future = self._pool().start([shard], order.timeout)
        self._tasks[order.task_id] = task
        self._futures[task] = future
        future.add_done_callback(lambda _: self._call_ended(task))
        return task

    def get(self, task_id: str) -> Task:
        """Raises NotFound. For any thread."""
        try:
            return self._tasks[task_id]
        except KeyError:
            raise NotFound(f"no task {shown(task_id)} here; ended tasks are kept for an hour") from None

    def running(self) -> list[Task]:
        """Those that have not ended."""
        return list(self._futures)

    def was_read(self, task: Task) -> None:
        """Its end was told to who asked. For any thread."""
        task.read = True
        if self.closed and self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._changed)

    def cancel(self, task_id: str) -> Task:
        """Ends it if it runs; one that has ended stays as it is. Raises NotFound."""
        task = self.get(task_id)
        if task.state not in ENDED:
            self._end(task, "cancelled", "cancelled on request")
            self._futures[task].cancel()
        return task

    def stop(self) -> None:
        """Takes nothing more and ends what runs."""
        self.closed = "this node is about to stop"
        for task in list(self._futures):
            self.cancel(task.task_id)

    def _call_ended(self, task: Task) -> None:
        """From one of the pool's threads; the loop may have ended by then."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended, task)

    def _ended(self, task: Task) -> None:
        from nodes.agent.pool import Cancelled, Crashed, TimedOut

        future = self._futures.pop(task)
        try:
            [entry] = future.result()
        except Cancelled:
            entry = _failure("error", "cancelled on this node")
        except TimedOut:
            entry = _failure("timeout", f"took longer than its time-out, {task.timeout:g} s")
        except Crashed as error:
            entry = _failure("crash", str(error))
        except Exception as error:
            logger.exception("task %s could not be run", task.task_id)
            entry = _failure("error", f"{type(error).__name__}: {error}")
        file = self._folder / f"{-task.number}.json"
        file.with_suffix(".tmp").unlink(missing_ok=True)  # of a worker that was killed while it wrote
        if task.state in ENDED:  # cancelled a moment before it ended
            file.unlink(missing_ok=True)
        else:
            self._tally.add([entry | {"seconds": time.monotonic() - task.began}])
            self._keep(task, entry, file)
        self._changed()

    def _keep(self, task: Task, entry: dict[str, Any], file: Path) -> None:
        failure, errors = entry.get("failure"), entry.get("errors") or []
        try:
            if failure:
                # As small as it is, it stands beside the large ones, so that all are read in one way.
                file.write_text(json.dumps(drive.result_of(task.type, {}, [], entry, [])))
            task.size = file.stat().st_size
            task.result = file
        except OSError as error:
            failure = {"message": f"its result cannot be kept: {error.strerror}"}
        if failure:
            self._end(task, "failed", failure["message"])
        elif errors and not entry.get("ranges"):
            self._end(task, "failed", "; ".join(str(message) for _, message, _ in errors[:5])[: drive.MESSAGE_LIMIT])
        else:
            self._end(task, "completed")

    def _end(self, task: Task, state: str, error: str | None = None) -> None:
        task.seconds = time.monotonic() - task.began
        task.state, task.error, task.ended = state, error, dt.datetime.now()
        # The order of ends, in which they are forgotten.
        self._tasks[task.task_id] = self._tasks.pop(task.task_id)

    def forget(self) -> None:
        """Forgets ended tasks that are too old, too many or too large."""
        ended = [task for task in self._tasks.values() if task.state in ENDED and task not in self._futures]
        size = sum(task.size for task in ended)
        oldest = time.monotonic() - KEPT_SECONDS
        for number, task in enumerate(ended):
            few = len(ended) - number <= KEPT_TASKS and size <= KEPT_BYTES
            if few and task.began + task.seconds > oldest:
                break
            size -= task.size
            del self._tasks[task.task_id]
            if task.result is not None:
                task.result.unlink(missing_ok=True)


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"failure": {"kind": kind, "message": message}}


def _dialect(name: str, data: Any) -> str:
    """``params.x`` as who sent it wrote it."""
    key = name.removeprefix("params.")
    return name if isinstance(data, dict) and isinstance(data.get("params"), dict) else key


def _whole(body: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FieldError(name, f"{shown(value)} is not a whole number from {least} to {most}")
    return value

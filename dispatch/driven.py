"""One node of carrier ``http``: what the driver does with it.

Its health is its beat; what was granted to it is claimed, posted there, asked for and reported, as an agent would. When
it is visited is decided in ``driving``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from dispatch import events, lifecycle, synclog
from dispatch.lifecycle.kept import about, frozen
from dispatch.models import Allocation
from dispatch.results.arriving import read_entry
from dispatch.states import LIVE
from nodes import drive, keys, messages, registry
from nodes.executors.base import Item
from nodes.models import Node
from nodes.peer import Broken, Busy, Health, Peer, PeerError, Refused, Unknown, Unreachable
from nodes.protocol import CascadeError, StorageFull, Unauthenticated

logger = logging.getLogger(__name__)

POLL_SECONDS = (0.05, 2.0)
POLL_SHARE = 0.15
"""A task is asked for after this share of the time that it has taken so far, so it is heard of that much late."""
WORKERS_SECONDS = 60.0
LONGEST_PAUSE = 30.0
RETRY_SECONDS = 1.0
GRACE_SECONDS = 15.0
"""A node stops a task at its time-out itself; so long after that it is taken away from it."""
LEAST_TIMEOUT = 10.0
"""The dialect knows no shorter one."""


@dataclass
class Task:
    """An allocation on a node. ``certain``: the node has said that it has it."""

    allocation: int
    task_id: str
    type: str
    params: Mapping[str, Any]
    start: int
    items: Sequence[Item]
    priority: int
    timeout: float
    certain: bool = False
    began: float = field(default_factory=time.monotonic)
    due: float = 0.0
    heard: float = field(default_factory=time.monotonic)

    def body(self) -> dict[str, Any]:
        return drive.execute_body(
            self.task_id, self.type, self.params, self.items, priority=self.priority, timeout=self.timeout
        )

    def put_off(self, now: float) -> None:
        least, most = POLL_SECONDS
        self.due = now + min(max((now - self.began) * POLL_SHARE, least), most)


class Driven:
    """One node that this parent drives. Visited by one thread at a time."""

    def __init__(self, node: Node, stopping: threading.Event | None = None) -> None:
        self.id = node.pk
        self.name = node.name
        self.address = (node.api_url, node.api_key)
        self.capacity = node.capacity
        self.tasks: dict[int, Task] = {}
        self.due = 0.0
        self.busy = self.urgent = False
        self._stopping = stopping or threading.Event()
        self._peer = Peer(node.api_url, node.api_key)
        self._caller = keys.inside(node.pk)
        self._adopted = False
        self._hello = True
        self._well = False
        self._health: Health | None = None
        self._failures = 0
        self._health_due = 0.0
        self._workers: int | None = None
        self._workers_due = 0.0
        self._slots: int | None = registry.told_slots(node)
        self._pause = 1.0
        self._paused_until = 0.0

    def urge(self) -> None:
        self.urgent = True

    def visit(self) -> None:
        """Asks how it is when that is due, hears of what it runs, gives it what was granted to it."""
        try:
            if not self._adopted:
                self._adopt()
            if time.monotonic() >= self._health_due:
                self._check_health()
            if self._well:
                self._drop_lost()
                self._poll()
                self._take()
        except Unauthenticated:
            self._well = False  # not active any more: the driver leaves it
            self._health_due = time.monotonic() + RETRY_SECONDS
        except StorageFull as error:
            logger.warning("results of %s wait there: %s", self.name, error)
            self._health_due = time.monotonic() + RETRY_SECONDS
        finally:
            dues = [task.due for task in self.tasks.values()] if self._well else []
            if self._paused_until > time.monotonic():
                dues.append(self._paused_until)
            self.due = min([self._health_due, *dues])

    def leave(self) -> None:
        """This parent does not drive it any more: nobody waits for what it runs."""
        for task in self.tasks.values():
            self._cancel(task)
        self._peer.close()

    # How it is

    def _check_health(self) -> None:
        now = time.monotonic()
        beat_seconds = settings.CASCADE.beat_seconds
        try:
            health = self._peer.health()
            if now >= self._workers_due:
                self._workers_due = now + WORKERS_SECONDS
                self._ask_workers()
        except PeerError as error:
            self._failures += 1
            if self._well or self._failures == 1:
                logger.warning("node %s: %s", self.name, error)
            self._well = False
            self._note("health", error)
            # Often at first, since a lease runs out soon; one that is gone for good must not hold threads.
            self._health_due = time.monotonic() + min(beat_seconds * max(1, self._failures - 3), LONGEST_PAUSE)
            return
        self._failures = 0
        self._health_due = now + beat_seconds
        if not health.alive:
            self._well = False
            self._note("health", f"it says that it is {health.status or 'nothing'}")
            return
        self._well = True
        self._health = health
        self._tell_slots(self._slots_of(health))
        self._beat()

    def _ask_workers(self) -> None:
        try:
            self._workers = self._peer.workers()
        except (Unknown, Refused, Broken):
            self._workers = None  # a route that not every node has

    def _slots_of(self, health: Health) -> int | None:
        """How many tasks of ours it takes now; None where nothing speaks against our own capacity."""
        most = self._workers if self._workers is not None else health.slots
        if time.monotonic() < self._paused_until or health.status == "overloaded" or (not health.well and most is None):
            return len(self.tasks)
        return None if most is None else max(most - max(health.active - len(self.tasks), 0), 0)

    def _tell_slots(self, slots: int | None) -> None:
        if slots != self._slots:
            registry.tell_slots(self.id, slots)
            self._slots = slots
            events.changed()

    def _beat(self) -> None:
        """Renews the leases of what it has answered for lately, and drops what is not its any more."""
        now = time.monotonic()
        health = self._health
        lease = settings.CASCADE.lease_seconds
        held = tuple(task.allocation for task in self.tasks.values() if self._hello or now - task.heard < lease)
        reply = lifecycle.beat(
            self._caller,
            messages.Beat(
                boot="",
                hello=self._hello,
                held=held,
                running=held,
                progress={},
                cpu=None if health is None else health.cpu,
                memory=None if health is None else health.memory,
                disk=None,
                version="",
                executors=None if health is None else health.types,
                carrier=Node.Carrier.HTTP.value,
                leaving=False,
            ),
        )
        self._hello = False
        self._drop(reply["cancel"])

    # What it runs

    def _adopt(self) -> None:
        """What was given to it before this process began, so far as it is still wanted."""
        live = Allocation.objects.filter(node_id=self.id, state__in=LIVE, delivered=True)
        self._expect([(*row, 0) for row in live.values_list("pk", "run_id", "start", "stop")])
        self._adopted = True

    def _expect(self, works: Iterable[Sequence[Any]]) -> list[Task]:
        """Tasks for allocations: (id, run, start, stop, …)."""
        works = list(works)
        granted = dict(Allocation.objects.filter(pk__in=[each[0] for each in works]).values_list("pk", "granted_at"))
        made = []
        for pk, run_id, start, stop, *_ in works:
            known = about(run_id)
            task = Task(
                allocation=pk,
                # Unique beyond this database: a node may serve several parents, and outlive them.
                task_id=f"allocation-{pk}-{int(granted[pk].timestamp() * 1e6):x}",
                type=known["type"],
                params=known["params"],
                start=start,
                items=frozen(run_id).slice(start, stop),
                priority=known["priority"],
                timeout=known["timeout"],
            )
            self.tasks[pk] = task
            made.append(task)
        return made

    def _drop_lost(self) -> None:
        """Cancels there what was taken back here."""
        if self.tasks:
            live = Allocation.objects.filter(pk__in=list(self.tasks), node_id=self.id, state__in=LIVE)
            self._drop(set(self.tasks) - set(live.values_list("pk", flat=True)))

    def _drop(self, allocations: Iterable[int]) -> None:
        for pk in allocations:
            if (task := self.tasks.pop(pk, None)) is not None:
                self._cancel(task)

    def _cancel(self, task: Task) -> None:
        try:
            self._peer.cancel(task.task_id)
        except PeerError as error:
            logger.info("node %s may go on with %s: %s", self.name, task.task_id, error)

    def _poll(self) -> None:
        finished: list[tuple[Task, dict[str, Any]]] = []
        for task in list(self.tasks.values()):
            if task.due > time.monotonic() or self._stopping.is_set():
                continue
            try:
                status = self._peer.task(task.task_id)
            except Unknown:
                self._unknown(task)
                continue
            except Unreachable as error:
                self._silent(error)
                break
            except PeerError as error:
                entry = self._overdue(task, str(error))
            else:
                entry = self._judge(task, status)
            if entry is not None:
                finished.append((task, entry))
            else:
                task.put_off(time.monotonic())
        self._report(finished)

    def _judge(self, task: Task, status: Mapping[str, Any]) -> dict[str, Any] | None:
        """The report of a task that has ended; None for one that has not, or was handed back."""
        task.certain = True
        task.heard = time.monotonic()
        state = status.get("status")
        if state in ("completed", "failed"):
            return drive.entry_of(task.allocation, task.type, task.start, task.items, status, task.params)
        if state == "cancelled":
            self._hand_back([task], "cancelled on the node")
            return None
        return self._overdue(task, f"it says {state!r}")

    def _overdue(self, task: Task, detail: str) -> dict[str, Any] | None:
        limit = max(task.timeout, LEAST_TIMEOUT)
        if time.monotonic() - task.began < limit + GRACE_SECONDS:
            return None
        self._cancel(task)
        message = f"not done {GRACE_SECONDS:g} s after its time-out of {limit:g} s; {detail}"
        return {"allocation": task.allocation, "failure": {"kind": "timeout", "message": message}}

    def _unknown(self, task: Task) -> None:
        if not task.certain:
            self._send(task)  # this parent ended, or the line was cut, before the node had it
            return
        # It was started anew and holds what it still answers for: the same as an agent that says hello.
        del self.tasks[task.allocation]
        self._hello = True
        self._beat()

    def _silent(self, error: Unreachable) -> None:
        """Nothing more is asked before its next health; leases are not renewed until then."""
        logger.warning("node %s: %s", self.name, error)
        self._well = False
        self._health_due = time.monotonic() + min(settings.CASCADE.beat_seconds, 1.0)

    # What it brings

    def _report(self, finished: Sequence[tuple[Task, dict[str, Any]]]) -> None:
        entries = [entry for task, made in finished if (entry := self._entry(task, made)) is not None]
        if not entries:
            return
        tasks = {task.allocation: task for task, _ in finished}
        results = lifecycle.report(self._caller, entries)["results"]
        refused = [each for each in results if each["status"] in (412, 422)]
        if refused:
            lifecycle.report(
                self._caller, [self._failure(tasks[each["allocation"]], each["detail"]) for each in refused]
            )
        for each in results:
            self.tasks.pop(each["allocation"], None)

    def _entry(self, task: Task, made: dict[str, Any]) -> messages.Entry:
        """Read as strictly as an agent's. Many rows become a segment in the spool. Raises StorageFull."""
        try:
            return read_entry(task.type, made)
        except StorageFull:
            raise
        except CascadeError as error:
            return self._failure(task, str(error))

    def _failure(self, task: Task, message: str) -> messages.Entry:
        failure = {"kind": "error", "message": f"the node's result was not accepted: {message}"}
        return messages.read_report({"reports": [{"allocation": task.allocation, "failure": failure}]})[0]

    # What it is given

    def _take(self) -> None:
        slots = self.capacity if self._slots is None else min(self._slots, self.capacity)
        free = slots - len(self.tasks)
        if free <= 0 or time.monotonic() < self._paused_until or not lifecycle.offered(self.id):
            return
        claimed = lifecycle.claim(self._caller, messages.Claim("", free, 0.0, ()), most=free)
        waiting = self._expect(claimed["work"])
        for at, task in enumerate(waiting, 1):
            if self._stopping.is_set():
                return
            if not self._send(task):
                # A node that is full leaves the rest to others; where it fell silent, the leases decide.
                if self._well:
                    self._hand_back(waiting[at:], "the node takes no more now")
                return

    def _send(self, task: Task) -> bool:
        """Posts a task; False where the node takes no more now."""
        try:
            answer = self._peer.execute(task.body())
        except Unreachable as error:
            self._silent(error)
            return False
        except Busy as error:
            self._rest(error)
            self._hand_back([task], "the node is busy")
            return False
        except Refused as error:
            if error.code in (401, 403, 409):
                # About its key, or about a task of somebody else's that has this name: another node may have more luck.
                self._rest(error)
                self._hand_back([task], str(error))
                return False
            self._refuse(task, error)
            return True
        except PeerError as error:
            self._rest(error)
            self._hand_back([task], str(error))
            return False
        self._pause = 1.0
        task.certain = True
        task.began = task.heard = time.monotonic()
        if answer.get("status") in ("completed", "failed"):
            task.due = 0.0
        else:
            task.put_off(task.began)
        self._note("execute", "")
        return True

    def _refuse(self, task: Task, error: PeerError) -> None:
        """The node will never take this: an attempt that failed."""
        lifecycle.report(self._caller, [self._failure(task, str(error))])
        self.tasks.pop(task.allocation, None)
        self._note("execute", error)

    def _rest(self, error: PeerError) -> None:
        """No new work for a moment, longer each time."""
        self._paused_until = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._health_due = min(self._health_due, self._paused_until)
        self._note("execute", error)

    def _hand_back(self, tasks: Sequence[Task], detail: str) -> None:
        if not tasks:
            return
        for task in tasks:
            self.tasks.pop(task.allocation, None)
        # First, so that the allocator does not give it the same again at once.
        if time.monotonic() < self._paused_until:
            self._tell_slots(len(self.tasks))
        lifecycle.release(self._caller, [task.allocation for task in tasks], detail)

    def _note(self, operation: str, error: object) -> None:
        synclog.note(self.id, operation, "push", count=0 if error else 1, error=str(error))

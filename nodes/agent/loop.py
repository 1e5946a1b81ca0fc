"""What an agent holds and what it does next: takes work, fills its slots, beats, stops. ``sender`` tells of it."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nodes import executors, failpoints
from nodes.agent.alone import NoLine
from nodes.agent.carriers import Body, Line, Link, MakeLine, Refused, Unreachable, check_protocol
from nodes.agent.config import AgentConfig
from nodes.agent.configuration import Store, Sync
from nodes.agent.direct import Direct
from nodes.agent.health import Sampler, Tally
from nodes.agent.inputs import Inputs
from nodes.agent.logs import Logs
from nodes.agent.outbox import Outbox
from nodes.agent.sender import Sender
from nodes.agent.vitals import Vitals
from nodes.protocol import VERSION

if TYPE_CHECKING:
    from nodes.agent.pool import Entries, Pool
    from nodes.agent.pool import Task as PoolTask

logger = logging.getLogger(__name__)

T = TypeVar("T")

BUNDLE_SECONDS = 0.02
"""Shards so short that several of them take no longer than this go to a worker in one trip."""
PACE = 0.3
GONE = (404, 409)
"""Refusals that say that an allocation is not ours any more."""
WATCH_SECONDS = 1.0
ROOM_SECONDS = 5.0
"""A disk that was full is worth another try after so long."""
END_SECONDS = 5.0
READ_SECONDS = 5.0
"""Drivers ask every second or two."""
GIVE_UP_SECONDS = 10.0
"""How long a stop tries to bring the last results to a parent that does not answer; they wait in the outbox."""


@dataclass(slots=True)
class Work:
    """One allocation in hand."""

    allocation: int
    type: str
    params: dict[str, Any]
    timeout: float
    start: int
    items: list[Any]
    memory: dict[str, Any] = field(default_factory=dict)
    """What its items remember, by item_key."""
    input: str = ""
    """The file with the rows that it works over, where it has any."""
    run: int = 0
    """As the parent numbers it."""
    alone: bool = False
    """Not in a bundle any more: one that it was in has crashed or hung."""

    def shard(self) -> dict[str, Any]:
        return {
            "allocation": self.allocation,
            "run": self.run,
            "type": self.type,
            "params": self.params,
            "start": self.start,
            "items": self.items,
            "memory": self.memory,
            "input": self.input,
        }


@dataclass(slots=True)
class Bundle:
    """What one slot runs now."""

    works: list[Work]
    future: PoolTask
    cancelled: set[int] = field(default_factory=set)


class Agent:
    """One child. ``run()`` returns when ``stop()`` was called and everything is reported or handed back."""

    def __init__(self, config: AgentConfig, version: str = "", *, line: MakeLine | None = None) -> None:
        self.config = config
        self.version = version
        self.boot = secrets.token_hex(8)
        self.node = ""
        self.capacity = 1 if config.parent or line else config.workers or os.cpu_count() or 1
        self.beat_seconds = 5.0
        self.draining = False
        self._queue: deque[Work] = deque()
        self._bundles: list[Bundle] = []
        self._fetching: dict[int, asyncio.Task[None]] = {}
        """Work whose input is still to come."""
        self._held: set[int] = set()
        self._progress: dict[int, int] = {}
        self._seconds: dict[str, float] = {}
        self._releasing: asyncio.Task[None] | None = None
        self._refused: set[int] = set()
        """What was done and could not be kept, until it is handed back."""
        self._jobs: set[asyncio.Task[None]] = set()
        self._outbox = Outbox(config.data_dir)
        self._pool: Pool | None = None
        self._greeted = False
        self._greeting = asyncio.Lock()
        self._homeless = False
        """Whether another server was found where our parent was, and it has not heard our hello yet."""
        self.stopping = False
        self._stop_asked = asyncio.Event()
        self._changed = asyncio.Event()
        self._paced = asyncio.Event()
        self._vitals = Vitals(config.data_dir)
        make = line or (partial(Link, config) if config.parent else NoLine)
        self._link: Line = make(self._hear, self._claim, self._greet)
        self._inputs = Inputs(config.data_dir / "inputs", self._link)
        self._logs = Logs(self._link)
        self.tally = Tally()
        self.sampler = Sampler(config.data_dir, resident=config.max_memory_mb > 0)
        self.direct = Direct(
            config.data_dir / "direct", self.tally, free=self._has_slot, pool=self._workers, changed=self._slot_freed
        )
        # Only over a network: an agent inside its parent's process has the configuration there.
        self._sync = None
        if isinstance(self._link, Link):
            rest = self._link.rest
            self._link.moved = self._moved
            self._sync = Sync(Store(config.data_dir), lambda: rest.fetch("config"), self._paced.set)
        self._sender = Sender(
            self._outbox, self._link, held=self._held, gone=self._take_back, queued=lambda: bool(self._queue)
        )

    # The life of the agent

    async def run(self, opened: Callable[[], None] = lambda: None) -> None:
        """Until stopped; calls ``opened`` when it has its folder. Raises BlockingIOError: another agent has that."""
        self._loop = asyncio.get_running_loop()
        self._outbox.open()
        self._held.update(self._outbox.allocations())
        if isinstance(self._link, Link):
            self._link.parent = self._outbox.parent
        self._inputs.open()
        if self._sync is not None:
            self._sync.open()
        self._sender.wake()
        self.direct.open()
        opened()
        jobs = [asyncio.create_task(job) for job in self._lives()]
        stopped = asyncio.create_task(self._stop_asked.wait())
        try:
            done, _ = await asyncio.wait([stopped, *jobs], return_when=asyncio.FIRST_COMPLETED)
            for job in done - {stopped}:
                job.result()  # a job ends by an error only
            await self._wind_down()
        finally:
            for job in [stopped, *jobs, *self._jobs]:
                job.cancel()
            await asyncio.wait([stopped, *jobs], timeout=END_SECONDS)
            if self._pool is not None:
                self._pool.stop()
            if self._sync is not None:
                self._sync.close()
            self._link.close()
            self._outbox.close()

    def _lives(self) -> list[Coroutine[Any, Any, None]]:
        return [self._link.run(), self._sender.run(), self._logs.run(), self._beat(), self._watch()]

    def stop(self) -> None:
        """Take nothing more, finish or hand back what is here, report, end. Call it on the agent's loop."""
        self.stopping = True
        self._stop_asked.set()

    async def _wind_down(self) -> None:
        """SIGTERM: hand back what has not begun, wait for what runs, report, say good-bye."""
        logger.info("stopping: %d running, %d to hand back", len(self._bundles), len(self._queue))
        self._link.taking = False
        self.direct.stop()  # nobody can fetch their results any more
        deadline = self._loop.time() + self.config.drain_seconds
        await self._release([*(work.allocation for work in self._queue), *self._fetching], "the node stops")
        await self._say_leaving()
        await self._until(deadline - self._loop.time(), lambda: not self._bundles)
        unfinished = [work.allocation for bundle in self._bundles for work in bundle.works]
        unfinished += [*(work.allocation for work in self._queue), *(self._refused & self._held)]
        if unfinished:
            logger.info("handing back %d that are not finished", len(unfinished))
            self._drop(unfinished)
            await self._release(unfinished, "the node stops")
        give_up = self._loop.time() + GIVE_UP_SECONDS
        while len(self._outbox) and self._loop.time() < give_up:
            self._sender.wake()
            await asyncio.sleep(0.02)
        await self._say_leaving()
        if len(self._outbox):
            logger.warning("%d results wait in %s for the next start", len(self._outbox), self.config.data_dir)

    async def _say_leaving(self) -> None:
        with suppress(Unreachable, Refused, TimeoutError):
            async with asyncio.timeout(3):
                await self._link.call("beat", self._beat_body())

    @property
    def active(self) -> int:
        """Slots in use."""
        return len(self._bundles) + self.direct.active

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def call(self, verb: Callable[..., T], *args: Any) -> Future[T]:
        """``verb`` on the agent's loop, from any thread."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(verb(*args))
            except BaseException as error:
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return answer

    def wake(self) -> None:
        """There may be work for us. Call it on the agent's loop."""
        self._link.wake()

    async def drain(self) -> None:
        """Takes nothing more, from whomever; returns when nothing runs, after ``drain_seconds`` at most, and who gave
        what ran has had a while to read how it ended."""
        self._link.taking = False
        self.direct.closed = "this node is about to stop"
        last = self.direct.running()
        await self._until(self.config.drain_seconds, lambda: not (self.active or self._queue))
        await self._until(READ_SECONDS, lambda: all(task.read for task in last))

    async def _until(self, seconds: float, over: Callable[[], bool]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not over():
                    self._changed.clear()
                    await self._changed.wait()

    # Work comes in

    def _hear(self, message: Body) -> None:
        """Offers, claimed work and orders, from either carrier."""
        self._take_back(message.get("cancel") or [])
        if message.get("type") == "cancel":
            self._take_back(message.get("ids") or [])
        for allocation, stop in message.get("shorten") or []:
            self._shorten(allocation, stop)
        if "drain" in message:
            self.draining = bool(message["drain"])
        runs = message.get("runs") or {}
        memories, inputs = message.get("memory") or {}, set(message.get("inputs") or ())
        late: list[int] = []
        offered: list[int] = []
        for allocation, run, start, _stop, _attempt, items in message.get("work") or []:
            if allocation in self._held:
                continue  # an offer repeated after a reconnect
            if self.stopping:
                late.append(allocation)
                continue
            about = runs[str(run)]
            self._held.add(allocation)
            memory = memories.get(str(allocation)) or {}
            work = Work(allocation, about["type"], about["params"], about["timeout"], start, items, memory)
            work.run = run
            if allocation in inputs:
                self._fetching[allocation] = asyncio.create_task(self._fetch(work))
            else:
                self._queue.append(work)
            if message.get("type") == "offer":
                offered.append(allocation)
        if message.get("work"):
            failpoints.reach("agent.taken")
        self._sender.accept(offered)
        if late:
            self._releasing = asyncio.create_task(self._release(late, "the node stops"))
        self._fill()

    async def _fetch(self, work: Work) -> None:
        """Brings what ``work`` needs to begin, then queues it."""
        failure = ""
        try:
            work.input = await self._inputs.bring(work.allocation)
        except Refused as error:
            failure = "" if error.status in GONE else f"its input did not come: {error}"
            if not failure:
                self._held.discard(work.allocation)
        except OSError as error:
            failure = f"its input cannot be kept here: {error}"
        self._fetching.pop(work.allocation, None)
        if failure:
            self._keep([{"allocation": work.allocation, "failure": {"kind": "error", "message": failure}}])
        elif work.allocation in self._held:
            self._queue.append(work)
        self._fill()
        self._changed.set()

    def _claim(self) -> Body:
        free = max(self.capacity - self.active - len(self._queue) - len(self._fetching), 0)
        return {"boot": self.boot, "slots": free, "held": sorted(self._held)}

    # Work is done

    def _fill(self) -> None:
        """Gives every free slot something to do."""
        # Before the first word of the parent the capacity is a guess.
        while self._greeted and self._queue and self.active < self.capacity:
            works = self._take()
            future = self._workers().start(
                [work.shard() for work in works], self._patience(works), alone=works[0].alone
            )
            bundle = Bundle(works, future)
            self._bundles.append(bundle)
            bundle.future.add_done_callback(partial(self._call_finished, bundle))

    def _call_finished(self, bundle: Bundle, _: Future[Entries]) -> None:
        """From one of the pool's threads; the loop may have ended by then."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finished, bundle)

    def _take(self) -> list[Work]:
        """The next bundle: one shard, or several that are known to be very short."""
        works = [self._queue.popleft()]
        seconds = self._seconds.get(works[0].type)
        # What waits may wait long, however short it mostly is: it keeps nobody else.
        if seconds is None or works[0].alone or executors.get(works[0].type).waits:
            return works
        most = min(int(BUNDLE_SECONDS / max(seconds, 1e-6)), -(-len(self._queue) // self.capacity))
        while len(works) < most and self._queue[0].type == works[0].type and not self._queue[0].alone:
            works.append(self._queue.popleft())
        return works

    def _patience(self, works: list[Work]) -> float:
        return max(work.timeout for work in works)

    def _workers(self) -> Pool:
        if self._pool is None or self._pool.size != self.capacity:
            from nodes.agent.pool import Pool  # an idle agent needs no pool

            if self._pool is not None:
                self._pool.close()
            about = self.config.surroundings
            self._pool = Pool(self.capacity, str(self._outbox.folder), self._note_progress, about, self._logs)
        return self._pool

    def _note_progress(self, allocation: int, done: int) -> None:
        if allocation >= 0:  # below are tasks handed directly to us
            self._progress[allocation] = done

    def _has_slot(self) -> bool:
        return self.active < self.capacity and not self._queue and not self.draining and not self.stopping

    def _slot_freed(self) -> None:
        self._fill()
        self._changed.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.sampler.take()
            self.direct.forget()

    def _finished(self, bundle: Bundle) -> None:
        from nodes.agent.pool import Cancelled, Crashed, TimedOut
        from nodes.agent.runner import NoRoom

        self._bundles.remove(bundle)
        entries: Entries = []
        again: list[Work] = []
        try:
            entries = [entry for entry in bundle.future.result() if entry["allocation"] not in bundle.cancelled]
            self._learn(bundle, entries)
        except Cancelled:
            # Only the cancelled one is meant; what shared its bundle starts again.
            again = [work for work in bundle.works if work.allocation not in bundle.cancelled]
        except (Crashed, TimedOut) as error:
            if len(bundle.works) > 1:
                # Which of them it was shows when each runs alone.
                again = [work for work in bundle.works if work.allocation not in bundle.cancelled]
            elif bundle.works[0].allocation not in bundle.cancelled:
                entries = [self._failure(bundle.works[0], error)]
        except NoRoom as error:
            self._hand_back({work.allocation for work in bundle.works} - bundle.cancelled, str(error))
        except Exception as error:
            logger.exception("a bundle could not be run")
            entries = [
                {
                    "allocation": work.allocation,
                    "failure": {"kind": "error", "message": f"{type(error).__name__}: {error}"},
                }
                for work in bundle.works
                if work.allocation not in bundle.cancelled
            ]
        for work in bundle.works:
            self._progress.pop(work.allocation, None)
        self._logs.ended([work.allocation for work in bundle.works if work not in again], entries)
        self._again(again)
        self._fill()  # first of all: a free slot costs more than a report a moment later
        failpoints.reach("agent.finished")
        if entries:
            self._keep(entries)
        if any(work.input for work in bundle.works):
            again = [*self._queue, *(work for each in self._bundles for work in each.works)]
            self._inputs.drop({work.allocation for work in bundle.works} - {work.allocation for work in again})
        self._changed.set()

    def _hand_back(self, ids: set[int], why: str) -> None:
        """Somebody else may do these; no attempt counts. Not at once, or we would get them again and do them in vain:
        until then they hold their slots at the parent."""
        logger.error("%s: %d allocations are handed back in %g s", why, len(ids), ROOM_SECONDS)
        self._refused |= ids

        async def later() -> None:
            await asyncio.sleep(ROOM_SECONDS)
            self._refused -= ids
            await self._release(sorted(ids & self._held), why)

        job = asyncio.create_task(later())
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def _keep(self, entries: Entries) -> None:
        """Finished work, to be told of."""
        self.tally.add(entries)
        self._outbox.put(entries)
        self._sender.wake()

    def _again(self, works: Iterable[Work]) -> None:
        for work in works:
            work.alone = True
            self._logs.anew(work.allocation)
            self._queue.appendleft(work)

    def _failure(self, work: Work, error: Exception) -> dict[str, Any]:
        from nodes.agent.pool import TimedOut

        if isinstance(error, TimedOut):
            failure = {"kind": "timeout", "message": f"took longer than its time-out, {work.timeout:g} s"}
        else:
            failure = {"kind": "crash", "message": str(error)}
        return {"allocation": work.allocation, "failure": failure}

    def _learn(self, bundle: Bundle, entries: Entries) -> None:
        if not entries:
            return
        measured = sum(entry.get("seconds", 0.0) for entry in entries) / len(entries)
        task_type = bundle.works[0].type
        earlier = self._seconds.get(task_type)
        self._seconds[task_type] = measured if earlier is None else earlier + PACE * (measured - earlier)

    def _take_back(self, ids: Iterable[int]) -> None:
        """The parent does not want these of us any more."""
        if wanted := set(ids) & self._held:
            self._drop(wanted)
            logger.info("dropped %d allocations that the parent took back", len(wanted))

    def _shorten(self, allocation: int, stop: int) -> None:
        """The parent has somebody who will do the items from ``stop`` on sooner than we do."""
        for bundle in self._bundles:
            if self._pool is not None and any(work.allocation == allocation for work in bundle.works):
                self._pool.shorten(bundle.future, allocation, stop)

    def _drop(self, ids: Iterable[int]) -> None:
        """Drops these allocations, whatever they are at; running ones end."""
        wanted = set(ids)
        self._held -= wanted
        self._unqueue(wanted)
        self._outbox.drop(wanted)
        for bundle in self._bundles:
            hit = wanted & {work.allocation for work in bundle.works}
            if hit:
                bundle.cancelled |= hit
                bundle.future.cancel()

    def _running(self) -> list[int]:
        return [bundle.works[0].allocation for bundle in self._bundles]

    def _unqueue(self, ids: set[int]) -> None:
        """Forgets those that have not begun, with what was brought for them."""
        for allocation in ids & self._fetching.keys():
            self._fetching.pop(allocation).cancel()
            self._inputs.drop([allocation])
        self._inputs.drop(work.allocation for work in self._queue if work.allocation in ids)
        self._queue = deque(work for work in self._queue if work.allocation not in ids)

    async def _release(self, ids: list[int], detail: str) -> None:
        self._unqueue(set(ids))
        self._held -= set(ids)
        if ids:
            with suppress(Unreachable, Refused, TimeoutError):
                async with asyncio.timeout(5):
                    await self._link.call("release", {"allocations": ids, "detail": detail})

    # Beats

    async def _greet(self) -> None:
        """Hello, once in this agent's life; later connects only beat, for what is on its way then must not be lost."""
        async with self._greeting:
            hello = {} if self._greeted else {"hello": True, "protocol": VERSION}
            reply = await self._link.call("beat", self._beat_body() | hello)
            check_protocol(reply)
            self._heard(reply)
            if not self._greeted:
                logger.info("we are %r with %d slots, by %s", self.node, self.capacity, self._link.carrier)
            self._greeted, self._homeless = True, False
        self._sender.reached()
        self._fill()

    async def _beat(self) -> None:
        while True:
            self._paced.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.beat_seconds):
                    await self._paced.wait()
            if not self._greeted and not self._homeless:
                continue
            try:
                if self._homeless:
                    await self._greet()
                else:
                    self._heard(await self._link.call("beat", self._beat_body()))
            except (Unreachable, Refused) as error:
                logger.warning("beat: %s", error)
            except Exception:
                logger.exception("a beat failed")

    def _beat_body(self) -> Body:
        return {
            "boot": self.boot,
            "held": sorted(self._held),
            "running": self._running(),
            "progress": {str(allocation): done for allocation, done in list(self._progress.items())},
            "version": self.version,
            "executors": executors.offered(self.config.surroundings),
            "carrier": self._link.carrier,
            # What runs is still ours, but send no more.
            "leaving": not self._link.reachable,
            **({} if self._sync is None else {"config": self._sync.number}),
            **self._vitals.now(),
        }

    def _moved(self) -> None:
        """What we hold is of the parent that was there before. It gives it to others; here it is about other work."""
        logger.warning("%s is another parent now: what was for the old one is dropped", self.config.parent)
        self._greeted, self._homeless = False, True
        self._logs.forget()
        self._drop(self._held)
        self._outbox.belong("")
        self._paced.set()

    def _heard(self, reply: Body) -> None:
        if isinstance(self._link, Link) and (parent := str(reply.get("parent", ""))):
            self._link.parent = parent
            self._outbox.belong(parent)
        self.node = str(reply.get("node", self.node))
        self._logs.on = bool(reply.get("logs"))
        beat_seconds = float(reply.get("beat_seconds", self.beat_seconds))
        if beat_seconds < self.beat_seconds:
            self._paced.set()  # at once: leases may be as much shorter as the pace is quicker
        self.beat_seconds = beat_seconds
        self._link.long_poll = float(reply.get("long_poll_seconds", self._link.long_poll))
        capacity = int(reply.get("capacity", self.capacity))
        if self.config.workers:
            capacity = min(capacity, self.config.workers)
        if capacity != self.capacity:
            logger.info("capacity is %d now", capacity)
            self.capacity = capacity
        if self._sync is not None:
            self._sync.heard(reply.get("config"), reply.get("config_mark"))
        self._hear({"type": "beat", "cancel": reply.get("cancel"), "drain": reply.get("drain", False)})

"""What an agent holds and what it does next: takes work, fills its slots, reports, beats, stops."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from nodes import executors
from nodes.agent.carriers import Body, Link, Refused, Unreachable, jitter
from nodes.agent.config import AgentConfig
from nodes.agent.outbox import Outbox
from nodes.agent.vitals import Vitals
from nodes.protocol import FRAME_BYTES_LIMIT

if TYPE_CHECKING:
    from nodes.agent.pool import Entries, Pool

logger = logging.getLogger(__name__)

BUNDLE_SECONDS = 0.02
"""Shards so short that several of them take no longer than this go to a worker in one trip."""
REPORT_LIMIT = 1000
GATHER_SECONDS = 0.01
MOMENT_SECONDS = 0.002
ACCEPT_SECONDS = 0.25
"""An accept may wait so long: what is finished by then is reported instead, which says the same."""
MESSAGE_LIMIT = 2_000
REJECTED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""The message itself is wrong. Any other refusal is about us, or about now."""
PACE = 0.3
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
    alone: bool = False
    """Not in a bundle any more: one that it was in has crashed or hung."""

    def shard(self) -> dict[str, Any]:
        return {
            "allocation": self.allocation,
            "type": self.type,
            "params": self.params,
            "start": self.start,
            "items": self.items,
        }


@dataclass(slots=True)
class Bundle:
    """What one slot runs now."""

    works: list[Work]
    future: Future[Entries]
    cancelled: set[int] = field(default_factory=set)


class Agent:
    """One child. ``run()`` returns when ``stop()`` was called and everything is reported or handed back."""

    def __init__(self, config: AgentConfig, version: str = "") -> None:
        self.config = config
        self.version = version
        self.boot = secrets.token_hex(8)
        self.node = ""
        self.capacity = 1
        self.beat_seconds = 5.0
        self.draining = False
        self._queue: deque[Work] = deque()
        self._bundles: list[Bundle] = []
        self._held: set[int] = set()
        self._progress: dict[int, int] = {}
        self._seconds: dict[str, float] = {}
        self._accepted: deque[tuple[float, int]] = deque()
        self._uploaded: set[str | None] = set()
        self._batch = REPORT_LIMIT
        self._releasing: asyncio.Task[None] | None = None
        self._outbox = Outbox(config.data_dir)
        self._pool: Pool | None = None
        self._greeted = False
        self.stopping = False
        self._to_send = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._changed = asyncio.Event()
        self._vitals = Vitals(config.data_dir)
        self._link = Link(config, inbound=self._hear, claim=self._claim, connected=self._greet)

    # The life of the agent

    async def run(self) -> None:
        """Until stopped. Raises BlockingIOError when another agent uses the same data folder."""
        self._loop = asyncio.get_running_loop()
        self._outbox.open()
        self._held.update(self._outbox.allocations())
        self._to_send.set()
        jobs = [asyncio.create_task(self._open()), asyncio.create_task(self._send()), asyncio.create_task(self._beat())]
        stopped = asyncio.create_task(self._stop_asked.wait())
        try:
            done, _ = await asyncio.wait([stopped, *jobs], return_when=asyncio.FIRST_COMPLETED)
            for job in done - {stopped}:
                job.result()  # a job ends by an error only
            await self._wind_down()
        finally:
            for job in [stopped, *jobs]:
                job.cancel()
            await asyncio.gather(stopped, *jobs, return_exceptions=True)
            if self._pool is not None:
                self._pool.stop()
            self._link.close()
            self._outbox.close()

    def stop(self) -> None:
        """Take nothing more, finish or hand back what is here, report, end. Call it on the agent's loop."""
        self.stopping = True
        self._stop_asked.set()

    async def _open(self) -> None:
        """The first exchange is a hello: until the parent knows what this agent holds, it must not send more."""
        if self.config.carrier != "push":
            await self._greet_until_heard()
        await self._link.run()

    async def _greet_until_heard(self) -> None:
        attempt = 0
        while not self._greeted:
            try:
                await self._greet()
            except (Unreachable, Refused) as error:
                attempt += 1
                logger.warning("%s does not take us in: %s", self.config.parent, error)
                await asyncio.sleep(jitter(attempt))

    async def _wind_down(self) -> None:
        """SIGTERM: hand back what has not begun, wait for what runs, report, say good-bye."""
        logger.info("stopping: %d running, %d to hand back", len(self._bundles), len(self._queue))
        self._link.taking = False
        deadline = self._loop.time() + self.config.drain_seconds
        await self._release([work.allocation for work in self._queue], "the node stops")
        await self._say_leaving()
        while self._bundles and (left := deadline - self._loop.time()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        unfinished = [work.allocation for bundle in self._bundles for work in bundle.works]
        unfinished += [work.allocation for work in self._queue]
        if unfinished:
            logger.info("handing back %d that are not finished", len(unfinished))
            self._drop(unfinished)
            await self._release(unfinished, "the node stops")
        give_up = self._loop.time() + GIVE_UP_SECONDS
        while len(self._outbox) and self._loop.time() < give_up:
            self._to_send.set()
            await asyncio.sleep(0.02)
        await self._say_leaving()
        if len(self._outbox):
            logger.warning("%d results wait in %s for the next start", len(self._outbox), self.config.data_dir)

    async def _say_leaving(self) -> None:
        with suppress(Unreachable, Refused, TimeoutError):
            await asyncio.wait_for(self._link.call("beat", self._beat_body()), 3)

    @property
    def active(self) -> int:
        """Slots in use."""
        return len(self._bundles)

    # Work comes in

    def _hear(self, message: Body) -> None:
        """Offers, claimed work and orders, from either carrier."""
        self._take_back(message.get("cancel") or [])
        if message.get("type") == "cancel":
            self._take_back(message.get("ids") or [])
        if "drain" in message:
            self.draining = bool(message["drain"])
        runs = message.get("runs") or {}
        late: list[int] = []
        for allocation, run, start, _stop, _attempt, items in message.get("work") or []:
            if allocation in self._held:
                continue  # an offer repeated after a reconnect
            if self.stopping:
                late.append(allocation)
                continue
            about = runs[str(run)]
            self._held.add(allocation)
            self._queue.append(Work(allocation, about["type"], about["params"], about["timeout"], start, items))
            if message.get("type") == "offer":
                self._accepted.append((self._loop.time() + ACCEPT_SECONDS, allocation))
        if self._accepted:
            self._loop.call_later(ACCEPT_SECONDS, self._to_send.set)
        if late:
            self._releasing = asyncio.create_task(self._release(late, "the node stops"))
        self._fill()

    def _claim(self) -> Body:
        free = max(self.capacity - len(self._bundles) - len(self._queue), 0)
        return {"boot": self.boot, "slots": free, "held": sorted(self._held)}

    # Work is done

    def _fill(self) -> None:
        """Gives every free slot something to do."""
        # Before the first word of the parent the capacity is a guess.
        while self._greeted and self._queue and len(self._bundles) < self.capacity:
            works = self._take()
            bundle = Bundle(works, self._workers().start([work.shard() for work in works], self._patience(works)))
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
        if seconds is None or works[0].alone:
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
            self._pool = Pool(self.capacity, str(self._outbox.folder), self._note_progress)
        return self._pool

    def _note_progress(self, allocation: int, done: int) -> None:
        self._progress[allocation] = done

    def _finished(self, bundle: Bundle) -> None:
        from nodes.agent.pool import Cancelled, Crashed, TimedOut

        self._bundles.remove(bundle)
        entries: Entries = []
        try:
            entries = [entry for entry in bundle.future.result() if entry["allocation"] not in bundle.cancelled]
            self._learn(bundle, entries)
        except Cancelled:
            # Only the cancelled one is meant; what shared its bundle starts again.
            self._again(work for work in bundle.works if work.allocation not in bundle.cancelled)
        except (Crashed, TimedOut) as error:
            if len(bundle.works) > 1:
                # Which of them it was shows when each runs alone.
                self._again(work for work in bundle.works if work.allocation not in bundle.cancelled)
            elif bundle.works[0].allocation not in bundle.cancelled:
                entries = [self._failure(bundle.works[0], error)]
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
        if entries:
            self._outbox.put(entries)
            self._to_send.set()
        self._fill()
        self._changed.set()

    def _again(self, works: Iterable[Work]) -> None:
        for work in works:
            work.alone = True
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

    def _drop(self, ids: Iterable[int]) -> None:
        """Drops these allocations, whatever they are at; a running one's worker is killed."""
        wanted = set(ids)
        self._held -= wanted
        self._queue = deque(work for work in self._queue if work.allocation not in wanted)
        self._outbox.drop(wanted)
        for bundle in self._bundles:
            hit = wanted & {work.allocation for work in bundle.works}
            if hit:
                bundle.cancelled |= hit
                bundle.future.cancel()

    # Results go out

    async def _send(self) -> None:
        """Accepts and reports, as many together as wait; what does not arrive is sent again."""
        attempt = 0
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            try:
                await self._send_accepts()
                while len(self._outbox):
                    # What ends together is reported together; with work queued for the slots, nobody waits for it.
                    if len(self._outbox) < REPORT_LIMIT // 4:
                        await asyncio.sleep(GATHER_SECONDS if self._queue else MOMENT_SECONDS)
                    await self._send_reports()
                    await self._send_accepts()
                attempt = 0
            except Unreachable as error:
                attempt += 1
                logger.warning("%d results wait: %s", len(self._outbox), error)
                await asyncio.sleep(error.wait if error.wait is not None else jitter(attempt))
                self._to_send.set()
            except Refused as error:
                attempt += 1
                logger.error("the parent refuses our reports: %s", error)
                await asyncio.sleep(jitter(attempt + 4))
                self._to_send.set()
            except Exception:
                attempt += 1
                logger.exception("a report failed")
                await asyncio.sleep(jitter(attempt + 4))
                self._to_send.set()

    async def _send_accepts(self) -> None:
        due: list[int] = []
        while self._accepted and self._accepted[0][0] <= self._loop.time():
            due.append(self._accepted.popleft()[1])
        # What is reported already, or in the outbox, needs no accept any more.
        ids = [allocation for allocation in due if allocation in self._held and allocation not in self._outbox]
        if not ids:
            return
        try:
            self._take_back((await self._link.call("accept", {"allocations": ids})).get("gone", []))
        except Unreachable:
            self._accepted.extendleft((0.0, allocation) for allocation in reversed(ids))
            raise

    async def _send_reports(self) -> None:
        entries = _fitting(self._outbox.waiting(self._batch))
        if not entries:
            return
        for segment in sorted({entry["segment"] for entry in entries if entry.get("segment")} - self._uploaded):
            if not await self._upload(segment):
                return
        try:
            reply = await self._link.call("report", {"reports": entries})
        except Refused as error:
            if error.status not in REJECTED:
                raise
            # One of them makes the whole message wrong: it is found by halving, so that the others get through.
            if len(entries) > 1:
                self._batch = len(entries) // 2
            else:
                self._replace(entries, str(error))
            return
        self._batch = min(2 * self._batch, REPORT_LIMIT)
        sent = {entry["allocation"]: entry for entry in entries}
        settled = []
        for result in reply.get("results", []):
            if (entry := sent.get(result["allocation"])) is None:
                continue
            if result["status"] == HTTPStatus.PRECONDITION_FAILED:
                self._uploaded.discard(entry.get("segment"))
                continue
            if result["status"] != HTTPStatus.OK:
                logger.warning("allocation %s: %s", result["allocation"], result.get("detail"))
            if result["status"] == HTTPStatus.UNPROCESSABLE_ENTITY and "failure" not in entry:
                self._replace([entry], str(result.get("detail")))
                continue
            settled.append(result["allocation"])
        self._uploaded -= {entry.get("segment") for entry in entries if entry["allocation"] in settled}
        self._outbox.drop(settled)
        self._held -= set(settled)

    async def _upload(self, segment: str) -> bool:
        """Brings a segment to the parent; False where it cannot be, and its entries are failures now."""
        try:
            await self._link.rest.upload(segment, self._outbox.segment(segment))
        except OSError as error:
            problem = f"its rows cannot be read any more: {error.strerror}"
        except Refused as error:
            if error.status not in REJECTED:
                raise
            problem = str(error)
        else:
            self._uploaded.add(segment)
            return True
        self._replace([entry for entry in self._outbox.waiting(None) if entry.get("segment") == segment], problem)
        return False

    def _replace(self, entries: list[dict[str, Any]], problem: str) -> None:
        """The parent will never take these results: it is told so, because a silent agent would keep the lease."""
        if not entries:
            return  # taken back meanwhile
        logger.error("%d results cannot be reported: %s", len(entries), problem)
        ids = [entry["allocation"] for entry in entries]
        self._outbox.drop(ids)
        failure = {"kind": "error", "message": f"the result could not be reported: {problem}"[:MESSAGE_LIMIT]}
        again = [pk for pk, entry in zip(ids, entries, strict=True) if "failure" not in entry]
        if again:
            self._outbox.put([{"allocation": pk, "failure": failure} for pk in again])
        self._held -= set(ids) - set(again)

    def _running(self) -> list[int]:
        return [bundle.works[0].allocation for bundle in self._bundles]

    async def _release(self, ids: list[int], detail: str) -> None:
        self._queue = deque(work for work in self._queue if work.allocation not in set(ids))
        self._held -= set(ids)
        if ids:
            with suppress(Unreachable, Refused, TimeoutError):
                await asyncio.wait_for(self._link.call("release", {"allocations": ids, "detail": detail}), 5)

    # Beats

    async def _greet(self) -> None:
        """Hello, once in this agent's life; later connects only beat, for what is on its way then must not be lost."""
        self._heard(await self._link.call("beat", self._beat_body() | {"hello": not self._greeted}))
        if not self._greeted:
            logger.info("we are %r with %d slots, by %s", self.node, self.capacity, self._link.carrier)
        self._greeted = True
        self._to_send.set()
        self._fill()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.beat_seconds)
            if not self._greeted:
                continue
            try:
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
            "executors": executors.names(),
            "carrier": self._link.carrier,
            # What runs is still ours, but send no more.
            "leaving": not self._link.reachable,
            **self._vitals.now(),
        }

    def _heard(self, reply: Body) -> None:
        self.node = str(reply.get("node", self.node))
        self.beat_seconds = float(reply.get("beat_seconds", self.beat_seconds))
        self._link.long_poll = float(reply.get("long_poll_seconds", self._link.long_poll))
        capacity = int(reply.get("capacity", self.capacity))
        if capacity != self.capacity:
            logger.info("capacity is %d now", capacity)
            self.capacity = capacity
        self._hear({"type": "beat", "cancel": reply.get("cancel"), "drain": reply.get("drain", False)})


def _fitting(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of ``entries`` as surely fit one frame; at least one."""
    size = 0
    for number, entry in enumerate(entries):
        size += 300 + 12 * sum(len(value) for value in entry.values() if isinstance(value, list | str))
        size += sum(len(str(row)) for row in entry.get("rows", ()))
        if size > FRAME_BYTES_LIMIT and number:
            return entries[:number]
    return entries

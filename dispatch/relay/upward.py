"""The relay's line to the parent above: takes its work, beats for all that is below, passes on what is done.

A loop in a thread of the relay's own process. What must not be lost is in the database (``Origin``, ``Receipt``), so
that a relay that is killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from django.conf import settings
from django.db import close_old_connections
from django.utils import timezone

from dispatch import events
from dispatch.relay import asking, bundles, forwarding, inputs, leased, offering, place, subtree, taking
from dispatch.relay.forwarding import Sending
from dispatch.results import spool
from nodes import failpoints
from nodes.agent.carriers import Body, Connected, Inbound, Link, Refused, Unreachable, check_protocol, jitter, pause
from nodes.agent.config import AgentConfig
from nodes.agent.configuration import Sync
from nodes.agent.sender import ACCEPT_SECONDS, REJECTED
from nodes.protocol import VERSION, CascadeError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MakeLink = Callable[[Inbound, Callable[[], Body], Connected], Link]
"""As ``Link`` without its configuration."""

LOOK_SECONDS = 0.25
"""So often the receipts are looked at that nobody has told of."""
STUCK = "what is left of it was lost below, or finds no node there; a new start takes new tokens of its rate"
WATCH_SECONDS = 0.5
GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
INPUT_LOOK_SECONDS = 1.0
INPUT_ATTEMPT = 3
END_SECONDS = 10.0


class Upward:
    """Runs in a thread of the relay. ``start`` and ``stop`` as every loop's."""

    def __init__(self, config: AgentConfig, version: str, *, line: MakeLink | None = None) -> None:
        self._config = config
        self._version = version
        self._make: MakeLink = line or partial(Link, config)
        self._boot = secrets.token_hex(8)
        self._thread = threading.Thread(target=self._run, name="upward", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self.parent = ""
        """Id of the node above; before its first word the one that it was before, if what it gave is here still."""
        self._beat_seconds = 5.0
        self._sync: Sync | None = None
        self._uploaded: set[str] = set()
        self._reporting: set[int] = set()
        """Allocations whose reports are on their way."""
        self._jobs: set[asyncio.Future[None]] = set()

    def start(self) -> None:
        place.here = place.remembered()
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(END_SECONDS + 5)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception:
            logger.critical("this relay has lost its line to the parent for good: start it again", exc_info=True)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._greeted = asyncio.Event()
        self._greeting = asyncio.Lock()
        self._link = self._make(self._hear, self._claim, self._greet)
        self._link.parent = self.parent = await self._in_thread(taking.parent_before)
        self._link.moved = self._moved
        if (sync := self._synced()) is not None:
            await asyncio.to_thread(sync.open)
        self._sync = sync
        running = (self._link.run(), self._beating(), self._forwarding(), self._bringing(), self._watching())
        jobs = [asyncio.create_task(job) for job in running]
        ended = asyncio.create_task(self._ended.wait())
        try:
            done, _ = await asyncio.wait([ended, *jobs], return_when=asyncio.FIRST_COMPLETED)
            for job in done - {ended}:
                job.result()
            with suppress(Unreachable, Refused, TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._hand_back()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs, timeout=END_SECONDS)
            if sync is not None:
                sync.close()
            self._link.close()

    def _synced(self) -> Sync | None:
        """What keeps the parent's configuration here."""
        return Sync(bundles.store(), lambda: self._link.rest.fetch("config"), events.relay.set)

    @property
    def _version_here(self) -> int:
        return 0 if self._sync is None else self._sync.number

    async def _in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        def run() -> Result:
            close_old_connections()
            return work(*args)

        return await asyncio.to_thread(run)

    # Work comes in

    def _hear(self, message: Body) -> None:
        # At once: a claim that named these again would be answered at once, and so would the one after it.
        gone = {*(message.get("cancel") or []), *(message.get("ids") or [])}
        self._held = [each for each in self._held if each not in gone]
        self._begin(self._heard(message, gone))
        for question in message.get("ask") or []:
            self._begin(self._tell(question))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        job = asyncio.ensure_future(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _heard(self, message: Body, gone: set[int]) -> None:
        await self._greeted.wait()  # before that nobody knows whose work it is
        try:
            # Of what is being reported the answer to that says what became of it.
            if gone := gone - self._reporting:
                await self._in_thread(taking.drop, self.parent, gone)
            if message.get("work") and not self._stopping:
                taken = await self._in_thread(partial(taking.take, give=True), self.parent, message)
                # Known to the next claim: a cancel that comes between two claims is found by what the second holds.
                self._held = sorted({*self._held, *taken.held})
                if message.get("type") == "offer" and taken.held:
                    self._begin(self._accept(taken.held))
                if taken.unknown:
                    detail = "the relay does not know its type"
                    await self._link.call("release", {"allocations": taken.unknown, "detail": detail})
        except (Unreachable, Refused) as error:
            logger.warning("an offer could not be accepted: %s", error)
        except Exception:
            logger.exception("what came from above could not be taken")

    async def _accept(self, allocations: Sequence[int]) -> None:
        """Says before long that these were taken, unless they are done by then: the report says the same."""
        await asyncio.sleep(ACCEPT_SECONDS)
        try:
            held = set(await self._in_thread(taking.held, self.parent)) - self._reporting
            if ids := [each for each in allocations if each in held]:
                reply = await self._link.call("accept", {"allocations": ids})
                if gone := set(reply.get("gone") or ()) - self._reporting:
                    await self._in_thread(taking.drop, self.parent, gone)
        except (Unreachable, Refused) as error:
            logger.warning("an offer could not be accepted: %s", error)
        except Exception:
            logger.exception("an offer could not be accepted")

    async def _tell(self, question: Body) -> None:
        """Says what hangs here, or further down. Nobody waits long for it, so it is not tried again."""
        try:
            try:
                body = await asking.answer(self._in_thread, question["path"], question["within"])
                told = {"status": HTTPStatus.OK, "body": body}
            except CascadeError as error:
                known = (HTTPStatus.NOT_FOUND, HTTPStatus.GATEWAY_TIMEOUT)
                status = error.status if error.status in known else HTTPStatus.GATEWAY_TIMEOUT
                told = {"status": status, "detail": str(error)}
            await self._link.call("tell", {"answers": [{"id": question["id"], **told}]})
        except (Unreachable, Refused) as error:
            logger.warning("a question of the parent could not be answered: %s", error)
        except Exception:
            logger.exception("a question of the parent could not be answered")

    def _claim(self) -> Body:
        return {"boot": self._boot, "slots": self._slots, "held": self._held}

    # Beats

    _slots = 0
    _held: list[int] = []
    _begun: Mapping[str, int] = {}
    _version_told = 0

    async def _greet(self) -> None:
        """Hello, once in this relay's life; later connects only beat, for what is on its way then must not be lost."""
        async with self._greeting:
            await self._beat(hello=not self._greeted.is_set())
            self._greeted.set()

    def _moved(self) -> None:
        """What is here is of the parent that was there before: its ids mean other work here."""
        logger.warning("%s is another parent now: what the old one gave is dropped", self._config.parent)
        self.parent = ""
        self._greeted.clear()

    async def _beating(self) -> None:
        attempt = 0
        await self._greeted.wait()
        while True:
            try:
                await self._greet()
                attempt = 0
                wait = self._beat_seconds
            except Unreachable as error:
                attempt += 1
                logger.warning("no beat to %s: %s", self._config.parent, error)
                wait = min(pause(error, attempt), self._beat_seconds)
            except Refused as error:
                attempt += 1
                logger.error("%s refuses this relay: %s", self._config.parent, error)
                wait = jitter(attempt + 4)
            except Exception:
                attempt += 1
                logger.exception("a beat failed")
                wait = jitter(attempt + 4)
            await asyncio.sleep(wait)

    async def _beat(self, *, hello: bool = False, leaving: bool = False) -> None:
        body = await self._in_thread(self._beat_body)
        sent = time.monotonic()
        hello_ = {"hello": True, "protocol": VERSION} if hello else {}
        reply = await self._link.call("beat", {**body, "leaving": leaving, **hello_})
        self._beat_seconds = float(reply.get("beat_seconds", self._beat_seconds))
        check_protocol(reply)
        if not (path := reply.get("path")):
            raise Refused(
                HTTPStatus.UPGRADE_REQUIRED, "the parent knows no relays, which this one is: update the parent"
            )
        parent = path[-1][0]
        if parent != self.parent:
            await self._in_thread(taking.drop_others, parent)
            self.parent = self._link.parent = parent
        await self._place(path, reply, sent)
        # Of what is being reported the answer to that says what became of it.
        if gone := set(reply.get("cancel") or ()) - self._reporting:
            await self._in_thread(taking.drop, self.parent, gone)
        await self._in_thread(taking.go_on, self.parent)
        if self._sync is not None:
            self._sync.heard(reply.get("config"), reply.get("config_mark"))
        for question in reply.get("ask") or []:
            self._begin(self._tell(question))

    async def _place(self, path: list[list[str]], reply: Body, sent: float) -> None:
        if circle := place.closes_a_circle(path):
            raise Refused(HTTPStatus.CONFLICT, f"this relay is above itself: {circle}")
        beat, lease = self._beat_seconds, float(reply.get("lease_seconds", place.here.lease))
        told = place.Place(path, int(reply["capacity"]), dict(reply.get("limits") or {}), sent, beat, lease)
        await self._in_thread(place.tell, told)

    def _beat_body(self) -> Body:
        below = offering.now()
        self._held = taking.held(self.parent)
        self._slots = below["slots"]
        self._begun = leased.begun(self.parent) if self.parent else {}
        self._version_told = self._version_here
        return {
            "begun": self._begun,
            "config": self._version_told,
            "configs": bundles.counts(),
            "boot": self._boot,
            "held": self._held,
            "running": self._held,
            "version": self._version,
            "executors": sorted(below["types"]),
            "carrier": self._link.carrier,
            "role": "relay",
            "id": place.own(),
            "slots": below["slots"],
            "types": below["types"],
            "branches": below["branches"],
            "subtree": subtree.now(),
        }

    # Cut off

    async def _watching(self) -> None:
        """Stops what may not go on for so long as the parent is silent."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                here = place.here
                if here.silence() >= here.cut_off:
                    stopped = await self._in_thread(taking.hold, here.silence(), here.cut_off)
                    if stopped:
                        logger.warning("cut off from %s: %d runs wait for it", self._config.parent, stopped)
            except Exception:
                logger.exception("what may not go on could not be stopped; it is tried again")

    # What is done goes up

    async def _forwarding(self) -> None:
        attempt = 0
        await self._in_thread(forwarding.purge)
        while True:
            try:
                if sendings := await self._in_thread(self._next):
                    await self._forward(sendings)
                if self.parent:
                    await self._tell_at_once()
                attempt = 0
            except Unreachable as error:
                attempt += 1
                logger.warning("results wait for %s: %s", self._config.parent, error)
                await asyncio.sleep(pause(error, attempt))
            except Refused as error:
                attempt += 1
                logger.error("%s refuses what is passed on: %s", self._config.parent, error)
                await asyncio.sleep(jitter(attempt + 4))
            except Exception:
                attempt += 1
                logger.exception("passing on failed; what waits is tried again")
                await asyncio.sleep(jitter(attempt + 4))

    def _next(self) -> list[Sending]:
        """What is to be sent, when there may be something."""
        events.relay.wait(LOOK_SECONDS)
        events.relay.clear()
        if not (sendings := forwarding.due(self.parent) if self.parent else []):
            self._uploaded.clear()
        return sendings

    async def _forward(self, sendings: Sequence[Sending]) -> None:
        self._reporting = {each.entry["allocation"] for each in sendings}
        try:
            damaged: set[str] = set()
            lacking: Unreachable | None = None
            try:
                await self._upload((each.entry["segment"] for each in sendings if each.entry.get("segment")), damaged)
            except Unreachable as error:
                # A parent without room makes some by saving what it was brought already, once it is told whose that is.
                if not (sendings := _brought(sendings, self._uploaded | damaged)):
                    raise
                lacking = error
            if torn := {each.entry["allocation"] for each in sendings if each.entry.get("segment") in damaged}:
                # Parts come one after the other, so behind one that is lost none can follow.
                await self._give_back(torn, "a result was damaged on the relay's disk")
            whole = [each for each in sendings if each.entry["allocation"] not in torn]
            for message in forwarding.messages(whole):
                await self._report(message)
            if lacking is not None:
                raise lacking
        finally:
            self._reporting = set()

    async def _upload(self, segments: Iterable[str], damaged: set[str]) -> None:
        """Brings those to the parent that it does not have; the ones that are damaged here are added to ``damaged``."""
        for segment in dict.fromkeys(segments):
            if segment in self._uploaded:
                continue
            try:
                await self._link.rest.upload(segment, spool.path(settings.CASCADE.spool, segment))
                self._uploaded.add(segment)
            except (OSError, Refused):
                if await asyncio.to_thread(spool.verify, settings.CASCADE.spool, segment):
                    raise
                logger.error("segment %s is damaged: its items are given back", segment)
                await asyncio.to_thread(spool.quarantine, settings.CASCADE.spool, segment)
                damaged.add(segment)

    async def _report(self, sendings: Sequence[Sending]) -> None:
        reply = await self._link.call("report", {"reports": [each.entry for each in sendings]})
        failpoints.reach("relay.passed")
        results = {(each["allocation"], each.get("part", 0)): each for each in reply.get("results") or []}
        for each in sendings:
            told = results.get((each.entry["allocation"], each.entry.get("part", 0)))
            if told is not None:
                await self._settle(each, told)

    async def _give_back(self, allocations: Collection[int], detail: str) -> None:
        """What of these was not passed on goes to others."""
        await self._link.call("release", {"allocations": sorted(allocations), "detail": detail})
        await self._in_thread(taking.drop, self.parent, allocations)

    async def _tell_at_once(self) -> None:
        """What was begun makes room for others; a new configuration is seen. What goes no further here goes back."""
        begun, stuck = await self._in_thread(leased.told, self.parent, timezone.now())
        if (begun, self._version_here) != (self._begun, self._version_told):
            await self._beat()
        if stuck:
            await self._give_back(stuck, STUCK)

    async def _settle(self, sending: Sending, told: dict[str, Any]) -> None:
        status = told["status"]
        if status == HTTPStatus.OK:
            await self._in_thread(forwarding.settled, sending)
        elif status == HTTPStatus.PRECONDITION_FAILED:
            self._uploaded.discard(sending.entry.get("segment", ""))
        else:
            if status not in GONE:
                logger.error("allocation %s: %s", sending.entry["allocation"], told.get("detail"))
            await self._in_thread(taking.drop, self.parent, [sending.entry["allocation"]])

    # Rows that the work is about come down

    async def _bringing(self) -> None:
        await self._in_thread(inputs.sweep)
        while True:
            await asyncio.to_thread(events.inputs.wait, INPUT_LOOK_SECONDS)
            events.inputs.clear()
            try:
                wanted = await self._in_thread(inputs.wanted, self.parent)
                for origin in wanted:
                    await self._bring(origin.pk, origin.allocation)
            except Unreachable as error:
                logger.warning("rows to work over wait for %s: %s", self._config.parent, error)
                await asyncio.sleep(pause(error, INPUT_ATTEMPT))
            except Refused as error:
                logger.error("%s refuses rows to work over: %s", self._config.parent, error)
                await asyncio.sleep(jitter(INPUT_ATTEMPT + 4))
            except Exception:
                logger.exception("rows to work over could not be fetched; it is tried again")
                await asyncio.sleep(INPUT_LOOK_SECONDS)

    async def _bring(self, run: int, allocation: int) -> None:
        await self._in_thread(inputs.make_room)
        try:
            await self._link.rest.download(f"inputs/{allocation}", inputs.file_of(run))
        except Refused as error:
            if error.status in GONE:
                await self._in_thread(taking.drop, self.parent, [allocation])
            elif error.status in REJECTED:
                await self._in_thread(inputs.refused, run, str(error))
            else:
                raise
        else:
            await self._in_thread(inputs.brought, run)

    async def _hand_back(self) -> None:
        """What is done is passed on, the rest goes to others."""
        if not self._greeted.is_set():
            return  # who never came has taken nothing
        await self._forward(await self._in_thread(forwarding.due, self.parent))
        if held := await self._in_thread(taking.held, self.parent):
            await self._give_back(held, "the relay stops")
        await self._beat(leaving=True)


def _brought(sendings: Sequence[Sending], segments: Collection[str]) -> list[Sending]:
    """Those whose rows are among ``segments`` or in themselves, up to the first of each allocation that lacks its own.

    Parts of an allocation come one after the other.
    """
    lacking: set[int] = set()
    found = []
    for each in sendings:
        if (segment := each.entry.get("segment")) and segment not in segments:
            lacking.add(each.origin)
        if each.origin not in lacking:
            found.append(each)
    return found

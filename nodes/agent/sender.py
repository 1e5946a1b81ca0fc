"""What an agent tells of its work: accepts, and reports from the outbox, again and again until each is settled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from nodes import failpoints
from nodes.agent.carriers import Line, Refused, Unreachable, jitter, pause
from nodes.agent.outbox import Outbox
from nodes.protocol import FRAME_BYTES_LIMIT

logger = logging.getLogger(__name__)

REPORT_LIMIT = 1000
GATHER_SECONDS = 0.01
MOMENT_SECONDS = 0.002
ACCEPT_SECONDS = 0.25
"""An accept may wait so long: what is finished by then is reported instead, which says the same."""
MESSAGE_LIMIT = 2_000
REJECTED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""The message itself is wrong. Any other refusal is about us, or about now."""


class Sender:
    """Brings to the parent what the agent has accepted and finished. ``run()`` ends by cancellation only.

    ``held`` are the agent's allocations; what is settled leaves it. ``gone`` hears which ones the parent does not want
    of us any more; ``queued`` says whether work waits for the slots.
    """

    def __init__(
        self,
        outbox: Outbox,
        link: Line,
        *,
        held: set[int],
        gone: Callable[[Iterable[int]], None],
        queued: Callable[[], bool],
    ) -> None:
        self._outbox = outbox
        self._link = link
        self._held = held
        self._gone = gone
        self._queued = queued
        self._accepted: deque[tuple[float, int]] = deque()
        self._uploaded: set[str | None] = set()
        self._batch = REPORT_LIMIT
        self._due = asyncio.Event()
        self._back = asyncio.Event()

    def wake(self) -> None:
        """There may be something to send."""
        self._due.set()

    def reached(self) -> None:
        """The parent is there again: what waits for the next try need not."""
        self._back.set()
        self._due.set()

    def accept(self, allocations: Iterable[int]) -> None:
        """Say before long that these were taken, unless they are finished by then."""
        due = self._now() + ACCEPT_SECONDS
        self._accepted.extend((due, allocation) for allocation in allocations)
        if self._accepted:
            asyncio.get_running_loop().call_later(ACCEPT_SECONDS, self.wake)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Accepts and reports, as many together as wait; what does not arrive is sent again."""
        attempt = 0
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self._send_accepts()
                while len(self._outbox):
                    # What ends together is reported together; with work queued for the slots, nobody waits for it.
                    if len(self._outbox) < REPORT_LIMIT // 4:
                        await asyncio.sleep(GATHER_SECONDS if self._queued() else MOMENT_SECONDS)
                    await self._send_reports()
                    attempt = 0
                    await self._send_accepts()
                attempt = 0
            except Unreachable as error:
                attempt += 1
                logger.warning("%d results wait: %s", len(self._outbox), error)
                await self._pause(pause(error, attempt))
                self._due.set()
            except Refused as error:
                attempt += 1
                logger.error("the parent refuses our reports: %s", error)
                await self._pause(jitter(attempt + 4))
                self._due.set()
            except Exception:
                attempt += 1
                logger.exception("a report failed")
                await self._pause(jitter(attempt + 4))
                self._due.set()

    async def _pause(self, seconds: float) -> None:
        """Until the next try, or until the parent is there again."""
        self._back.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._back.wait()

    async def _send_accepts(self) -> None:
        due: list[int] = []
        while self._accepted and self._accepted[0][0] <= self._now():
            due.append(self._accepted.popleft()[1])
        # What is reported already, or in the outbox, needs no accept any more.
        ids = [allocation for allocation in due if allocation in self._held and allocation not in self._outbox]
        if not ids:
            return
        try:
            self._gone((await self._link.call("accept", {"allocations": ids})).get("gone", []))
        except Unreachable:
            self._accepted.extendleft((0.0, allocation) for allocation in reversed(ids))
            raise

    async def _send_reports(self) -> None:
        entries = _fitting(self._outbox.waiting(self._batch))
        if not entries:
            return
        lacking: Unreachable | None = None
        try:
            for segment in dict.fromkeys(entry["segment"] for entry in entries if entry.get("segment")):
                if segment not in self._uploaded and not await self._upload(segment):
                    return
        except Unreachable as error:
            # A parent without room makes some by saving what it was brought already, once it is told whose that is.
            entries = [entry for entry in entries if entry.get("segment") in {None, *self._uploaded}]
            if not entries:
                raise
            lacking = error
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
        except Unreachable as error:
            if error.failed:
                # A fault of the parent's at one of them must not hold up the others.
                self._batch = max(len(entries) // 2, 1)
                if len(entries) == 1:
                    self._outbox.postpone(entries[0]["allocation"])
            raise
        self._batch = min(2 * self._batch, REPORT_LIMIT)
        self._settle(entries, reply.get("results") or [])
        if lacking is not None:
            raise lacking

    def _settle(self, entries: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
        """What the parent says of each entry. Raises Unreachable where the same has to be sent again."""
        if not results:
            raise Unreachable("the answer says nothing of the reports")
        sent = {entry["allocation"]: entry for entry in entries}
        settled = []
        gone: set[str] = set()
        for result in results:
            if (entry := sent.get(result["allocation"])) is None:
                continue
            if result["status"] == HTTPStatus.PRECONDITION_FAILED:
                gone.add(entry.get("segment", ""))
                continue
            if result["status"] != HTTPStatus.OK:
                logger.warning("allocation %s: %s", result["allocation"], result.get("detail"))
            if result["status"] == HTTPStatus.UNPROCESSABLE_ENTITY and "failure" not in entry:
                self._replace([entry], str(result.get("detail")))
                continue
            settled.append(result["allocation"])
        self._uploaded -= {entry.get("segment") for entry in entries if entry["allocation"] in settled} | gone
        failpoints.reach("agent.receipt")
        self._outbox.drop(settled)
        self._held -= set(settled)
        if gone:
            raise Unreachable(f"the parent has {len(gone)} segments no more; they are uploaded again")

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
            failpoints.reach("agent.uploaded")
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


def _fitting(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of ``entries`` as surely fit one frame; at least one."""
    size = 0
    for number, entry in enumerate(entries):
        size += 300 + 12 * sum(len(value) for value in entry.values() if isinstance(value, list | str))
        size += sum(len(str(row)) for row in entry.get("rows", ()))
        if size > FRAME_BYTES_LIMIT and number:
            return entries[:number]
    return entries

"""The parent's own worker: an agent in the parent's process, whose line to the parent is a function call.

It is a node like the others, called ``local`` and listed with them; ``dispatch.allocator`` decides when it may work:
always in the role standalone, else where a run asks for it or no other node can. Never where a run says so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError, close_old_connections

from api.agent import in_thread, perform
from cascade import __version__
from dispatch import events
from dispatch.leading import threads_of
from dispatch.results import inputs, room, spool
from nodes import keys, registry
from nodes.agent.carriers import Body, Connected, Inbound, Refused, Unreachable
from nodes.agent.config import AgentConfig
from nodes.agent.hosted import HostedAgent
from nodes.models import Node
from nodes.protocol import SEGMENT_BYTES_LIMIT, CascadeError, NotYet, StorageFull, TooMany

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""Work may have been granted by another process, whose wake-ups do not come here."""
RETRY_SECONDS = 1.0


class InsideLine:
    """A ``Line`` that ends in this process: verbs are called, segments go into the spool."""

    carrier = Node.Carrier.PULL.value

    def __init__(self, node_id: int, inbound: Inbound, connected: Connected, claim: Any) -> None:
        self.taking = True
        self.long_poll = 0.0
        self.rest = self
        self._caller = keys.inside(node_id)
        self._inbound = inbound
        self._claim = claim
        self._connected = connected
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.Event()

    @property
    def reachable(self) -> bool:
        return self.taking

    async def call(self, verb: str, body: Body) -> Body:
        try:
            # Through JSON as on every other line: keys are texts there, and nothing is shared between the two sides.
            reply = await in_thread(perform, self._caller, verb, json.loads(json.dumps(body)))
            return dict(json.loads(json.dumps(reply)))
        except (TooMany, StorageFull) as error:
            raise Unreachable(str(error)) from None
        except CascadeError as error:
            raise Refused(error.status, str(error)) from None
        except DatabaseError as error:
            raise Unreachable(f"{verb}: {error}") from None

    async def upload(self, sha256: str, file: Path) -> None:
        """Copies a segment into the spool of this very server."""

        def copy() -> None:
            room.check(file.stat().st_size)
            with open(file, "rb") as source:
                pieces = iter(lambda: source.read(1024 * 1024), b"")
                spool.receive(pieces, settings.CASCADE.spool, limit=SEGMENT_BYTES_LIMIT)

        try:
            await in_thread(copy)
        except (TooMany, StorageFull) as error:
            raise Unreachable(str(error)) from None
        except CascadeError as error:
            raise Refused(error.status, str(error)) from None

    async def download(self, name: str, file: Path) -> None:
        """The rows that an allocation works over, out of this very server's store."""
        try:
            await in_thread(inputs.write, self._caller, int(name.removeprefix("inputs/")), file)
        except (NotYet, StorageFull, DatabaseError) as error:
            raise Unreachable(str(error)) from None
        except CascadeError as error:
            raise Refused(error.status, str(error)) from None

    async def run(self) -> None:
        events.listen(self._hear)
        greeted = False
        try:
            while True:
                try:
                    if not greeted:
                        await self._connected()
                        greeted = True
                    if self.taking:
                        # Cleared first: what is granted while we claim wakes us again.
                        self._work.clear()
                        self._inbound({"type": "claimed", **await self.call("claim", self._claim())})
                except (Unreachable, Refused) as error:
                    logger.warning("this server's own worker: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
                except Exception:
                    logger.exception("this server's own worker failed")
                    close_old_connections()
                    await asyncio.sleep(RETRY_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._work.wait()
        finally:
            events.unlisten(self._hear)

    def _hear(self, node_ids: Sequence[int], message: Mapping[str, Any]) -> None:
        """From the thread that tells."""
        if self._caller.node_id not in node_ids:
            return
        with suppress(RuntimeError):  # the loop has ended
            if message["type"] == "node.cancel":
                self._loop.call_soon_threadsafe(self._inbound, {"type": "cancel", "ids": message["ids"]})
            elif message["type"] == "node.shorten":
                self._loop.call_soon_threadsafe(self._inbound, {"type": "shorten", "shorten": message["shorten"]})
            else:
                self._loop.call_soon_threadsafe(self._work.set)

    def wake(self) -> None:
        self._work.set()

    def close(self) -> None:
        """Nothing is kept open."""


def _home(folder: Path) -> str:
    """What this data folder is called in the database, made at the first start: a folder may be moved."""
    file = folder / "home"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError), open(file, "x") as new:
            new.write(secrets.token_hex(8))
    return file.read_text()


class OwnWorker:
    """A loop of the parent: its own node and the agent that works for it."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._agent: HostedAgent | None = None

    @property
    def _threads(self) -> list[threading.Thread]:
        return threads_of(self._agent)

    def start(self) -> None:
        folder = settings.CASCADE.data_dir / "local"
        node = registry.own_node(self._workers, _home(folder))
        config = AgentConfig(
            data_dir=folder,
            drain_seconds=5.0,
            allowed_networks=tuple(settings.CASCADE.allowed_networks),
            custom=settings.CASCADE.surroundings.custom,
        )

        def line(inbound: Inbound, claim: Any, connected: Connected) -> InsideLine:
            return InsideLine(node.pk, inbound, connected, claim)

        self._agent = HostedAgent(config, __version__, line=line)
        self._agent.start()

    def stop(self) -> None:
        if self._agent is not None:
            self._agent.stop()

"""The agent's verbs over WebSocket. Rows never travel here: Daphne drops a message over 1 MiB without a word.

Push is a shortcut: the channel layer only says that there is something, and what there is comes from the database.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path
from django.utils import timezone

from api import authentication, beats, limits, logs, revoked
from api.agent import VERBS, check_turn, in_thread, perform, read_logs
from dispatch import events, lifecycle, metrics
from dispatch.lifecycle.grants import package
from dispatch.relay import asking
from nodes import keys
from nodes.executors.base import shown
from nodes.keys import Caller
from nodes.protocol import CascadeError, FieldError, Unauthenticated

logger = logging.getLogger(__name__)

UNAUTHENTICATED, REPLACED = 4401, 4409

RENEW_SECONDS = 30.0
"""The channel layer forgets who is in a group: a day after it came, by the wall clock, or when a message to it is old.
A socket that was forgotten would beat and never be offered anything again."""


class AgentSocket(AsyncWebsocketConsumer):
    """One child. Frames up are {"type": verb, "id", "body"}; down are replies, offers, cancels."""

    caller: Caller | None = None

    async def connect(self) -> None:
        try:
            method, url, headers = authentication.scope_parts(self.scope)
            client = authentication.client_address(self.scope)
            self.caller = await in_thread(
                lambda: authentication.authenticate(method, url, headers, _EMPTY, client=client)
            )
        except CascadeError as error:
            logger.warning("a child's socket is refused: %s", error)
            # Before the upgrade there is no frame to say why; the agent's next REST call learns it.
            await self.close()
            return
        events.bind(asyncio.get_running_loop())
        self._offered = 0
        self._work = asyncio.Event()
        self._group = events.group(self.caller.node_id)
        self._hold = limits.Hold()
        self._hold.take(self.caller.access_key)
        await self.channel_layer.group_add(self._group, self.channel_name)
        await self.accept()
        metrics.sockets.add(of="agent")
        self._offering = asyncio.create_task(self._offer())
        self._work.set()
        revoked.watch.join(self, self.caller.key_id)

    async def disconnect(self, code: int) -> None:
        if self.caller is None:
            return
        revoked.watch.leave(self)
        self._hold.release()
        self._offering.cancel()
        metrics.sockets.add(-1, of="agent")
        await self.channel_layer.group_discard(self._group, self.channel_name)
        await in_thread(lifecycle.disconnected, self.caller.node_id, timezone.now())

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        number: Any = None
        try:
            frame = json.loads(text_data or "")
            kind = frame.get("type") if isinstance(frame, dict) else None
            number = frame.get("id") if isinstance(frame, dict) else None
            if not isinstance(kind, str) or kind not in VERBS or kind == "claim":
                raise FieldError("type", f"{shown(kind)} is not one of: accept, beat, log, release, report, tell")
            assert self.caller is not None
            limits.keys.check(self.caller.access_key)
            limits.keys.charge(self.caller.access_key, size=len(text_data or ""))
            if kind not in ("beat", "log"):
                check_turn()
            said = frame.get("body", {})
            if kind == "beat":
                body = await beats.gathering.beat(self.caller, beats.read(said))
            elif kind == "log":
                body = await logs.gathering.take(self.caller, read_logs(said))
            else:
                body = await in_thread(perform, self.caller, kind, said)
            if kind == "beat" and events.abroad is not None:
                self._work.set()  # another process grants, and its wake-up may have been lost
            await self._say({"type": "reply", "re": number, "status": 200, "body": body})
        except (ValueError, RecursionError):
            await self._say(
                {"type": "reply", "re": number, "status": 400, "body": {"field": "frame", "detail": "is not JSON"}}
            )
        except CascadeError as error:
            later = {"retry_after": math.ceil(error.retry_after)} if error.retry_after else {}
            await self._say({"type": "reply", "re": number, "status": error.status, **later, "body": error.as_dict()})
            if isinstance(error, Unauthenticated):
                await self.close(UNAUTHENTICATED)
        except Exception:
            logger.exception("a child's message failed")
            await self._say(
                {
                    "type": "reply",
                    "re": number,
                    "status": 500,
                    "body": {"detail": "the parent failed; its log says how"},
                }
            )

    async def _offer(self) -> None:
        """Brings what was granted to this node, each allocation once on this socket."""
        assert self.caller is not None
        while True:
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    await self._work.wait()
            except TimeoutError:
                await self._join()
                continue
            self._work.clear()
            try:
                offer = await in_thread(self._next_offer)
            except Unauthenticated:
                await self.close(UNAUTHENTICATED)
                return
            except Exception:
                logger.exception("an offer could not be made; the next wake-up tries again")
                continue
            if offer["work"]:
                # Ids grow with the grants, so the last one offered tells what is new. The first of a new socket
                # brings everything again that was not accepted on the one before.
                self._offered = offer["work"][-1][0]
                if len(offer["work"]) == lifecycle.OFFER_LIMIT:
                    self._work.set()  # there may be more than one offer holds
                await self._say({"type": "offer", **offer})

    async def _join(self) -> None:
        """Once more into the group of those that are woken for this node."""
        try:
            await self.channel_layer.group_add(self._group, self.channel_name)
        except Exception:
            logger.warning("a socket's wake-ups could not be renewed; the next try is soon", exc_info=True)

    def _next_offer(self) -> dict[str, Any]:
        assert self.caller is not None
        # A look without a lock: every verb that follows from the offer asks again inside its transaction.
        if not keys.is_live(self.caller):
            raise Unauthenticated("the key was revoked")
        return package(lifecycle.offered(self.caller.node_id, self._offered))

    async def node_work(self, message: dict[str, Any]) -> None:
        """Something was granted to this node."""
        self._work.set()

    async def node_cancel(self, message: dict[str, Any]) -> None:
        await self._say({"type": "cancel", "ids": message["ids"]})

    async def node_shorten(self, message: dict[str, Any]) -> None:
        await self._say({"type": "shorten", "shorten": message["shorten"]})

    async def node_ask(self, message: dict[str, Any]) -> None:
        """There is a question to this node, a relay. Should it be lost, whoever asked is told so."""
        assert self.caller is not None
        if ask := await in_thread(asking.take, self.caller.node_id):
            await self._say({"type": "ask", "ask": ask})

    async def node_keys(self, message: dict[str, Any]) -> None:
        """A key of the node was revoked: whether it is this one is looked at before the next offer."""
        self.look_again()

    def look_again(self) -> None:
        self._work.set()

    async def _say(self, frame: dict[str, Any]) -> None:
        if "status" in frame:
            metrics.replies.add(of=str(frame["status"]))
        await self.send(text_data=json.dumps(frame, separators=(",", ":")))


_EMPTY = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
"""SHA-256 of an empty body, which an upgrade has."""

websocket_urlpatterns = [path("ws/agent", AgentSocket.as_asgi())]

"""The socket behind the live pages, and the renderers that feed them: one in a process for each page that is looked at,
however many look.

A page gets everything when it connects, then what changed, and the next frame only after it has acknowledged the last:
a slow page costs nothing but its own freshness, and gets the newest state, never a queue of old ones.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.contrib.auth import get_user
from django.db import connections
from django.http import HttpRequest
from django.urls import path

from api import journal_page, languages, node_page, overview, run_page
from api.parts import LiveParts, Snapshot
from api.words import in_languages
from dispatch import events, metrics
from nodes.protocol import NotFound

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often the counter of changes is looked at: at most four frames a second reach a page."""
REREAD_SECONDS = 2.0
"""Other processes write too, and nodes go silent without a write, so the database is read at least so often."""
SHARE = 0.07
LONGEST_REST = 4.0
"""Reading takes at most this share of a core, unless it would leave pages without a word for longer than this."""
WAITED = 0.25
"""How much of its time counts as work at least: a database on another machine works for it, too."""
RECHECK_SECONDS = 15.0
"""How long a page may outlive its reader's sign-out."""
PIECE = 250_000
"""Characters of a message: Daphne sends none over 1 MiB, and closes the socket instead."""
FORBIDDEN, GONE = 4403, 4404


Key = tuple[str, int]
PAGES: Mapping[str, Callable[[int], LiveParts]] = {
    "overview": lambda _: overview.shown,
    "run": run_page.RunPage,
    "node": node_page.NodePage,
    "journal": journal_page.JournalPage,
}
"""Page -> what reads the one with this id."""


class Renderer:
    """Reads ``shown`` while anybody looks, and sends each page what is new to it; ``over`` when nobody does.

    The database is read once for all, and drawn once for each language that is looked at.
    """

    def __init__(self, shown: LiveParts, over: Callable[[], None] = lambda: None) -> None:
        self._shown = shown
        self._over = over
        self._pages: set[LivePage] = set()
        self._task: asyncio.Task[None] | None = None
        self._snapshots: Mapping[str, Snapshot] = {}

    async def join(self, page: LivePage) -> None:
        self._pages.add(page)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        elif page.language in self._snapshots:
            await page.offer(self._snapshots[page.language])

    def leave(self, page: LivePage) -> None:
        self._pages.discard(page)
        if not self._pages and self._task is not None:
            self._task.cancel()
            self._task, self._snapshots = None, {}
            self._over()

    def _languages(self) -> set[str]:
        return {page.language for page in self._pages}

    def _look(self, languages: Collection[str]) -> tuple[Mapping[str, Snapshot], float]:
        """The page in each of these languages, and the seconds of work that it took this thread."""
        began = time.thread_time()
        seen = self._shown.read()
        drawn = {language: self._shown.draw(seen) for language in in_languages(languages)}
        return drawn, time.thread_time() - began

    async def _run(self) -> None:
        # A thread of its own: one database connection, and none of the threads that answer requests.
        thread = ThreadPoolExecutor(1, thread_name_prefix="page")
        look = sync_to_async(self._look, thread_sensitive=False, executor=thread)
        rechecked = time.monotonic()
        try:
            while True:
                version, began = events.version(), time.monotonic()
                languages, worked = self._languages(), 0.0
                try:
                    snapshots, worked = await look(languages)
                except NotFound:
                    await self._each(LivePage.gone)
                    return
                except Exception:
                    logger.exception("a page could not be read")
                else:
                    self._snapshots = snapshots
                    await self._each(self._offer)
                if began - rechecked >= RECHECK_SECONDS:
                    rechecked = began
                    await self._each(LivePage.recheck)
                took = time.monotonic() - began
                worked = max(worked, WAITED * took)
                await asyncio.sleep(max(LOOK_SECONDS - took, min(worked * (1 / SHARE - 1), LONGEST_REST)))
                while events.version() == version and time.monotonic() - began < REREAD_SECONDS:
                    if not self._languages() <= languages:
                        break  # somebody came who reads another
                    await asyncio.sleep(LOOK_SECONDS)
        finally:
            thread.submit(connections.close_all)
            thread.shutdown(wait=False)

    async def _offer(self, page: LivePage) -> None:
        if page.language in self._snapshots:
            await page.offer(self._snapshots[page.language])

    async def _each(self, say: Callable[[LivePage], Awaitable[None]]) -> None:
        for page in list(self._pages):
            try:
                await say(page)
            except Exception:
                # One page that is just going away must not take the others along.
                logger.exception("a live page was dropped")
                self._pages.discard(page)


class Renderers:
    """One for each page that is looked at now, by what its address names."""

    def __init__(self) -> None:
        self._running: dict[Key, Renderer] = {}

    def of(self, page: str, pk: int = 0) -> Renderer:
        key = (page, pk)
        if key not in self._running:
            self._running[key] = Renderer(PAGES[page](pk), lambda: self._drop(key))
        return self._running[key]

    def _drop(self, key: Key) -> None:
        self._running.pop(key, None)

    def __len__(self) -> int:
        return len(self._running)


shared = Renderers()


class LivePage(AsyncWebsocketConsumer):
    """One open page of a signed-in member of staff."""

    async def connect(self) -> None:
        self._seq = 0
        self._sent: Snapshot | None = None
        self._newest: Snapshot | None = None
        self._waiting = False
        self._renderer: Renderer | None = None
        self.language = languages.of_socket(self.scope)
        if not _same_site(self.scope):
            await self.close(FORBIDDEN)
            return
        user = self.scope.get("user")
        if user is None or not (user.is_active and user.is_staff):
            await self.close(FORBIDDEN)
            return
        await self.accept()
        # The one to leave is the one that was joined, even where another reads the same page by then.
        self._renderer = shared.of(**self.scope["url_route"]["kwargs"])
        metrics.sockets.add(of="page")
        await self._renderer.join(self)

    async def disconnect(self, code: int) -> None:
        if self._renderer is not None:
            metrics.sockets.add(-1, of="page")
            self._renderer.leave(self)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            seen = json.loads(text_data or "")["seen"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        if self._waiting and seen == self._seq:
            self._waiting = False
            if self._newest is not None and self._newest is not self._sent:
                await self._send(self._newest)

    async def offer(self, snapshot: Snapshot) -> None:
        """Send what ``snapshot`` has new, now or when the page has taken in the frame before."""
        self._newest = snapshot
        if not self._waiting:
            await self._send(snapshot)

    async def _send(self, snapshot: Snapshot) -> None:
        parts, cells, lists = snapshot.since(self._sent)
        self._seq += 1
        frame = {
            "seq": self._seq,
            "at": int(time.time() * 1000),
            "full": self._sent is None,
            "parts": parts,
            "cells": cells,
            "lists": lists,
        }
        self._sent, self._waiting = snapshot, True
        await self._say(json.dumps(frame, separators=(",", ":"), ensure_ascii=False))

    async def _say(self, text: str) -> None:
        """A long text as several messages: those with more to come begin with +, the last of them with =."""
        if len(text) <= PIECE:
            await self.send(text)
            return
        for at in range(0, len(text), PIECE):
            more = at + PIECE < len(text)
            await self.send(("+" if more else "=") + text[at : at + PIECE])

    async def gone(self) -> None:
        """Close: what the page shows is not there any more."""
        if self._renderer is not None:
            self._renderer.leave(self)
        await self.close(GONE)

    async def recheck(self) -> None:
        """Close when the reader has signed out, or may not read any more."""
        session = self.scope.get("session")
        if not await database_sync_to_async(_may_look)(getattr(session, "session_key", None)):
            if self._renderer is not None:
                self._renderer.leave(self)
            await self.close(FORBIDDEN)


def _same_site(scope: Mapping[str, Any]) -> bool:
    """Whether the page that opens the socket is this server's, or of ``csrf_trusted_origins``.

    Exactly this server's, with its port: cookies are sent to every port of a host, and another program's page may be
    there. (The scheme is left out: a proxy may end TLS.)
    """
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    origin = headers.get("origin", "")
    host = headers.get("x-forwarded-host", "") if settings.USE_X_FORWARDED_HOST else ""
    _, _, name = origin.partition("://")
    return origin in settings.CSRF_TRUSTED_ORIGINS or (bool(name) and name == (host or headers.get("host", "")))


def _may_look(session_key: str | None) -> bool:
    """Whether the session still is one of a member of staff, by what the database says now."""
    request: Any = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    user = get_user(request)
    return bool(user.is_active and getattr(user, "is_staff", False))


websocket_urlpatterns = [
    path("ws/live", LivePage.as_asgi(), {"page": "overview"}),
    path("ws/live/runs/<int:pk>", LivePage.as_asgi(), {"page": "run"}),
    path("ws/live/nodes/<int:pk>", LivePage.as_asgi(), {"page": "node"}),
    path("ws/live/journal/<int:pk>", LivePage.as_asgi(), {"page": "journal"}),
]

"""Whether this process is alive (``/healthz``) and whether it can do its work now (``/readyz``). Both need no key, so
that neither says more than what is wrong: no address, no name, no text of another program's error.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from dispatch import leading, metrics
from dispatch.relay import place
from dispatch.results import saver
from nodes.migrated import behind

logger = logging.getLogger(__name__)

OK = "ok"
KEPT_SECONDS = 1.0
"""Whoever asks more often gets the same answer: strangers may ask."""
ANSWER_SECONDS = 5.0
LEADERLESS_SECONDS = 20.0
"""A leader that dies is succeeded sooner; until then nobody need be sent elsewhere, as there is no better place."""
STALLED_SECONDS = {"dispatcher": 60.0, "saver": 900.0}
"""A loop without another turn for so long hangs: a pass takes a second, a batch of large segments minutes."""


class Readiness(NamedTuple):
    """``checks``: name to "ok" or what is wrong."""

    checks: dict[str, str]

    @property
    def ready(self) -> bool:
        return all(found == OK for found in self.checks.values())

    def as_dict(self) -> dict[str, object]:
        wrong = {name: found for name, found in self.checks.items() if found != OK}
        reason = {"detail": "; ".join(f"{name}: {found}" for name, found in wrong.items())} if wrong else {}
        return {"status": "not ready" if wrong else "ready", **reason, "checks": self.checks}


class Probe:
    """Looks whether this process can work, at most once a second whoever asks, in a thread that nobody else needs."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ready")
        self._lock = threading.Lock()
        self._under_way: Future[Readiness] | None = None
        self._looked = 0.0
        self._migrated = False
        self._led: float | None = None
        self._wrong: set[str] = set()
        """What was wrong the last time."""

    def begin(self) -> Future[Readiness]:
        """The look that is under way, or was a moment ago, or a new one."""
        with self._lock:
            known = self._under_way
            if known is None or (known.done() and time.monotonic() - self._looked >= KEPT_SECONDS):
                self._looked = time.monotonic()
                known = self._under_way = self._thread.submit(self.look)
            return known

    def look(self) -> Readiness:
        try:
            found = Readiness({**self._database(), **self._store(), **loops(), **relay()})
        except Exception:
            logger.exception("whether this server is ready could not be found out")
            close_old_connections()
            return Readiness({"server": "failed to look; its log says how"})
        wrong = {name for name, told in found.checks.items() if told != OK}
        if wrong != self._wrong:
            logger.info("/readyz: %s", found.as_dict().get("detail", "ready"))
            self._wrong = wrong
        return found

    def _database(self) -> dict[str, str]:
        try:
            # Also connections that were lost while nobody asked are made anew.
            close_old_connections()
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            # What is applied stays applied, and looking takes as long as reading all migrations.
            self._migrated = self._migrated or not behind()
        except DatabaseError:
            close_old_connections()
            return {"database": "cannot be reached"}
        return {"database": OK, "migrations": OK if self._migrated else "not applied: manage.py migrate"}

    def _store(self) -> dict[str, str]:
        if not settings.CASCADE.database_url:
            return {"store": OK if saver.is_open() else "the result store is not open"}
        now = time.monotonic()
        try:
            if leading.held() or leading.leader() is not None:
                self._led = now
        except DatabaseError:
            close_old_connections()
        known = self._led is not None and now - self._led < LEADERLESS_SECONDS
        return {"leader": OK if known else "no process leads, so that nothing is allocated or saved"}


def loops() -> dict[str, str]:
    alive = leading.threads()
    wrong = [f"{name} has ended" for name, lives in alive.items() if not lives]
    now = time.monotonic()
    wrong += [
        f"{name} has not moved for {now - begun:.0f} s"
        for name, begun in list(metrics.turns.items())
        if alive.get(name) and now - begun > STALLED_SECONDS[name]
    ]
    return {"loops": ", ".join(wrong) or OK}


def relay() -> dict[str, str]:
    """Of a relay's process that has the line to the parent: whether that answers."""
    if settings.CASCADE.role != "relay" or "upward" not in leading.threads():
        return {}
    if not place.here.path:
        return {"parent": "has not been reached yet"}
    silence = place.here.silence()
    return {"parent": OK if silence <= place.here.cut_off + SLACK_SECONDS else f"silent for {silence:.0f} s"}


SLACK_SECONDS = 2.0
"""A beat's way there and back."""

probe = Probe()


def answer(found: Readiness) -> tuple[int, dict[str, object]]:
    """Status and body."""
    return 200 if found.ready else 503, found.as_dict()


TOO_LATE = Readiness({"database": f"did not answer within {ANSWER_SECONDS:.0f} s"})


@csrf_exempt
async def healthz(request: HttpRequest) -> HttpResponse:
    """The process answers; nothing is looked up, so that a slow database does not get it restarted."""
    return _only_get(request) or JsonResponse({"status": OK})


@csrf_exempt
async def readyz(request: HttpRequest) -> HttpResponse:
    """200, or 503 with what is wrong."""
    if refusal := _only_get(request):
        return refusal
    look = asyncio.wrap_future(probe.begin())
    done, _ = await asyncio.wait([look], timeout=ANSWER_SECONDS)
    status, body = answer(look.result() if done else TOO_LATE)
    response: Any = JsonResponse(body, status=status)
    # Whoever watches asks every few seconds; Django would log an error for each.
    response._has_been_logged = True
    return response  # type: ignore[no-any-return]


def _only_get(request: HttpRequest) -> HttpResponse | None:
    if request.method in ("GET", "HEAD"):
        return None
    return JsonResponse({"detail": "only GET is allowed here"}, status=405, headers={"Allow": "GET, HEAD"})

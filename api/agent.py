"""The agent's verbs over REST, and ``perform``, which every carrier of the agent's verbs calls.

Plain asynchronous views: a claim may wait half a minute for work, and thousands of them must not hold a thread each.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import DatabaseError, close_old_connections
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.http.response import HttpResponseBase
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from api import authentication, beats, errors, limits
from api import logs as printed
from api.errors import json_error, respond
from dispatch import configuration, events, lifecycle, logs, metrics, synclog
from dispatch.relay import asking, place
from dispatch.results import inputs, room, spool
from nodes import keys, messages
from nodes.keys import Caller
from nodes.protocol import (
    SEGMENT_BYTES_LIMIT,
    CascadeError,
    FieldError,
    Forbidden,
    NotYet,
    TooLarge,
    TooMany,
    Unauthenticated,
)

logger = logging.getLogger(__name__)

Body = dict[str, Any]
Result = TypeVar("Result")

THREADS = ThreadPoolExecutor(8, thread_name_prefix="verb")
"""Few: on SQLite the verbs take turns anyway, and each thread keeps a database connection."""
QUEUE_LIMIT = 400
WAIT_LIMIT = 2.0
"""So many verbs may wait for a thread, so many seconds; then who comes anew is asked to come later."""
HELD_QUEUE_LIMIT = 2_000
HELD_WAIT_LIMIT = 10.0
"""The same for what is said of work that a child has: put off, it would only be done twice. Beats never are. Clients
that waited longer would have given up by the time they are served, and a parent that only serves those serves nobody.
"""
TURNS_A_SECOND, LAST_TURN_SECONDS = 50.0, 60.0
"""Who is told to come later gets a turn of its own, so many in each second, so many seconds ahead at most."""
LET_IN_A_SECOND = 20.0
"""So many of those that come anew are served in a second, however much there is to do."""
PIECE = 1024 * 1024
SOONEST_SECONDS, LATEST_SECONDS = 0.03, 0.5
"""Between two looks whether rows have come from the node above."""
LOST_SECONDS = 5.0
"""A claim that waits looks by itself so often where other processes grant work: their wake-ups can be lost."""

VERBS: dict[str, Callable[[Caller, Any], Body]] = {
    "accept": lambda caller, body: lifecycle.accept(caller, messages.read_accept(body)),
    "beat": beats.beat,
    "claim": lambda caller, body: lifecycle.claim(caller, messages.read_claim(body)),
    "log": lambda caller, body: logs.take(caller, messages.read_logs(body)),
    "release": lambda caller, body: lifecycle.release(caller, *messages.read_release(body)),
    "report": lambda caller, body: _report(caller, body),
    "tell": lambda caller, body: asking.told(caller, messages.read_tell(body)),
}

KEY_VERBS: dict[str, Callable[[Caller, Any], Body]] = {
    "rotate": lambda caller, body: {"access_key": keys.rotate_own(caller, messages.read_rotate(body)).access_key},
    "retire": lambda caller, body: _retire(caller, body),
}
"""Over REST only: each is signed by itself, by the key that it is about."""


_waited = 0.0
"""Seconds that the verb which began last had waited for its thread."""


async def in_thread(work: Callable[..., Result], *args: Any) -> Result:
    """Runs ``work``, which may use the database, in one of the verbs' threads."""

    asked = time.monotonic()

    def run() -> Result:
        global _waited
        _waited = time.monotonic() - asked
        metrics.waits.observe(_waited)
        try:
            return work(*args)
        except DatabaseError as error:
            close_old_connections()
            if errors.is_away(error):
                raise errors.DatabaseAway from error
            raise

    return await asyncio.get_running_loop().run_in_executor(THREADS, run)


def behind(most_queued: int = HELD_QUEUE_LIMIT, longest: float = HELD_WAIT_LIMIT) -> float:
    """Seconds that a verb should come later, because too many wait already, or for too long; 0: none."""
    queued = THREADS._work_queue.qsize()
    waited = _waited if queued else 0.0
    if queued <= most_queued and waited <= longest:
        return 0.0
    # Spread, so that they do not all come back at one moment, and further the more there is to do.
    return random.uniform(1.0, 2.0 + 2.0 * waited + queued / QUEUE_LIMIT)


class Turns:
    """Who comes anew, by an upgrade or a claim, to a parent that is behind is told when: so many in a second.

    Told to come back soon, a herd of thousands would do nothing else than ask, and refusing them costs as much as
    serving a few. However much there is to do, some are let in: those that are in already may never have enough.
    """

    def __init__(self) -> None:
        self._last = self._let_in = 0.0

    def next(self) -> float:
        """Seconds until the caller's turn; 0: now."""
        if not (least := behind(QUEUE_LIMIT, WAIT_LIMIT)):
            return 0.0
        now = time.monotonic()
        if now - self._let_in >= 1.0 / LET_IN_A_SECOND:
            self._let_in = now
            return 0.0
        self._last = min(max(self._last, now + least) + 1.0 / TURNS_A_SECOND, now + LAST_TURN_SECONDS)
        return self._last - now


turns = Turns()


def check_turn(*, anew: bool = False) -> None:
    """Raises TooMany where what was asked for should come later; ``anew``: by who brings nothing."""
    if wait := turns.next() if anew else behind():
        metrics.put_off.add(of="busy")
        raise TooMany("this parent has more to do than it can at this moment", retry_after=wait)


def perform(caller: Caller, verb: str, body: Any) -> Body:
    """One verb of an authenticated child. Raises CascadeError."""
    place.check_meant(body)
    with metrics.verbs.timed(verb):
        return (VERBS.get(verb) or KEY_VERBS[verb])(caller, body)


def _report(caller: Caller, body: Any) -> Body:
    """Rows that come in the report itself need room; of those in segments it was asked when they were uploaded."""
    entries = messages.read_report(body)
    if any(entry.inline for entry in entries):
        room.check()
    return lifecycle.report(caller, entries)


def _retire(caller: Caller, body: Any) -> Body:
    """Nothing is read of the body; but what is no object is no such request."""
    messages.read_object(body)
    return {"revoked": keys.retire(caller)}


def read_json(content: bytes) -> Any:
    """Raises FieldError."""
    if not content:
        return {}
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FieldError("body", f"is not JSON: {error}") from None


@asynccontextmanager
async def news_for(node_id: int) -> AsyncIterator[Callable[[float], Awaitable[Body | None]]]:
    """Yields a function that waits so many seconds for the next message to this node, or gives None."""
    events.bind(asyncio.get_running_loop())
    layer = get_channel_layer()
    assert layer is not None
    channel = await layer.new_channel()
    await layer.group_add(events.group(node_id), channel)

    async def wait(seconds: float) -> Body | None:
        try:
            return dict(await asyncio.wait_for(layer.receive(channel), seconds))
        except TimeoutError:
            return None

    try:
        yield wait
    finally:
        await layer.group_discard(events.group(node_id), channel)


def _answering(
    view: Callable[..., Coroutine[Any, Any, HttpResponseBase]],
) -> Callable[..., Coroutine[Any, Any, HttpResponseBase]]:
    """Errors leave as JSON with their status."""

    async def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        request.hold = limits.Hold()  # type: ignore[attr-defined]  # taken when it is known whose request this is
        try:
            if settings.SECURE_SSL_REDIRECT and not request.is_secure():
                raise Forbidden("this parent is reached by https only")
            return await view(request, *args, **kwargs)
        except TooLarge as error:
            return json_error(error.status, str(error), field="body")
        except CascadeError as error:
            return respond(error)
        except UnreadablePostError:
            return json_error(400, "was cut off", field="body")
        finally:
            request.hold.release()  # type: ignore[attr-defined]

    return csrf_exempt(answer)


def _body(request: HttpRequest) -> bytes:
    """The whole body. Django's own limit looks at the Content-Length only, which a chunked body does not have."""
    limit = settings.CASCADE.upload_limit
    content = request.read(limit + 1)
    if len(content) > limit:
        raise TooLarge(f"is larger than the {limit} bytes this parent takes (CASCADE_UPLOAD_LIMIT)")
    return bytes(content)


def _authenticate(request: HttpRequest, body_sha256: bytes | None) -> Caller:
    method, url, headers = authentication.request_parts(request)
    client = authentication.client_address(request)
    caller = authentication.authenticate(method, url, headers, body_sha256, client=client)
    request.hold.take(caller.access_key)  # type: ignore[attr-defined]
    return caller


def _authenticate_and_read(request: HttpRequest) -> tuple[Caller, Any]:
    content = _body(request)
    caller = _authenticate(request, hashlib.sha256(content).digest())
    limits.keys.charge(caller.access_key, requests=0, size=len(content))
    return caller, read_json(content)


def _authenticate_and_read_beat(request: HttpRequest) -> tuple[Caller, messages.Beat]:
    caller, body = _authenticate_and_read(request)
    return caller, beats.read(body)


def _authenticate_and_read_logs(request: HttpRequest) -> tuple[Caller, list[messages.Printed]]:
    caller, body = _authenticate_and_read(request)
    return caller, read_logs(body)


def read_logs(body: Any) -> list[messages.Printed]:
    """Logs that are for this server. Raises FieldError, Misdirected."""
    place.check_meant(body)
    return messages.read_logs(body)


def _authenticate_and_perform(request: HttpRequest, verb: str) -> tuple[Caller, Any, Body]:
    caller, body = _authenticate_and_read(request)
    return caller, body, perform(caller, verb, body)


@_answering
async def verb(request: HttpRequest, verb: str) -> HttpResponse:
    """accept, beat, log, report, release, tell, rotate, retire: one exchange."""
    if verb not in VERBS and verb not in KEY_VERBS:
        return json_error(404, f"{verb!r} is not a verb; there are: {', '.join(sorted(VERBS))}")
    if request.method != "POST":
        return _only("POST")
    if verb == "beat":
        return JsonResponse(await beats.gathering.beat(*await in_thread(_authenticate_and_read_beat, request)))
    if verb == "log":
        return JsonResponse(await printed.gathering.take(*await in_thread(_authenticate_and_read_logs, request)))
    check_turn()
    _, _, reply = await in_thread(_authenticate_and_perform, request, verb)
    return JsonResponse(reply, status=_status(reply))


def _status(reply: Body) -> int:
    """A report whose every entry was refused alike has that status; otherwise each entry says its own."""
    statuses = {result["status"] for result in reply.get("results", [])}
    return statuses.pop() if len(statuses) == 1 else 200


@_answering
async def claim(request: HttpRequest) -> HttpResponse:
    """Answers at once when there is work, else when there is some, at the latest after ``wait`` seconds."""
    if request.method != "POST":
        return _only("POST")
    check_turn(anew=True)
    caller, body, reply = await in_thread(_authenticate_and_perform, request, "claim")
    loop = asyncio.get_running_loop()
    until = loop.time() + min(messages.read_claim(body).wait, settings.CASCADE.long_poll_seconds)
    if _has_news(reply) or loop.time() >= until:
        return JsonResponse(reply)
    async with news_for(caller.node_id) as wait:
        # What was granted before we listened is found by this claim; what comes later wakes us.
        reply = await in_thread(perform, caller, "claim", body)
        while not _has_news(reply) and (left := until - loop.time()) > 0:
            # A wake-up from another process may be lost; within this one they are not.
            message = await wait(left if events.abroad is None else min(left, LOST_SECONDS))
            if message is None and events.abroad is None:
                break
            if message is not None and message["type"] == "node.cancel":
                return JsonResponse({**reply, "cancel": message["ids"]})
            if message is not None and message["type"] == "node.shorten":
                return JsonResponse({**reply, "shorten": message["shorten"]})
            reply = await in_thread(perform, caller, "claim", body)
    return JsonResponse(reply)


def _has_news(reply: Body) -> bool:
    return bool(reply["work"] or reply["cancel"] or reply.get("ask"))


def _only(method: str) -> HttpResponse:
    response = json_error(405, f"only {method} is allowed here")
    response["Allow"] = method
    return response


@_answering
async def segment(request: HttpRequest, sha256: str) -> HttpResponse:
    """An Arrow IPC file for the spool, named by its hash; reports then refer to it."""
    if request.method != "PUT":
        return _only("PUT")
    check_turn()
    return await in_thread(_receive, request, sha256)


def _receive(request: HttpRequest, sha256: str) -> HttpResponse:
    folder = settings.CASCADE.spool
    spool.path(folder, sha256)  # refuses what is not a hash before anything is read
    caller = _authenticate(request, None)
    room.check(int(request.META.get("CONTENT_LENGTH") or 0))
    received = spool.receive(iter(lambda: request.read(PIECE), b""), folder, limit=SEGMENT_BYTES_LIMIT)
    limits.keys.charge(caller.access_key, requests=0, size=received.size)
    authentication.check_body(caller, bytes.fromhex(received.sha256))
    if not keys.is_live(caller):
        # An upload may take minutes. What is in the spool counts when a report names it, which asks again.
        raise Unauthenticated(f"access key {caller.access_key} was revoked")
    if received.sha256 != sha256:
        raise FieldError("sha256", f"the body's hash is {received.sha256}, not {sha256}")
    return JsonResponse({"sha256": received.sha256, "bytes": received.size}, status=201)


@_answering
async def config(request: HttpRequest) -> HttpResponse:
    """The configuration in force, packed by gzip; see ``nodes.agent.configuration`` for what is in it."""
    if request.method != "GET":
        return _only("GET")
    return await in_thread(_configuration, request)


def _configuration(request: HttpRequest) -> HttpResponse:
    caller = _authenticate(request, hashlib.sha256(b"").digest())
    made = configuration.document(caller.node_id)
    synclog.note(caller.node_id, "config", synclog.PULL, count=made.entries, extra={"version": made.version})
    return HttpResponse(made.body, content_type="application/gzip")


@_answering
async def inputs_of(request: HttpRequest, allocation: int) -> HttpResponseBase:
    """The rows that an allocation of the caller works over, as an Arrow IPC file."""
    if request.method != "GET":
        return _only("GET")
    caller = await in_thread(_authenticate, request, hashlib.sha256(b"").digest())
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + settings.CASCADE.long_poll_seconds, SOONEST_SECONDS
    while True:
        try:
            return await in_thread(_inputs, caller, allocation)
        except NotYet:
            if loop.time() >= until:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LATEST_SECONDS)


def _inputs(caller: Caller, allocation: int) -> HttpResponseBase:
    with tempfile.TemporaryDirectory(prefix="inputs-", dir=settings.CASCADE.data_dir) as folder:
        file = Path(folder, "rows.arrow")
        inputs.write(caller, allocation, file)
        # Open before its folder goes: the response reads and closes it.
        return FileResponse(open(file, "rb"), content_type="application/vnd.apache.arrow.file")


urlpatterns = [
    path("claim", claim, name="agent-claim"),
    path("config", config, name="agent-config"),
    path("inputs/<int:allocation>", inputs_of, name="agent-inputs"),
    path("segments/<str:sha256>", segment, name="agent-segment"),
    path("<str:verb>", verb, name="agent-verb"),
]

"""What a node serves at its own address: who it is, how it is, and tasks that programs hand to it directly.

A thin translation: ``nodes.agent.direct`` has the tasks, ``nodes.agent.health`` the sample that health answers from.
A child serves nothing else, so nothing here imports models, DRF or pages.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt

from nodes import __version__, executors
from nodes.agent import direct, hosted
from nodes.agent.direct import Task
from nodes.agent.loop import Agent
from nodes.protocol import CascadeError, FieldError, Forbidden, TooLarge, Unauthenticated

logger = logging.getLogger(__name__)

View = Callable[..., Any]

BODY_LIMIT = 32 * 1024 * 1024
PIECE = 256 * 1024
STOP_SECONDS = 0.3
"""Between the answer to a shutdown, or the last result, and the stop, so that it gets away."""
BAD_BODY = 422
"""As these drivers know it; everywhere else a field that is wrong is a 400."""


class _Starting(CascadeError):
    status = 503


def serve(*, open_to_all: bool = False, **methods: View) -> View:
    """One address: ``get=``, ``post=``. Errors leave as ``{"detail", "field"?}``."""

    @csrf_exempt
    async def answer(request: HttpRequest, **kwargs: str) -> Any:
        method = "GET" if request.method == "HEAD" else request.method or ""
        view = methods.get(method.lower())
        if view is None:
            allowed = ", ".join(name.upper() for name in methods)
            return _json({"detail": f"{request.method} is not allowed here"}, 405, Allow=allowed)
        try:
            if not open_to_all:
                _admit(request)
            return await view(request, **kwargs)
        except FieldError as error:
            return _json({"detail": str(error), "field": error.field}, BAD_BODY)
        except CascadeError as error:
            return _json(error.as_dict(), error.status)

    return answer


def _admit(request: HttpRequest) -> None:
    """Raises Unauthenticated, Forbidden."""
    if settings.CASCADE.node_api_key:
        if not _fits(request.headers.get("X-API-Key", "").encode(errors="replace")):
            raise Unauthenticated("X-API-Key is missing or not this node's")
        return
    origin = request.headers.get("Origin")
    # Programs send no Origin. A page of another site, opened in a browser near this node, must not hand it work.
    if request.method == "POST" and origin is not None and urlsplit(origin).netloc != request.headers.get("Host"):
        raise Forbidden(f"pages of {origin[:100]} may not use this node")


def _fits(given: bytes) -> bool:
    """Whether this is the node's API key, or it has none."""
    key = settings.CASCADE.node_api_key.encode()
    return not key or hmac.compare_digest(given, key)


def _agent() -> Agent:
    if hosted.agent is None:
        raise _Starting("this node is starting")
    return hosted.agent


# Who and how


def _identity(agent: Agent) -> dict[str, str]:
    name = settings.CASCADE.node_name or agent.node or socket.gethostname()
    return {"node_id": settings.CASCADE.node_id or _stable_id(agent.config.data_dir), "node_name": name}


@cache
def _stable_id(folder: Path) -> str:
    """The same after every restart, and another one for another node of this machine."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{socket.gethostname()}:{folder}").hex


def _state(agent: Agent) -> str:
    now, limits = agent.sampler.last, settings.CASCADE
    memory_mb = agent.config.max_memory_mb
    if now.stale:
        return "error"
    if now.cpu > limits.max_cpu or now.memory > limits.max_memory or 0 < memory_mb < now.memory_mb:
        return "overloaded"
    if agent.active >= agent.capacity or agent.draining or agent.stopping or agent.direct.closed:
        return "busy"
    return str(limits.healthy_word)


async def root(request: HttpRequest) -> HttpResponse:
    return _json({"service": "cascade", "version": __version__, **_identity(_agent()), "status": "running"})


async def health(request: HttpRequest) -> HttpResponse:
    return _json(_health(_agent()))


def _health(agent: Agent) -> dict[str, Any]:
    now, tally = agent.sampler.last, agent.tally
    return {
        **_identity(agent),
        "status": _state(agent),
        "cpu_percent": now.cpu,
        "memory_percent": now.memory,
        "active_tasks": agent.active,
        "max_workers": agent.capacity,
        "completed_tasks": tally.completed,
        "failed_tasks": tally.failed,
        "uptime_seconds": agent.sampler.uptime,
        "last_heartbeat": now.taken.isoformat(),
        "capabilities": executors.runnable(),
    }


class HealthFirst:
    """ASGI: answers a good request for health right here and leaves everything else to ``rest``.

    Django's own way hands each request to another thread and back, twice; with every core taken by workers, that
    costs four times as much as all the rest.
    """

    def __init__(self, rest: Any) -> None:
        self._rest = rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        agent = hosted.agent
        asked = scope["type"] == "http" and scope["method"] == "GET" and scope["path"].rstrip("/") == "/api/v1/health"
        if not asked or agent is None or not _fits(dict(scope["headers"]).get(b"x-api-key", b"")):
            await self._rest(scope, receive, send)
            return
        content = json.dumps(_health(agent), ensure_ascii=False).encode()
        headers = [(b"Content-Type", b"application/json"), (b"Content-Length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


async def probe(request: HttpRequest) -> HttpResponse:
    """For whatever starts and watches processes: 200 or 503. It needs no key, and without one it says little."""
    agent = _agent()
    told = _health(agent)
    if not _fits(request.headers.get("X-API-Key", "").encode(errors="replace")):
        told = {"status": told["status"]}
    return _json(told, 503 if agent.sampler.last.stale else 200)


def _counted(agent: Agent) -> dict[str, Any]:
    tally = agent.tally
    return {
        "total_executed": tally.executed,
        "total_failed": tally.failed,
        "success_rate": tally.success_rate,
        "average_time": tally.average,
        "active_tasks": agent.active,
        "completed_tasks_cached": agent.direct.kept,
    }


async def statistics(request: HttpRequest) -> HttpResponse:
    return _said("statistics", _counted(_agent()))


async def stats(request: HttpRequest) -> HttpResponse:
    agent = _agent()
    about = {"max_workers": agent.capacity, "uptime_seconds": agent.sampler.uptime}
    system = {
        "cpu_count": os.cpu_count() or 1,
        "memory_total_gb": round(psutil.virtual_memory().total / 1024**3, 2),
        "disk_usage_percent": agent.sampler.last.disk,
    }
    data = {"node_info": _identity(agent) | about, "task_stats": _counted(agent), "system_info": system}
    return _said("statistics of this node", data)


# Tasks


async def execute(request: HttpRequest) -> HttpResponse:
    agent = _agent()
    body = _body(request)
    # A million symbols are checked beside the loop that answers everybody.
    order = await asyncio.to_thread(direct.read_order, body, int(settings.CASCADE.default_timeout))
    task = await asyncio.wrap_future(agent.call(agent.direct.submit, order))
    return _json(
        {
            "task_id": task.task_id,
            "status": "running",
            "message": f"task {task.task_id} is accepted",
            "started_at": task.started.isoformat(),
            "completed_at": None,
        }
    )


async def status(request: HttpRequest, task_id: str) -> HttpResponseBase:
    return _told(_agent().direct.get(task_id))


async def cancel(request: HttpRequest, task_id: str) -> HttpResponseBase:
    agent = _agent()
    return _told(await asyncio.wrap_future(agent.call(agent.direct.cancel, task_id)))


def _told(task: Task) -> HttpResponseBase:
    """A status with its result, which comes from a file in pieces, as it may be large."""
    if task.state in direct.ENDED:
        _agent().direct.was_read(task)
    head = json.dumps(task.status(), ensure_ascii=False).encode()[:-1] + b', "result": '
    try:
        file = open(task.result, "rb") if task.result is not None else None  # noqa: SIM115
    except FileNotFoundError:  # forgotten at this moment
        file = None
    if file is None:
        return _sized(HttpResponse(head + b"null}", content_type="application/json"))
    size = os.fstat(file.fileno()).st_size
    if size <= PIECE:
        with file:
            return _sized(HttpResponse(head + file.read() + b"}", content_type="application/json"))

    async def pieces() -> AsyncIterator[bytes]:
        with file:
            yield head
            while piece := file.read(PIECE):
                yield piece
        yield b"}"

    response = StreamingHttpResponse(pieces(), content_type="application/json")
    response["Content-Length"] = str(len(head) + size + 1)
    return response


# Orders


async def notify(request: HttpRequest) -> HttpResponse:
    """The parent says that there is work: the agent claims at once instead of at its next turn."""
    agent = _agent()
    await asyncio.wrap_future(agent.call(agent.wake))
    return _json({"code": 0, "message": "ok", "data": None})


async def shutdown(request: HttpRequest) -> HttpResponse:
    agent = _agent()
    client = request.META.get("REMOTE_ADDR") or ""
    # A proxy on this machine calls for somebody else.
    near = _is_loopback(client) and "X-Forwarded-For" not in request.headers and "Forwarded" not in request.headers
    if not settings.CASCADE.node_api_key and not near:
        raise Forbidden("without an API key this node is stopped from its own machine only")
    asyncio.create_task(_stop(agent), name="stop")  # noqa: RUF006  (the process ends with it)
    return _said(
        "the node takes nothing more, ends what runs, and stops",
        {"active_tasks": agent.active, "drain_seconds": agent.config.drain_seconds},
    )


async def _stop(agent: Agent) -> None:
    await asyncio.sleep(STOP_SECONDS)
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(agent.drain(), agent.loop))
    await asyncio.sleep(STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_loopback(client: str) -> bool:
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


# Bodies and answers


def _body(request: HttpRequest) -> Any:
    content = request.read(BODY_LIMIT + 1)
    if len(content) > BODY_LIMIT:
        raise TooLarge(f"body: is larger than {BODY_LIMIT} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FieldError("body", f"is not JSON: {error}") from None


def _json(content: Any, status: int = 200, **headers: str) -> HttpResponse:
    response = JsonResponse(content, status=status, json_dumps_params={"ensure_ascii": False}, headers=headers)
    return _sized(response)


def _sized(response: HttpResponse) -> HttpResponse:
    response["Content-Length"] = str(len(response.content))
    return response


def _said(message: str, data: dict[str, Any]) -> HttpResponse:
    return _json({"success": True, "message": message, "data": data})


def _route(path: str, view: View) -> URLPattern:
    """Served with and without a trailing slash, and never by a redirect."""
    pattern = re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", path)
    return re_path(rf"^{pattern}/?$", view)


async def _unknown(request: HttpRequest, exception: Exception | None = None, **kwargs: str) -> HttpResponse:
    return _json({"detail": f"no such address: {request.path[:200]}"}, 404)


mounted = [
    _route("api/v1/health", serve(get=health)),
    _route("api/v1/task/execute", serve(post=execute)),
    _route("api/v1/task/<task_id>/status", serve(get=status)),
    _route("api/v1/task/<task_id>/cancel", serve(post=cancel)),
    _route("api/v1/statistics", serve(get=statistics)),
    _route("api/v1/node/stats", serve(get=stats)),
    _route("api/v1/node/shutdown", serve(post=shutdown)),
]
"""What a standalone server serves, too, beside its own pages and API."""
PREFIXES = r"^api/v1/(?:health|statistics|task|node)(?:/|$)"

urlpatterns = [
    re_path(r"^$", serve(open_to_all=True, get=root)),
    _route("healthz", serve(open_to_all=True, get=probe)),
    *mounted,
    _route("api/v1/cascade/notify", serve(post=notify)),
    _route("api/v1/wx/cascade/notify", serve(post=notify)),
    _route("notify", serve(post=notify)),
    re_path(r"", _unknown),
]

"""How the agent's messages travel: REST, a WebSocket, and ``Link``, which knows which of them works now.

Either carries any verb, so an allocation may be claimed on one and reported on the other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from nodes.agent.clock import ParentClock
from nodes.agent.config import AgentConfig
from nodes.agent.signer import Signer
from nodes.protocol import FRAME_BYTES_LIMIT, OLDEST, VERSION, CascadeError

if TYPE_CHECKING:
    import http.client

    import requests
    from websockets.asyncio.client import ClientConnection

logger = logging.getLogger(__name__)

Body = dict[str, Any]

FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0
REPLY_SECONDS = 30.0
UPLOAD_SECONDS = 60.0
"""Without a byte going either way. A segment is on the parent's disk long before; a lost answer must not cost more."""
EMPTY_SECONDS = 1.0
LIVELY_SECONDS = 10.0
"""A socket that carried messages for so long counts as one that works: the waits start small again."""


class Unreachable(CascadeError):
    """The message may or may not have arrived: send it again. ``wait``: seconds the parent asked for, if it did.

    ``failed``: it arrived, and this message made the parent fail; another one may not.
    """

    def __init__(self, message: str, wait: float | None = None, *, failed: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.failed = failed


class Refused(CascadeError):
    """The parent understood and said no, with this HTTP status. Sending it again changes nothing."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.detail = message


def check_protocol(reply: Body) -> None:
    """Raises Refused for a parent that speaks a version too old for us."""
    if (spoken := int(reply.get("protocol", OLDEST))) < OLDEST:
        raise Refused(
            HTTPStatus.UPGRADE_REQUIRED,
            f"it speaks version {spoken} of the protocol, we {OLDEST} to {VERSION}: update the parent",
        )


def jitter(attempt: int) -> float:
    """Seconds before try number ``attempt``: anything up to a growing bound, so that a herd of agents spreads out."""
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 20)))


def pause(error: Unreachable, attempt: int) -> float:
    """Seconds before the next try: as long as the parent asked for and up to half as long again, else ``jitter``."""
    return jitter(attempt) if error.wait is None else error.wait * random.uniform(1.0, 1.5)


class Rest:
    """Signed requests to the parent's agent routes. Blocking calls run in threads, each with its own connection."""

    def __init__(self, config: AgentConfig, clock: ParentClock) -> None:
        self._config = config
        self._clock = clock
        self.signer = Signer(config, clock)
        self._idle: list[requests.Session] = []

    async def call(self, verb: str, body: Body, *, patience: float = REPLY_SECONDS) -> Body:
        """Raises Unreachable, Refused."""
        content = json.dumps(body, separators=(",", ":")).encode()
        return await self._run("POST", f"/api/v1/agent/{verb}", content, patience)

    async def upload(self, sha256: str, file: Path) -> None:
        """Brings a segment to the parent's spool; doing it again costs nothing there."""
        await self._run("PUT", f"/api/v1/agent/segments/{sha256}", file, UPLOAD_SECONDS)

    async def fetch(self, name: str) -> bytes:
        """What the parent has under this name, as it is. Raises Unreachable, Refused."""
        path = f"/api/v1/agent/{name}"
        content: bytes = (await self._run("GET", path, b"", 120.0))["content"]
        return content

    async def download(self, name: str, file: Path) -> None:
        """As ``fetch``, into ``file``, which is whole or not there."""
        await self._run("GET", f"/api/v1/agent/{name}", file, 300.0)

    def _download(self, path: str, file: Path | None, patience: float) -> Body:
        """By the standard library: what ``requests`` takes, an agent that pushes and is idle can do without."""
        import http.client

        url = self._config.parent + path
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        for again in (True, False):
            used = self._clock.offset
            headers = self.signer.headers("GET", url, offset=used)
            connection = kind(parts.hostname or "", parts.port, timeout=patience)
            try:
                try:
                    connection.request("GET", parts.path, headers=headers)
                    answer = connection.getresponse()
                    status, retry_after = answer.status, answer.getheader("Retry-After")
                    into = file if status == HTTPStatus.OK else None
                    content = answer.read() if into is None else b""
                except (OSError, http.client.HTTPException) as error:
                    raise Unreachable(f"GET {path}: {error}") from None
                if into is not None:
                    _into(into, answer, path)
            finally:
                connection.close()
            if self._again(status, content.decode(errors="replace"), used) and again:
                continue
            return {"content": content} if status == HTTPStatus.OK else _decoded(status, content, retry_after)
        raise AssertionError("unreachable")

    def _again(self, status: int, refusal: str, used: float) -> bool:
        """After an answer to what was signed with the clock's offset ``used``: whether to sign it once more."""
        if status == HTTPStatus.UNAUTHORIZED:
            if self._clock.learn(refusal, used) or self.signer.renewed():
                return True
            self._clock.refused(used)
        elif status < HTTPStatus.MULTIPLE_CHOICES:
            self._clock.accepted(used)
        return False

    async def _run(self, method: str, path: str, content: bytes | Path, patience: float) -> Body:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Body] = loop.create_future()

        def settle(body: Body | None, error: BaseException | None) -> None:
            if answer.cancelled():
                if method == "GET" and isinstance(content, Path):
                    content.unlink(missing_ok=True)  # it came after all, and nobody knows of it
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(body or {})

        def exchange() -> None:
            body: Body | None = None
            failure: BaseException | None = None
            try:
                if method == "GET":
                    body = self._download(path, content if isinstance(content, Path) else None, patience)
                else:
                    body = self._exchange(method, path, content, patience)
            except BaseException as error:
                failure = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, body, failure)

        # A daemon, which executors' threads are not: a stop must not wait for a claim that waits for work.
        threading.Thread(target=exchange, name=f"rest {path}", daemon=True).start()
        return await answer

    def _exchange(self, method: str, path: str, content: bytes | Path, patience: float) -> Body:
        import requests

        url = self._config.parent + path
        data = content.read_bytes() if isinstance(content, Path) else content
        kind = "application/vnd.apache.arrow.file" if isinstance(content, Path) else "application/json"
        session = self._idle.pop() if self._idle else requests.Session()
        try:
            for again in (True, False):
                used = self._clock.offset
                headers = self.signer.headers(method, url, data, offset=used)
                try:
                    answer = session.request(
                        method, url, data=data, headers={**headers, "Content-Type": kind}, timeout=(10, patience),
                        allow_redirects=False,
                    )  # fmt: skip
                except requests.RequestException as error:
                    raise Unreachable(f"{method} {path}: {error}") from None
                if self._again(answer.status_code, answer.text, used) and again:
                    continue
                return _decoded(answer.status_code, answer.content, answer.headers.get("Retry-After"))
            raise AssertionError("unreachable")
        finally:
            self._idle.append(session)

    def close(self) -> None:
        for session in self._idle:
            session.close()


def _into(file: Path, answer: http.client.HTTPResponse, path: str) -> None:
    """The answer's body into ``file``. Raises Unreachable where it does not come, OSError where it cannot be kept."""
    part = file.with_suffix(".part")
    with open(part, "wb") as target:
        while content := _piece(answer, path):
            target.write(content)
    os.replace(part, file)


def _piece(answer: http.client.HTTPResponse, path: str) -> bytes:
    import http.client

    try:
        content = answer.read(1024 * 1024)
        if not content and answer.length:  # of what was promised, so much did not come
            raise http.client.IncompleteRead(b"", answer.length)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"GET {path}: {error}") from None
    return content


def _decoded(status: int, content: bytes, retry_after: str | None) -> Body:
    """The body of a good answer, or of one that says of each entry what became of it.

    Raises Unreachable for what may heal, Refused for what will not.
    """
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        body = None
    if isinstance(body, dict) and (HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES or "results" in body):
        return body
    detail = body.get("detail") if isinstance(body, dict) else None
    message = str(detail or content[:200].decode(errors="replace"))
    if status < HTTPStatus.MULTIPLE_CHOICES:
        # Some other server's page, as networks with a sign-in show it.
        raise Unreachable(f"{status}: the answer is not one of a parent: {message}")
    if status < HTTPStatus.BAD_REQUEST:
        raise Refused(status, "the parent's address is another one: this one redirects")
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INSUFFICIENT_STORAGE) or status >= 500:
        wait = float(retry_after) if retry_after and retry_after.isdigit() else None
        raise Unreachable(f"{status}: {message}", wait, failed=status == HTTPStatus.INTERNAL_SERVER_ERROR)
    raise Refused(status, message)


class Push:
    """One WebSocket to the parent: sends verbs and matches replies to them; offers and orders come by themselves."""

    def __init__(self, socket: ClientConnection, inbound: Callable[[Body], None]) -> None:
        self._socket = socket
        self._inbound = inbound
        self._waiting: dict[int, asyncio.Future[Body]] = {}
        self._next = 0
        self._text: list[str] = []

    async def call(self, verb: str, body: Body, *, patience: float = REPLY_SECONDS) -> Body:
        """Raises Unreachable, Refused; ValueError for a message too long for a socket."""
        number, self._next = self._next, self._next + 1
        text = json.dumps({"type": verb, "id": number, "body": body}, separators=(",", ":"))
        if len(text) > FRAME_BYTES_LIMIT:
            raise ValueError(f"a {verb} of {len(text)} bytes does not fit a frame")
        waiting: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            from websockets.exceptions import ConnectionClosed

            try:
                await self._socket.send(text)
                # Not wait_for, which before Python 3.12 may swallow a cancel when the reply comes at that moment.
                async with asyncio.timeout(patience):
                    frame = await waiting
            except (ConnectionClosed, TimeoutError) as error:
                raise Unreachable(f"{verb}: {str(error) or 'no reply'}") from None
        finally:
            self._waiting.pop(number, None)
        if frame.get("status", 200) >= 400:
            _decoded(frame["status"], json.dumps(frame.get("body", {})).encode(), str(frame.get("retry_after", "")))
        reply = frame.get("body")
        return reply if isinstance(reply, dict) else {}

    async def listen(self) -> None:
        """Until the socket closes."""
        from websockets.exceptions import ConnectionClosed

        try:
            async for text in self._socket:
                frame = json.loads(text)
                if frame.get("type") == "reply":
                    waiting = self._waiting.get(frame.get("re"))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(frame)
                else:
                    self._inbound(frame)
        except ConnectionClosed:
            pass
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(Unreachable("the socket closed"))
                    # Retrieved here, too: a call that timed out at this moment does not look again.
                    waiting.exception()

    async def close(self) -> None:
        with suppress(Exception):
            async with asyncio.timeout(2):
                await self._socket.close()


class Uploads(Protocol):
    """Where segments go, and inputs come from."""

    async def upload(self, sha256: str, file: Path) -> None: ...

    async def download(self, name: str, file: Path) -> None: ...


class Line(Protocol):
    """What an agent needs of a way to its parent; ``Link`` is the one over a network."""

    taking: bool
    """Off: no more claims."""
    long_poll: float

    @property
    def rest(self) -> Uploads: ...

    @property
    def carrier(self) -> str: ...

    @property
    def reachable(self) -> bool:
        """Whether new work can come now."""

    async def call(self, verb: str, body: Body) -> Body:
        """Raises Unreachable, Refused."""

    async def run(self) -> None:
        """Keeps the way open, until cancelled."""

    def wake(self) -> None:
        """There may be work for us: ask now."""

    def close(self) -> None: ...


Inbound = Callable[[Body], None]
Connected = Callable[[], Awaitable[None]]
MakeLine = Callable[[Inbound, Callable[[], Body], Connected], Line]
"""(inbound, claim, connected), as for ``Link``."""


class Link:
    """The way to the parent: by push while it works, else by pull, and back.

    ``inbound`` gets offers and orders ({"type": "offer" | "cancel" | …}); ``claim`` makes the body of a claim;
    ``connected``, a beat, is awaited before any work can come: on a new socket, and before the first claim or the
    first after an outage.
    """

    def __init__(
        self,
        config: AgentConfig,
        inbound: Inbound,
        claim: Callable[[], Body],
        connected: Connected,
    ) -> None:
        self._config = config
        self.rest = Rest(config, ParentClock())
        self._inbound = inbound
        self._claim = claim
        self._connected = connected
        self._push: Push | None = None
        self._tried = asyncio.Event()
        self._knocked = asyncio.Event()
        self._waiting_claim = False
        self._asking: asyncio.Task[None] | None = None
        self.long_poll = 30.0
        self.taking = True
        """Off: no more claims."""
        self.parent = ""
        """Id of the server that our allocations are of: each message names it, and any other one refuses that."""
        self.moved: Callable[[], None] = lambda: None
        """Called when another server was found at the parent's address."""
        self._closing: asyncio.Task[None] | None = None

    @property
    def carrier(self) -> str:
        return "push" if self._push is not None else "pull"

    @property
    def reachable(self) -> bool:
        """Whether new work can come to us now."""
        return self.taking and (self._push is not None or self._config.carrier != "push")

    async def call(self, verb: str, body: Body) -> Body:
        """Sends a verb on whatever works now. Raises Unreachable, Refused."""
        return await self._meant(verb, body, REPLY_SECONDS, self._push)

    async def _meant(self, verb: str, body: Body, patience: float, push: Push | None = None) -> Body:
        """Sends it to the server that it is about. Raises Unreachable, also where another one is there; Refused."""
        if self.parent:
            body = {**body, "parent": self.parent}
        try:
            reply = await self._exchange(verb, body, patience, push)
        except Refused as error:
            if error.status != HTTPStatus.MISDIRECTED_REQUEST:
                raise
            if body.get("parent") == self.parent:
                self._move()
        else:
            if body.get("parent", "") == self.parent:
                return reply
        raise Unreachable(f"another server answers at {self._config.parent} than before")

    async def _exchange(self, verb: str, body: Body, patience: float, push: Push | None) -> Body:
        if push is not None:
            with suppress(ValueError):  # too long for a frame
                return await push.call(verb, body)
        return await self.rest.call(verb, body, patience=patience)

    def _move(self) -> None:
        if self._push is not None:  # it may lead to the old one still
            self._closing = asyncio.create_task(self._push.close())
            self._push = None
        self.parent = ""
        self.moved()

    async def run(self) -> None:
        """Keeps the way open, until cancelled."""
        jobs = []
        if self._config.carrier in ("push", "auto"):
            jobs.append(self._keep_pushing())
        if self._config.carrier in ("pull", "auto"):
            jobs.append(self._keep_pulling())
        await asyncio.gather(*jobs)

    async def _keep_pushing(self) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            asked: Unreachable | None = None
            try:
                await self._push_once()
            except Unreachable as error:
                asked = error
                logger.warning("no socket to %s: %s", self._config.parent, error)
            except (OSError, TimeoutError) as error:
                logger.warning("no socket to %s: %s", self._config.parent, error)
            except Refused as error:
                logger.error("%s refuses us: %s", self._config.parent, error)
            except Exception:
                logger.exception("the socket failed")
            self._tried.set()
            attempt = 0 if loop.time() - began > LIVELY_SECONDS else attempt + 1
            await asyncio.sleep(jitter(attempt) if asked is None else pause(asked, attempt))

    async def _push_once(self) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        url = f"{self._config.parent}/ws/agent"
        headers = self.rest.signer.headers("GET", url)
        try:
            socket = await connect(
                url.replace("http", "ws", 1),
                additional_headers=headers,
                compression=None,
                max_size=16 * 1024 * 1024,
                open_timeout=10,
                ping_interval=10,
                ping_timeout=20,
                proxy=None,
            )
        except InvalidStatus as error:
            if (after := error.response.headers.get("Retry-After", "")).isdigit():
                raise Unreachable(f"the upgrade is answered {error.response.status_code}", float(after)) from None
            # The refusal of an upgrade says nothing; by REST the parent tells the reason, or its time.
            await self._connected()
            raise OSError(f"the upgrade is answered {error.response.status_code}") from None
        except InvalidHandshake as error:
            raise OSError(str(error)) from None
        push = Push(socket, self._inbound)
        listening = asyncio.create_task(push.listen())
        try:
            self._push = push
            self._tried.set()
            logger.info("connected to %s by push", self._config.parent)
            await self._connected()
            await listening
        except (Unreachable, Refused) as error:
            logger.warning("the socket failed: %s", error)
        finally:
            self._push = None
            await push.close()
            listening.cancel()
            logger.info("the socket to %s is closed", self._config.parent)

    async def _keep_pulling(self) -> None:
        if self._config.carrier == "auto":
            # Where a socket opens, the other way is not needed, nor the library that it takes.
            await self._tried.wait()
        attempt = 0
        away = True
        loop = asyncio.get_running_loop()
        while True:
            if self._push is not None or not self.taking:
                await asyncio.sleep(0.5)
                continue
            try:
                if away:
                    # A beat first: it says hello, or renews leases that an outage may have cost.
                    await self._connected()
                    away = False
                began = loop.time()
                body = {**self._claim(), "wait": self.long_poll}
                self._waiting_claim = True
                try:
                    reply = await self._meant("claim", body, self.long_poll + 15)
                finally:
                    self._waiting_claim = False
                if "work" not in reply:
                    raise Unreachable("the answer to a claim names no work: it is not one of a parent")
                self._inbound({"type": "claimed", **reply})
                attempt = 0
                empty = not reply["work"] and not reply.get("cancel") and not reply.get("ask")
                if empty and loop.time() - began < EMPTY_SECONDS:
                    await self._pause(EMPTY_SECONDS)  # a parent that lets nobody wait
            except Unreachable as error:
                attempt, away = attempt + 1, True
                logger.warning("no claim from %s: %s", self._config.parent, error)
                await self._pause(pause(error, attempt))
            except Refused as error:
                attempt, away = attempt + 1, True
                logger.error("%s refuses us: %s", self._config.parent, error)
                await self._pause(jitter(attempt + 4))
            except Exception:
                attempt, away = attempt + 1, True
                logger.exception("a claim failed")
                await self._pause(jitter(attempt + 4))

    async def _pause(self, seconds: float) -> None:
        """Until the next claim, or until somebody knocks."""
        self._knocked.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._knocked.wait()

    def wake(self) -> None:
        """Somebody knocked: claim at once, whatever we wait for. Call it on the agent's loop."""
        self._knocked.set()
        asking = self._asking is not None and not self._asking.done()
        if self.taking and not asking and (self._waiting_claim or self._push is not None):
            # The claim that waits may wait on a dead line. It is not given up: work may come with its answer.
            self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        try:
            self._inbound({"type": "claimed", **await self.call("claim", {**self._claim(), "wait": 0})})
        except (Unreachable, Refused) as error:
            logger.warning("no claim from %s: %s", self._config.parent, error)

    def close(self) -> None:
        self.rest.close()

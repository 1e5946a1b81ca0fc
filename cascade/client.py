"""For other people's programs: submit work to a parent, wait for it, read its rows; or share it over nodes.

    from cascade.client import Client, Bridge

Needs ``requests`` and nothing else to be imported; pandas and pyarrow only where rows are asked for as their tables.
submit, wait, progress, results, cancel, retry and explain have twins with ``_async`` behind their names.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from nodes.executors.base import Item, shown
from nodes.protocol import (
    CascadeError,
    Conflict,
    FieldError,
    Forbidden,
    NotFound,
    StorageFull,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unprocessable,
)

if TYPE_CHECKING:
    import requests

    from cascade.bridge import Bridge, TaskResult, get_distributed_bridge

__all__ = ["Bridge", "Client", "Run", "TaskResult", "Unavailable", "get_distributed_bridge"]

TIMEOUT_SECONDS = 30.0
TRIES = 5
POLL_SECONDS = (0.05, 2.0)
_ERRORS: dict[int, type[CascadeError]] = {
    each.status: each for each in (Unauthenticated, Forbidden, NotFound, Conflict, TooLarge, Unprocessable, StorageFull)
}
_FORMATS = {"records": "json", "dataframe": "arrow", "arrow": "arrow"}

P = ParamSpec("P")
T = TypeVar("T")


class Unavailable(CascadeError):
    """The parent did not answer, or with a fault of its own, however often it was asked."""

    status = 503


def __getattr__(name: str) -> Any:
    # Only who wants a Bridge pays for it.
    if name in ("Bridge", "TaskResult", "get_distributed_bridge"):
        from cascade import bridge

        return getattr(bridge, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Client:
    """A parent at ``url``, with a user's name and password, or with an access token that somebody else fetched.

    Raises the errors of ``nodes.protocol`` for what the parent refuses, and Unavailable. May be used by several
    threads. Tokens are renewed as they run out.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        token: str = "",
        timeout: float = TIMEOUT_SECONDS,
        tries: int = TRIES,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise FieldError("url", f"{shown(url)} does not begin with http:// or https://")
        if bool(username) == bool(token):
            raise FieldError("username", "either username and password, or token, is required")
        self.url = url.rstrip("/")
        self._username = username
        self._password = password
        self._token = token
        self._refresh = ""
        self._timeout = timeout
        self._tries = max(tries, 1)
        self._local = threading.local()
        self._signing_in = threading.Lock()
        self._sessions: list[requests.Session] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def submit(
        self,
        type: str,
        items: Sequence[Item],
        params: dict[str, Any] | None = None,
        *,
        idempotency_key: str = "",
        **options: Any,
    ) -> Run:
        """A new run over ``items``. ``options`` are fields of ``POST /api/v1/runs``: name, split, priority, timeout …

        Sent again when the answer was lost, it is one run still. With an ``idempotency_key`` of your own that holds
        for another start of your program, too: the same submission with the same key is the same run.
        """
        body = {"type": type, "items": list(items), "params": params or {}, **options}
        found = self._json(
            "POST", "/api/v1/runs", json=body, headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        )
        return Run(self, int(found["id"]))

    def run(self, run_id: int) -> Run:
        """A run that is there already. Nothing is asked yet."""
        return Run(self, run_id)

    async def submit_async(
        self, type: str, items: Sequence[Item], params: dict[str, Any] | None = None, **options: Any
    ) -> Run:
        return await asyncio.to_thread(self.submit, type, items, params, **options)

    # Requests

    def _json(self, method: str, path: str, **options: Any) -> Any:
        response = self._request(method, path, **options)
        return response.json() if response.content else None

    def _request(self, method: str, path: str, *, retry: bool = True, **options: Any) -> requests.Response:
        """One request, repeated where the parent was away: only what may be repeated comes here with ``retry``."""
        import requests

        for attempt in range(1, self._tries + 1):
            wait = min(0.2 * 2**attempt, 5.0) * (0.5 + random.random())
            last = attempt == self._tries or not retry
            try:
                response = self._once(method, path, **options)
            except requests.RequestException as error:
                if last:
                    raise Unavailable(f"{self.url} does not answer: {error}"[:500]) from None
            else:
                if response.status_code < 400:
                    return response
                error_ = _error(response)
                if last or not isinstance(error_, TooMany | StorageFull | Unavailable):
                    raise error_
                if isinstance(error_, TooMany):
                    wait = min(max(wait, error_.retry_after), 60.0)
                response.close()
            time.sleep(wait)
        raise AssertionError("the last attempt either returned or raised")

    def _once(self, method: str, path: str, **options: Any) -> requests.Response:
        token = self._token or self._sign_in("")
        response = self._send(method, path, token, **options)
        if response.status_code == 401 and self._username:
            response.close()
            response = self._send(method, path, self._sign_in(token), **options)
        return response

    def _send(self, method: str, path: str, token: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        return self._session().request(
            method, self.url + path, headers=headers, timeout=self._timeout, allow_redirects=False, **options
        )

    def _sign_in(self, worn_out: str) -> str:
        """A fresh token, by the refresh token while that is good; another thread may have fetched it already."""
        with self._signing_in:
            if self._token and self._token != worn_out:
                return self._token
            found: dict[str, Any] = {}
            if self._refresh:
                answer = self._session().post(
                    f"{self.url}/api/v1/token/refresh", json={"refresh": self._refresh}, timeout=self._timeout
                )
                found = answer.json() if answer.status_code == 200 else {}
            if not found:
                answer = self._session().post(
                    f"{self.url}/api/v1/token",
                    json={"username": self._username, "password": self._password},
                    timeout=self._timeout,
                )
                if answer.status_code != 200:
                    raise _error(answer)
                found = answer.json()
            self._refresh = found.get("refresh", self._refresh)
            self._token = found["access"]
            return self._token

    def _session(self) -> requests.Session:
        """One for each thread: a session is not made for several."""
        import requests

        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            # A .netrc would replace our token; the environment's proxies are taken all the same.
            session.auth = _keep
            self._sessions.append(session)
        return session


def _keep(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class Run:
    """A run of the parent, by its id."""

    def __init__(self, client: Client, run_id: int) -> None:
        self.client = client
        self.id = run_id

    def __repr__(self) -> str:
        return f"<run {self.id} at {self.client.url}>"

    def about(self) -> dict[str, Any]:
        """What was submitted, and what became of it."""
        return dict(self.client._json("GET", self._path()))

    def progress(self) -> dict[str, Any]:
        """Numbers of items by what became of them, ``rows`` saved, and ``state``."""
        return dict(self.client._json("GET", self._path("progress")))

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """The progress of the ended run; ``state`` says how. Raises TimeoutError after ``timeout`` seconds."""
        for seconds in _waits(timeout, self):
            if (progress := self.progress())["state"] != "running":
                return progress
            time.sleep(seconds)
        raise AssertionError("waits end by raising")

    async def wait_async(self, timeout: float | None = None) -> dict[str, Any]:
        for seconds in _waits(timeout, self):
            if (progress := await self.progress_async())["state"] != "running":
                return progress
            await asyncio.sleep(seconds)
        raise AssertionError("waits end by raising")

    def cancel(self) -> dict[str, Any]:
        """Stops what is not finished. Raises Conflict for a run that has ended."""
        return dict(self.client._json("POST", self._path("cancel"), retry=False))

    def retry(self, items: Iterable[int] | None = None) -> int:
        """Opens again what failed, or of that the shards with ``items``, by their numbers; how many items.

        Raises Conflict where nothing can be tried again.
        """
        asked = {} if items is None else {"items": [[index, index + 1] for index in items]}
        return int(self.client._json("POST", self._path("retry"), json=asked, retry=False)["retried"])

    def explain(self) -> dict[str, Any]:
        """Why it is waiting, node by node."""
        return dict(self.client._json("GET", self._path("explain")))

    def nodes(self) -> list[dict[str, Any]]:
        """What each node did of it."""
        return list(self.client._json("GET", self._path("nodes")))

    def failures(self) -> list[dict[str, Any]]:
        """The items that failed: index, item, error, node."""
        found: list[dict[str, Any]] = []
        after = -1
        while True:
            page = self.client._json("GET", self._path("items"), params={"after": after, "limit": 1000})
            found += page["results"]
            if not page["next"]:
                return found
            after = page["results"][-1]["index"]

    def results(self, format: str = "records", **query: Any) -> Any:
        """The rows it saved: ``records`` (a list of dicts), ``dataframe`` (pandas) or ``arrow`` (a pyarrow Table).

        ``query``: limit, offset, columns, ordering, raw, or a column and the value it must equal.
        """
        if format not in _FORMATS:
            raise FieldError("format", f"{shown(format)} is not one of: {', '.join(_FORMATS)}")
        response = self.client._request("GET", self._path("results"), params={"format": _FORMATS[format], **query})
        if format == "records":
            return response.json()
        import pyarrow as pa

        with pa.BufferReader(response.content) as source:
            table = pa.ipc.open_stream(source).read_all()
        return table.to_pandas() if format == "dataframe" else table

    async def progress_async(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.progress)

    async def cancel_async(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.cancel)

    async def retry_async(self, items: Iterable[int] | None = None) -> int:
        return await asyncio.to_thread(self.retry, items)

    async def explain_async(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.explain)

    async def results_async(self, format: str = "records", **query: Any) -> Any:
        return await asyncio.to_thread(self.results, format, **query)

    def _path(self, verb: str = "") -> str:
        return f"/api/v1/runs/{self.id}" + (f"/{verb}" if verb else "")


def _waits(timeout: float | None, run: Run) -> Iterator[float]:
    """Pauses between questions: short while the run is young, for ever or until ``timeout`` seconds are over."""
    began = time.monotonic()
    while True:
        least, most = POLL_SECONDS
        passed = time.monotonic() - began
        left = most if timeout is None else timeout - passed
        yield max(min(least + passed * 0.1, most, left), 0.0)
        if timeout is not None and time.monotonic() - began >= timeout:
            raise TimeoutError(f"{run} has not ended within {timeout:g} s")


def _error(response: requests.Response) -> CascadeError:
    try:
        body = response.json()
    except ValueError:
        body = {}
    detail = str(body.get("detail", "")) if isinstance(body, dict) else ""
    message = detail or f"{response.request.method} {response.url} was answered {response.status_code}"
    code = response.status_code
    if code == 429:
        seconds = response.headers.get("Retry-After", "1")
        return TooMany(message, retry_after=float(seconds) if seconds.isdigit() else 1.0)
    if code == 400 and isinstance(body, dict) and body.get("field"):
        return FieldError(str(body["field"]), message)
    if code in _ERRORS:
        return _ERRORS[code](message)
    if code >= 500:
        return Unavailable(message)
    return FieldError("request", message)

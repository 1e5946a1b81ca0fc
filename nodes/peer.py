"""A node that is called at its own address: the requests of the ``node`` dialect's driving side. Django-free.

What is sent and what answers mean is in ``drive``; who is asked and when is decided by whoever drives.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nodes import executors
from nodes.executors.base import shown
from nodes.protocol import CascadeError

if TYPE_CHECKING:
    import requests

ANSWER_LIMIT = 128 * 1024 * 1024
"""Bytes of one answer: a status brings the rows of its task."""
CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""A whole answer, however slowly it drips."""
WELL = ("healthy", "active", "ok", "online", "running")
"""Words of health that mean: work is accepted."""


class PeerError(CascadeError):
    """A node's answer that is no yes.

    PeerError
    ├── Unreachable   nobody answered, or not in time: what was sent may have arrived
    ├── Busy          503: not now
    ├── Unknown       404: the node knows no such task (or has no such address)
    ├── Refused       another 4xx: the same will be refused again
    └── Broken        5xx, or an answer that cannot be read
    """

    status = 502


class Unreachable(PeerError):
    pass


class Busy(PeerError):
    pass


class Unknown(PeerError):
    pass


class Refused(PeerError):
    """``code`` is the answer's status: 401 and 403 are about the key, 409 about a task id in use."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Broken(PeerError):
    pass


@dataclass(frozen=True)
class Health:
    """What a node says of itself; loads in percent. ``slots`` None: it did not say how many workers it has."""

    status: str
    cpu: float
    memory: float
    active: int
    types: tuple[str, ...]
    slots: int | None = None

    @property
    def well(self) -> bool:
        """It accepts work."""
        return self.status in WELL

    @property
    def alive(self) -> bool:
        """It works, whether or not it accepts more now."""
        return self.well or self.status in ("busy", "overloaded")

    @property
    def score(self) -> float:
        """100 - CPU * 0.5 - memory * 0.3 - tasks * 10: the higher, the sooner it is given work."""
        return 100.0 - self.cpu * 0.5 - self.memory * 0.3 - self.active * 10


class Peer:
    """One node at ``url``. Not for several threads at once. Every method raises PeerError."""

    def __init__(self, url: str, api_key: str = "") -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._session: requests.Session | None = None

    def health(self, seconds: float = READ_SECONDS) -> Health:
        found = self._ask("GET", "/api/v1/health", seconds=seconds)
        slots = found.get("max_workers", found.get("capacity"))
        return Health(
            status=str(found.get("status", "")).lower(),
            cpu=_number(found.get("cpu_percent"), 100.0),
            memory=_number(found.get("memory_percent"), 100.0),
            active=int(_number(found.get("active_tasks"), 1e6)),
            types=_types(found.get("capabilities")),
            slots=None if slots is None else int(_number(slots, 1e6)),
        )

    def workers(self) -> int | None:
        """How many tasks it runs at once; None where it does not say."""
        data = self._ask("GET", "/api/v1/node/stats").get("data")
        about = data.get("node_info") if isinstance(data, Mapping) else None
        most = about.get("max_workers") if isinstance(about, Mapping) else None
        return None if most is None else int(_number(most, 1e6))

    def execute(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Gives it a task (see ``drive.execute_body``). The same task again is no second one on a node of ours."""
        return self._ask("POST", "/api/v1/task/execute", body)

    def task(self, task_id: str) -> dict[str, Any]:
        """The status of a task, with its result when it has ended."""
        return self._ask("GET", f"/api/v1/task/{quote(task_id, safe='')}/status")

    def cancel(self, task_id: str) -> dict[str, Any]:
        return self._ask("POST", f"/api/v1/task/{quote(task_id, safe='')}/cancel", {})

    def notify(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Knocks at a node that fetches its work itself."""
        return self._ask("POST", "/api/v1/cascade/notify", body, seconds=CONNECT_SECONDS)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = READ_SECONDS
    ) -> dict[str, Any]:
        import requests
        from urllib3.exceptions import HTTPError

        if self._session is None:
            self._session = requests.Session()
            # Neither a proxy nor a password of this machine's environment is meant for nodes.
            self._session.trust_env = False
            # An answer is as long as it is: no archive that unpacks to more than a limit lets through.
            self._session.headers["Accept-Encoding"] = "identity"
            if self._api_key:
                self._session.headers["X-API-Key"] = self._api_key
        try:
            with self._session.request(
                method,
                self.url + path,
                json=body,
                timeout=(min(CONNECT_SECONDS, seconds), seconds),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _read(response, time.monotonic() + ANSWER_SECONDS)
                code = response.status_code
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise Unreachable(f"{self.url} does not answer: {_short(error)}") from None
        return _judged(f"{method} {self.url}{path}", code, content)


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body, at most ANSWER_LIMIT bytes, until ``deadline``."""
    pieces: list[bytes] = []
    size = 0
    while piece := response.raw.read1(65_536, decode_content=False):
        pieces.append(piece)
        size += len(piece)
        if size > ANSWER_LIMIT:
            raise Broken(f"the answer has more than {ANSWER_LIMIT} bytes: use smaller shards")
        if time.monotonic() > deadline:
            raise Unreachable(f"the answer was not whole in {ANSWER_SECONDS:g} s")
    return b"".join(pieces)


def _judged(what: str, code: int, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content) if content.strip() else {}
    except (ValueError, RecursionError):
        found = None
    if 200 <= code < 300:
        if not isinstance(found, dict):
            raise Broken(f"{what} was answered {shown(content[:200])}, which is no JSON object")
        return found
    detail = found.get("detail", found) if isinstance(found, dict) else content[:200]
    message = f"{what} was answered {code}: {shown(detail)}"
    if code == 503:
        raise Busy(message)
    if code == 404:
        raise Unknown(message)
    if 400 <= code < 500:
        raise Refused(message, code)
    raise Broken(message)


def _types(capabilities: Any) -> tuple[str, ...]:
    """Its task types that are also ours. A node that names none speaks the oldest form, which imports data."""
    if not isinstance(capabilities, list):
        return ("data_import",)
    named = {each.lower() for each in capabilities if isinstance(each, str)}
    return tuple(each for each in executors.names() if each in named)


def _number(value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(min(max(value, 0), most))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]

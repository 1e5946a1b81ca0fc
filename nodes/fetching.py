"""The one place from which executors and the parent fetch over HTTP: limits on all an answer costs, and no way into
networks that are not public.

A name is resolved once, every address is checked, and the connection goes to the address that was checked; each hop of
a redirect passes the same door. Django-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class FetchFailed(Exception):
    """Nothing usable came. ``retry``: another attempt may end differently. ``status``: of the answer, if any."""

    def __init__(self, message: str, *, retry: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.retry = retry
        self.status = status


@dataclass(frozen=True)
class Limits:
    """``max_bytes`` counts what is unpacked, too; ``seconds`` is for everything together, redirects included."""

    max_bytes: int = 16 * 1024 * 1024
    seconds: float = 30.0
    connect_seconds: float = 10.0
    redirects: int = 5


@dataclass(frozen=True)
class Answer:
    """``url``: where it came from in the end. ``headers`` have lower-case names. ``moved``: the new address of a
    permanent redirect (301, 308), if every hop was one; "" otherwise."""

    url: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    moved: str = ""


class Fetcher:
    """Fetches; keeps connections open between calls of one thread. ``close`` it, or use it in ``with``."""

    def __init__(self, limits: Limits = Limits(), *, user_agent: str = "cascade") -> None:
        raise NotImplementedError

    def get(
        self, url: str, headers: Mapping[str, str] | None = None, *, accept: frozenset[int] = frozenset()
    ) -> Answer:
        """The answer with a status of 200 or one of ``accept`` (304, say; with a redirect's status in it, redirects
        are not followed). Raises FetchFailed: a bad or refused address, no answer in time, too large, too many
        redirects, any other status."""
        raise NotImplementedError

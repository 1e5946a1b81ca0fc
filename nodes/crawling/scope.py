"""Which of the addresses found on a page a run goes on to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from nodes.crawling.addresses import host_of, key_of, path_of


@dataclass(frozen=True)
class Scope:
    """``hosts``: names, or patterns such as *.example.org; none: the host of the page where it was found. ``include``
    and ``exclude``: patterns of paths with their query."""

    follow: bool
    max_depth: int
    hosts: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Scope:
        return cls(
            follow=params["follow"],
            max_depth=params["max_depth"],
            hosts=[host.lower() for host in params.get("hosts") or ()],
            include=params.get("include") or (),
            exclude=params.get("exclude") or (),
        )

    def holds(self, address: str, origin: str) -> bool:
        """Whether ``address``, found on ``origin``, is one of the run's."""
        host, path = host_of(address), path_of(address)
        near = any(fnmatchcase(host, each) for each in self.hosts) if self.hosts else host == host_of(origin)
        if not near or (self.include and not any(fnmatchcase(path, each) for each in self.include)):
            return False
        return not any(fnmatchcase(path, each) for each in self.exclude)

    def found(self, links: Iterable[str], origin: str, depth: int, most: int) -> list[dict[str, Any]]:
        """The first ``most`` of ``links`` that the run goes on to from a page at ``depth``, as items."""
        if not self.follow or depth >= self.max_depth:
            return []
        wanted = (address for address in links if self.holds(address, origin))
        return [item_of(address, depth + 1) for address, _ in zip(wanted, range(most), strict=False)]


def item_of(address: str, depth: int = 0, hops: int = 0) -> dict[str, Any]:
    """The item of a canonical address; ``hops``: redirects on the way to it."""
    item: dict[str, Any] = {"key": key_of(address), "url": address, "depth": depth}
    return {**item, "hops": hops} if hops else item

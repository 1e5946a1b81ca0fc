"""Knocking at nodes that fetch their work themselves: "there is something for you". A lost knock costs latency only.

Only nodes with an address are knocked at. When is decided by ``driving``, whose loop visits each ``Doorbell``.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import Max
from django.utils import timezone

from dispatch import synclog
from dispatch.models import Allocation
from dispatch.states import AllocationState
from nodes.fetching import Fetcher, FetchFailed, Limits
from nodes.models import Node
from nodes.peer import CONNECT_SECONDS, Peer, PeerError, Unreachable

logger = logging.getLogger(__name__)

GAP_SECONDS = 0.2
"""Between two knocks at one node: whatever was granted meanwhile is fetched with the rest."""
LONGEST_WAIT = 300.0
CALLBACK = "callback_url"
"""Among a node's facts: the address that it told itself, as opposed to one that an operator has set."""


class _Told:
    """An address that a node told may lead anywhere, so it is called through the door that looks where: to public
    networks, and those that ``allowed_networks`` opens."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/api/v1/cascade/notify"

    def notify(self, body: Mapping[str, Any]) -> None:
        """Raises Unreachable."""
        try:
            with Fetcher(Limits(seconds=CONNECT_SECONDS, connect_seconds=CONNECT_SECONDS)) as fetcher:
                content = json.dumps(body).encode()
                status = fetcher.post(self._url, content, {"Content-Type": "application/json"}).status
        except FetchFailed as error:
            raise Unreachable(error.reason) from None
        if not 200 <= status < 300:
            raise Unreachable(f"answered {status}")

    def close(self) -> None:
        """Nothing is kept open."""


class Doorbell:
    """One node that is knocked at, once for whatever waits for it. Visited by one thread at a time."""

    def __init__(self, node: Node) -> None:
        self.id = node.pk
        self.name = node.name
        self.address = (node.api_url, node.api_key)
        self.due = math.inf
        self.busy = self.urgent = False
        told = node.api_url == node.facts.get(CALLBACK)
        self._peer = _Told(node.api_url) if told else Peer(node.api_url, node.api_key)
        self._knocked = 0
        self._failures = 0
        self._not_before = 0.0

    def urge(self) -> None:
        """It was told of something: to be visited as soon as it may be."""
        self.due = min(self.due, self._not_before)

    def hear(self, newest: int) -> None:
        """``newest`` is the youngest allocation that waits for it."""
        if newest > self._knocked:
            self.urge()

    def visit(self) -> None:
        """Knocks, unless it has been told of all that waits, or has fetched it."""
        self.due = math.inf
        waiting = list(
            Allocation.objects.filter(node_id=self.id, state=AllocationState.PENDING, delivered=False)
            .order_by("pk")
            .values_list("pk", "start", "stop")
        )
        if not waiting or waiting[-1][0] <= self._knocked:
            return
        first = next(each for each in waiting if each[0] > self._knocked)
        try:
            self._peer.notify(
                {
                    "type": "new_task",
                    "allocation_id": str(first[0]),
                    "feed_count": first[2] - first[1],
                    "timestamp": f"{timezone.now().replace(tzinfo=None).isoformat()}Z",
                }
            )
        except PeerError as error:
            self._failed(error)
            return
        self._knocked = waiting[-1][0]
        self._failures = 0
        self._not_before = time.monotonic() + GAP_SECONDS
        self._note("")

    def leave(self) -> None:
        self._peer.close()

    def _failed(self, error: PeerError) -> None:
        """It comes by itself sooner or later; it is tried again only while something waits."""
        self._failures += 1
        self._not_before = time.monotonic() + min(2.0**self._failures, LONGEST_WAIT)
        if self._failures == 1:
            logger.info("node %s cannot be knocked at: %s", self.name, error)
        self._note(str(error))

    def _note(self, error: str) -> None:
        synclog.note(self.id, "notify", "push", count=0 if error else 1, error=error)


def newest_waiting(node_ids: Iterable[int]) -> dict[int, int]:
    """Node -> the youngest allocation that it has not fetched, of those that have any."""
    if not (ids := list(node_ids)):
        return {}
    waiting = Allocation.objects.filter(node_id__in=ids, state=AllocationState.PENDING, delivered=False).order_by()
    return dict(waiting.values_list("node_id").annotate(Max("pk")))

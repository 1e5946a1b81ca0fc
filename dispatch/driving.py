"""The third carrier: nodes that this parent calls at their own address (carrier ``http``), in the ``node`` dialect.

``Driver`` is the loop; it visits each node by its own small schedule, several at once in a few threads. What happens
at a visit is in ``driven``, and in ``knocking`` for nodes that fetch their work themselves but like to be woken. One
process of a parent runs this loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from django.db import close_old_connections, connection

from dispatch import events, leading
from dispatch.driven import Driven
from dispatch.knocking import Doorbell, newest_waiting
from nodes.models import Node

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Which nodes there are is read so often; other processes change that, too."""
THREADS = 12
"""Visits at once. One that waits for a silent node holds its thread for some seconds."""


class Station(Protocol):
    """Somebody who is visited: when ``due`` (monotonic), and at once where that is ``urge``\\ d."""

    address: tuple[str, str]
    due: float
    busy: bool
    urgent: bool

    def urge(self) -> None: ...

    def visit(self) -> None: ...

    def leave(self) -> None: ...


class Driver:
    """Runs in a thread of the parent's process, with THREADS more while there are nodes to visit."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self.run, name="driver", daemon=True)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="drive")
        self._turn = threading.Lock()
        self._told: set[int] = set()
        self._stations: dict[int, Station] = {}
        self._looked = 0.0

    def start(self) -> None:
        events.listen(self._heard)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the visits at hand. What runs on the nodes runs on: a later start takes it up again."""
        events.unlisten(self._heard)
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=10)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _heard(self, node_ids: Iterable[int], message: Mapping[str, Any]) -> None:
        with self._turn:
            self._told.update(node_ids)
        self._wake.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._pause())
            self._wake.clear()
            if not leading.held():
                # What is due stays so; without a rest it would be looked at again and again.
                self._stopping.wait(LOOK_SECONDS)
                continue
            try:
                self.once()
            except Exception:
                logger.exception("a pass of the driver failed")
                close_old_connections()
                self._stopping.wait(LOOK_SECONDS)
        connection.close()

    def once(self) -> None:
        """Sends off the visits that are due."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
            self._looked = time.monotonic()
        with self._turn:
            told, self._told = self._told, set()
        for node_id in told & set(self._stations):
            self._stations[node_id].urge()
        for station in self._stations.values():
            if not station.busy and (station.urgent or station.due <= time.monotonic()):
                station.busy = True
                station.urgent = False
                self._pool.submit(self._visit, station)

    def _pause(self) -> float:
        dues = [0.0 if each.urgent else each.due for each in self._stations.values() if not each.busy]
        return max(0.0, min([LOOK_SECONDS, *(due - time.monotonic() for due in dues)]))

    def _visit(self, station: Station) -> None:
        try:
            if not self._stopping.is_set():
                station.visit()
        except Exception:
            logger.exception("a visit failed")
            close_old_connections()
            station.due = time.monotonic() + LOOK_SECONDS
        finally:
            station.busy = False
            self._wake.set()

    def _look(self) -> None:
        """Takes up nodes that can be called now, and leaves those that cannot any more."""
        nodes = {node.pk: node for node in Node.objects.filter(active=True).exclude(api_url="")}
        for node_id, station in list(self._stations.items()):
            if not _serves(station, nodes.get(node_id)) and not station.busy:
                del self._stations[node_id]
                self._pool.submit(station.leave)
        for node_id, node in nodes.items():
            if node_id not in self._stations and (made := _station(node, self._stopping)) is not None:
                self._stations[node_id] = made
            station = self._stations.get(node_id)  # type: ignore[assignment]
            if isinstance(station, Driven):
                station.capacity = node.capacity
        bells = {node_id: each for node_id, each in self._stations.items() if isinstance(each, Doorbell)}
        for node_id, newest in newest_waiting(bells).items():
            bells[node_id].hear(newest)


def _station(node: Node, stopping: threading.Event) -> Station | None:
    if node.carrier == Node.Carrier.HTTP:
        return Driven(node, stopping)
    return Doorbell(node) if node.carrier == Node.Carrier.PULL and not node.embedded else None


def _serves(station: Station, node: Node | None) -> bool:
    if node is None:
        return False
    carrier = Node.Carrier.HTTP if isinstance(station, Driven) else Node.Carrier.PULL
    return node.carrier == carrier and station.address == (node.api_url, node.api_key)

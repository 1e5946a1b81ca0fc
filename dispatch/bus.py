"""What the processes of one parent tell each other: that something was committed, and which nodes have news.

Only wake-ups: what there is to do is in the database, and is found there a little later where a message is lost. Two
ways lead to the others. PostgreSQL's NOTIFY is always there; Redis, where ``redis_url`` names one, takes the load off
it. Everybody listens on both, and a message that cannot go over Redis goes over PostgreSQL: while Redis is away nothing
is slower. Messages are gathered: a process sends at most one in GAP_SECONDS, however much happens.
"""

from __future__ import annotations

import json
import logging
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from django.conf import settings
from django.db import connection

from dispatch import events, leading

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger(__name__)

CHANNEL = "cascade"
GAP_SECONDS = 0.01
PAGES_SECONDS = 0.25
"""The same where there is news for the pages only, which look no more often."""
PAYLOAD_BYTES = 7900
"""PostgreSQL takes 8000 in a notification."""
KEPT = 10_000
"""Messages to nodes that wait to be sent; what goes beyond it is left to polling."""
RETRY_SECONDS = 1.0
IDLE_SECONDS = 5.0
"""How long a receiver waits before it looks whether it is to end, and whether its connection still lives."""

Told = list[tuple[list[int], dict[str, Any]]]
"""Nodes, and the message to them."""


class Way(Protocol):
    """One way to the others. Both methods raise where it is broken."""

    name: str

    def send(self, payloads: Sequence[str]) -> None: ...

    def receive(self, heard: Callable[[str], None], ready: Callable[[], None], stopping: threading.Event) -> None:
        """Passes on what arrives until ``stopping``; calls ``ready`` when nothing will be missed any more."""


class Postgresql:
    name = "PostgreSQL"

    def __init__(self) -> None:
        self._sending: psycopg.Connection[Any] | None = None

    def send(self, payloads: Sequence[str]) -> None:
        try:
            if self._sending is None:
                self._sending = leading.connect()
                # A notification is a transaction, and nobody needs it on disk.
                self._sending.execute("SET synchronous_commit = off")
            for payload in payloads:
                self._sending.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
        except Exception:
            if self._sending is not None:
                self._sending.close()
            self._sending = None
            raise

    def receive(self, heard: Callable[[str], None], ready: Callable[[], None], stopping: threading.Event) -> None:
        with leading.connect() as listening:
            listening.add_notify_handler(lambda notification: heard(notification.payload))
            listening.execute(f"LISTEN {CHANNEL}")
            ready()
            while not stopping.is_set():
                if not select.select([listening.fileno()], [], [], IDLE_SECONDS)[0]:
                    listening.execute("SELECT 1")
                    continue
                listening.pgconn.consume_input()
                while (notification := listening.pgconn.notifies()) is not None:
                    heard(notification.extra.decode())


class Redis:
    name = "Redis"

    def __init__(self, url: str) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # Its own tries, with growing pauses, would keep a message from going the other way meanwhile.
        once = Retry(NoBackoff(), 0)
        # No time-out for who waits for news: some versions' own would drop them after 5 s.
        self._client = redis.Redis.from_url(url, retry=once, socket_timeout=None, socket_connect_timeout=2.0)
        self._sending = redis.Redis.from_url(url, retry=once, socket_timeout=2.0, socket_connect_timeout=0.5)
        self._away_until = 0.0

    def send(self, payloads: Sequence[str]) -> None:
        # While it is away messages must not wait for it: it is tried once a second.
        if time.monotonic() < self._away_until:
            raise ConnectionError("was away a moment ago")
        try:
            with self._sending.pipeline(transaction=False) as pipeline:
                for payload in payloads:
                    pipeline.publish(CHANNEL, payload)
                pipeline.execute()
        except Exception:
            self._away_until = time.monotonic() + RETRY_SECONDS
            raise

    def receive(self, heard: Callable[[str], None], ready: Callable[[], None], stopping: threading.Event) -> None:
        with self._client.pubsub(ignore_subscribe_messages=True) as listening:
            listening.subscribe(CHANNEL)
            # What comes back is the confirmation: from here on nothing is missed.
            listening.get_message(timeout=IDLE_SECONDS)
            ready()
            while not stopping.is_set():
                message = listening.get_message(timeout=IDLE_SECONDS)
                if message is not None and message["type"] == "message":
                    heard(message["data"].decode())
                elif message is None:
                    listening.ping()


class Bus:
    """A loop: gathers what this process has to say, sends it, and passes on what the others say."""

    def __init__(self) -> None:
        self._me = secrets.token_hex(6)
        self._ways: list[Way] = [Redis(settings.CASCADE.redis_url)] if settings.CASCADE.redis_url else []
        self._ways.append(Postgresql())
        self._turn = threading.Lock()
        self._names: set[str] = set()
        self._work: set[int] = set()
        self._told: Told = []
        self._waiting = threading.Event()
        self._stopping = threading.Event()
        self._broken: set[str] = set()
        self._threads = [threading.Thread(target=self._send_all, name="bus", daemon=True)]
        for way in self._ways:
            self._threads.append(
                threading.Thread(target=self._listen, args=(way,), name=f"bus {way.name}", daemon=True)
            )

    def start(self) -> None:
        events.abroad = self
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """What is still to be said is said."""
        events.abroad = None
        self._stopping.set()
        self._waiting.set()
        self._threads[0].join(timeout=5)

    # What this process says

    def note(self, name: str) -> None:
        # The loops that wait for signals are the leader's.
        if name in events.SIGNALS and leading.held():
            return
        with self._turn:
            self._names.add(name)
        if name not in events.FOR_PAGES:
            self._waiting.set()

    def tell(self, node_ids: Sequence[int], message: Mapping[str, Any]) -> None:
        with self._turn:
            if message == {"type": "node.work"}:
                self._work.update(node_ids)
            elif len(self._told) < KEPT:
                self._told.append((list(node_ids), dict(message)))
        self._waiting.set()

    def _send_all(self) -> None:
        while not self._stopping.is_set():
            self._waiting.wait(PAGES_SECONDS)
            self._waiting.clear()
            with self._turn:
                names, self._names = self._names, set()
                told, self._told = self._told, []
                work, self._work = self._work, set()
            if work:
                told.append((sorted(work), {"type": "node.work"}))
            if names or told:
                self._send(list(pieces(self._me, names, told)))
            self._stopping.wait(GAP_SECONDS)

    def _send(self, payloads: Sequence[str]) -> None:
        for way in self._ways:
            try:
                way.send(payloads)
            except Exception as error:
                self._lost(f"to {way.name}", error)
            else:
                self._found(f"to {way.name}")
                return
        self._stopping.wait(RETRY_SECONDS)  # the database is away; what was to be said is found there later

    # What the others say

    def _listen(self, way: Way) -> None:
        while not self._stopping.is_set():
            try:
                way.receive(self._heard, lambda: self._listening(way), self._stopping)
            except Exception as error:
                self._lost(f"from {way.name}", error)
                self._stopping.wait(RETRY_SECONDS)

    def _listening(self, way: Way) -> None:
        self._found(f"from {way.name}")
        # Whatever was said while nobody listened.
        events.hear([*events.SIGNALS, *events.FOR_PAGES], [])

    def _heard(self, payload: str) -> None:
        try:
            said = json.loads(payload)
            if said["from"] != self._me:
                events.hear(said["set"], [(ids, message) for ids, message in said["tell"]])
        except Exception:
            # Of another version, or not ours.
            logger.warning("a message of another process could not be read: %.200s", payload, exc_info=True)

    # Once for each time that a way breaks, and for each time that it is there again

    def _lost(self, what: str, error: Exception) -> None:
        with self._turn:
            if what in self._broken:
                return
            self._broken.add(what)
        logger.warning("wake-ups %s: the connection is lost, and tried again: %s", what, " ".join(str(error).split()))

    def _found(self, what: str) -> None:
        if what not in self._broken:
            return
        with self._turn:
            self._broken.discard(what)
        logger.info("wake-ups %s: connected again", what)


class AtOnce:
    """The way of a command, which has no loops: each message is sent when it is given, over PostgreSQL."""

    def note(self, name: str) -> None:
        self._send([name], [])

    def tell(self, node_ids: Sequence[int], message: Mapping[str, Any]) -> None:
        self._send([], [(list(node_ids), dict(message))])

    def _send(self, names: Iterable[str], told: Told) -> None:
        # Within somebody else's transaction an error would undo that; it will be found by polling.
        if connection.in_atomic_block:
            return
        with suppress(Exception), connection.cursor() as cursor:
            for payload in pieces("command", names, told):
                cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))


def pieces(sender: str, names: Iterable[str], told: Iterable[tuple[list[int], dict[str, Any]]]) -> Iterator[str]:
    """The payloads that say it, none of them longer than PAYLOAD_BYTES (of ASCII)."""
    head = [*names]
    batch: list[str] = []
    size = room = PAYLOAD_BYTES - 200
    for text in (json.dumps(one, separators=(",", ":")) for each in told for one in _divided(each, room)):
        if batch and size + len(text) + 1 > room:
            yield _payload(sender, head, batch)
            head, batch = [], []
        if not batch:
            size = 0
        batch.append(text)
        size += len(text) + 1
    if head or batch:
        yield _payload(sender, head, batch)


def _payload(sender: str, names: Sequence[str], told: Sequence[str]) -> str:
    return f'{{"from":"{sender}","set":{json.dumps(list(names))},"tell":[{",".join(told)}]}}'


def _divided(told: tuple[list[int], dict[str, Any]], room: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The same in several messages where one would be too long: of fewer nodes, or about fewer ``ids``."""
    nodes, message = told
    ids = message.get("ids", [])
    if len(json.dumps(told, separators=(",", ":"))) <= room:
        yield told
    elif len(nodes) > 1:
        half = len(nodes) // 2
        yield from _divided((nodes[:half], message), room)
        yield from _divided((nodes[half:], message), room)
    elif len(ids) > 1:
        half = len(ids) // 2
        yield from _divided((nodes, {**message, "ids": ids[:half]}), room)
        yield from _divided((nodes, {**message, "ids": ids[half:]}), room)
    else:
        logger.warning("a message to node %s is too long to be sent to other processes", nodes)

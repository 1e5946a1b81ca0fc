"""What children are to have: active tasks, active sources, settings by type; a new version when they have changed.

``Configuration`` looks for changes once a second, by counts and latest changes; whatever wrote them is seen, and a
version is made only where the content differs. Beats tell the number of the one that a node is to have (``given``),
and the child fetches ``document``. Which one that is, ``config_releases`` decides; what a relay has from its parent
comes out of ``relay.bundles``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import threading
import time
from typing import Any, NamedTuple

from django.conf import settings
from django.db import close_old_connections, connection
from django.db.models import Count, Max, Q, QuerySet

from dispatch import leading
from dispatch.models import WORK_FIELDS, ConfigRelease, ConfigVersion, Source, Task, TypeSettings
from dispatch.relay import bundles
from nodes.protocol import NotFound
from nodes.transactions import write

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
FULL_SECONDS = 60.0
"""So often the content itself is compared: a change that leaves ``updated_at`` alone shows in no count."""
REST = 10
"""Between two versions at least so many times as long as the last one took to make: a long import is not a stampede."""
MARK_LENGTH = 12
KEPT = 20
"""Versions that are kept, beside the one that is released; without a release the newest is what children fetch."""
SIZE_LIMIT = 64 * 1024 * 1024
"""Characters of JSON; what goes beyond it is left out and named."""
TASK_LIMIT = 8 * 1024 * 1024
"""The same for one task: a million items belong into a run, not onto every node."""
TASK_FIELDS = ("name", *WORK_FIELDS, "items", "source_kind", "items_column", "cron", "time_zone")
SOURCE_FIELDS = ("kind", "key", "name", "address", "extra")

Content = dict[str, Any]
"""{"tasks": [{…}], "sources": [{…}], "settings": {type: params}, "left_out": {"tasks": [name…], "sources": number}};
of a relay also what ``relay.bundles.joined`` adds."""


class Mark(NamedTuple):
    """Which version: its number and the beginning of its digest, since numbers come again when a parent is restored."""

    version: int
    mark: str


class Document(NamedTuple):
    """A version as it travels: gzip of a header's line, {"version", "mark", "digest", "bytes"}, and the content."""

    version: int
    mark: str
    entries: int
    body: bytes


class Given(NamedTuple):
    """Who has which: ``canary`` are ids of nodes that have the ``newest``, as all have where that is ``released``."""

    newest: Mark
    released: Mark
    canary: frozenset[int] = frozenset()

    def to(self, node_id: int) -> Mark:
        return self.newest if node_id in self.canary else self.released


NONE = Mark(0, "")
_given = Given(NONE, NONE)
_looked: float | None = None
_documents: dict[Mark, Document] = {}
_packing = threading.Lock()


def newest() -> Mark:
    """The newest version, or NONE before the first. At most a look a second, whoever asks."""
    return _in_force().newest


def given(node_id: int) -> Mark:
    """The version that a node is to have."""
    return _in_force().to(node_id)


def _in_force() -> Given:
    global _given, _looked
    now = time.monotonic()
    if _looked is None or now - _looked > LOOK_SECONDS:
        _looked = now
        _given = _read()
    return _given


def document(node_id: int = 0) -> Document:
    """The version that a node is to have (0: any but a canary), packed once for all who fetch it.

    Raises NotFound before the first.
    """
    with _packing:
        found = _read()
        wanted = found.to(node_id)
        if wanted == NONE:
            raise NotFound("there is no configuration yet; it is made within a second of the parent's start")
        if wanted not in _documents:
            for other in _documents.keys() - {found.newest, found.released}:
                del _documents[other]
            content = ConfigVersion.objects.values_list("content", flat=True).get(pk=wanted.version)
            _documents[wanted] = _packed(wanted, content)
        return _documents[wanted]


def _read() -> Given:
    latest = _mark(ConfigVersion.objects.order_by("-pk"))
    release = ConfigRelease.objects.order_by("pk").values_list("released", "canary").first()
    if release is None:
        return Given(latest, latest)
    return Given(latest, _mark(ConfigVersion.objects.filter(pk=release[0])), frozenset(release[1]))


def _mark(versions: QuerySet[ConfigVersion]) -> Mark:
    row = versions.values_list("pk", "digest").first()
    return NONE if row is None else Mark(row[0], row[1][:MARK_LENGTH])


def look_again() -> None:
    """Somebody has changed who is to have which."""
    global _looked
    _looked = None


def forget() -> None:
    """What was read is not known any more: the database is another one."""
    global _given, _looked
    _given, _looked = Given(NONE, NONE), None
    _documents.clear()


def refresh() -> int | None:
    """Makes a new version when the content differs from that of the newest; its number, or None.

    A relay makes none before it has its parent's: its nodes keep what they have. Two processes that see a change at
    once may make two alike: children fetch once more, and have the same.
    """
    above = None
    if settings.CASCADE.role != "relay":
        content = collect()
    elif (found := bundles.above()) is None:
        return None
    else:
        above, theirs = found
        own = collect(bundles.size(theirs))
        content = bundles.joined(theirs, above, own, settings.CASCADE.called)
    digest = hashlib.sha256(_text(content).encode()).hexdigest()
    with write():
        latest = ConfigVersion.objects.order_by("-pk").values_list("digest", flat=True).first()
        if latest == digest:
            return None
        made = ConfigVersion.objects.create(digest=digest, content=content, above=above)
        old = ConfigVersion.objects.order_by("-pk").values_list("pk", flat=True)[KEPT:]
        released = ConfigRelease.objects.values_list("released", flat=True)
        ConfigVersion.objects.filter(pk__in=set(old) - set(released)).delete()
    look_again()
    return made.pk


def collect(above: int = 0) -> Content:
    """What children are to have now of this server's own, beside so many characters of the node above."""
    room = SIZE_LIMIT - above
    settled = dict(TypeSettings.objects.order_by("type").values_list("type", "params"))
    room -= len(_text(settled))
    sources: list[dict[str, Any]] = []
    rows = Source.objects.filter(active=True).order_by("kind", "key").values(*SOURCE_FIELDS)
    rest = 0
    for row in rows.iterator(2000):
        size = 80 + sum(len(row[name]) for name in ("key", "name", "address"))
        size += len(_text(row["extra"])) if row["extra"] else 0
        if rest or size > room:
            rest += 1
            continue
        room -= size
        sources.append(row)
    tasks: list[dict[str, Any]] = []
    too_large: list[str] = []
    for row in Task.objects.filter(active=True).order_by("name").values(*TASK_FIELDS).iterator(100):
        size = len(_text(row))
        if size > min(room, TASK_LIMIT):
            too_large.append(row["name"])
            continue
        room -= size
        tasks.append(row)
    return {
        "tasks": tasks,
        "sources": sources,
        "settings": settled,
        "left_out": {"tasks": too_large[:1000], "sources": rest},
    }


def signature() -> tuple[Any, ...]:
    """Changes with every change of what ``collect`` reads, and costs next to nothing."""
    return (
        _counted(Task.objects.all()),
        _counted(Source.objects.all()),
        tuple(TypeSettings.objects.order_by("type").values_list("type", "params")),
        bundles.signature(),
    )


def _counted(rows: Any) -> tuple[Any, ...]:
    active = Count("pk", filter=Q(active=True))
    return tuple(rows.aggregate(count=Count("pk"), active=active, last=Max("pk"), at=Max("updated_at")).values())


def _packed(latest: Mark, content: Content) -> Document:
    # Its own digest, not the version's: a database may give numbers back in another spelling than it got them.
    text = _text(content).encode()
    header = {**latest._asdict(), "digest": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    body = gzip.compress(_text(header).encode() + b"\n" + text, 5)
    return Document(*latest, len(content["tasks"]) + len(content["sources"]), body)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class Configuration:
    """The loop, in a thread of its own: many sources take a while to read, and allocation must not wait for that."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="configuration", daemon=True)
        self._seen: tuple[Any, ...] | None = None
        self._compared = 0.0
        self._rest = LOOK_SECONDS

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)

    def run(self) -> None:
        while not self._stopping.is_set():
            self._rest = LOOK_SECONDS
            try:
                if leading.held():
                    self.once()
            except Exception:
                # The next look starts from the database again; a broken connection is replaced.
                logger.exception("the configuration could not be compared")
                close_old_connections()
            self._stopping.wait(self._rest)
        connection.close()

    def once(self) -> int | None:
        """One look; the number of a new version, or None."""
        now = time.monotonic()
        # Before the content: what changes meanwhile is seen by the next look.
        found = signature()
        if found == self._seen and now - self._compared < FULL_SECONDS:
            return None
        made = refresh()
        self._seen, self._compared = found, now
        self._rest = max(LOOK_SECONDS, REST * (time.monotonic() - now))
        if made is not None:
            logger.info("configuration %d is in force", made)
        return made

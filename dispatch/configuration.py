"""What children are to have: active tasks, active sources, settings by type; a new version when they have changed.

``Configuration`` looks for changes once a second, by counts and latest changes; whatever wrote them is seen, and a
version is made only where the content differs. Beats tell its number (``newest``), and the child fetches ``document``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import threading
import time
from typing import Any, NamedTuple

from django.db import close_old_connections, connection
from django.db.models import Count, Max, Q

from dispatch import leading
from dispatch.models import WORK_FIELDS, ConfigVersion, Source, Task, TypeSettings
from nodes.protocol import NotFound
from nodes.transactions import write

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
FULL_SECONDS = 60.0
"""So often the content itself is compared: a change that leaves ``updated_at`` alone shows in no count."""
REST = 10
"""Between two versions at least so many times as long as the last one took to make: a long import is not a stampede."""
MARK_LENGTH = 12
KEPT = 10
"""Versions that are kept; the newest is what children fetch."""
SIZE_LIMIT = 64 * 1024 * 1024
"""Characters of JSON; what goes beyond it is left out and named."""
TASK_LIMIT = 8 * 1024 * 1024
"""The same for one task: a million items belong into a run, not onto every node."""
TASK_FIELDS = ("name", *WORK_FIELDS, "items", "source_kind", "items_column", "cron", "time_zone")
SOURCE_FIELDS = ("kind", "key", "name", "address", "extra")

Content = dict[str, Any]
"""{"tasks": [{…}], "sources": [{…}], "settings": {type: params}, "left_out": {"tasks": [name…], "sources": number}}"""


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


NONE = Mark(0, "")
_newest = NONE
_looked: float | None = None
_document: Document | None = None
_packing = threading.Lock()


def newest() -> Mark:
    """The version in force, or NONE before the first. At most one query a second, whoever asks."""
    global _newest, _looked
    now = time.monotonic()
    if _looked is None or now - _looked > LOOK_SECONDS:
        _looked = now
        _newest = _latest()
    return _newest


def document() -> Document:
    """The version in force, packed once for all who fetch it. Raises NotFound before the first."""
    global _document
    with _packing:
        latest = _latest()
        if latest == NONE:
            raise NotFound("there is no configuration yet; it is made within a second of the parent's start")
        if _document is None or (_document.version, _document.mark) != latest:
            _document = _packed(latest, ConfigVersion.objects.values_list("content", flat=True).get(pk=latest.version))
        return _document


def _latest() -> Mark:
    row = ConfigVersion.objects.order_by("-pk").values_list("pk", "digest").first()
    return NONE if row is None else Mark(row[0], row[1][:MARK_LENGTH])


def forget() -> None:
    """What was read is not known any more: the database is another one."""
    global _newest, _looked, _document
    _newest, _looked, _document = NONE, None, None


def refresh() -> int | None:
    """Makes a new version when the content differs from that of the newest; its number, or None.

    Two processes that see a change at once may make two alike: children fetch once more, and have the same.
    """
    global _looked
    content = collect()
    digest = hashlib.sha256(_text(content).encode()).hexdigest()
    with write():
        latest = ConfigVersion.objects.order_by("-pk").values_list("digest", flat=True).first()
        if latest == digest:
            return None
        made = ConfigVersion.objects.create(digest=digest, content=content)
        old = ConfigVersion.objects.order_by("-pk").values_list("pk", flat=True)[KEPT:]
        ConfigVersion.objects.filter(pk__in=list(old)).delete()
    _looked = None
    return made.pk


def collect() -> Content:
    """What children are to have now."""
    room = SIZE_LIMIT
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

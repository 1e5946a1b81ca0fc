"""The parts of live pages: the words, numbers and bars that each shows, and what two looks at a page have different.

Every view is frozen, and is in no language: of one that equals its predecessor the HTML need not be made again, and
one serves readers of all languages. What changes all the time, as the beats of a thousand nodes, is filled into HTML
that is made once. ``overview`` and the modules of the other pages make them.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from django.template.loader import get_template
from django.utils import timezone
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import get_language, gettext_noop

from api.words import Joined, Text, Words, listed, words

# ---- words, numbers, bars ----------------------------------------------------------------------------------------

_GLYPHS = {
    "pending": "○",
    "allocated": "◔",
    # With the selector that keeps phones from drawing a coloured picture.
    "executing": "▶\ufe0e",
    "saved": "✓",
    "retrying": "↻",
    "failed": "✕",
    "cancelled": "–",
    "expired": "?",
}
_TONES = {
    "quarantined": "failed",
    "spooled": "saved",
    "running": "executing",
    "completed": "saved",
    "partial": "failed",
    "superseded": "cancelled",
    "online": "saved",
    "draining": "allocated",
    "offline": "expired",
    "inactive": "cancelled",
    "removed": "cancelled",
    "submitted": "pending",
    "retried": "retrying",
    "issued": "allocated",
    "revoked": "cancelled",
    "canary": "allocated",
    "released": "saved",
    "rolled back": "retrying",
}


_ = gettext_noop
_WORDS = {
    "pending": _("pending"),
    "allocated": _("allocated"),
    "executing": _("executing"),
    "saved": _("saved"),
    "retrying": _("retrying"),
    "failed": _("failed"),
    "cancelled": _("cancelled"),
    "expired": _("expired"),
    "quarantined": _("quarantined"),
    "spooled": _("spooled"),
    "running": _("running"),
    "completed": _("completed"),
    "partial": _("partial"),
    "superseded": _("superseded"),
    "online": _("online"),
    "draining": _("draining"),
    "offline": _("offline"),
    "inactive": _("inactive"),
    "removed": _("removed"),
    "submitted": _("submitted"),
    "retried": _("retried"),
    "issued": _("issued"),
    "revoked": _("revoked"),
    "canary": _("canary"),
    "released": _("released"),
    "rolled back": _("rolled back"),
}

ROLES = {"child": _("child"), "relay": _("relay"), "parent": _("parent"), "standalone": _("standalone")}


def state_word(name: str) -> Text:
    """The word for a state, as readers have it."""
    return words(_WORDS[name]) if name in _WORDS else name


@dataclass(frozen=True)
class State:
    """A state as shown: its word, and the tone that decides its glyph and colour."""

    name: str
    tone: str
    glyph: str
    said: Text = ""
    """Instead of its word."""

    @classmethod
    def of(cls, name: str) -> State:
        tone = _TONES.get(name, name)
        return cls(name, tone, _GLYPHS[tone])

    @property
    def word(self) -> str:
        return str(self.said or state_word(self.name))


@dataclass(frozen=True)
class Segment:
    """A piece of a bar, in percent of its length."""

    kind: str
    x: str
    width: str


def bar(total: int, *pieces: tuple[str, int]) -> tuple[Segment, ...]:
    """``pieces`` (kind, number) one after the other on a bar ``total`` long; what does not fit is cut off."""
    segments, at = [], 0
    for kind, number in pieces:
        number = max(0, min(number, total - at))
        if number:
            segments.append(Segment(kind, f"{100 * at / total:.2f}", f"{100 * number / total:.2f}"))
            at += number
    return tuple(segments)


def rate(per_second: float) -> str:
    return (
        f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2g}"
    )


def lasted(seconds: float) -> Words:
    seconds = max(0.0, seconds)
    if seconds < 10:
        return words("{n} s", n=f"{seconds:.1f}")
    if seconds < 60:
        return words("{n} s", n=f"{seconds:.0f}")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return words("{n} min {m} s", n=minutes, m=rest)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return words("{n} h {m} min", n=hours, m=minutes)
    return words("{n} d {m} h", n=hours // 24, m=hours % 24)


def left(seconds: float) -> Words:
    """A guess, so rounded to what it is worth."""
    if seconds < 10:
        time = words("{n} s", n=max(1, round(seconds)))
    elif seconds < 60:
        time = words("{n} s", n=5 * round(seconds / 5))
    elif seconds < 3600:
        time = words("{n} min", n=round(seconds / 60))
    else:
        time = lasted(seconds)
    return words("about {time} left", time=time)


def iso(at: dt.datetime | None) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else ""


# ---- views -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gauge:
    """Slots of one type on one node: how many run, wait on the node, are promised (``slots``) and are allowed."""

    name: str
    used: int
    queued: int
    slots: int | None
    limit: int | None
    bar: tuple[Segment, ...]

    @classmethod
    def of(cls, name: str, used: int, queued: int, slots: int | None, limit: int | None = None) -> Gauge:
        within = used if slots is None else min(used, slots)
        total = limit if limit is not None else max(slots or 0, used + queued)
        return cls(
            name, used, queued, slots, limit, bar(total, ("used", within), ("over", used - within), ("queued", queued))
        )

    @property
    def label(self) -> Joined:
        said: list[Text] = [words("{name}: {n} in use", name=self.name, n=self.used)]
        said += [words("{n} queued", n=self.queued)] if self.queued else []
        said += [words("no quota") if self.slots is None else words("quota {n}", n=self.slots)]
        if self.limit is not None:
            said += [words("never here") if self.limit == 0 else words("limit {n}", n=self.limit)]
        return listed(said)


class Filled:
    """A view some texts of which change all the time, so that they are filled into HTML that stays."""

    moving: ClassVar[tuple[str, ...]]
    """Their names; in the page they are the text of elements with ``data-cell``, or what a time is of."""
    following: ClassVar[tuple[str, ...]]
    """What is read off them, and need not be told."""

    def still(self) -> Any:
        """The same for two that differ in what these texts say only."""
        return replace(self, **{name: "…" for name in self.moving if getattr(self, name)})  # type: ignore[type-var]


@dataclass(frozen=True)
class NodeView(Filled):
    id: int
    name: str
    state: State
    role: str
    carrier: str
    capacity: int
    used: int
    queued: int
    bar: tuple[Segment, ...]
    quotas: tuple[Gauge, ...]
    beat: str
    cpu: str
    memory: str
    executors: tuple[str, ...]
    version: str

    moving = ("beat", "cpu", "memory")
    following = ("clock",)

    @property
    def clock(self) -> str:
        return f"{self.beat[11:19]} UTC"

    @property
    def role_word(self) -> Text:
        return words(ROLES[self.role]) if self.role in ROLES else self.role

    @property
    def slots(self) -> Words:
        numbers = {"used": self.used, "capacity": self.capacity, "queued": self.queued}
        if self.role == "relay":
            return words("{used} of {capacity} slots with a run of it, {queued} queued", **numbers)
        return words("{used} of {capacity} slots in use, {queued} queued", **numbers)


@dataclass(frozen=True)
class RunView:
    id: int
    name: str
    type: str
    state: State
    progress: Joined
    note: Text
    failed: int
    bar: tuple[Segment, ...]
    label: Words
    rows: str
    created: str
    ended: str
    took: Text


@dataclass(frozen=True)
class AllocationView:
    id: int
    run: int
    run_name: str
    type: str
    start: int
    stop: int
    attempt: int
    node: Text
    ran_by: tuple[str, ...]
    """Of a relay's: the ways to those that did what is done of it."""
    state: State
    reason: str
    granted: str
    progress: str
    rows: str
    error: str

    @property
    def others(self) -> int:
        return len(self.ran_by) - 1


@dataclass(frozen=True)
class TotalsView:
    nodes: int
    online: int
    capacity: int
    used: int
    queued: int
    running: int
    waiting: str
    since: str
    """When the run was submitted that has waited longest for its first slot; empty: none does."""
    in_flight: str
    failed: int


@dataclass(frozen=True)
class Spark:
    """A curve of the last five minutes, drawn on 300 by 40."""

    unit: Words
    now: str
    peak: str
    line: str
    area: str


@dataclass(frozen=True)
class PaceView:
    curves: tuple[Spark, ...]


@dataclass(frozen=True)
class MomentView:
    """Half a minute: what it brought a second, and the failed items' share."""

    at: str
    items: str
    failed: str
    share: str
    rows: str
    waiting: str
    """Items that were with nobody, at its end; empty: nobody looked."""


@dataclass(frozen=True)
class HistoryView:
    moments: tuple[MomentView, ...]


@dataclass(frozen=True)
class StepsView:
    """The first steps, as far as facts say that they are done. Of a parent with rows there are none."""

    node: bool
    connected: bool
    run: bool
    saved: bool
    waiting: int = 0
    """Id of a node that has never beaten."""

    @property
    def open(self) -> bool:
        return not (self.node and self.connected and self.run and self.saved)


View = Any
"""One of the above, or one of a page's own: a frozen dataclass, with an ``id`` where it is in a list."""
Views = Sequence[tuple[str, View]]
"""The views of a list, each with the name of its template and of the variable there."""


@dataclass(frozen=True)
class Part:
    view: View
    pieces: tuple[str, ...]
    """HTML; between two of it the name of what the view has to be filled in there."""

    @cached_property
    def html(self) -> str:
        return "".join(
            escape(getattr(self.view, piece)) if number % 2 else piece for number, piece in enumerate(self.pieces)
        )

    def cells_since(self, older: Part) -> dict[str, str]:
        """What its cells say now, of those that said something else."""
        if not isinstance(self.view, Filled):
            return {}
        now = {name: getattr(self.view, name) for name in self.view.moving}
        return {name: text for name, text in now.items() if getattr(older.view, name) != text}


@dataclass(frozen=True)
class Snapshot:
    """A page at one moment. ``lists`` gives the ids of the parts in each list, in the order shown."""

    parts: Mapping[str, Part]
    lists: Mapping[str, tuple[str, ...]]

    def html(self, name: str) -> SafeString:
        """The parts of the list ``name``, or the one part of that id. Every part is already escaped by its template."""
        ids = self.lists.get(name, (name,))
        return mark_safe("".join(self.parts[part].html for part in ids))

    def since(
        self, older: Snapshot | None
    ) -> tuple[dict[str, str], dict[str, dict[str, str]], dict[str, tuple[str, ...]]]:
        """What differs from ``older``: HTML by part, texts by part and cell where nothing else does, ids by list."""
        if older is None:
            return {name: part.html for name, part in self.parts.items()}, {}, dict(self.lists)
        parts, cells = {}, {}
        for name, part in self.parts.items():
            was = older.parts.get(name)
            if was is part:
                continue
            if was is None or was.pieces != part.pieces:
                parts[name] = part.html
            elif moved := part.cells_since(was):
                cells[name] = moved
        lists = {name: ids for name, ids in self.lists.items() if older.lists.get(name) != ids}
        return parts, cells, lists


@dataclass(frozen=True)
class Seen:
    """What a page shows, in no language: the parts ``single`` by name, and the lists ``many``."""

    single: Mapping[str, View]
    many: Mapping[str, Views]


class LiveParts:
    """A page that is read again and again, and shown to readers of several languages. Its subclasses ``_read``."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._drawing = threading.Lock()
        self._last: dict[str, Mapping[str, Part]] = {}

    def _read(self, now: dt.datetime) -> Seen:
        raise NotImplementedError

    def read(self, now: dt.datetime | None = None) -> Seen:
        """What the database says now."""
        with self._turn:
            return self._read(now or timezone.now())

    def draw(self, seen: Seen) -> Snapshot:
        """``seen`` in the active language."""
        language = get_language() or ""
        with self._drawing:
            snapshot = render_parts(seen.single, seen.many, self._last.get(language, {}))
            self._last[language] = snapshot.parts
        return snapshot

    def look(self, now: dt.datetime | None = None) -> Snapshot:
        return self.draw(self.read(now))


def render_parts(single: Mapping[str, View], many: Mapping[str, Views], last: Mapping[str, Part]) -> Snapshot:
    """The parts ``single`` by name and the lists ``many``; what ``last`` has of them as they are is not made again."""
    wanted: dict[str, tuple[str, View]] = {name: (name, view) for name, view in single.items()}
    lists = {}
    for name, views in many.items():
        found = {f"{kind}-{view.id}": (kind, view) for kind, view in views}
        lists[name] = tuple(found)
        wanted |= found
    parts = {}
    for name, (kind, view) in wanted.items():
        part = last.get(name)
        if part is None or part.view != view:
            part = Part(view, _pieces(kind, view, part))
        parts[name] = part
    return Snapshot(parts, lists)


_MARK = secrets.token_hex(16)
"""What no name has, so that nobody's text is taken for a place to be filled in."""
_PLACE = re.compile(f"{_MARK}([a-z]+);")


class _Marked:
    """A view as its template gets it: with marks where cells have something to say."""

    def __init__(self, view: Filled) -> None:
        self._view = view
        self._places = (*view.moving, *view.following)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._view, name)
        return f"{_MARK}{name};" if name in self._places and value else value


def _pieces(kind: str, view: View, last: Part | None) -> tuple[str, ...]:
    template = f"partials/{kind}.html"
    if not isinstance(view, Filled):
        return (get_template(template).render({kind: view}).strip(),)
    if last is not None and last.view.still() == view.still():
        return last.pieces
    return tuple(_PLACE.split(get_template(template).render({kind: _Marked(view)}).strip()))

"""The journal as shown: its newest entries on the overview, and all of it on a page that is filtered by its address."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from api.parts import Part, Snapshot, State, Views, iso, render_parts
from dispatch.models import Run
from dispatch.watching import REMOVED
from nodes.models import JournalEntry, Node

PAGE = 50
BRIEF = 12
"""Entries on the overview."""
TEXT_SHOWN = 300
LARGEST = 2**63 - 1
About = JournalEntry.About

_WHO = {
    About.NODE: "Node",
    About.RUN: "Run",
    About.WORK: "Attempt",
    About.KEY: "Key",
    About.CONFIGURATION: "Configuration",
}
_OF_ITEMS = {"submitted", "retried", "quarantined"}
"""What these words count."""


@dataclass(frozen=True)
class EntryView:
    id: int
    at: str
    state: State
    node: int
    """0: it is gone, or there was none."""
    name: str
    run: int
    run_name: str
    there: bool
    """Whether the run still is."""
    counted: str
    text: str


def newest(about: str = "", before: int = 0, most: int = PAGE) -> list[JournalEntry]:
    """The newest ``most`` entries, of those about something or before one; a walk along an index."""
    found = JournalEntry.objects.order_by("-pk")
    if about:
        found = found.filter(about=about)
    return list((found.filter(pk__lt=before) if before else found)[:most])


def views(entries: Sequence[JournalEntry], nodes: Collection[int] = (), runs: Mapping[int, str] | None = None) -> Views:
    """As rows. Which of their nodes and runs there still are is asked, in two queries at most, of those that are not
    among ``nodes`` (ids) and ``runs`` (names by id).
    """
    there, names = set(nodes), dict(runs or {})
    if unknown := {entry.node for entry in entries if entry.node} - there:
        there |= set(Node.objects.filter(pk__in=unknown).values_list("pk", flat=True))
    if missing := {entry.run for entry in entries if entry.run} - names.keys():
        names |= dict(Run.objects.filter(pk__in=missing).values_list("pk", "name"))
    return [("entry", _view(entry, there, names)) for entry in entries]


class Brief:
    """The newest entries again and again: which of their nodes and runs there are is asked of new ones only, and of all
    again when a node was removed.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[str, EntryView]] = {}

    def look(self, nodes: Collection[int], runs: Mapping[int, str]) -> Views:
        """As ``views``."""
        entries = newest(most=BRIEF)
        fresh = [entry for entry in entries if entry.pk not in self._made]
        if any(entry.word == REMOVED for entry in fresh):
            fresh = entries
        made = {view.id: (kind, view) for kind, view in views(fresh, nodes, runs)}
        self._made = {entry.pk: made.get(entry.pk) or self._made[entry.pk] for entry in entries}
        return list(self._made.values())


def _view(entry: JournalEntry, there: set[int], names: Mapping[int, str]) -> EntryView:
    state = State.of(entry.word)
    return EntryView(
        id=entry.pk,
        at=iso(entry.at),
        state=replace(state, word=f"{_WHO[About(entry.about)]} {entry.word}"),
        node=entry.node if entry.node in there else 0,
        name=entry.name,
        run=entry.run or 0,
        run_name=names.get(entry.run or 0, ""),
        there=entry.run in names,
        counted=_counted(entry),
        text=entry.text if len(entry.text) <= TEXT_SHOWN else entry.text[:TEXT_SHOWN] + "…",
    )


def _counted(entry: JournalEntry) -> str:
    many = f"{entry.count:,}"
    if entry.word in _OF_ITEMS:
        return f"{many} item{'s' if entry.count != 1 else ''}"
    if entry.about == About.RUN:
        return f"{many} failed" if entry.count else ""
    return f"{many} times" if entry.count > 1 and entry.about == About.WORK else many if entry.count > 1 else ""


class JournalPage:
    """Reads the newest entries about one thing (``number`` of ``About``, from 1), or about all (0), into snapshots."""

    def __init__(self, number: int) -> None:
        kinds = About.values
        self._about = kinds[number - 1] if 0 < number <= len(kinds) else ""
        self._turn = threading.Lock()
        self._last: Mapping[str, Part] = {}

    def look(self) -> Snapshot:
        with self._turn:
            snapshot = render_parts({}, {"journal": views(newest(self._about))}, self._last)
            self._last = snapshot.parts
            return snapshot


def show(request: HttpRequest) -> HttpResponse:
    """The page as HTML, in three queries. What is not known in the address is left out."""
    about, told = request.GET.get("about", ""), request.GET.get("before", "")
    about = about if about in About.values else ""
    before = min(int(told), LARGEST) if told.isdecimal() and len(told) < 20 else 0
    entries = newest(about, before, PAGE + 1)
    more, entries = len(entries) > PAGE, entries[:PAGE]
    context = {
        "journal": render_parts({}, {"journal": views(entries)}, {}).html("journal"),
        "kinds": About.choices,
        "about": about,
        "words": dict(About.choices).get(about, ""),
        "live": "" if before else 1 + About.values.index(about) if about else 0,
        "older": urlencode({"about": about, "before": entries[-1].pk}) if more else "",
        "before": before,
        "any": bool(entries) or JournalEntry.objects.exists(),
        "now": int(timezone.now().timestamp() * 1000),
    }
    return render(request, "journal.html", context)

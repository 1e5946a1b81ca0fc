"""The journal as shown: its newest entries on the overview, and all of it on a page that is filtered by its address."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from api.parts import LiveParts, Seen, State, Views, iso, render_parts, state_word
from api.words import Text, counted, words
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
    About.NODE: _("Node {word}"),
    About.RUN: _("Run {word}"),
    About.WORK: _("Attempt {word}"),
    About.KEY: _("Key {word}"),
    About.CONFIGURATION: _("Configuration {word}"),
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
    counted: Text
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
        state=replace(state, said=words(_WHO[About(entry.about)], word=state_word(entry.word))),
        node=entry.node if entry.node in there else 0,
        name=entry.name,
        run=entry.run or 0,
        run_name=names.get(entry.run or 0, ""),
        there=entry.run in names,
        counted=_counted(entry),
        text=entry.text if len(entry.text) <= TEXT_SHOWN else entry.text[:TEXT_SHOWN] + "…",
    )


def _counted(entry: JournalEntry) -> Text:
    many = f"{entry.count:,}"
    if entry.word in _OF_ITEMS:
        return counted("{n} item", "{n} items", entry.count)
    if entry.about == About.RUN:
        return words("{n} failed", n=many) if entry.count else ""
    return (
        words("{n} times", n=many) if entry.count > 1 and entry.about == About.WORK else many if entry.count > 1 else ""
    )


class JournalPage(LiveParts):
    """Reads the newest entries about one thing (``number`` of ``About``, from 1), or about all (0)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        kinds = About.values
        self._about = kinds[number - 1] if 0 < number <= len(kinds) else ""

    def _read(self, now: dt.datetime) -> Seen:
        return Seen({}, {"journal": views(newest(self._about))})


def show(request: HttpRequest) -> HttpResponse:
    """The page as HTML, in three queries. What is not known in the address is left out."""
    about, told = request.GET.get("about", ""), request.GET.get("before", "")
    about = about if about in About.values else ""
    before = min(int(told), LARGEST) if told.isdecimal() and len(told) < 20 else 0
    entries = newest(about, before, PAGE + 1)
    more, entries = len(entries) > PAGE, entries[:PAGE]
    context = {
        "journal": render_parts({}, {"journal": views(entries)}, {}).html("journal"),
        "kinds": [(kind, gettext(label)) for kind, label in About.choices],
        "about": about,
        "words": gettext(About(about).label) if about else "",
        "live": "" if before else 1 + About.values.index(about) if about else 0,
        "older": urlencode({"about": about, "before": entries[-1].pk}) if more else "",
        "before": before,
        "any": bool(entries) or JournalEntry.objects.exists(),
        "now": int(timezone.now().timestamp() * 1000),
    }
    return render(request, "journal.html", context)

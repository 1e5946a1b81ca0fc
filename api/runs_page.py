"""All runs, newest first: filtered by what the address says, and paged by the last one shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _

from api import overview
from api.parts import render_parts, state_word
from dispatch.models import Run
from dispatch.states import RunState
from nodes import executors

PAGE = 50
TEXT_LIMIT = 200
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Filters:
    """``state`` and ``type`` are known ones or empty; ``text`` is a part of a name, or a number; ``before`` an id."""

    state: str = ""
    type: str = ""
    text: str = ""
    before: int = 0

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Filters:
        """What is not known is left out: an address that is old still leads to a page."""
        state, kind, before = query.get("state", ""), query.get("type", ""), query.get("before", "")
        return cls(
            state if state in set(RunState) else "",
            kind if kind in executors.names() else "",
            query.get("q", "").replace("\x00", "").strip()[:TEXT_LIMIT],
            min(int(before), LARGEST) if before.isdecimal() and len(before) < 20 else 0,
        )

    def of(self, runs: QuerySet[Run]) -> QuerySet[Run]:
        if self.state:
            runs = runs.filter(state=self.state)
        if self.type:
            runs = runs.filter(type=self.type)
        if self.text:
            number = int(self.text) if self.text.isdecimal() and len(self.text) < 19 else -1
            runs = runs.filter(Q(name__icontains=self.text) | Q(pk=number))
        return runs.filter(pk__lt=self.before) if self.before else runs

    @property
    def words(self) -> str:
        """The filter as a sentence; empty without one."""
        named = _("with “{text}” in the name").format(text=self.text) if self.text else ""
        parts = [str(state_word(self.state)) if self.state else "", self.type, named]
        return " ".join(part for part in parts if part)

    def query(self, **change: str | int) -> str:
        """As an address has it."""
        wanted = {"state": self.state, "type": self.type, "q": self.text, **change}
        return urlencode({name: value for name, value in wanted.items() if value})


def show(request: HttpRequest) -> HttpResponse:
    """The page as HTML, in two queries."""
    filters = Filters.read(request.GET)
    rows = list(filters.of(Run.objects.order_by("-pk")).values(*overview.RUN_FIELDS)[: PAGE + 1])
    more = len(rows) > PAGE
    rows = rows[:PAGE]
    views = [("run", overview.run_view(row, 0, 0, None, "", brief=True)) for row in rows]
    snapshot = render_parts({}, {"runs": views}, {})
    context = {
        "runs": snapshot.html("runs"),
        "filters": filters,
        "states": [(state, state_word(state)) for state in RunState],
        "types": executors.names(),
        "older": filters.query(before=rows[-1]["id"]) if more else "",
        "newest": filters.query() if filters.before else "",
        "any": bool(rows) or Run.objects.exists(),
        "now": int(timezone.now().timestamp() * 1000),
    }
    return render(request, "runs.html", context)

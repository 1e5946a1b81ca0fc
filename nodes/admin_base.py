"""What the admin's pages share: lists to look at, states as glyph and word, and verbs that ask before they act."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.admin import ModelAdmin, TabularInline
from unfold.dataclasses import UnfoldAction
from unfold.enums import ActionVariant

from nodes import executors, registry
from nodes.models import Node
from nodes.protocol import CascadeError
from nodes.sentences import said

MOST = 1_000
"""Rows that one confirmation covers; each is a transaction of its own."""
NAMED = 20
"""Of these, so many are named on the page that asks, and so many refusals are told one by one."""
LISTED_NODES = 50
"""More nodes than this are searched for, not chosen from a list of filters."""

# Word -> what decides its glyph and colour.
_TONES = {
    "pending": "pending",
    "waiting": "pending",
    "allocated": "allocated",
    "spooled": "allocated",
    "draining": "allocated",
    "executing": "executing",
    "running": "executing",
    "retrying": "retrying",
    "saved": "saved",
    "completed": "saved",
    "delivered": "saved",
    "online": "saved",
    "live": "saved",
    "on": "saved",
    "ok": "saved",
    "failed": "failed",
    "partial": "failed",
    "quarantined": "failed",
    "revoked": "failed",
    "cancelled": "cancelled",
    "superseded": "cancelled",
    "inactive": "cancelled",
    "off": "cancelled",
    "expired": "expired",
    "offline": "expired",
}
_GLYPHS = {
    "pending": "○",
    "allocated": "◔",
    "executing": "▶",
    "saved": "✓",
    "retrying": "↻",
    "failed": "✕",
    "cancelled": "–",
    "expired": "?",
}


def state(word: str, shown: str = "") -> SafeString:
    """Glyph, word and colour of a state; ``shown`` stands for the word where it says more."""
    tone = _TONES.get(word, "pending")
    return format_html('<span class="state {}">{} {}</span>', tone, _GLYPHS[tone], shown or said(word))


def moment(at: dt.datetime | None, never: str = "–") -> str:
    """How long ago, with the time itself on hover."""
    if at is None:
        return never
    told = timezone.localtime(at).strftime("%Y-%m-%d %H:%M:%S %Z")
    return format_html('<time title="{}">{}</time>', told, said(registry.ago(at, timezone.now())))


def link(address: str, text: Any) -> SafeString:
    return format_html('<a class="text-link" href="{}">{}</a>', address, text)


def took(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds >= 1:
        return _("{n} s").format(n=f"{seconds:,.1f}")
    return _("{n} ms").format(n=f"{1000 * seconds:.0f}" if seconds >= 0.001 else "< 1")


def part(number: int, whole: int) -> str:
    return said(f"{number} of {whole}")


def list_of(label: str, text: Any, query: str) -> SafeString:
    """A link to a list (``app_model``), filtered by ``query``."""
    return link(f"{reverse(f'admin:{label}_changelist')}?{query}", text)


def row_of(label: str, pk: int, text: Any) -> SafeString:
    """A link to the page of one row (``app_model``)."""
    return link(reverse(f"admin:{label}_change", args=[pk]), text)


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def is_list(request: HttpRequest) -> bool:
    return request.resolver_match is not None and (request.resolver_match.url_name or "").endswith("_changelist")


# ---- verbs -------------------------------------------------------------------------------------------------------


def verb(label: Any, *, permission: str, ask: Any, danger: bool = False) -> Callable[[Any], Any]:
    """An action that does nothing until a page has said how many rows it is about, and somebody has agreed.

    ``ask`` is the question, by number: ngettext_lazy(one, many, "count"). What is decorated gets the request and the
    list of rows, ``MOST`` at most. The number that was agreed to travels with the yes: if another number of rows fits
    by then, it is asked again.
    """

    def decorate(act: Callable[[Any, HttpRequest, list[Any]], None]) -> Any:
        @wraps(act)
        def answer(page: Page, request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse | None:
            count = rows.count()
            if count > MOST:
                said = _("%(count)s rows are too many at once: %(most)s are allowed. Filter the list, or choose fewer.")
                page.message_user(request, said % {"count": f"{count:,}", "most": f"{MOST:,}"}, messages.ERROR)
                return None
            if request.POST.get("confirmed") != str(count):
                return page.ask(request, rows, answer, count)
            act(page, request, list(rows))
            return None

        answer.short_description = label  # type: ignore[attr-defined]
        answer.allowed_permissions = [permission]  # type: ignore[attr-defined]
        answer.question, answer.danger, answer.attrs = ask, danger, {}  # type: ignore[attr-defined]
        return answer

    return decorate


class Page(ModelAdmin):
    """A list with its detail pages. ``row_verbs`` are those of its actions that each row's menu and page offer."""

    list_per_page = 50
    show_full_result_count = False
    list_fullwidth = True
    compressed_fields = True
    row_verbs: Sequence[str] = ()

    # The theme would run verbs of a row by a GET; here their address asks, and a POST with the yes acts.
    def _get_base_actions_row(self) -> list[UnfoldAction]:
        return []

    _get_base_actions_detail = _get_base_actions_row

    def get_actions_row(self, request: HttpRequest) -> list[UnfoldAction]:
        offered = self.get_actions(request)
        return [self._offered(name, offered[name]) for name in self.row_verbs if name in offered]

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[UnfoldAction]:
        return self.get_actions_row(request)

    @property
    def actions_detail(self) -> Sequence[Any]:
        if len(self.row_verbs) <= 2:
            return self.row_verbs
        return [{"title": _("Actions"), "items": list(self.row_verbs)}]

    def _offered(self, name: str, action: tuple[Any, str, str]) -> UnfoldAction:
        method, _name, label = action
        meta = self.model._meta
        return UnfoldAction(
            action_name=f"{meta.app_label}_{meta.model_name}_{name}",
            method=method,
            description=str(label),
            path=name,
            variant=ActionVariant.DANGER if method.danger else ActionVariant.DEFAULT,
        )

    def get_urls(self) -> list[URLPattern]:
        meta = self.model._meta
        return [
            *(
                path(
                    f"<path:object_id>/do/{name}/",
                    self.admin_site.admin_view(self._one),
                    {"name": name},
                    name=f"{meta.app_label}_{meta.model_name}_{name}",
                )
                for name in self.row_verbs
            ),
            *super().get_urls(),
        ]

    def _one(self, request: HttpRequest, object_id: str, name: str) -> HttpResponse:
        """A verb for one row: asks, then acts and goes back to where it was asked from."""
        offered = self.get_actions(request)
        if name not in offered or not self.has_view_permission(request):
            raise PermissionDenied
        try:
            rows = self.get_queryset(request).filter(pk=self.model._meta.pk.to_python(unquote(object_id)))
        except (forms.ValidationError, ValueError):
            raise Http404(object_id) from None
        if not rows.exists():
            raise Http404(object_id)
        answer: HttpResponse | None = offered[name][0](self, request, rows)
        return answer or HttpResponseRedirect(self._back(request))

    def _back(self, request: HttpRequest) -> str:
        wanted: str = request.POST.get("back") or request.headers.get("referer", "")
        if url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure()):
            return wanted
        meta = self.model._meta
        return reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist")

    def ask(self, request: HttpRequest, rows: QuerySet[Any], answer: Any, count: int) -> HttpResponse:
        """The page that says what would happen to how many rows."""
        meta = self.model._meta
        one = "index" not in request.POST and ACTION_CHECKBOX_NAME not in request.POST
        kept = [
            (name, value)
            for name in ("action", "index", "select_across", ACTION_CHECKBOX_NAME)
            for value in request.POST.getlist(name)
        ]
        if one:
            kept.append(("back", self._back(request)))
        context = {
            **self.admin_site.each_context(request),
            "title": str(answer.short_description),
            "opts": meta,
            "question": answer.question % {"count": count},
            "asked_before": "confirmed" in request.POST,
            "named": [str(row) for row in rows[:NAMED]],
            "more": max(0, count - NAMED),
            "count": count,
            "kept": kept,
            "address": request.get_full_path(),
            "back": self._back(request) if one else request.get_full_path(),
            "danger": answer.danger,
            "button": _("Yes, %(verb)s") % {"verb": _began(str(answer.short_description))},
        }
        request.current_app = self.admin_site.name  # as Django's own views
        return TemplateResponse(request, "admin/confirm.html", context)

    def message_user(self, request: HttpRequest, message: Any, *args: Any, **kwargs: Any) -> None:
        """What the verbs say in English, in the reader's language."""
        plain = isinstance(message, str) and not isinstance(message, SafeString)
        super().message_user(request, said(message) if plain else message, *args, **kwargs)

    def each(self, request: HttpRequest, rows: Iterable[Any], act: Callable[[Any], str], together: str = "") -> None:
        """Does ``act`` row by row, so that one that cannot be done hides no other. What it returns is told, of many
        rows ``together`` with their number in it; refusals one by one, the first ``NAMED`` of them.
        """
        done, refused = [], []
        for row in rows:
            try:
                done.append(act(row))
            except CascadeError as error:
                refused.append(f"{row._meta.verbose_name} {row}: {said(str(error))}")
        if together and len(done) > 1:
            done = [together.format(count=f"{len(done):,}"), *(done if len(done) <= NAMED else [])]
        for text in done:
            self.message_user(request, text, messages.SUCCESS)
        for text in refused[:NAMED]:
            self.message_user(request, text, messages.ERROR)
        if len(refused) > NAMED:
            self.message_user(request, _("and {n} more refused").format(n=f"{len(refused) - NAMED:,}"), messages.ERROR)


class ReadOnly(Page):
    """What happened, to look at."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class History(TabularInline):
    """Rows below another row, to look at: a tab of its own, read page by page."""

    extra = 0
    per_page: int | None = 20
    tab = True
    can_delete = False
    hide_title = True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


# ---- filters that ask little of the database ---------------------------------------------------------------------


class TypeFilter(admin.SimpleListFilter):
    """Task types that there are, instead of all that occur in a table of millions."""

    title = gettext_lazy("type")
    parameter_name = "type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in executors.names()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(type=self.value()) if self.value() else queryset


class NodeFilter(admin.SimpleListFilter):
    """Nodes by name while they are few; of many the one that the address names."""

    title = gettext_lazy("node")
    parameter_name = "node__id__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        nodes = list(Node.objects.order_by("name").values_list("pk", "name")[: LISTED_NODES + 1])
        if len(nodes) > LISTED_NODES:
            chosen = request.GET.get(self.parameter_name, "")
            nodes = list(Node.objects.filter(pk=int(chosen)).values_list("pk", "name")) if _number(chosen) else []
        return [(str(pk), name) for pk, name in nodes]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if not chosen:
            return queryset
        return queryset.filter(node_id=int(chosen)) if _number(chosen) else queryset.none()


def _began(label: str) -> str:
    """As it stands within a sentence."""
    return label[:1].lower() + label[1:]


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19

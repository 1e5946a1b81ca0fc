"""The admin's site: when its pages are loaded, who may try to sign in, what its menu and its search box lead to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from unfold.dataclasses import SearchResult
from unfold.sites import UnfoldAdminSite

from api.sign_in import throttled
from cascade import admin_words

FOUND_LIMIT = 8
"""Rows of one kind that the search box shows."""

# Group, its models (app.model, icon). Names and order of the menu; what is missing here is not in it.
MENU = (
    (
        _("Work"),
        (
            ("dispatch.run", "play_circle"),
            ("dispatch.task", "assignment"),
            ("dispatch.shard", "view_week"),
            ("dispatch.allocation", "move_down"),
            ("dispatch.receipt", "receipt_long"),
        ),
    ),
    (
        _("Nodes"),
        (
            ("nodes.node", "dns"),
            ("nodes.accesskey", "key"),
            ("nodes.registrationkey", "app_registration"),
            ("nodes.heartbeat", "monitor_heart"),
            ("dispatch.synclog", "sync_alt"),
        ),
    ),
    (
        _("Recurring work"),
        (
            ("dispatch.source", "rss_feed"),
            ("dispatch.itemmemory", "history"),
            ("dispatch.typesettings", "tune"),
            ("dispatch.ratelimit", "speed"),
            ("dispatch.ratebucket", "water_full"),
            ("dispatch.switch", "toggle_on"),
            ("dispatch.delivery", "webhook"),
            ("dispatch.configversion", "inventory_2"),
        ),
    ),
    (_("Accounts"), (("auth.user", "person"), ("auth.group", "group"), ("admin.logentry", "manage_search"))),
)
SEARCHED = ("dispatch.run", "nodes.node", "dispatch.task", "dispatch.source")

_lock = threading.Lock()
_loaded = False


def load() -> None:
    """Registers the pages of all apps, once; requests of several threads may ask for it at the same time."""
    global _loaded
    with _lock:
        if not _loaded:
            admin.autodiscover()
            admin_words.translate()
            _loaded = True


class Site(UnfoldAdminSite):
    index_title = _("Administration")

    def login(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return throttled(super().login)(request, extra_context)

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """All lists in the menu's groups and order; those of one app as Django has them."""
        if app_label is not None:
            return list(super().get_app_list(request, app_label))
        known = {
            model["model"]._meta.label_lower: model
            for app in self._build_app_dict(request).values()
            for model in app["models"]
        }
        groups = []
        for title, labels in MENU:
            if models := [known[label] for label, _icon in labels if label in known]:
                groups.append(
                    {"name": title, "app_label": "", "app_url": "", "has_module_perms": True, "models": models}
                )
        return groups

    def search(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """What the search box and the command palette show: pages by their names, then rows of a few kinds.

        Unfold's own reads every row that fits, and keeps what it found for whoever asks within five minutes.
        """
        sought = request.GET.get("s", "").replace("\x00", "").strip()[:200]
        if not sought:
            return HttpResponse()
        began = time.perf_counter()
        found = [*self._pages(request, sought.lower())]
        palette = "extended" in request.GET
        if palette:
            found += self._rows(request, sought)
        context = {
            "results": found,
            "page_obj": {"count": len(found)},
            "page_counter": 0,
            "execution_time": time.perf_counter() - began,
            "command_show_history": False,
        }
        name = "unfold/helpers/command_results.html" if palette else "unfold/helpers/search_results.html"
        return TemplateResponse(request, name, context, headers={"HX-Trigger": "search"})

    def _pages(self, request: HttpRequest, sought: str) -> Iterable[SearchResult]:
        for group in navigation(request):
            for item in group["items"]:
                if sought in str(item["title"]).lower() or sought in str(group["title"]).lower():
                    yield SearchResult(str(item["title"]), str(group["title"]), item["link"], item["icon"])

    def _rows(self, request: HttpRequest, sought: str) -> Iterable[SearchResult]:
        for label in SEARCHED:
            page = self.page_of(label)
            if page is None or not page.has_view_permission(request):
                continue
            rows, _twice = page.get_search_results(request, page.get_queryset(request), sought)
            meta = page.model._meta
            # Their numbers first: of the rows themselves a search's joins and a list's counts are not wanted.
            pks = list(rows.order_by("-pk").values_list("pk", flat=True).distinct()[:FOUND_LIMIT])
            named = page.model._base_manager.only(*_named_by(page.model)).in_bulk(pks)
            for row in (named[pk] for pk in pks if pk in named):
                link = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
                yield SearchResult(str(row), str(meta.verbose_name).capitalize(), link, "data_object")

    def page_of(self, label: str) -> Any:
        return next((page for model, page in self._registry.items() if model._meta.label_lower == label), None)


def _named_by(model: type[Model]) -> list[str]:
    """The columns that a row's text needs."""
    return [field.name for field in model._meta.concrete_fields if field.name in ("id", "name", "kind", "key")]


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The menu: the operational pages, then the lists that this account may look at."""
    site: Any = admin.site
    groups: list[dict[str, Any]] = [
        {
            "title": _("Cascade"),
            "items": [
                {"title": _("Overview"), "icon": "dashboard", "link": "/", "active": False},
                {"title": _("All runs"), "icon": "list_alt", "link": reverse("runs"), "active": False},
                {"title": _("API documentation"), "icon": "api", "link": "/api/docs", "active": False},
            ],
        }
    ]
    for title, models in MENU:
        items = []
        for label, icon in models:
            page = site.page_of(label)
            if page is not None and page.has_view_permission(request):
                meta = page.model._meta
                link = reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist")
                items.append(
                    {
                        "title": str(meta.verbose_name_plural).capitalize(),
                        "icon": icon,
                        "link": link,
                        "active": request.path.startswith(link),
                    }
                )
        if items:
            groups.append({"title": title, "items": items, "collapsible": False, "separator": True})
    return groups

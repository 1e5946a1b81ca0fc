"""Sources and type settings to edit, through their write doors; configurations and the sync log to look at."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _
from unfold.widgets import UnfoldAdminSelectWidget

from dispatch import sources, type_settings
from dispatch.models import ConfigVersion, ItemMemory, Source, SyncLog, TypeSettings
from nodes import executors
from nodes.admin_base import NodeFilter, Page, ReadOnly, TypeFilter, moment, short, state, verb
from nodes.protocol import CascadeError, FieldError
from nodes.transactions import write

STATUSES = {SyncLog.Status.RUNNING: "running", SyncLog.Status.OK: "ok", SyncLog.Status.FAILED: "failed"}


def went(last: ItemMemory) -> str:
    """How it went, in a line: a glyph and words, as a cross in a column called "failed" would read as its opposite."""
    counts = ", ".join(f"{count} {name}" for name, count in last.counts.items() if count)
    return f"✕ {last.status}" if last.failed else f"✓ {last.status}{f': {counts}' if counts else ''}"


class SourceForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Source
        fields = ("kind", "key", "name", "address", "active", "extra")

    def clean(self) -> dict[str, Any] | None:
        """What an import would refuse is said here, at the field."""
        cleaned = super().clean()
        given = self.cleaned_data
        if "extra" in given and given["extra"] is None:
            given["extra"] = {}  # an emptied box reads as null
        if not self.errors:
            try:
                given.update(sources.check({name: given[name] for name in self.Meta.fields}))
            except FieldError as error:
                self.add_error(error.field if error.field in self.fields else None, error.message)
        return cleaned


@admin.register(Source)
class SourceAdmin(Page):
    form = SourceForm
    list_display = ("key", "kind", "name", "address", "active", "last_time", "updated")
    list_filter = ("kind", "active")
    search_fields = ("key", "name", "address")
    search_help_text = _("Key, name or address")
    actions = row_verbs = ("enable", "disable")

    @admin.display(description=_("changed"), ordering="updated_at")
    def updated(self, source: Source) -> str:
        return moment(source.updated_at)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The page's sources, asked at once how it went with them the last time."""
        changes = super().get_changelist_instance(request)
        times = sources.last_times(changes.result_list)
        for source in changes.result_list:
            source.last = times.get((source.kind, source.key))
        return changes

    @admin.display(description=_("last time"))
    def last_time(self, source: Source) -> str:
        last: ItemMemory | None = getattr(source, "last", None)
        return "–" if last is None else went(last)

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:
        with write():
            super().save_model(request, obj, form, change)

    @verb(
        _("Enable"),
        permission="change",
        ask=ngettext_lazy(
            "Enable %(count)s source? Tasks over its kind go through it again.",
            "Enable %(count)s sources? Tasks over their kind go through them again.",
            "count",
        ),
    )
    def enable(self, request: HttpRequest, chosen: list[Source]) -> None:
        self._switch(request, chosen, True)

    @verb(
        _("Disable"),
        permission="change",
        ask=ngettext_lazy(
            "Disable %(count)s source? Tasks over its kind leave it out.",
            "Disable %(count)s sources? Tasks over their kind leave them out.",
            "count",
        ),
    )
    def disable(self, request: HttpRequest, chosen: list[Source]) -> None:
        self._switch(request, chosen, False)

    def _switch(self, request: HttpRequest, chosen: list[Source], active: bool) -> None:
        changed = sources.switch([source.pk for source in chosen], active)
        self.message_user(request, f"{changed} sources {'enabled' if active else 'disabled'}.")


class SettingsForm(forms.ModelForm):  # type: ignore[type-arg]
    type = forms.ChoiceField(
        label=_("type"), choices=lambda: [(name, name) for name in executors.names()], widget=UnfoldAdminSelectWidget
    )

    class Meta:
        model = TypeSettings
        fields = ("type", "params")

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        if not self.errors:
            given = self.cleaned_data
            try:
                given["params"] = type_settings.check(given["type"], given["params"] or {})
            except CascadeError as error:
                self.add_error("params", str(error))
        return cleaned


@admin.register(TypeSettings)
class SettingsAdmin(Page):
    form = SettingsForm
    list_display = ("type", "params")


@admin.register(ConfigVersion)
class ConfigVersionAdmin(ReadOnly):
    list_display = ("id", "created_at", "digest")
    fields = ("id", "created_at", "digest")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ConfigVersion]:
        # The content has every source in it, and no page here shows it.
        versions: QuerySet[ConfigVersion] = super().get_queryset(request)
        return versions.defer("content")


@admin.register(SyncLog)
class SyncLogAdmin(ReadOnly):
    list_display = ("id", "started", "node", "operation", "direction", "status_glyph", "count", "exchanges", "why")
    list_select_related = ("node",)
    list_filter = ("direction", "status", "started_at", NodeFilter)
    search_fields = ("node__name", "=operation", "error")
    search_help_text = _("Name of a node, an operation, or part of an error")
    fields = ("node", "operation", "direction", "status_glyph", "count", "error", "extra", "started_at", "ended_at")

    @admin.display(description=_("status"), ordering="status")
    def status_glyph(self, entry: SyncLog) -> str:
        return state(STATUSES[SyncLog.Status(entry.status)])

    @admin.display(description=_("when"), ordering="started_at")
    def started(self, entry: SyncLog) -> str:
        return moment(entry.started_at)

    @admin.display(description=_("error"))
    def why(self, entry: SyncLog) -> str:
        return short(entry.error)

    @admin.display(description=_("exchanges"))
    def exchanges(self, entry: SyncLog) -> Any:
        return entry.extra.get("exchanges", 1)


@admin.register(ItemMemory)
class ItemMemoryAdmin(ReadOnly):
    list_display = ("type", "key", "last_time", "when", "succeeded")
    list_filter = (TypeFilter, "failed")
    search_fields = ("key", "status")
    search_help_text = _("Key of an item, or how it went")
    fields = ("type", "key", "last_time", "counts", "memory", "run", "at", "succeeded_at")

    @admin.display(description=_("last time"), ordering="status")
    def last_time(self, memory: ItemMemory) -> str:
        return went(memory)

    @admin.display(description=_("when"), ordering="at")
    def when(self, memory: ItemMemory) -> str:
        return moment(memory.at)

    @admin.display(description=_("last went well"), ordering="succeeded_at")
    def succeeded(self, memory: ItemMemory) -> str:
        return moment(memory.succeeded_at, gettext("never"))

"""Sources and type settings to edit, through their write doors; configurations and the sync log to look at."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from dispatch import sources, type_settings
from dispatch.models import ConfigVersion, Source, SyncLog, TypeSettings
from nodes import executors
from nodes.admin import ReadOnly
from nodes.protocol import CascadeError, FieldError
from nodes.transactions import write

STATUSES = {SyncLog.Status.RUNNING: "▶ running", SyncLog.Status.OK: "✓ ok", SyncLog.Status.FAILED: "✕ failed"}


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
class SourceAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    form = SourceForm
    list_display = ("key", "kind", "name", "address", "active", "updated_at")
    list_filter = ("kind", "active")
    search_fields = ("key", "name", "address")
    list_per_page = 50
    show_full_result_count = False
    actions = ("enable", "disable")

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:
        with write():
            super().save_model(request, obj, form, change)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Source]) -> None:
        self._switch(request, queryset, True)

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Source]) -> None:
        self._switch(request, queryset, False)

    def _switch(self, request: HttpRequest, queryset: QuerySet[Source], active: bool) -> None:
        changed = sources.switch(queryset.values_list("pk", flat=True), active)
        self.message_user(request, f"{changed} sources {'enabled' if active else 'disabled'}.")


class SettingsForm(forms.ModelForm):  # type: ignore[type-arg]
    type = forms.ChoiceField(choices=lambda: [(name, name) for name in executors.names()])

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
class SettingsAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
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
    list_display = ("id", "started_at", "node", "operation", "direction", "status_glyph", "count", "exchanges", "error")
    list_select_related = ("node",)
    list_filter = ("operation", "direction", "status", "node")
    search_fields = ("node__name", "error")
    fields = ("node", "operation", "direction", "status_glyph", "count", "error", "extra", "started_at", "ended_at")

    @admin.display(description="status", ordering="status")
    def status_glyph(self, entry: SyncLog) -> str:
        return STATUSES[SyncLog.Status(entry.status)]

    @admin.display(description="exchanges")
    def exchanges(self, entry: SyncLog) -> Any:
        return entry.extra.get("exchanges", 1)

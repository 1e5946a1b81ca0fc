"""Registration keys in Django's admin: issued and shown once, looked at, revoked, by ``nodes.registrations``."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from nodes import registrations
from nodes.models import RegistrationKey


@admin.register(RegistrationKey)
class RegistrationKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("name", "prefix", "many", "devices", "state", "created_at", "last_used_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter), "many")
    search_fields = ("name", "prefix", "nodes__name")
    search_help_text = "Name, beginning of the key, or device"
    list_per_page = 50
    show_full_result_count = False
    fields = ("name", "many")
    actions = ("rotate", "revoke")

    def get_queryset(self, request: HttpRequest) -> QuerySet[RegistrationKey]:
        found: QuerySet[RegistrationKey] = super().get_queryset(request).prefetch_related("nodes")
        return found

    def get_fields(self, request: HttpRequest, obj: RegistrationKey | None = None) -> Any:
        return self.fields if obj is None else self.list_display

    def get_readonly_fields(self, request: HttpRequest, obj: RegistrationKey | None = None) -> Any:
        return () if obj is None else self.list_display

    def has_change_permission(self, request: HttpRequest, obj: RegistrationKey | None = None) -> bool:
        # What was issued stays as it is; revoking is an action of its own.
        return False

    def has_delete_permission(self, request: HttpRequest, obj: RegistrationKey | None = None) -> bool:
        # Its devices are bound to it.
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("nodes.change_registrationkey")

    def save_model(self, request: HttpRequest, obj: RegistrationKey, form: Any, change: bool) -> None:
        made = registrations.issue(obj.name, obj.many)
        obj.pk, obj._state.adding = made.registration.pk, False
        self._show(request, made)

    def _show(self, request: HttpRequest, made: registrations.IssuedRegistration) -> None:
        text = format_html("Registration key of {}, shown this once: {}", made.registration.name, made.key)
        self.message_user(request, text, messages.WARNING)

    @admin.display(description="devices")
    def devices(self, key: RegistrationKey) -> str:
        names = [node.name for node in key.nodes.all()]
        return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "–"

    @admin.display(description="state")
    def state(self, key: RegistrationKey) -> str:
        return "✕ revoked" if key.revoked_at else "✓ live"

    @admin.action(description="Rotate: another key in its place, shown once; devices stay", permissions=["revoke"])
    def rotate(self, request: HttpRequest, queryset: QuerySet[RegistrationKey]) -> None:
        for key in queryset:
            self._show(request, registrations.rotate(key.pk))

    @admin.action(description="Revoke the selected keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[RegistrationKey]) -> None:
        for key in queryset:
            registrations.revoke(key.pk)
        self.message_user(request, f"Keys revoked: {len(queryset)}.", messages.SUCCESS)

"""Registration keys in Django's admin: issued and shown once, looked at, revoked, by ``nodes.registrations``."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, IntegerField, OuterRef, Prefetch, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _

from nodes import registrations
from nodes.admin_base import Page, moment, state, verb
from nodes.models import Node, RegistrationKey


@admin.register(RegistrationKey)
class RegistrationKeyAdmin(Page):
    list_display = ("name", "prefix", "many", "devices", "state", "made", "used", "revoked_at")
    told = ("name", "prefix", "many", "devices", "state", "created_at", "last_used_at", "revoked_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter), "many")
    search_fields = ("name", "prefix", "nodes__name")
    search_help_text = _("Name, beginning of the key, or device")
    fields = ("name", "many")
    actions = row_verbs = ("rotate", "revoke")

    def get_queryset(self, request: HttpRequest) -> QuerySet[RegistrationKey]:
        # Ten names are shown; a key for many may have registered thousands.
        some = Prefetch("nodes", Node.objects.only("name", "registration_id")[:10], to_attr="some_nodes")
        found: QuerySet[RegistrationKey] = super().get_queryset(request)
        return found.annotate(registered=_devices()).prefetch_related(some)

    def get_fields(self, request: HttpRequest, obj: RegistrationKey | None = None) -> Any:
        return self.fields if obj is None else self.told

    def get_readonly_fields(self, request: HttpRequest, obj: RegistrationKey | None = None) -> Any:
        return () if obj is None else self.told

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
        text = format_html(gettext("Registration key of {}, shown this once: {}"), made.registration.name, made.key)
        self.message_user(request, text, messages.WARNING)

    @admin.display(description=_("devices"))
    def devices(self, key: RegistrationKey) -> str:
        names = [node.name for node in key.some_nodes]  # type: ignore[attr-defined]  # prefetched above
        more = key.registered - len(names)  # type: ignore[attr-defined]  # annotated above
        return ", ".join(names) + (gettext(" and {n} more").format(n=more) if more > 0 else "") or "–"

    @admin.display(description=_("made"), ordering="created_at")
    def made(self, key: RegistrationKey) -> str:
        return moment(key.created_at)

    @admin.display(description=_("last used"), ordering="last_used_at")
    def used(self, key: RegistrationKey) -> str:
        return moment(key.last_used_at, gettext("never"))

    @admin.display(description=_("state"))
    def state(self, key: RegistrationKey) -> str:
        return state("revoked" if key.revoked_at else "live")

    @verb(
        _("Rotate"),
        permission="revoke",
        ask=ngettext_lazy(
            "Replace %(count)s registration key by a new one, shown once on the next page? Registered devices stay.",
            "Replace %(count)s registration keys by new ones, shown once on the next page? Registered devices stay.",
            "count",
        ),
    )
    def rotate(self, request: HttpRequest, chosen: list[RegistrationKey]) -> None:
        for key in chosen:
            self._show(request, registrations.rotate(key.pk))

    @verb(
        _("Revoke"),
        permission="revoke",
        danger=True,
        ask=ngettext_lazy(
            "Revoke %(count)s registration key? The devices that registered with it are refused from then on.",
            "Revoke %(count)s registration keys? The devices that registered with them are refused from then on.",
            "count",
        ),
    )
    def revoke(self, request: HttpRequest, chosen: list[RegistrationKey]) -> None:
        for key in chosen:
            registrations.revoke(key.pk)
        self.message_user(request, f"Keys revoked: {len(chosen)}.", messages.SUCCESS)


def _devices() -> Coalesce:
    each = Node.objects.filter(registration=OuterRef("pk")).order_by().values("registration")
    return Coalesce(Subquery(each.annotate(count=Count("pk")).values("count"), output_field=IntegerField()), 0)

"""Operators' accounts and what they changed here, in the admin's theme."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from nodes.admin_base import Page, ReadOnly, moment

admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class AccountAdmin(UserAdmin, Page):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_active", "is_staff", "is_superuser", "seen")
    list_filter = ("is_staff", "is_superuser", "is_active")
    filter_horizontal = ()
    search_help_text = _("Name or address")

    @admin.display(description=_("last sign-in"), ordering="last_login")
    def seen(self, user: User) -> str:
        return moment(user.last_login, gettext("never"))


@admin.register(Group)
class AccountGroupAdmin(GroupAdmin, Page):
    filter_horizontal = ()


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnly):
    """What was changed by hand, on these pages."""

    list_display = ("action_time", "user", "content_type", "object_repr", "change")
    list_select_related = ("user", "content_type")
    list_filter = ("action_time", "action_flag")
    search_fields = ("user__username", "object_repr")
    search_help_text = _("Name of an account, or of what was changed")
    fields = ("action_time", "user", "content_type", "object_id", "object_repr", "change")

    @admin.display(description=_("change"))
    def change(self, entry: LogEntry) -> str:
        return entry.get_change_message()

"""The admin of what fires and what is told: the scheduler's switch, and the calls of webhooks."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from dispatch.models import Delivery, Switch
from nodes.admin import ReadOnly


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly):
    list_display = ("id", "run_id", "url", "state", "attempts", "status", "error", "created_at", "delivered_at")
    list_filter = ("state",)
    search_fields = ("=id", "=run__id", "url")
    fields = ("run_id", "url", "state", "attempts", "next_at", "status", "error", "created_at", "delivered_at")
    actions = ("call_again",)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("dispatch.change_delivery")

    @admin.action(description="Call again", permissions=["operate"])
    def call_again(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        from dispatch import webhooks

        for delivery in queryset:
            webhooks.retry(delivery.pk)
        self.message_user(request, f"{len(queryset)} will be called again.")


@admin.register(Switch)
class SwitchAdmin(ReadOnly):
    list_display = ("name", "on", "note", "changed_at")
    fields = ("name", "on", "note", "changed_at")
    actions = ("turn_on", "turn_off")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("dispatch.change_switch")

    @admin.action(description="Start", permissions=["operate"])
    def turn_on(self, request: HttpRequest, queryset: QuerySet[Switch]) -> None:
        self._turn(request, queryset, on=True)

    @admin.action(description="Stop", permissions=["operate"])
    def turn_off(self, request: HttpRequest, queryset: QuerySet[Switch]) -> None:
        self._turn(request, queryset, on=False)

    def _turn(self, request: HttpRequest, queryset: QuerySet[Switch], *, on: bool) -> None:
        from dispatch import schedule

        if not queryset.filter(name=schedule.SCHEDULER).exists():
            return
        turn = schedule.start if on else schedule.stop
        turn(request.user.get_username())
        self.message_user(request, f"The scheduler is {'on' if on else 'off'}.")

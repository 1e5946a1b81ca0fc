"""The admin of what fires and what is told: the scheduler's switch, and the calls of webhooks."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from dispatch.models import Delivery, Switch
from nodes.admin_base import ReadOnly, link, moment, short, state, verb


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly):
    list_display = ("id", "run_page", "url", "state_glyph", "attempts", "status", "why", "created", "delivered_at")
    list_filter = ("state",)
    search_fields = ("=id", "=run__id", "url")
    search_help_text = _("Number of a call or a run, or part of an address")
    fields = ("run_page", "url", "state_glyph", "attempts", "next_at", "status", "error", "created_at", "delivered_at")
    actions = row_verbs = ("call_again",)

    @admin.display(description=_("run"), ordering="run_id")
    def run_page(self, delivery: Delivery) -> str:
        return link(reverse("run", args=[delivery.run_id]), delivery.run_id)

    @admin.display(description=_("state"), ordering="state")
    def state_glyph(self, delivery: Delivery) -> str:
        return state(delivery.state)

    @admin.display(description=_("error"))
    def why(self, delivery: Delivery) -> str:
        return short(delivery.error)

    @admin.display(description=_("made"), ordering="created_at")
    def created(self, delivery: Delivery) -> str:
        return moment(delivery.created_at)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("dispatch.change_delivery")

    @verb(
        _("Call again"),
        permission="operate",
        ask=ngettext_lazy("Make %(count)s call again?", "Make %(count)s calls again?", "count"),
    )
    def call_again(self, request: HttpRequest, deliveries: list[Delivery]) -> None:
        from dispatch import webhooks

        def again(delivery: Delivery) -> str:
            webhooks.retry(delivery.pk)
            return f"Call {delivery.pk} will be made again."

        self.each(request, deliveries, again, "{count} calls will be made again.")


@admin.register(Switch)
class SwitchAdmin(ReadOnly):
    list_display = ("name", "state_glyph", "note", "changed_at")
    fields = ("name", "state_glyph", "note", "changed_at")
    actions = row_verbs = ("turn_on", "turn_off")

    @admin.display(description=_("state"), ordering="on")
    def state_glyph(self, switch: Switch) -> str:
        return state("on" if switch.on else "off")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("dispatch.change_switch")

    @verb(_("Start"), permission="operate", ask=_("Start the scheduler? Tasks fire again at their times."))
    def turn_on(self, request: HttpRequest, switches: list[Switch]) -> None:
        self._turn(request, switches, on=True)

    @verb(
        _("Stop"),
        permission="operate",
        danger=True,
        ask=_("Stop the scheduler? No task fires until it is started."),
    )
    def turn_off(self, request: HttpRequest, switches: list[Switch]) -> None:
        self._turn(request, switches, on=False)

    def _turn(self, request: HttpRequest, switches: list[Switch], *, on: bool) -> None:
        from dispatch import schedule

        if not any(switch.name == schedule.SCHEDULER for switch in switches):
            return
        turn = schedule.start if on else schedule.stop
        turn(request.user.get_username())
        self.message_user(request, f"The scheduler is {'on' if on else 'off'}.")

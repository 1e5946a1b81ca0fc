"""Tasks to edit; runs, shards, allocations, receipts to look at. What changes a state asks ``dispatch.lifecycle``."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminSelectWidget

from dispatch.models import WORK_FIELDS, Allocation, Misfire, Receipt, Run, Shard, Task
from nodes import executors
from nodes.admin_base import (
    History,
    NodeFilter,
    Page,
    ReadOnly,
    TypeFilter,
    is_list,
    link,
    list_of,
    moment,
    part,
    row_of,
    short,
    state,
    took,
    verb,
)
from nodes.protocol import FieldError

RECURRING = ("cron", "time_zone", "misfire", "webhook_url", "webhook_template", "webhook_headers", "webhook_secret")


class TaskForm(forms.ModelForm):  # type: ignore[type-arg]
    type = forms.ChoiceField(
        label=_("type"), choices=lambda: [(name, name) for name in executors.names()], widget=UnfoldAdminSelectWidget
    )
    misfire = forms.ChoiceField(
        label=_("misfire"),
        choices=lambda: [(value, _(label)) for value, label in Misfire.choices],
        required=False,
        initial=Misfire.ONE,
        widget=UnfoldAdminSelectWidget,
    )
    webhook_secret = forms.CharField(
        label=_("webhook secret"),
        required=False,
        max_length=200,
        strip=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
        help_text=_("Signs the body (HMAC-SHA256). Never shown; left empty, it stays as it is."),
    )

    class Meta:
        model = Task
        fields = ("name", "active", "items", "source_kind", "items_column", *WORK_FIELDS, *RECURRING)

    def clean(self) -> dict[str, Any] | None:
        """What a run of it would be refused for is said here, at the field."""
        from dispatch import schedule, webhook_bodies
        from dispatch.lifecycle import origins
        from dispatch.lifecycle.submit import check_items, check_work

        cleaned = super().clean()
        given = self.cleaned_data
        for name, empty in (
            ("params", {}),
            ("labels", {}),
            ("affinity", {}),
            ("items", []),
            ("webhook_headers", {}),
        ):
            # An emptied box reads as null.
            if name in given and given[name] is None:
                given[name] = empty
        given["misfire"] = given.get("misfire") or Misfire.ONE
        given["webhook_secret"] = given.get("webhook_secret") or self.instance.webhook_secret
        if self.errors:
            return cleaned
        try:
            given |= schedule.check(given)
            webhook_bodies.check(given)
            if not isinstance(given["labels"], dict) or not isinstance(given["params"], dict):
                wrong = "params" if isinstance(given["labels"], dict) else "labels"
                raise FieldError(wrong, 'is not an object, like {"source": "sample"}')
            check_work(given)
            origins.check({name: given[name] for name in origins.FIELDS})
            params = executors.get(given["type"]).check(given["params"])
            # A task may be defined before its items are known.
            if given["items"] != []:
                check_items(given["type"], given["items"], dict(params))
        except FieldError as error:
            # items[3] and params.source are parts of boxes in this form.
            box = error.field.partition(".")[0].partition("[")[0]
            self.add_error(box if box in self.fields else None, str(error))
        return cleaned


@admin.register(Task)
class TaskAdmin(Page):
    form = TaskForm
    list_display = (
        "name",
        "type",
        "active",
        "priority",
        "timeout",
        "max_attempts",
        "balancer",
        "cron",
        "next_fire_at",
        "runs_of",
        "created_at",
    )
    list_filter = (TypeFilter, "active")
    search_fields = ("name", "type")
    search_help_text = _("Name or type")
    actions = row_verbs = ("run_now",)
    readonly_fields = ("fired_at", "next_fire_at", "next_fires")
    fieldsets = (
        (None, {"fields": ("name", "type", "active", "params", "items", "source_kind", "items_column")}),
        (
            _("How it runs"),
            {"classes": ("tab",), "fields": tuple(name for name in WORK_FIELDS if name not in ("type", "params"))},
        ),
        (
            _("When"),
            {
                "classes": ("tab",),
                "fields": ("cron", "time_zone", "misfire", "fired_at", "next_fire_at", "next_fires"),
            },
        ),
        (
            _("Who is told"),
            {
                "classes": ("tab",),
                "fields": ("webhook_url", "webhook_template", "webhook_headers", "webhook_secret"),
            },
        ),
    )

    def save_model(self, request: HttpRequest, obj: Task, form: Any, change: bool) -> None:
        from dispatch import schedule

        schedule.store(obj)

    @admin.display(description=_("next fire times"))
    def next_fires(self, task: Task) -> str:
        from dispatch import schedule

        about = schedule.describe(task, 5, timezone.now())
        times = ", ".join(str(timezone.localtime(at, schedule.zone_of(task))) for at in about["next"])
        error = about["error"] or {}
        return f"{times or '–'}{_('. Last error: ') + error['error'] if error else ''}"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        tasks: QuerySet[Task] = super().get_queryset(request)
        return tasks.defer("items") if is_list(request) else tasks

    @admin.display(description=_("runs"))
    def runs_of(self, task: Task) -> str:
        return list_of("dispatch_run", _("list"), f"task__id__exact={task.pk}")

    @verb(
        _("Run now"),
        permission="change",
        ask=ngettext_lazy("Submit a run of %(count)s task?", "Submit a run of each of %(count)s tasks?", "count"),
    )
    def run_now(self, request: HttpRequest, tasks: list[Task]) -> None:
        from dispatch import lifecycle

        def run(task: Task) -> str:
            made = lifecycle.submit_task(task, submitted_by=request.user.get_username())
            return f"Task {task.name}: submitted run {made.pk} with {made.count} items."

        self.each(request, tasks, run, "{count} runs submitted.")


class ShardsOfRun(History):
    model = Shard
    fields = readonly_fields = (
        "number",
        "start",
        "stop",
        "state_glyph",
        "attempts",
        "deaths",
        "losses",
        "not_before",
        "why",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Shard]:
        shards: QuerySet[Shard] = super().get_queryset(request)
        return shards.order_by("start")

    @admin.display(description=_("shard"))
    def number(self, shard: Shard) -> str:
        return row_of("dispatch_shard", shard.pk, shard.pk)

    @admin.display(description=_("state"))
    def state_glyph(self, shard: Shard) -> str:
        return state(shard.state)

    @admin.display(description=_("error"))
    def why(self, shard: Shard) -> str:
        return short(shard.error) or "–"


class AllocationsOfWork(History):
    model = Allocation
    fields = readonly_fields = (
        "number",
        "start",
        "stop",
        "of",
        "state_glyph",
        "attempt",
        "rows",
        "time",
        "granted",
        "why",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Allocation]:
        allocations: QuerySet[Allocation] = super().get_queryset(request).defer("log", "digests")
        return allocations.select_related("node").order_by("-pk")

    @admin.display(description=_("allocation"))
    def number(self, allocation: Allocation) -> str:
        return row_of("dispatch_allocation", allocation.pk, allocation.pk)

    @admin.display(description=_("node"))
    def of(self, allocation: Allocation) -> str:
        return _node(allocation)

    @admin.display(description=_("state"))
    def state_glyph(self, allocation: Allocation) -> str:
        return state(allocation.state)

    @admin.display(description=_("took"))
    def time(self, allocation: Allocation) -> str:
        return took(allocation.seconds)

    @admin.display(description=_("granted"))
    def granted(self, allocation: Allocation) -> str:
        return moment(allocation.granted_at)

    @admin.display(description=_("error"))
    def why(self, allocation: Allocation) -> str:
        return short(allocation.error) or "–"


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = (
        "id",
        "name",
        "page",
        "type",
        "state_glyph",
        "progress",
        "not_saved",
        "rows",
        "priority",
        "created",
        "ended",
        "submitted_by",
    )
    list_display_links = ("id", "name")
    list_filter = ("state", TypeFilter, "created_at")
    search_fields = ("=id", "name", "type", "submitted_by", "task__name")
    search_help_text = _("Number, name or type of a run, its task, or who submitted it")
    actions = row_verbs = ("cancel", "retry_failed")
    inlines = (ShardsOfRun, AllocationsOfWork)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "name",
                    "task",
                    "state_glyph",
                    "progress",
                    "saved",
                    "failed",
                    "quarantined",
                    "cancelled",
                    "rows",
                    "created_at",
                    "ended_at",
                    "submitted_by",
                    "shards_of",
                    "allocations_of",
                )
            },
        ),
        (_("What was asked for"), {"classes": ("tab",), "fields": WORK_FIELDS}),
    )

    def view_on_site(self, run: Run) -> str:
        return reverse("run", args=[run.pk])

    @admin.display(description=_("live page"))
    def page(self, run: Run) -> str:
        return link(reverse("run", args=[run.pk]), _("open"))

    @admin.display(description=_("submitted"), ordering="created_at")
    def created(self, run: Run) -> str:
        return moment(run.created_at)

    @admin.display(description=_("ended"), ordering="ended_at")
    def ended(self, run: Run) -> str:
        return moment(run.ended_at)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        # The items of a run can be many megabytes, and no page here shows them.
        runs: QuerySet[Run] = super().get_queryset(request).defer("items")
        return runs.defer("params", "reduction") if is_list(request) else runs.select_related("task")

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("dispatch.change_run")

    @admin.display(description=_("state"), ordering="state")
    def state_glyph(self, run: Run) -> str:
        return state(run.state)

    @admin.display(description=_("not saved"))
    def not_saved(self, run: Run) -> str:
        counts = ((run.failed, _("failed")), (run.quarantined, _("quarantined")), (run.cancelled, _("cancelled")))
        return ", ".join(f"{count} {word}" for count, word in counts if count) or "–"

    @admin.display(description=_("done"))
    def progress(self, run: Run) -> str:
        return part(run.done, run.count)

    @admin.display(description=_("shards"))
    def shards_of(self, run: Run) -> str:
        return list_of("dispatch_shard", _("list"), f"run__id__exact={run.pk}")

    @admin.display(description=_("allocations"))
    def allocations_of(self, run: Run) -> str:
        return list_of("dispatch_allocation", _("list"), f"run__id__exact={run.pk}")

    @verb(
        _("Cancel"),
        permission="operate",
        danger=True,
        ask=ngettext_lazy(
            "Cancel %(count)s run? What waits is dropped, what runs is stopped; rows that are saved stay.",
            "Cancel %(count)s runs? What waits is dropped, what runs is stopped; rows that are saved stay.",
            "count",
        ),
    )
    def cancel(self, request: HttpRequest, runs: list[Run]) -> None:
        from dispatch import lifecycle

        def cancel(run: Run) -> str:
            ended = lifecycle.cancel(run.pk)
            return f"Run {ended.pk} is {ended.state}: {ended.cancelled} items cancelled, {ended.saved} saved."

        self.each(request, runs, cancel, "{count} runs have ended.")

    @verb(
        _("Retry what failed"),
        permission="operate",
        ask=ngettext_lazy(
            "Try again what failed or was quarantined in %(count)s run?",
            "Try again what failed or was quarantined in %(count)s runs?",
            "count",
        ),
    )
    def retry_failed(self, request: HttpRequest, runs: list[Run]) -> None:
        from dispatch import lifecycle

        def retry(run: Run) -> str:
            return f"Run {run.pk}: {lifecycle.retry(run.pk)} items opened again."

        self.each(request, runs, retry, "Items of {count} runs opened again.")


@admin.register(Shard)
class ShardAdmin(ReadOnly):
    list_display = (
        "id",
        "run_page",
        "start",
        "stop",
        "state_glyph",
        "attempts",
        "deaths",
        "losses",
        "not_before",
        "updated",
        "why",
    )
    list_filter = ("state",)
    inlines = (AllocationsOfWork,)
    search_fields = ("=run__id", "error")
    search_help_text = _("Number of a run, or part of an error")
    fields = (
        "run_page",
        "start",
        "stop",
        "state_glyph",
        "attempts",
        "deaths",
        "losses",
        "not_before",
        "updated_at",
        "error",
        "allocations_of",
    )

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "run__id__exact" or super().lookup_allowed(lookup, value, request)

    @admin.display(description=_("run"), ordering="run_id")
    def run_page(self, shard: Shard) -> str:
        return link(reverse("run", args=[shard.run_id]), shard.run_id)

    @admin.display(description=_("changed"), ordering="updated_at")
    def updated(self, shard: Shard) -> str:
        return moment(shard.updated_at)

    @admin.display(description=_("state"), ordering="state")
    def state_glyph(self, shard: Shard) -> str:
        return state(shard.state)

    @admin.display(description=_("error"))
    def why(self, shard: Shard) -> str:
        return short(shard.error)

    @admin.display(description=_("allocations"))
    def allocations_of(self, shard: Shard) -> str:
        return list_of("dispatch_allocation", _("list"), f"shard__id__exact={shard.pk}")


@admin.register(Allocation)
class AllocationAdmin(ReadOnly):
    list_display = (
        "id",
        "run_page",
        "start",
        "stop",
        "of",
        "type",
        "state_glyph",
        "attempt",
        "rows",
        "time",
        "granted",
        "finished",
        "reason",
        "why",
    )
    list_select_related = ("node",)
    list_filter = ("state", TypeFilter, NodeFilter)
    search_fields = ("=id", "=run__id", "node__name", "item")
    search_help_text = _("Number of an allocation or a run, name of a node, or an item's key")
    fields = (
        "run_page",
        "shard",
        "start",
        "stop",
        "of",
        "type",
        "item",
        "attempt",
        "state_glyph",
        "reason",
        "delivered",
        "deadline",
        "granted_at",
        "started_at",
        "finished_at",
        "time",
        "progress",
        "rows",
        "receipt",
        "error",
        "log",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Allocation]:
        allocations: QuerySet[Allocation] = super().get_queryset(request)
        return allocations.defer("log", "digests") if is_list(request) else allocations.select_related("node", "shard")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        own = ("run__id__exact", "shard__id__exact")
        return lookup in own or super().lookup_allowed(lookup, value, request)

    @admin.display(description=_("run"), ordering="run_id")
    def run_page(self, allocation: Allocation) -> str:
        return link(reverse("run", args=[allocation.run_id]), allocation.run_id)

    @admin.display(description=_("node"), ordering="node__name")
    def of(self, allocation: Allocation) -> str:
        return _node(allocation)

    @admin.display(description=_("took"), ordering="seconds")
    def time(self, allocation: Allocation) -> str:
        return took(allocation.seconds)

    @admin.display(description=_("granted"), ordering="granted_at")
    def granted(self, allocation: Allocation) -> str:
        return moment(allocation.granted_at)

    @admin.display(description=_("finished"), ordering="finished_at")
    def finished(self, allocation: Allocation) -> str:
        return moment(allocation.finished_at)

    @admin.display(description=_("state"), ordering="state")
    def state_glyph(self, allocation: Allocation) -> str:
        return state(allocation.state)

    @admin.display(description=_("error"))
    def why(self, allocation: Allocation) -> str:
        return short(allocation.error)


@admin.register(Receipt)
class ReceiptAdmin(ReadOnly):
    list_display = ("id", "node", "type", "rows", "segment_start", "created", "saved", "purged_at")
    list_select_related = ("node",)
    list_filter = (("saved_at", admin.EmptyFieldListFilter), TypeFilter, NodeFilter)
    search_fields = ("=id", "segment", "node__name")
    search_help_text = _("Number of a receipt, name of a segment or of a node")
    ordering = ("-id",)
    fields = ("node", "type", "rows", "segment", "created_at", "saved_at", "purged_at", "manifest")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Receipt]:
        receipts: QuerySet[Receipt] = super().get_queryset(request).defer("payload")
        return receipts.defer("manifest") if is_list(request) else receipts

    @admin.display(description=_("segment"))
    def segment_start(self, receipt: Receipt) -> str:
        return receipt.segment[:12] or "inline"

    @admin.display(description=_("made"), ordering="created_at")
    def created(self, receipt: Receipt) -> str:
        return moment(receipt.created_at)

    @admin.display(description=_("saved"), ordering="saved_at")
    def saved(self, receipt: Receipt) -> str:
        return moment(receipt.saved_at, "not yet")


def _node(allocation: Allocation) -> str:
    return "–" if allocation.node is None else link(reverse("node", args=[allocation.node_id]), allocation.node.name)


from dispatch import admin_rates, admin_schedule, admin_sources  # noqa: E402, F401  registers its models

"""Tasks to edit; runs, shards, allocations, receipts to look at. What changes a state asks ``dispatch.lifecycle``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from dispatch.models import WORK_FIELDS, Allocation, Misfire, Receipt, Run, Shard, Task
from nodes import executors
from nodes.admin import ReadOnly
from nodes.protocol import CascadeError, FieldError

GLYPHS = {
    "pending": "○",
    "allocated": "◔",
    "executing": "▶",
    "running": "▶",
    "spooled": "◔",
    "saved": "✓",
    "completed": "✓",
    "partial": "✕",
    "failed": "✕",
    "quarantined": "✕",
    "expired": "?",
    "cancelled": "–",
    "superseded": "–",
}


RECURRING = ("cron", "time_zone", "misfire", "webhook_url", "webhook_template", "webhook_headers", "webhook_secret")


class TaskForm(forms.ModelForm):  # type: ignore[type-arg]
    type = forms.ChoiceField(choices=lambda: [(name, name) for name in executors.names()])
    misfire = forms.ChoiceField(choices=Misfire.choices, required=False, initial=Misfire.ONE)
    webhook_secret = forms.CharField(
        required=False,
        max_length=200,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="Signs the body (HMAC-SHA256). Never shown; left empty, it stays as it is.",
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
class TaskAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
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
    list_filter = ("type", "active")
    search_fields = ("name", "type")
    list_per_page = 50
    show_full_result_count = False
    actions = ("run_now",)
    readonly_fields = ("fired_at", "next_fire_at", "next_fires")

    def save_model(self, request: HttpRequest, obj: Task, form: Any, change: bool) -> None:
        from dispatch import schedule

        schedule.store(obj)

    @admin.display(description="next fire times")
    def next_fires(self, task: Task) -> str:
        from dispatch import schedule

        about = schedule.describe(task, 5, timezone.now())
        times = ", ".join(str(timezone.localtime(at, schedule.zone_of(task))) for at in about["next"])
        error = about["error"] or {}
        return f"{times or '–'}{'. Last error: ' + error['error'] if error else ''}"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        tasks = super().get_queryset(request)
        return tasks.defer("items") if _is_list(request) else tasks

    @admin.display(description="runs")
    def runs_of(self, task: Task) -> str:
        return _link("run", "list", f"task__id__exact={task.pk}")

    @admin.action(description="Run now", permissions=["change"])
    def run_now(self, request: HttpRequest, queryset: QuerySet[Task]) -> None:
        from dispatch import lifecycle

        def run(task: Task) -> str:
            made = lifecycle.submit_task(task, submitted_by=request.user.get_username())
            return f"Task {task.name}: submitted run {made.pk} with {made.count} items."

        _each(self, request, queryset, run)


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = (
        "id",
        "name",
        "type",
        "state_glyph",
        "progress",
        "saved",
        "failed",
        "quarantined",
        "cancelled",
        "rows",
        "priority",
        "created_at",
        "ended_at",
        "submitted_by",
    )
    list_display_links = ("id", "name")
    list_filter = ("state", "type", "created_at")
    search_fields = ("name", "type", "submitted_by", "task__name")
    actions = ("cancel", "retry_failed")
    fields = (
        "name",
        "task",
        "state_glyph",
        "progress",
        "saved",
        "failed",
        "quarantined",
        "cancelled",
        "rows",
        *WORK_FIELDS,
        "created_at",
        "ended_at",
        "submitted_by",
        "shards_of",
        "allocations_of",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        # The items of a run can be many megabytes, and no page here shows them.
        runs: QuerySet[Run] = super().get_queryset(request).defer("items")
        return runs.defer("params") if _is_list(request) else runs

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("dispatch.change_run")

    @admin.display(description="state", ordering="state")
    def state_glyph(self, run: Run) -> str:
        return _glyph(run.state)

    @admin.display(description="done")
    def progress(self, run: Run) -> str:
        return f"{run.done} of {run.count}"

    @admin.display(description="shards")
    def shards_of(self, run: Run) -> str:
        return _link("shard", "list", f"run__id__exact={run.pk}")

    @admin.display(description="allocations")
    def allocations_of(self, run: Run) -> str:
        return _link("allocation", "list", f"run__id__exact={run.pk}")

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        from dispatch import lifecycle

        def cancel(run: Run) -> str:
            ended = lifecycle.cancel(run.pk)
            return f"Run {ended.pk} is {ended.state}: {ended.cancelled} items cancelled, {ended.saved} saved."

        _each(self, request, queryset, cancel)

    @admin.action(description="Retry what failed", permissions=["operate"])
    def retry_failed(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        from dispatch import lifecycle

        _each(self, request, queryset, lambda run: f"Run {run.pk}: {lifecycle.retry(run.pk)} items opened again.")


@admin.register(Shard)
class ShardAdmin(ReadOnly):
    list_display = (
        "id",
        "run_id",
        "start",
        "stop",
        "state_glyph",
        "attempts",
        "deaths",
        "losses",
        "not_before",
        "updated_at",
        "why",
    )
    list_filter = ("state",)
    search_fields = ("=run__id", "error")
    search_help_text = "Number of a run, or part of an error"
    fields = (
        "run_id",
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

    @admin.display(description="state", ordering="state")
    def state_glyph(self, shard: Shard) -> str:
        return _glyph(shard.state)

    @admin.display(description="error")
    def why(self, shard: Shard) -> str:
        return _short(shard.error)

    @admin.display(description="allocations")
    def allocations_of(self, shard: Shard) -> str:
        return _link("allocation", "list", f"shard__id__exact={shard.pk}")


@admin.register(Allocation)
class AllocationAdmin(ReadOnly):
    list_display = (
        "id",
        "run_id",
        "start",
        "stop",
        "node",
        "type",
        "state_glyph",
        "attempt",
        "rows",
        "seconds",
        "granted_at",
        "finished_at",
        "reason",
        "why",
    )
    list_select_related = ("node",)
    list_filter = ("state", "type", "node")
    search_fields = ("=id", "=run__id", "node__name", "item")
    search_help_text = "Number of an allocation or a run, name of a node, or an item's key"
    fields = (
        "run_id",
        "shard_id",
        "start",
        "stop",
        "node",
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
        "seconds",
        "progress",
        "rows",
        "receipt_id",
        "error",
        "log",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Allocation]:
        allocations: QuerySet[Allocation] = super().get_queryset(request)
        return allocations.defer("log") if _is_list(request) else allocations

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        own = ("run__id__exact", "shard__id__exact")
        return lookup in own or super().lookup_allowed(lookup, value, request)

    @admin.display(description="state", ordering="state")
    def state_glyph(self, allocation: Allocation) -> str:
        return _glyph(allocation.state)

    @admin.display(description="error")
    def why(self, allocation: Allocation) -> str:
        return _short(allocation.error)


@admin.register(Receipt)
class ReceiptAdmin(ReadOnly):
    list_display = ("id", "node", "type", "rows", "segment_start", "created_at", "saved_at", "purged_at")
    list_select_related = ("node",)
    list_filter = (("saved_at", admin.EmptyFieldListFilter), "type", "node")
    search_fields = ("=id", "segment", "node__name")
    ordering = ("-id",)
    fields = ("node", "type", "rows", "segment", "created_at", "saved_at", "purged_at", "manifest")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Receipt]:
        receipts: QuerySet[Receipt] = super().get_queryset(request).defer("payload")
        return receipts.defer("manifest") if _is_list(request) else receipts

    @admin.display(description="segment")
    def segment_start(self, receipt: Receipt) -> str:
        return receipt.segment[:12] or "inline"


def _is_list(request: HttpRequest) -> bool:
    return request.resolver_match is not None and (request.resolver_match.url_name or "").endswith("_changelist")


def _glyph(state: str) -> str:
    return f"{GLYPHS.get(state, '')} {state}"


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _link(model: str, text: str, query: str) -> str:
    return format_html('<a href="{}?{}">{}</a>', reverse(f"admin:dispatch_{model}_changelist"), query, text)


def _each(
    modeladmin: admin.ModelAdmin[Any], request: HttpRequest, objects: Iterable[Any], act: Callable[[Any], str]
) -> None:
    """One message each, so that one which cannot be done does not hide the others."""
    for each in objects:
        try:
            modeladmin.message_user(request, act(each), messages.SUCCESS)
        except CascadeError as error:
            modeladmin.message_user(request, f"{each._meta.verbose_name} {each.pk}: {error}", messages.ERROR)


from dispatch import admin_rates, admin_schedule, admin_sources  # noqa: E402, F401  registers its models

"""Nodes in Django's admin: quotas inline, keys and history to look at; every change goes through ``nodes.registry``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, IntegerField, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _
from unfold.admin import TabularInline
from unfold.widgets import UnfoldAdminSelectWidget

from nodes import executors, keys, registry
from nodes.admin_base import History, NodeFilter, Page, ReadOnly, link, list_of, moment, part, state, verb
from nodes.fields import QuotaSpec, check_fields, check_quota
from nodes.keys import IssuedKey
from nodes.models import AccessKey, Heartbeat, Node, Quota
from nodes.protocol import CascadeError, FieldError
from nodes.sentences import said


class NodeForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_labels(self) -> dict[str, Any]:
        # An emptied box reads as null.
        return self.cleaned_data["labels"] or {}

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        for name, value in list(self.cleaned_data.items()):
            try:
                check_fields({name: value})
            except FieldError as error:
                self.add_error(name, error.message)
        return cleaned


class QuotaForm(forms.ModelForm):  # type: ignore[type-arg]
    task_type = forms.ChoiceField(
        label=_("task type"),
        choices=lambda: [(name, name) for name in executors.names()],
        widget=UnfoldAdminSelectWidget,
    )

    class Meta:
        model = Quota
        fields = ("task_type", "item", "slots", "limit")

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        # With all parts there; what is missing is named at its own field already.
        if not self.errors:
            try:
                check_quota(self.spec(), self.instance.node.capacity)
            except FieldError as error:
                self.add_error(error.field, error.message)
        return cleaned

    def _post_clean(self) -> None:
        # The model's own rule says the same as the registry's, which clean() asked.
        if not self.errors:
            super()._post_clean()  # type: ignore[misc]  # Django's stubs leave it out

    def spec(self) -> QuotaSpec:
        given = self.cleaned_data
        return QuotaSpec(given["task_type"], given["slots"], given["item"], given["limit"])


class QuotaFormSet(forms.BaseInlineFormSet):  # type: ignore[type-arg]
    """Quotas are checked against the capacity as it is being edited, not as it is stored."""

    def _construct_form(self, i: int, **kwargs: Any) -> QuotaForm:
        form: QuotaForm = super()._construct_form(i, **kwargs)  # type: ignore[misc]  # Django's stubs leave it out
        form.instance.node = self.instance
        return form

    def specs(self) -> list[QuotaSpec]:
        """All that shall be the node's quotas from now on."""
        forms: list[QuotaForm] = self.forms  # type: ignore[assignment]
        return [form.spec() for form in forms if form not in self.deleted_forms and form.cleaned_data.get("task_type")]


class QuotaInline(TabularInline):
    model = Quota
    form = QuotaForm
    formset = QuotaFormSet
    extra = 0


class KeyInline(History):
    model = AccessKey
    fields = readonly_fields = ("access_key", "state", "created", "used", "revoked_at")
    per_page = None  # a node has two live ones; the revoked ones go with the history
    verbose_name_plural = _("access keys")

    @admin.display(description=_("state"))
    def state(self, key: AccessKey) -> str:
        return _key_state(key)

    @admin.display(description=_("made"))
    def created(self, key: AccessKey) -> str:
        return moment(key.created_at)

    @admin.display(description=_("last used"))
    def used(self, key: AccessKey) -> str:
        return moment(key.last_used_at, gettext("never"))


class StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, said(name)) for name in ("online", "draining", "offline", "inactive")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Node]) -> QuerySet[Node]:
        online = registry.online_filter(timezone.now())
        match self.value():
            case "online":
                return queryset.filter(online, draining=False)
            case "draining":
                return queryset.filter(online, draining=True)
            case "offline":
                return queryset.filter(~online, active=True)
            case "inactive":
                return queryset.filter(active=False)
        return queryset


@admin.register(Node)
class NodeAdmin(Page):
    form = NodeForm
    list_display = (
        "name",
        "state",
        "page",
        "kind",
        "carrier",
        "in_use",
        "quota_texts",
        "beat",
        "cpu_percent",
        "memory_percent",
        "version",
        "config_version",
        "live_keys",
    )
    list_filter = (StateFilter, "role", "carrier", "dialect", "draining", "active")
    search_fields = ("name", "description", "keys__access_key")
    search_help_text = _("Name, description or access key")
    actions = row_verbs = ("drain", "resume", "issue_key", "revoke_keys")
    inlines = (QuotaInline, KeyInline)
    readonly_fields = (
        "carrier",
        "dialect",
        "registration",
        "said",
        "branch",
        "state",
        "in_use",
        "version",
        "config_version",
        "synced_at",
        "executors",
        "last_beat_at",
        "cpu_percent",
        "memory_percent",
        "disk_percent",
        "speeds",
        "losses",
        "lost_at",
        "created_at",
        "history",
        "work",
    )
    fieldsets = (
        (None, {"fields": ("name", "description", "role", "capacity", "weight", "labels")}),
        (_("Work"), {"fields": ("active", "draining", "max_cpu", "max_memory")}),
        (_("Access"), {"fields": ("api_url", "allow_plain_key")}),
        (
            _("What it says of itself"),
            {
                "classes": ("tab",),
                "fields": (
                    "state",
                    "in_use",
                    "carrier",
                    "dialect",
                    "registration",
                    "said",
                    "branch",
                    "version",
                    "config_version",
                    "synced_at",
                    "executors",
                    "last_beat_at",
                    "cpu_percent",
                    "memory_percent",
                    "disk_percent",
                    "history",
                    "work",
                ),
            },
        ),
        (_("What the parent measured"), {"classes": ("tab",), "fields": ("speeds", "losses", "lost_at", "created_at")}),
    )

    # Looking

    def view_on_site(self, node: Node) -> str:
        return reverse("node", args=[node.pk])

    @admin.display(description=_("live page"))
    def page(self, node: Node) -> str:
        return link(reverse("node", args=[node.pk]), _("open"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Node]:
        # Subqueries: joins would count a node once per key or allocation that the search box's join finds.
        each = Node.objects.filter(pk=OuterRef("pk")).order_by().values("pk")
        live = each.filter(allocations__state__in=registry.LIVE_ALLOCATION).annotate(count=Sum("allocations__slots"))
        valid = each.filter(keys__isnull=False, keys__revoked_at=None).annotate(count=Count("keys"))
        nodes: QuerySet[Node] = super().get_queryset(request).prefetch_related("quotas")
        return nodes.annotate(live=_counted(live), valid_keys=_counted(valid))

    def get_fieldsets(self, request: HttpRequest, obj: Node | None = None) -> Any:
        # A node that is being added has said nothing yet.
        return super().get_fieldsets(request, obj) if obj else self.fieldsets[:3]

    def get_inlines(self, request: HttpRequest, obj: Node | None) -> Any:
        return self.inlines if obj else (QuotaInline,)

    def get_readonly_fields(self, request: HttpRequest, obj: Node | None = None) -> Any:
        return (*self.readonly_fields, "role") if obj and obj.embedded else self.readonly_fields

    def formfield_for_choice_field(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "role":
            kwargs["choices"] = [(role, _(label)) for role, label in Node.Role.choices if role != Node.Role.STANDALONE]
        return super().formfield_for_choice_field(db_field, request, **kwargs)

    @admin.display(description=_("what it is"), ordering="role")
    def kind(self, node: Node) -> str:
        if node.embedded:
            return gettext("This server")
        dialect = "" if node.dialect == Node.Dialect.NATIVE else f" ({node.get_dialect_display()})"
        told = node.subtree if node.role == Node.Role.RELAY else None
        below = gettext(", {n} of {m} below it online").format(n=told["online"], m=told["nodes"]) if told else ""
        return f"{node.get_role_display()}{dialect}{below}"

    @admin.display(description=_("below it"))
    def branch(self, node: Node) -> str:
        if node.role != Node.Role.RELAY or node.pk is None:
            return "–"
        return link(reverse("below", args=[node.pk]), _("what hangs there now"))

    @admin.display(description=_("facts"))
    def said(self, node: Node) -> str:
        text = json.dumps(node.facts, ensure_ascii=False, indent=1)
        return format_html("<pre>{}</pre>", text) if node.facts else "–"

    @admin.display(description=_("state"))
    def state(self, node: Node) -> str:
        return state(registry.state_of(node, timezone.now()))

    @admin.display(description=_("in use"), ordering="live")
    def in_use(self, node: Node) -> str:
        return part(node.live, node.capacity)  # type: ignore[attr-defined]  # annotated above

    @admin.display(description=_("quotas"))
    def quota_texts(self, node: Node) -> str:
        return ", ".join(str(quota) for quota in node.quotas.all()) or "–"

    @admin.display(description=_("last beat"), ordering="last_beat_at")
    def beat(self, node: Node) -> str:
        return moment(node.last_beat_at, gettext("never"))

    @admin.display(description=_("CPU"), ordering="cpu")
    def cpu_percent(self, node: Node) -> str:
        return _percent(node.cpu)

    @admin.display(description=_("memory"), ordering="memory")
    def memory_percent(self, node: Node) -> str:
        return _percent(node.memory)

    @admin.display(description=_("disk"))
    def disk_percent(self, node: Node) -> str:
        return _percent(node.disk)

    @admin.display(description=_("live keys"), ordering="valid_keys")
    def live_keys(self, node: Node) -> int:
        return node.valid_keys  # type: ignore[attr-defined, no-any-return]  # annotated above

    @admin.display(description=_("beats"))
    def history(self, node: Node) -> str:
        return list_of("nodes_heartbeat", _("history"), f"node__id__exact={node.pk}")

    @admin.display(description=_("allocations"))
    def work(self, node: Node) -> str:
        return list_of("dispatch_allocation", _("list"), f"node__id__exact={node.pk}")

    # Changing

    def save_model(self, request: HttpRequest, obj: Node, form: Any, change: bool) -> None:
        # A change is written with its quotas, in save_related: only together can they be checked.
        if not change:
            node, key = registry.add_node(**_fields(form, obj))
            obj.pk, obj._state.adding = node.pk, False
            self._show(request, key)

    def save_related(self, request: HttpRequest, form: Any, formsets: Iterable[Any], change: bool) -> None:
        quotas: list[QuotaSpec] = []
        for formset in formsets:
            # Not saved here: this only lets the admin's own log know what changed.
            formset.save(commit=False)
            if isinstance(formset, QuotaFormSet):
                quotas = formset.specs()
        registry.update_node(form.instance.pk, quotas=quotas, **(_fields(form, form.instance) if change else {}))

    def delete_model(self, request: HttpRequest, obj: Node) -> None:
        registry.remove_node(obj.pk)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Node]) -> None:
        for node in queryset:
            registry.remove_node(node.pk)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        # Django would list every heartbeat; a node with live work is named as what stands in the way.
        nodes = list(objs)
        counts = {
            "nodes": len(nodes),
            "access keys": AccessKey.objects.filter(node__in=nodes).count(),
            "quotas": Quota.objects.filter(node__in=nodes).count(),
            "heartbeats": Heartbeat.objects.filter(node__in=nodes).count(),
        }
        in_use = registry.in_use(nodes)
        busy = [f"node {node.name} with its live allocations: {in_use[node.pk]}" for node in nodes if in_use[node.pk]]
        missing = set() if self.has_delete_permission(request) else {"node"}
        return [node.name for node in nodes], counts, missing, busy

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return _refused(request, lambda: super(NodeAdmin, self).changeform_view(request, *args, **kwargs))

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return _refused(request, lambda: super(NodeAdmin, self).changelist_view(request, *args, **kwargs))

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return _refused(request, lambda: super(NodeAdmin, self).delete_view(request, *args, **kwargs))

    @verb(
        _("Drain"),
        permission="change",
        ask=ngettext_lazy(
            "Drain %(count)s node? It finishes what it has, and gets no new work until it is resumed.",
            "Drain %(count)s nodes? They finish what they have, and get no new work until they are resumed.",
            "count",
        ),
    )
    def drain(self, request: HttpRequest, nodes: list[Node]) -> None:
        self.each(request, nodes, lambda node: f"Draining: {registry.drain(node.pk).name}.", "Draining: {count} nodes.")

    @verb(
        _("Resume"),
        permission="change",
        ask=ngettext_lazy(
            "Resume %(count)s node? It gets new work again.",
            "Resume %(count)s nodes? They get new work again.",
            "count",
        ),
    )
    def resume(self, request: HttpRequest, nodes: list[Node]) -> None:
        told = "Getting work again: {count} nodes."
        self.each(request, nodes, lambda node: f"Getting work again: {registry.resume(node.pk).name}.", told)

    @verb(
        _("Issue a key"),
        permission="change",
        ask=ngettext_lazy(
            "Issue a key to %(count)s node? Its secret is shown once, on the next page. A node has two at most.",
            "Issue keys to %(count)s nodes? Each secret is shown once, on the next page. A node has two at most.",
            "count",
        ),
    )
    def issue_key(self, request: HttpRequest, nodes: list[Node]) -> None:
        for node in nodes:
            try:
                self._show(request, keys.issue(node.pk))
            except CascadeError as error:
                self.message_user(request, str(error), messages.ERROR)

    @verb(
        _("Revoke all keys"),
        permission="change",
        danger=True,
        ask=ngettext_lazy(
            "Revoke all keys of %(count)s node? It loses its work, and is let in again with a new key only.",
            "Revoke all keys of %(count)s nodes? They lose their work, and are let in again with new keys only.",
            "count",
        ),
    )
    def revoke_keys(self, request: HttpRequest, nodes: list[Node]) -> None:
        self.each(
            request,
            nodes,
            lambda node: f"Keys revoked of {node.name}: {keys.revoke_all(node.pk)}.",
            "All keys revoked of {count} nodes.",
        )

    def _show(self, request: HttpRequest, key: IssuedKey) -> None:
        text = format_html(
            gettext("Key of {}, shown this once: CASCADE_ACCESS_KEY={} CASCADE_SECRET_KEY={}"),
            key.node.name,
            key.access_key,
            key.secret_key,
        )
        self.message_user(request, text, messages.WARNING)


@admin.register(AccessKey)
class AccessKeyAdmin(ReadOnly):
    list_display = ("access_key", "of", "state", "created", "used", "revoked_at")
    list_select_related = ("node",)
    list_filter = (("revoked_at", admin.EmptyFieldListFilter), NodeFilter)
    search_fields = ("access_key", "node__name")
    search_help_text = _("Access key or name of a node")
    fields = ("access_key", "of", "state", "public_key", "created_at", "last_used_at", "revoked_at")
    actions = row_verbs = ("revoke",)

    @admin.display(description=_("node"), ordering="node__name")
    def of(self, key: AccessKey) -> str:
        return link(reverse("node", args=[key.node_id]), key.node.name)

    @admin.display(description=_("state"), ordering="revoked_at")
    def state(self, key: AccessKey) -> str:
        return _key_state(key)

    @admin.display(description=_("made"), ordering="created_at")
    def created(self, key: AccessKey) -> str:
        return moment(key.created_at)

    @admin.display(description=_("last used"), ordering="last_used_at")
    def used(self, key: AccessKey) -> str:
        return moment(key.last_used_at, gettext("never"))

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("nodes.change_accesskey")

    @verb(
        _("Revoke"),
        permission="revoke",
        danger=True,
        ask=ngettext_lazy(
            "Revoke %(count)s key? From then on nothing that is signed with it is accepted.",
            "Revoke %(count)s keys? From then on nothing that is signed with them is accepted.",
            "count",
        ),
    )
    def revoke(self, request: HttpRequest, chosen: list[AccessKey]) -> None:
        for key in chosen:
            keys.revoke(key.access_key)
        self.message_user(request, f"Keys revoked: {len(chosen)}.", messages.SUCCESS)


@admin.register(Heartbeat)
class HeartbeatAdmin(ReadOnly):
    list_display = ("at", "node", "cpu", "memory", "disk", "held", "running")
    list_select_related = ("node",)
    list_filter = ("at", NodeFilter)
    search_fields = ("node__name",)
    search_help_text = _("Name of a node")


def _counted(each: QuerySet[Any, Any]) -> Coalesce:
    return Coalesce(Subquery(each.values("count"), output_field=IntegerField()), 0)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"


def _key_state(key: AccessKey) -> str:
    return state("revoked" if key.revoked_at else "live")


def _fields(form: Any, node: Node) -> dict[str, Any]:
    """What was typed, as the model's fields hold it."""
    return {name: getattr(node, name) for name in form.cleaned_data}


def _refused(request: HttpRequest, view: Callable[[], HttpResponse]) -> HttpResponse:
    """The view's answer, or what the registry has against it as a message on the same page."""
    try:
        return view()
    except CascadeError as error:
        messages.error(request, str(error))
        return HttpResponseRedirect(request.path)


from nodes import admin_accounts, admin_registrations  # noqa: E402, F401  register their models

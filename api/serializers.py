"""What the native API reads and writes. JSON types and bounds are checked here, their meaning further down."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from api.serializers_tree import Subtree
from dispatch import schedule, webhook_bodies
from dispatch.lifecycle import origins
from dispatch.lifecycle.submit import check_items, check_work, defaults, with_settings
from dispatch.models import ISLAND_LIMIT, WORK_FIELDS, Allocation, Fallback, Misfire, Run, Shard, Source, Task
from dispatch.states import ShardState
from nodes import executors, registry
from nodes.fields import QuotaSpec
from nodes.models import AccessKey, Node, Quota

FACTS = ("device_name", "device_type", "ip_address", "callback_url", "configs")
"""Of what clients of other dialects say of themselves; the rest may be long."""
RAN_BY = "Who did what is done of it: a node, or below a relay the way to one, like eu/paris/3. At most 50."
LARGEST_COUNT = 2**31 - 1
"""What an integer column of PostgreSQL holds."""
MOST_RANGES = 10_000
"""Of items, that one request may name."""
# Marks that turn the reading direction: a name that holds one reads as another name.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def unknown(name: object, known: Iterable[str]) -> str:
    """The message about a name nobody knows, with the one that was probably meant."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"is not known here{meant or '; known are: ' + ', '.join(names)}"


def readable(text: str) -> None:
    """Raises ValidationError for a name or text on one line that would not show as what it is."""
    if any(unicodedata.category(character) == "Cc" or character in _TURNING for character in text):
        raise serializers.ValidationError("holds a control character")


class Name(serializers.CharField):
    """A text on one line, shown to people."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validators = [*self.validators, readable]


class Strict(serializers.Serializer[Any]):
    """Refuses fields it does not know. Those that are only read may be sent back as they came."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                if name not in self.fields:
                    writable = [known for known, field in self.fields.items() if not field.read_only]
                    raise serializers.ValidationError({str(name)[:100]: [unknown(name, writable)]})
        return super().to_internal_value(data)


@extend_schema_field(
    {
        "type": "array",
        "items": {
            "oneOf": [
                {"type": "string"},
                {"type": "number"},
                {"type": "object", "additionalProperties": True},
            ]
        },
    }
)
class Items(serializers.Field[list[Any], Any, Any, Any]):
    """A list of items. Each is looked at where its type is known; a field per item would cost seconds at a million."""

    default_error_messages = {
        "not_a_list": "is not a list of items",
        "empty": "is empty; a run has at least one item",
        "too_many": "has {count} items; at most {limit} are allowed",
    }

    def to_internal_value(self, data: Any) -> list[Any]:
        if not isinstance(data, list):
            self.fail("not_a_list")
        if len(data) > settings.CASCADE.max_items:
            self.fail("too_many", count=len(data), limit=settings.CASCADE.max_items)
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class Whole(serializers.IntegerField):
    """A count: a JSON number, as true and "12" are mistakes more often than meant."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("min_value", 0)
        kwargs.setdefault("max_value", LARGEST_COUNT)
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, (bool, str)):
            self.fail("invalid")
        return super().to_internal_value(data)


class Real(serializers.FloatField):
    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, (bool, str)):
            self.fail("invalid")
        return super().to_internal_value(data)


def _labels(help_text: str) -> serializers.DictField:
    return serializers.DictField(child=Name(max_length=200, allow_blank=True), required=False, help_text=help_text)


class WorkOptions(Strict):
    """What a task defines and a run may override. Defaults are the task's, or else those of the model."""

    params = serializers.DictField(
        required=False, help_text="Parameters of the type; GET /api/v1/executors lists them."
    )
    priority = Whole(required=False, min_value=1, max_value=10, help_text="1 to 10; higher goes first. Default 5.")
    timeout = Real(
        required=False, min_value=0.1, max_value=7 * 86_400, help_text="Seconds one shard may run. Default 300."
    )
    max_attempts = Whole(required=False, min_value=1, max_value=100, help_text="Default 3.")
    backoff = Real(
        required=False,
        min_value=0,
        max_value=86_400,
        help_text="Seconds before the second attempt; doubles with each. Default 1.",
    )
    shard_size = Whole(required=False, help_text="Items per shard; 0, the default: sized for the node.")
    balancer = Name(required=False, max_length=200, help_text="Chooses among free nodes. Default most_free.")
    labels = _labels("Only nodes with all these labels.")
    affinity = _labels("Nodes with these labels are preferred; the others still count.")
    rate_key = Name(
        required=False,
        max_length=200,
        allow_blank=True,
        help_text="Which rate limit holds for the items: a text; {host}, {source} and {item} are filled in.",
    )
    fallback = serializers.ChoiceField(
        choices=Fallback.choices, required=False, help_text="May this parent run it itself. Default allowed."
    )
    island_seconds = Real(
        required=False,
        allow_null=True,
        min_value=0,
        max_value=ISLAND_LIMIT,
        help_text="So long a relay that is cut off from this parent goes on with it; 0: not at all; null, the default: "
        "as long as it takes.",
    )


class TaskReference(serializers.Field[Any, Any, Any, Any]):
    """A task by id or by name."""

    default_error_messages = {"invalid": "is neither a task's id nor its name", "missing": "there is no task {given!r}"}

    def to_internal_value(self, data: Any) -> Task:
        if isinstance(data, bool) or not isinstance(data, (int, str)):
            self.fail("invalid")
        found = Task.objects.filter(**({"pk": data} if isinstance(data, int) else {"name": data})).first()
        if found is None:
            self.fail("missing", given=data if isinstance(data, int) else data[:200])
        return found


class Origins(Strict):
    """Where items come from when they are not given."""

    source_kind = serializers.ChoiceField(
        choices=Source.Kind.choices,
        required=False,
        allow_blank=True,
        help_text="With no items: the keys of all active sources of this kind when a run begins.",
    )
    items_column = Name(
        required=False,
        max_length=140,
        allow_blank=True,
        help_text="With no items: the values of this column of a table of results when a run begins: kline.symbol.",
    )


class RunOptions(WorkOptions, Origins):
    """What a run of a task may be given beside the task's own: ``params`` are laid over the task's."""

    name = Name(required=False, max_length=200, allow_blank=True)
    items = Items(required=False, help_text="Instead of the task's items.")
    split = Name(
        required=False, max_length=60, allow_blank=True, help_text="Cuts items finer, as the type knows: year, month."
    )


class Submission(RunOptions):
    """A run to be: either ``type`` and ``items``, or ``task`` and what shall differ from it."""

    type = serializers.CharField(required=False, max_length=60, help_text="The task type; needed without a task.")
    task = extend_schema_field({"oneOf": [{"type": "integer"}, {"type": "string"}]})(TaskReference)(
        required=False, help_text="A task's id or name; its items and options are taken where none are given."
    )
    items = Items(
        required=False,
        help_text='The work, item by item: texts, numbers, or objects such as {"symbol": "AAPL"}.',
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        task: Task | None = attrs.get("task")
        if task is None and "type" not in attrs:
            raise serializers.ValidationError({"type": ["is required, unless a task is given"]})
        named = [name for name in origins.FIELDS if attrs.get(name)]
        if named and attrs.get("items"):
            raise serializers.ValidationError({named[0]: ["stands beside items: they come from one of them"]})
        optional = task is not None or executors.get(attrs["type"]).items_optional
        if not optional and not named and "items" not in attrs:
            raise serializers.ValidationError({"items": ["is required, unless a task, source_kind or items_column is"]})
        if task is not None and attrs.get("type", task.type) != task.type:
            raise serializers.ValidationError({"type": [f"{attrs['type']!r} is not the task's type, {task.type!r}"]})
        return attrs


class TaskSerializer(WorkOptions, Origins, serializers.ModelSerializer[Task]):
    """A definition that can be run again and again."""

    name = Name(max_length=200)
    type = serializers.CharField(max_length=60)
    items = Items(required=False)
    active = serializers.BooleanField(required=False, help_text="Off: cannot be run.")
    # Free texts here: schedule and webhook_bodies say what is wrong with one.
    cron = serializers.CharField(
        required=False, allow_blank=True, help_text="Five fields, like '*/15 9-17 * * 1-5'; empty: no schedule."
    )
    time_zone = serializers.CharField(
        required=False, allow_blank=True, help_text="Of the cron fields, like Europe/Berlin; empty: the server's."
    )
    misfire = serializers.ChoiceField(
        choices=Misfire.choices, required=False, help_text="What becomes of fire times that were missed. Default one."
    )
    webhook_url = serializers.CharField(required=False, allow_blank=True, help_text="Told when a run has ended.")
    webhook_template = serializers.CharField(
        required=False, allow_blank=True, trim_whitespace=False, help_text="Of the body; empty: JSON about the run."
    )
    webhook_headers = serializers.DictField(required=False, help_text="Texts by name.")
    webhook_secret = serializers.CharField(
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        write_only=True,
        help_text="Signs the body (HMAC-SHA256); never shown.",
    )
    webhook_signed = serializers.SerializerMethodField(help_text="Whether there is a secret.")

    class Meta:
        model = Task
        fields: tuple[str, ...] = (
            "id",
            "name",
            "type",
            "params",
            "items",
            "priority",
            "timeout",
            "max_attempts",
            "backoff",
            "shard_size",
            "balancer",
            "labels",
            "affinity",
            "rate_key",
            "fallback",
            "island_seconds",
            "active",
            "source_kind",
            "items_column",
            "cron",
            "time_zone",
            "misfire",
            "fired_at",
            "next_fire_at",
            "webhook_url",
            "webhook_template",
            "webhook_headers",
            "webhook_secret",
            "webhook_signed",
            "created_at",
        )
        read_only_fields = ("id", "fired_at", "next_fire_at", "created_at")

    def get_webhook_signed(self, task: Task) -> bool:
        return bool(task.webhook_secret)

    def create(self, validated_data: dict[str, Any]) -> Task:
        task = Task(**validated_data)
        schedule.store(task)
        return task

    def update(self, instance: Task, validated_data: dict[str, Any]) -> Task:
        for name, value in validated_data.items():
            setattr(instance, name, value)
        schedule.store(instance)
        return instance

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Refuses a task that could never be run. Raises FieldError, as submitting it would."""
        if self.instance is None:
            attrs = {**defaults(), **attrs}
        task = Task(**attrs) if self.instance is None else self.instance
        work = {name: attrs.get(name, getattr(task, name)) for name in (*WORK_FIELDS, "items")}
        work["params"] = executors.get(work["type"]).check(with_settings(work["type"], work["params"]))
        check_work(work)
        origins.check({name: attrs.get(name, getattr(task, name)) for name in origins.FIELDS})
        if work["items"]:
            check_items(work["type"], work["items"], work["params"])
        webhook_bodies.check(attrs)
        return {**attrs, **schedule.check(attrs)}


class TaskInList(TaskSerializer):
    """A task without its items, which may be many."""

    class Meta(TaskSerializer.Meta):
        fields = tuple(name for name in TaskSerializer.Meta.fields if name != "items")

    items = None  # type: ignore[assignment]


class RunSerializer(serializers.ModelSerializer[Run]):
    done = serializers.IntegerField(read_only=True, help_text="Items in an end state.")
    task = serializers.IntegerField(source="task_id", read_only=True, allow_null=True)
    hands = serializers.CharField(
        read_only=True, help_text="Which nodes can run it, beside having its type, if not all: outside, line."
    )

    class Meta:
        model = Run
        fields: tuple[str, ...] = (
            "id",
            "name",
            "type",
            "task",
            "state",
            "count",
            "cut",
            "done",
            "saved",
            "failed",
            "quarantined",
            "cancelled",
            "rows",
            "params",
            "priority",
            "timeout",
            "max_attempts",
            "backoff",
            "shard_size",
            "balancer",
            "labels",
            "affinity",
            "rate_key",
            "fallback",
            "island_seconds",
            "fire_time",
            "created_at",
            "ended_at",
            "submitted_by",
            "expected",
            "growing",
            "hands",
            "reduction",
        )
        read_only_fields = fields


class RunInList(RunSerializer):
    """A run without its reduction, which may be long."""

    class Meta(RunSerializer.Meta):
        fields = tuple(name for name in RunSerializer.Meta.fields if name != "reduction")
        read_only_fields = fields


class Progress(serializers.Serializer[Any]):
    """Numbers of items by what became of them, and of rows saved."""

    run = serializers.IntegerField()
    state = serializers.CharField()
    count = serializers.IntegerField()
    saved = serializers.IntegerField()
    failed = serializers.IntegerField()
    quarantined = serializers.IntegerField()
    cancelled = serializers.IntegerField()
    spooled = serializers.IntegerField(help_text="Reported, not saved yet.")
    in_flight = serializers.IntegerField(help_text="With a node now.")
    pending = serializers.IntegerField()
    rows = serializers.IntegerField(help_text="Rows saved.")


class Retry(Strict):
    items = serializers.ListField(
        child=serializers.ListField(
            child=serializers.IntegerField(min_value=0, max_value=LARGEST_COUNT), min_length=2, max_length=2
        ),
        required=False,
        min_length=1,
        max_length=MOST_RANGES,
        help_text="Only what failed of these items: [start, stop) by their numbers. Shards are tried again whole.",
    )

    def validate_items(self, ranges: list[list[int]]) -> list[tuple[int, int]]:
        for start, stop in ranges:
            if start >= stop:
                raise serializers.ValidationError(f"[{start}, {stop}] is empty: a range ends behind its last item")
        return [(start, stop) for start, stop in ranges]


class Retried(serializers.Serializer[Any]):
    retried = serializers.IntegerField(help_text="Items opened again.")


class FailedItem(serializers.Serializer[Any]):
    index = serializers.IntegerField(help_text="Its number in the run, from 0.")
    item = serializers.JSONField()
    state = serializers.ChoiceField(choices=[state.value for state in ShardState])
    error = serializers.CharField()
    node = serializers.CharField(allow_null=True, help_text="Where it was tried last.")
    attempts = serializers.IntegerField()


class FailedItems(serializers.Serializer[Any]):
    count = serializers.IntegerField(help_text="Items in these states, on all pages.")
    next = serializers.URLField(allow_null=True)
    results = FailedItem(many=True)


class NodeShare(serializers.Serializer[Any]):
    """What one node did of a run."""

    node = serializers.CharField(allow_null=True, help_text="Empty for a node that was removed.")
    shards = serializers.IntegerField(help_text="Completed.")
    items = serializers.IntegerField(help_text="In these shards.")
    rows = serializers.IntegerField()
    reasons = serializers.DictField(child=serializers.IntegerField(), help_text="Why it got them, counted.")
    leaves = serializers.DictField(
        child=serializers.IntegerField(), help_text="Of a relay: items that are done, by the way to who ran them."
    )


class ShardSerializer(serializers.ModelSerializer[Shard]):
    run = serializers.IntegerField(source="run_id", read_only=True)

    ran_by = serializers.ListField(child=serializers.CharField(), read_only=True, default=list, help_text=RAN_BY)

    class Meta:
        model = Shard
        fields = (
            "id",
            "run",
            "start",
            "stop",
            "state",
            "ran_by",
            "attempts",
            "deaths",
            "not_before",
            "error",
            "updated_at",
        )
        read_only_fields = fields


class AllocationInList(serializers.ModelSerializer[Allocation]):
    """An allocation without its log, which may be long."""

    run = serializers.IntegerField(source="run_id", read_only=True)
    shard = serializers.IntegerField(source="shard_id", read_only=True)
    node = serializers.IntegerField(source="node_id", read_only=True, allow_null=True)
    node_name = serializers.CharField(source="node.name", read_only=True, default=None, allow_null=True)
    ran_by = serializers.ListField(child=serializers.CharField(), read_only=True, default=list, help_text=RAN_BY)

    class Meta:
        model = Allocation
        fields: tuple[str, ...] = (
            "id",
            "run",
            "shard",
            "node",
            "node_name",
            "ran_by",
            "type",
            "item",
            "start",
            "stop",
            "attempt",
            "state",
            "delivered",
            "delivered_at",
            "deadline",
            "reason",
            "granted_at",
            "started_at",
            "finished_at",
            "seconds",
            "progress",
            "rows",
            "error",
        )
        read_only_fields = fields


class AllocationSerializer(AllocationInList):
    class Meta(AllocationInList.Meta):
        fields = (*AllocationInList.Meta.fields, "log")


class NodeQuota(Strict):
    """Slots of one task type that the node is given first; with ``item``, of one item of that type."""

    task_type = serializers.CharField(max_length=60)
    item = Name(required=False, max_length=200, allow_blank=True, default="", help_text="Empty: the whole type.")
    slots = Whole(help_text="Given first to this node, up to so many at once; at most its capacity.")
    limit = Whole(
        required=False,
        allow_null=True,
        default=None,
        help_text="Never more than this at once; 0 means never here. null: no limit.",
    )


class QuotaSerializer(serializers.ModelSerializer[Quota]):
    node = serializers.IntegerField(source="node_id", read_only=True)
    node_name = serializers.CharField(source="node.name", read_only=True)

    class Meta:
        model = Quota
        fields = ("id", "node", "node_name", "task_type", "item", "slots", "limit")
        read_only_fields = fields


class NodeSerializer(serializers.ModelSerializer[Node]):
    """A node as ``views_nodes.shown`` completes it, with ``in_use``."""

    state = serializers.SerializerMethodField(help_text="inactive, offline, draining or online.")
    in_use = serializers.IntegerField(read_only=True, help_text="Slots with live work.")
    quotas = NodeQuota(many=True, read_only=True)
    facts = serializers.SerializerMethodField(help_text="What its client said of itself, in short.")
    subtree = Subtree(read_only=True, allow_null=True, help_text="Of a relay: what hangs below it, in short.")

    class Meta:
        model = Node
        fields: tuple[str, ...] = (
            "id",
            "name",
            "description",
            "role",
            "carrier",
            "dialect",
            "api_url",
            "state",
            "capacity",
            "in_use",
            "weight",
            "labels",
            "quotas",
            "active",
            "draining",
            "max_cpu",
            "max_memory",
            "allow_plain_key",
            "created_at",
            "version",
            "executors",
            "last_beat_at",
            "cpu",
            "memory",
            "disk",
            "config_version",
            "synced_at",
            "facts",
            "speeds",
            "subtree",
            "subtree_at",
        )
        read_only_fields = fields

    def get_state(self, node: Node) -> str:
        return registry.state_of(node, timezone.now())

    def get_facts(self, node: Node) -> dict[str, Any]:
        return {name: node.facts[name] for name in FACTS if name in node.facts}


class NodeChange(Strict):
    """What an operator decides about a node. ``nodes.registry`` knows the bounds."""

    name = Name(required=False, max_length=100)
    description = Name(required=False, max_length=500, allow_blank=True)
    role = serializers.ChoiceField(choices=Node.Role.choices, required=False)
    carrier = serializers.ChoiceField(choices=Node.Carrier.choices, required=False, help_text="How work reaches it.")
    api_url = Name(
        required=False, max_length=500, allow_blank=True, help_text="Where the parent reaches it, if it does."
    )
    api_key = Name(
        required=False,
        max_length=200,
        allow_blank=True,
        write_only=True,
        help_text="What the parent sends as X-API-Key where it calls the node. Never shown again.",
    )
    capacity = Whole(required=False, help_text="Slots, 1 to 10,000: shards running at once. Default 4.")
    weight = Real(required=False, help_text="For balancer 'weighted', 0.01 to 1000. Default 1.")
    labels = _labels('Texts by name, like {"region": "eu"}.')
    quotas = serializers.ListField(child=NodeQuota(), required=False, max_length=1000, help_text="All of its quotas.")
    active = serializers.BooleanField(required=False, help_text="Off: may not authenticate, gets no work.")
    draining = serializers.BooleanField(required=False, help_text="On: finishes what it has, gets no new work.")
    max_cpu = Real(
        required=False, allow_null=True, help_text="Percent; above it no new work. null: the setting of the server."
    )
    max_memory = Real(
        required=False, allow_null=True, help_text="Percent; above it no new work. null: the setting of the server."
    )
    allow_plain_key = serializers.BooleanField(
        required=False, help_text="Accept 'Authorization: AK-SK ak:sk' beside signed requests."
    )

    def validate_quotas(self, quotas: list[dict[str, Any]]) -> list[QuotaSpec]:
        return [QuotaSpec(**quota) for quota in quotas]


class NodeCreation(NodeChange):
    name = Name(max_length=100)

    def validate_role(self, role: str) -> str:
        if role == Node.Role.STANDALONE:
            raise serializers.ValidationError("is this server's own worker, which is made at its start")
        return role


class KeySerializer(serializers.ModelSerializer[AccessKey]):
    node = serializers.IntegerField(source="node_id", read_only=True)

    class Meta:
        model = AccessKey
        fields = ("access_key", "node", "public_key", "created_at", "last_used_at", "revoked_at")
        read_only_fields = fields


class IssuedKeySerializer(serializers.Serializer[Any]):
    access_key = serializers.CharField()
    secret_key = serializers.CharField(help_text="Shown this once; the parent keeps only the public half.")
    node = serializers.IntegerField(source="node.id")
    node_name = serializers.CharField(source="node.name")


class CreatedNode(NodeSerializer):
    access_key = serializers.CharField()
    secret_key = serializers.CharField(help_text="Shown this once; the parent keeps only the public half.")

    class Meta(NodeSerializer.Meta):
        fields = (*NodeSerializer.Meta.fields, "access_key", "secret_key")


class ColumnSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    type = serializers.CharField()


class Table(serializers.Serializer[Any]):
    name = serializers.CharField()
    columns = ColumnSerializer(many=True)
    key = serializers.ListField(child=serializers.CharField(), help_text="The natural key: which rows are one fact.")
    rows = serializers.IntegerField(help_text="That were saved, replaced ones too; of a view, what it shows.")

"""What the API reads and writes of sources, type settings and the sync log."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from api.serializers import Name, Strict
from dispatch.models import ItemMemory, Source, SyncLog
from nodes.models import JournalEntry


class SourceChange(Strict):
    """What may be said of a source. ``dispatch.sources`` knows the bounds."""

    kind = serializers.ChoiceField(choices=Source.Kind.choices, required=False)
    key = Name(required=False, max_length=200, help_text="What items, quotas and results call it.")
    name = Name(required=False, max_length=200, allow_blank=True)
    address = Name(required=False, max_length=2000, allow_blank=True, help_text="http or https.")
    active = serializers.BooleanField(required=False, help_text="Off: runs of tasks that name its kind leave it out.")
    extra = serializers.DictField(required=False, help_text="Further facts, as plain JSON.")


class SourceCreation(SourceChange):
    kind = serializers.ChoiceField(choices=Source.Kind.choices)
    key = Name(max_length=200, help_text="What items, quotas and results call it.")


class LastTime(serializers.ModelSerializer[ItemMemory]):
    """How it went the last time."""

    run = serializers.IntegerField(source="run_id", read_only=True, allow_null=True)

    class Meta:
        model = ItemMemory
        fields = ("status", "failed", "counts", "run", "at", "succeeded_at")
        read_only_fields = fields


class SourceSerializer(serializers.ModelSerializer[Source]):
    """A source as ``views_sources`` completes it, with ``last``."""

    last = LastTime(read_only=True, allow_null=True, default=None)

    class Meta:
        model = Source
        fields = ("id", "kind", "key", "name", "address", "active", "extra", "created_at", "updated_at", "last")
        read_only_fields = fields


class ImportCounts(serializers.Serializer[Any]):
    added = serializers.IntegerField()
    changed = serializers.IntegerField()
    unchanged = serializers.IntegerField()
    kept = serializers.IntegerField(help_text="There already, and left as they are (update=false).")
    total = serializers.IntegerField()


class SyncLogSerializer(serializers.ModelSerializer[SyncLog]):
    node = serializers.IntegerField(source="node_id", read_only=True, allow_null=True)
    node_name = serializers.CharField(source="node.name", read_only=True, default=None, allow_null=True)
    status = serializers.SerializerMethodField(help_text="ok, failed or running.")

    class Meta:
        model = SyncLog
        fields = (
            "id",
            "node",
            "node_name",
            "operation",
            "direction",
            "status",
            "count",
            "error",
            "extra",
            "started_at",
            "ended_at",
        )
        read_only_fields = fields

    def get_status(self, entry: SyncLog) -> str:
        return SyncLog.Status(entry.status).name.lower()


class JournalSerializer(serializers.ModelSerializer[JournalEntry]):
    node_name = serializers.CharField(source="name", read_only=True, help_text="As it was then; empty: of no node.")

    class Meta:
        model = JournalEntry
        fields = ("id", "at", "about", "word", "node", "node_name", "run", "count", "text")
        read_only_fields = fields

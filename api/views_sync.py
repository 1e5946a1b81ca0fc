"""The sync log: what passed between this parent and its nodes; and the journal: what happened to them, and to runs."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins

from api.serializers_sources import JournalSerializer, SyncLogSerializer
from api.views import Moment, NativeSet, WholeFilter
from dispatch.models import SyncLog
from nodes.models import JournalEntry

STATUSES = {status.name.lower(): status for status in SyncLog.Status}


class SyncLogFilters(filters.FilterSet):
    node = WholeFilter(field_name="node_id", help_text="A node's id.")
    operation = filters.CharFilter(help_text="dispatch, claim, accept, report, release, expire, config, …")
    direction = filters.ChoiceFilter(choices=SyncLog.Direction.choices)
    status = filters.ChoiceFilter(choices=[(name, name) for name in STATUSES], method="by_status")
    since = Moment(field_name="started_at", lookup_expr="gte", help_text="Begun then or later.")
    until = Moment(field_name="started_at", lookup_expr="lt", help_text="Begun before.")

    def by_status(self, entries: QuerySet[Any], name: str, value: str) -> QuerySet[Any]:
        return entries.filter(status=STATUSES[value])


@extend_schema_view(
    list=extend_schema(description="Exchanges with nodes, newest first; of many alike within a second there is one."),
    retrieve=extend_schema(description="One entry."),
)
class SyncLogs(mixins.RetrieveModelMixin, mixins.ListModelMixin, NativeSet):
    queryset = SyncLog.objects.select_related("node")
    serializer_class = SyncLogSerializer
    filterset_class = SyncLogFilters
    ordering_fields = ("id", "started_at", "count")


class JournalFilters(filters.FilterSet):
    about = filters.ChoiceFilter(choices=JournalEntry.About.choices)
    word = filters.CharFilter(help_text="online, offline, submitted, completed, failed, expired, issued, …")
    node = WholeFilter(field_name="node", help_text="A node's id.")
    run = WholeFilter(field_name="run", help_text="A run's id.")
    since = Moment(field_name="at", lookup_expr="gte", help_text="Then or later.")
    until = Moment(field_name="at", lookup_expr="lt", help_text="Before.")


@extend_schema_view(
    list=extend_schema(description="What happened, newest first; of many alike within a second there is one entry."),
    retrieve=extend_schema(description="One entry."),
)
class Journal(mixins.RetrieveModelMixin, mixins.ListModelMixin, NativeSet):
    queryset = JournalEntry.objects.all()
    serializer_class = JournalSerializer
    filterset_class = JournalFilters
    ordering_fields = ("id", "at")

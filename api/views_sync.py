"""The sync log: what passed between this parent and its nodes."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins

from api.serializers_sources import SyncLogSerializer
from api.views import Moment, NativeSet, WholeFilter
from dispatch.models import SyncLog

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

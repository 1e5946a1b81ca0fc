"""Sources, and the settings of task types. ``dispatch.sources`` and ``dispatch.type_settings`` say what may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from api.serializers_sources import ImportCounts, SourceChange, SourceCreation, SourceSerializer
from api.views import Flag, Native, NativeSet, flag, only_known
from dispatch import sources, type_settings
from dispatch.models import Source
from nodes.protocol import FieldError


def shown(found: Sequence[Source]) -> Sequence[Source]:
    """``found``, each with ``last``: how it went the last time, where it ever was run."""
    times = sources.last_times(found)
    for source in found:
        source.last = times.get((source.kind, source.key))  # type: ignore[attr-defined]
    return found


class SourceFilters(filters.FilterSet):
    kind = filters.ChoiceFilter(choices=Source.Kind.choices)
    key = filters.CharFilter(help_text="The whole key.")
    name = filters.CharFilter(lookup_expr="icontains", help_text="Part of the name.")
    active = Flag()


@extend_schema_view(
    list=extend_schema(description="Feeds, symbols, addresses that recurring work goes through."),
    retrieve=extend_schema(description="One source."),
)
class Sources(mixins.RetrieveModelMixin, mixins.ListModelMixin, NativeSet):
    queryset = Source.objects.all()
    serializer_class = SourceSerializer
    filterset_class = SourceFilters
    ordering_fields = ("id", "kind", "key", "name", "created_at", "updated_at")

    def paginate_queryset(self, queryset: Any) -> Any:
        return shown(super().paginate_queryset(queryset) or [])

    def get_object(self) -> Source:
        return shown([super().get_object()])[0]

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        return {"create": SourceCreation, "partial_update": SourceChange}.get(self.action, SourceSerializer)

    @extend_schema(request=SourceCreation, responses={201: SourceSerializer})
    def create(self, request: Request) -> Response:
        """Adds a source. 409 for a kind and key that are there."""
        source = sources.add(**self.checked(request))
        location = reverse("source-detail", args=[source.pk], request=request)
        return Response(SourceSerializer(source).data, status=201, headers={"Location": location})

    @extend_schema(request=SourceChange, responses=SourceSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Changes what is given."""
        return Response(SourceSerializer(*shown([sources.update(int(pk), **self.checked(request))])).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Removes a source; runs keep their items."""
        sources.remove(int(pk))
        return Response(status=204)

    @extend_schema(
        parameters=[
            OpenApiParameter("kind", OpenApiTypes.STR, description="Of rows that do not say theirs."),
            OpenApiParameter("update", OpenApiTypes.BOOL, description="Change those that are there. Default true."),
        ],
        request=SourceCreation(many=True),
        responses=ImportCounts,
        filters=False,
    )
    @action(detail=False, methods=["post"], url_path="import", pagination_class=None, filter_backends=())
    def import_(self, request: Request) -> Response:
        """Adds or changes many at once: all, or none; ``problems`` of a 400 names each wrong row."""
        only_known(request, ["kind", "update"])
        if not isinstance(request.data, list):
            raise FieldError("body", "is not a list of sources")
        update = flag(request, "update") if "update" in request.query_params else True
        counts = sources.import_rows(request.data, request.query_params.get("kind", ""), update)
        return Response(asdict(counts))


class Settings(Native):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, task_type: str) -> Response:
        """Parameters that runs of the type have unless they say otherwise."""
        return Response(type_settings.settings_of(task_type))

    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.OBJECT)
    def put(self, request: Request, task_type: str) -> Response:
        """All of them from now on; {} for none. Required parameters may be missing."""
        return Response(type_settings.put(task_type, request.data))

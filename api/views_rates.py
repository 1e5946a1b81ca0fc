"""Rate limits with what is left of them, and the balancers there are. ``dispatch.buckets`` is the door."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from api.serializers_rates import BalancerSerializer, RateChange, RateCreation, RateSerializer
from api.views import Native, NativeSet
from dispatch import balancers, buckets
from dispatch.models import RateLimit

SHOWN_BUCKETS = 100
"""Of one limit; with a pattern it may have one for each host or item."""


def shown(limits: Iterable[RateLimit]) -> list[RateLimit]:
    """``limits`` with ``buckets``."""
    found = list(limits)
    left = buckets.left(timezone.now(), SHOWN_BUCKETS)
    for limit in found:
        limit.buckets = [{"key": key, "tokens": round(tokens, 3)} for key, tokens in left.get(limit.key, ())]  # type: ignore[attr-defined]
    return found


class RateFilters(filters.FilterSet):
    key = filters.CharFilter(lookup_expr="icontains", help_text="Part of the key.")


@extend_schema_view(
    list=extend_schema(description="The rate limits, with what is left of each bucket now."),
    retrieve=extend_schema(description="One rate limit."),
)
class Rates(mixins.RetrieveModelMixin, mixins.ListModelMixin, NativeSet):
    queryset = RateLimit.objects.order_by("key")
    serializer_class = RateSerializer
    filterset_class = RateFilters
    ordering_fields = ("id", "key", "per_second", "burst")

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        return {"create": RateCreation, "partial_update": RateChange}.get(self.action, RateSerializer)

    def paginate_queryset(self, queryset: Any) -> list[Any] | None:
        page = super().paginate_queryset(queryset)
        return None if page is None else shown(page)

    def get_object(self) -> RateLimit:
        (limit,) = shown([super().get_object()])
        return limit

    @extend_schema(request=RateCreation, responses={201: RateSerializer})
    def create(self, request: Request) -> Response:
        """Adds a limit. It holds from the next pass on, also for runs that are under way and name its key."""
        limit = buckets.set_limit(**self.checked(request))
        self.kwargs["pk"] = limit.pk
        location = reverse("rate-detail", args=[limit.pk], request=request)
        return Response(RateSerializer(self.get_object()).data, status=201, headers={"Location": location})

    @extend_schema(request=RateChange, responses=RateSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Changes what is given."""
        buckets.change_limit(int(pk), **self.checked(request))
        return Response(RateSerializer(self.get_object()).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """What named it is unlimited from now on."""
        buckets.remove_limit(int(pk))
        return Response(status=204)


class Balancers(Native):
    @extend_schema(responses=BalancerSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The balancers that a task or run may name: this server's own, those of installed packages, those allowed."""
        known = [*balancers.names(), *settings.CASCADE.balancers]
        return Response([{"name": name, "help": balancers.meaning(name)} for name in dict.fromkeys(known)])

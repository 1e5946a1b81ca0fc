"""Nodes, their quotas and their keys. What may be changed, and to what, is ``nodes.registry``'s to say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from api.serializers import (
    CreatedNode,
    IssuedKeySerializer,
    KeySerializer,
    NodeChange,
    NodeCreation,
    NodeQuota,
    NodeSerializer,
    QuotaSerializer,
)
from api.views import Flag, Native, NativeSet, WholeFilter, flag
from nodes import keys, registry
from nodes.fields import QuotaSpec
from nodes.models import AccessKey, Node, Quota


def shown(nodes: Iterable[Node]) -> list[Node]:
    """``nodes`` with ``in_use``, counted for all of them at once."""
    found = list(nodes)
    counts = registry.in_use(found)
    for node in found:
        node.in_use = counts[node.pk]  # type: ignore[attr-defined]
    return found


class NodeFilters(filters.FilterSet):
    name = filters.CharFilter(lookup_expr="icontains", help_text="Part of the name.")
    role = filters.ChoiceFilter(choices=Node.Role.choices)
    active = Flag()
    draining = Flag()
    online = Flag(method="by_beat", help_text="Active, and has beaten lately.")

    def by_beat(self, nodes: QuerySet[Node], name: str, value: bool) -> QuerySet[Node]:
        online = registry.online_filter(timezone.now())
        # Not ~online: a node that never beat has no time to compare, and SQL would leave it out of both.
        return nodes.filter(online) if value else nodes.exclude(pk__in=Node.objects.filter(online).values("pk"))


@extend_schema_view(
    list=extend_schema(description="The nodes with their quotas and the slots in use."),
    retrieve=extend_schema(description="One node."),
)
class Nodes(mixins.RetrieveModelMixin, mixins.ListModelMixin, NativeSet):
    queryset = Node.objects.prefetch_related("quotas").order_by("name")
    serializer_class = NodeSerializer
    filterset_class = NodeFilters
    ordering_fields = ("id", "name", "capacity", "weight", "created_at", "last_beat_at")

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        changes = {"create": NodeCreation, "partial_update": NodeChange}
        return {**changes, "quotas": NodeQuota, "set_quotas": NodeQuota}.get(self.action, NodeSerializer)

    def paginate_queryset(self, queryset: Any) -> list[Any] | None:
        page = super().paginate_queryset(queryset)
        return None if page is None else shown(page)

    def get_object(self) -> Node:
        (node,) = shown([super().get_object()])
        return node

    def _answer(self) -> Response:
        """The node as it is after a change."""
        return Response(NodeSerializer(self.get_object()).data)

    @extend_schema(request=NodeCreation, responses={201: CreatedNode})
    def create(self, request: Request) -> Response:
        """Adds a node with its first key, whose secret is shown in this answer only."""
        node, key = registry.add_node(**self.checked(request))
        self.kwargs["pk"] = node.pk
        body = {**NodeSerializer(self.get_object()).data, "access_key": key.access_key, "secret_key": key.secret_key}
        return Response(body, status=201, headers={"Location": reverse("node-detail", args=[node.pk], request=request)})

    @extend_schema(request=NodeChange, responses=NodeSerializer)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Changes what is given; ``quotas`` replaces all of them."""
        # Not "partial", which would let parts of a quota be missing too.
        registry.update_node(int(pk), **self.checked(request))
        return self._answer()

    @extend_schema(
        parameters=[OpenApiParameter("force", OpenApiTypes.BOOL, description="Even while it holds live work.")],
        responses={204: None},
    )
    def destroy(self, request: Request, pk: str) -> Response:
        """Removes a node with its keys and quotas. 409 while it holds live work, unless forced."""
        registry.remove_node(int(pk), force=flag(request, "force"))
        return Response(status=204)

    @extend_schema(request=None, responses=NodeSerializer)
    @action(detail=True, methods=["post"])
    def drain(self, request: Request, pk: str) -> Response:
        """It finishes what it has and gets nothing new."""
        registry.drain(int(pk))
        return self._answer()

    @extend_schema(request=None, responses=NodeSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """It gets work again."""
        registry.resume(int(pk))
        return self._answer()

    @extend_schema(responses=NodeQuota(many=True), filters=False)
    @action(detail=True, pagination_class=None, filter_backends=())
    def quotas(self, request: Request, pk: str) -> Response:
        """The node's quotas."""
        return Response(NodeQuota(self.get_object().quotas.all(), many=True).data)

    @extend_schema(request=NodeQuota(many=True), responses=NodeQuota(many=True))
    @quotas.mapping.put
    def set_quotas(self, request: Request, pk: str) -> Response:
        """All of the node's quotas from now on."""
        quotas = self.checked(request, many=True, max_length=1000)
        registry.set_quotas(int(pk), [QuotaSpec(**quota) for quota in quotas])
        return Response(NodeQuota(self.get_object().quotas.all(), many=True).data)

    @extend_schema(responses=KeySerializer(many=True), filters=False)
    @action(detail=True, pagination_class=None, filter_backends=())
    def keys(self, request: Request, pk: str) -> Response:
        """The node's keys, newest first, revoked ones too."""
        return Response(KeySerializer(AccessKey.objects.filter(node=self.get_object()), many=True).data)

    @extend_schema(request=None, responses={201: IssuedKeySerializer})
    @keys.mapping.post
    def issue_key(self, request: Request, pk: str) -> Response:
        """A further key; its secret is shown in this answer only. 409 when two are live."""
        return Response(IssuedKeySerializer(keys.issue(int(pk))).data, status=201)

    @extend_schema(request=None, responses={201: IssuedKeySerializer})
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, pk: str) -> Response:
        """A new key; the newest before it stays valid for the change-over, older ones are revoked."""
        return Response(IssuedKeySerializer(keys.rotate(int(pk))).data, status=201)


class Key(Native):
    @extend_schema(responses={200: KeySerializer})
    def delete(self, request: Request, access_key: str) -> Response:
        """Revokes the key: nothing signed with it is accepted from now on."""
        return Response(KeySerializer(keys.revoke(access_key)).data)


class QuotaFilters(filters.FilterSet):
    node = WholeFilter(field_name="node_id", help_text="A node's id.")
    task_type = filters.CharFilter()


@extend_schema_view(list=extend_schema(description="The quotas of all nodes."))
class Quotas(mixins.ListModelMixin, NativeSet):
    queryset = Quota.objects.select_related("node").order_by("id")
    serializer_class = QuotaSerializer
    filterset_class = QuotaFilters
    ordering_fields = ("id", "task_type", "item", "slots")

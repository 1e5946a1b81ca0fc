"""What kinds of work there are, with all they declare, and where bars of market data can come from."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from api.serializers_types import ExecutorSerializer, ProviderSerializer
from api.views import Native
from nodes import executors, providers
from nodes.executors.described import declared, described, schema
from nodes.protocol import NotFound


class Executors(Native):
    @extend_schema(responses=ExecutorSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The task types: their parameters, their items, and the table their rows go to."""
        return Response([described(executors.get(name)) for name in executors.names()])


class TypeSchema(Native):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, task_type: str) -> Response:
        """JSON Schema (2020-12) of the type's params."""
        if task_type not in executors.names():
            raise NotFound(f"there is no task type {task_type!r}; there are: {', '.join(executors.names())}")
        return Response(schema(executors.get(task_type)))


class Providers(Native):
    @extend_schema(responses=ProviderSerializer(many=True))
    def get(self, request: Request) -> Response:
        """The sources of market data: what they offer, to which task types, and their parameters beside the type's."""
        taken = _taken()
        return Response(
            [
                {
                    "name": name,
                    "freqs": list(providers.get(name).freqs),
                    "types": taken.get(name, []),
                    "params": declared(providers.get(name).params),
                }
                for name in sorted(providers.PROVIDERS)
            ]
        )


def _taken() -> dict[str, Any]:
    """By source, the task types that take it: not all take the parent's own table."""
    taken: dict[str, Any] = {}
    for task_type in executors.names():
        for variant in executors.get(task_type).variants():
            if variant.by == "source":
                taken.setdefault(variant.value, []).append(task_type)
    return taken

"""Why work waits, who had it and why; and what would be given out if something were otherwise. All of it only reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from api.serializers_explain import Explanation, ItemExplanation, Question, ShardExplanation, WhatIfAnswer
from api.views import Native, NativeSet, Page, number, only_known
from dispatch import whatif
from dispatch.explaining import places, supposed, waiting
from dispatch.models import Run
from dispatch.whatif import Changes, NewNode, NodeChange
from nodes.executors.base import shown
from nodes.protocol import FieldError

EXPLAINED_LIMIT = 10_000
"""Nodes, or shards, listed in one answer."""


class ExplainsRuns(NativeSet):
    """``runs/{id}/explain``."""

    @extend_schema(
        responses=PolymorphicProxySerializer(
            component_name="RunOrItemExplanation",
            serializers=[Explanation, ItemExplanation],
            resource_type_field_name=None,
        ),
        parameters=[
            OpenApiParameter("item", str, description="Of the item of this text or key: where it is, and why."),
            OpenApiParameter("index", int, description="Of the item of this number, from 0."),
            OpenApiParameter("limit", int, description="Nodes listed, at most 10000. Default 1000."),
            OpenApiParameter("offset", int, description="Nodes passed by before these."),
        ],
        filters=False,
    )
    @action(detail=True, pagination_class=None, filter_backends=())
    def explain(self, request: Request, pk: str) -> Response:
        """Why a run waits: what for, its place in line, and for each node why it takes no more of it. With 'item' or
        'index', where that item is: its shard, who had it and why, or why it waits. Changes nothing.
        """
        only_known(request, ("item", "index", "limit", "offset"))
        limit = min(number(request, "limit", Page.max_limit, 1), EXPLAINED_LIMIT)
        offset = number(request, "offset", 0, 0)
        run: Run = self.get_object()
        key, index = (request.query_params.get(name) for name in ("item", "index"))
        if key is not None and index is not None:
            raise FieldError("index", "is given beside 'item'; one of them says which item is meant")
        if index is not None:
            return Response(places.of_index(run, number(request, "index", 0, 0)))
        if key is not None:
            return Response(places.of_key(run, key))
        return Response(waiting.in_full(run, limit, offset))


class ExplainsShards(NativeSet):
    """``shards/{id}/explain``."""

    @extend_schema(responses=ShardExplanation, filters=False)
    @action(detail=True, pagination_class=None, filter_backends=())
    def explain(self, request: Request, pk: str) -> Response:
        """Who had a shard, in order, each with why and how it ended; and why it waits, if it does. Changes nothing."""
        only_known(request, ())
        shard = self.get_object()
        return Response(places.of_shard(Run.objects.defer("items").get(pk=shard.run_id), shard))


class WhatIf(Native):
    @extend_schema(
        operation_id="what_if",
        request=Question,
        responses=WhatIfAnswer,
        examples=[
            OpenApiExample(
                "more slots",
                {
                    "nodes": [
                        {"node": "n1", "capacity": 8, "quotas": [{"task_type": "data_import", "slots": 4, "limit": 6}]},
                        {"node": "n2", "draining": True},
                    ],
                    "add": [{"name": "n9", "capacity": 16, "labels": {"region": "eu"}}],
                    "runs": [{"run": 12, "priority": 9}],
                    "rates": [{"key": "host:example.org", "per_second": 2, "burst": 4}],
                },
                request_only=True,
            )
        ],
    )
    def post(self, request: Request) -> Response:
        """What the next pass would give out if something were otherwise, beside what it gives out as it is: by node,
        by run, and what would still wait and why. The allocator itself decides; nothing is changed.
        """
        asked = Question(data=request.data)
        asked.is_valid(raise_exception=True)
        given = asked.validated_data
        return Response(supposed.told(whatif.suppose(changes(given)), most=given["limit"], run=given.get("run")))


def changes(given: Mapping[str, Any]) -> Changes:
    """A checked question as it is asked further down. Raises FieldError for what is named twice."""
    return Changes(
        nodes=[
            NodeChange(each["node"], _fields(each), each.get("quotas"))
            for each in _once(given["nodes"], "nodes", "node")
        ],
        add=[
            NewNode(
                each["name"],
                **{name: each[name] for name in ("capacity", "types", "quotas") if name in each},
                fields={name: value for name, value in _fields(each).items() if name != "capacity"},
            )
            for each in given["add"]
        ],
        priorities={each["run"]: each["priority"] for each in _once(given["runs"], "runs", "run")},
        rates={
            each["key"]: None if each["per_second"] is None else (each["per_second"], each["burst"])
            for each in _once(given["rates"], "rates", "key")
        },
    )


def _fields(each: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each[name] for name in whatif.FIELDS if name in each}


def _once(entries: list[Mapping[str, Any]], path: str, name: str) -> list[Mapping[str, Any]]:
    seen = set()
    for at, each in enumerate(entries):
        if each[name] in seen:
            raise FieldError(f"{path}.{at}.{name}", f"{shown(each[name])} is named twice; once is allowed")
        seen.add(each[name])
    return entries

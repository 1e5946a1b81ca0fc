"""Tasks, runs, shards and allocations: what is to be done, and what became of it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from django.db import IntegrityError
from django.db.models import Count, F, QuerySet, Sum
from django.http.response import HttpResponseBase
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse
from rest_framework.utils.urls import replace_query_param

from api.serializers import (
    AllocationInList,
    AllocationSerializer,
    FailedItems,
    NodeShare,
    Progress,
    Retried,
    Retry,
    RunInList,
    RunOptions,
    RunSerializer,
    ShardSerializer,
    Submission,
    TaskInList,
    TaskSerializer,
)
from api.views import Flag, Moment, NativeSet, Page, WholeFilter, number, only_known, state_filter
from api.views_explain import ExplainsRuns, ExplainsShards
from api.views_schedule import ScheduleSerializer, shown
from api.views_tables import ROWS, STREAM, table_response
from dispatch import leaves, lifecycle
from dispatch.lifecycle import origins
from dispatch.lifecycle.kept import frozen
from dispatch.models import Allocation, Run, Shard, Task
from dispatch.results import room
from dispatch.states import AllocationState, RunState, ShardState
from nodes import executors
from nodes.protocol import Conflict, FieldError
from nodes.transactions import write

Found = TypeVar("Found", Shard, Allocation)

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="Sent again with the same body, the answer is the same run (200). With another body: 422.",
)


def submitted(request: Request, options: Mapping[str, Any], task: Task | None = None) -> Response:
    """Submits a run of ``options``, laid over ``task``'s own where there is one."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not key.strip():
        raise FieldError("Idempotency-Key", "is empty")
    # The record keeps the key with a fingerprint of the submission behind a colon.
    keyed = Run.objects.filter(idempotency_key=key) if key else Run.objects.none()
    earlier = set(keyed.values_list("pk", flat=True))
    if not earlier:
        room.check_work()
    about = {**options, "submitted_by": request.user.get_username(), "idempotency_key": key}
    if task is None:
        named = {name: about.pop(name, "") for name in origins.FIELDS}
        items = about.pop("items", [])
        run = lifecycle.submit(**about, items=origins.items_from(named) if any(named.values()) else items)
    else:
        run = lifecycle.submit_task(task, **about)
    return Response(
        RunSerializer(run).data,
        status=200 if run.pk in earlier else 201,
        headers={"Location": reverse("run-detail", args=[run.pk], request=request)},
    )


class TaskFilters(filters.FilterSet):
    type = filters.CharFilter()
    name = filters.CharFilter(lookup_expr="icontains", help_text="Part of the name.")
    active = Flag()


@extend_schema_view(
    list=extend_schema(responses=TaskInList(many=True), description="The tasks, without their items."),
    create=extend_schema(description="Defines a task; it is checked as a run of it would be."),
    retrieve=extend_schema(description="One task with its items."),
    update=extend_schema(description="Changes a task; runs that were submitted stay as they are."),
    partial_update=extend_schema(description="Changes what is given."),
    destroy=extend_schema(description="Removes a task; its runs stay."),
)
class Tasks(
    mixins.CreateModelMixin,
    mixins.RetrieveModelMixin,
    mixins.UpdateModelMixin,
    mixins.DestroyModelMixin,
    mixins.ListModelMixin,
    NativeSet,
):
    queryset = Task.objects.all()
    serializer_class = TaskSerializer
    filterset_class = TaskFilters
    ordering_fields = ("id", "name", "type", "priority", "next_fire_at", "created_at")

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        if self.action == "run":
            return RunOptions
        return TaskInList if self.action == "list" else TaskSerializer

    def get_queryset(self) -> QuerySet[Task]:
        return Task.objects.defer("items") if self.action == "list" else Task.objects.all()

    def _save(self, serializer: serializers.BaseSerializer[Any]) -> None:
        try:
            with write():
                serializer.save()
        except IntegrityError:
            raise Conflict(f"name: a task called {serializer.validated_data.get('name')!r} exists already") from None

    perform_create = perform_update = _save

    def perform_destroy(self, instance: Task) -> None:
        with write():
            instance.delete()

    @extend_schema(parameters=[IDEMPOTENCY_KEY], responses={201: RunSerializer, 200: RunSerializer})
    @action(detail=True, methods=["post"])
    def run(self, request: Request, pk: str) -> Response:
        """Submits a run of the task; the body, if any, says what shall differ from it."""
        return submitted(request, self.checked(request), self.get_object())

    @extend_schema(
        responses=ScheduleSerializer,
        parameters=[OpenApiParameter("count", int, description="How many fire times to show, 0 to 100. Default 5.")],
        filters=False,
    )
    @action(detail=True, pagination_class=None, filter_backends=())
    def schedule(self, request: Request, pk: str) -> Response:
        """When the task fires next, when it did last, and why that brought no run, if it did not."""
        only_known(request, ("count",))
        return Response(shown(self.get_object(), number(request, "count", 5, 0, 100)))


class RunFilters(filters.FilterSet):
    state = state_filter(RunState)
    type = filters.CharFilter()
    task = WholeFilter(field_name="task_id", help_text="A task's id.")
    name = filters.CharFilter(lookup_expr="icontains", help_text="Part of the name.")
    created_after = Moment(field_name="created_at", lookup_expr="gte")
    created_before = Moment(field_name="created_at", lookup_expr="lt")


@extend_schema_view(
    list=extend_schema(responses=RunInList(many=True), description="The runs, newest first, without reductions."),
    retrieve=extend_schema(description="One run."),
    create=extend_schema(
        parameters=[IDEMPOTENCY_KEY],
        request=Submission,
        examples=[
            OpenApiExample(
                "import",
                {"type": "data_import", "items": ["AAPL", "IBM"], "params": {"source": "sample"}, "split": "year"},
                request_only=True,
            )
        ],
        responses={201: RunSerializer, 200: RunSerializer},
        description="Submits a run over items: freshly described, or of a task.",
    ),
)
class Runs(mixins.RetrieveModelMixin, mixins.ListModelMixin, ExplainsRuns):
    queryset = Run.objects.defer("items").order_by("-id")
    serializer_class = RunSerializer
    filterset_class = RunFilters
    ordering_fields = ("id", "name", "type", "state", "priority", "count", "rows", "created_at", "ended_at")

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        if self.action == "list":
            return RunInList
        return Submission if self.action == "create" else RunSerializer

    def get_queryset(self) -> QuerySet[Run]:
        runs = Run.objects.defer("items").order_by("-id")
        return runs.defer("items", "reduction") if self.action == "list" else runs

    def create(self, request: Request) -> Response:
        options = self.checked(request)
        return submitted(request, options, options.pop("task", None))

    @extend_schema(responses=Progress)
    @action(detail=True)
    def progress(self, request: Request, pk: str) -> Response:
        """How far the run is, in items."""
        return Response(lifecycle.progress(self.get_object()))

    @extend_schema(request=None, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stops what is not finished; what was reported already is saved. 409 when the run has ended."""
        return Response(RunSerializer(lifecycle.cancel(self.get_object().pk)).data)

    @extend_schema(request=Retry, responses=Retried)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Opens again what failed or was quarantined, all or of some items. 409 while it goes on, or for nothing."""
        asked = Retry(data=request.data)
        asked.is_valid(raise_exception=True)
        return Response({"retried": lifecycle.retry(self.get_object().pk, asked.validated_data.get("items"))})

    @extend_schema(
        responses=FailedItems,
        parameters=[
            OpenApiParameter(
                "state", str, many=True, enum=list(ShardState), description="Default: failed and quarantined."
            ),
            OpenApiParameter("after", int, description="Only items with a higher index; 'next' uses it."),
            OpenApiParameter("limit", int, description="At most 1000. Default 100."),
        ],
        filters=False,
    )
    @action(detail=True, pagination_class=None, filter_backends=())
    def items(self, request: Request, pk: str) -> Response:
        """The items that failed, each with its error and the node that tried it last."""
        only_known(request, ("state", "after", "limit"))
        states = request.query_params.getlist("state") or [ShardState.FAILED, ShardState.QUARANTINED]
        for state in states:
            if state not in list(ShardState):
                raise FieldError("state", f"{state[:100]!r} is not one of: {', '.join(ShardState)}")
        after = number(request, "after", -1, -1)
        limit = min(number(request, "limit", Page.default_limit, 1), Page.max_limit)
        run = self.get_object()
        shards = Shard.objects.filter(run=run, state__in=states)
        page = item_page(run, shards.filter(stop__gt=after + 1).order_by("start")[: limit + 1], after + 1, limit + 1)
        following = None
        if len(page) > limit:
            page.pop()
            following = replace_query_param(request.build_absolute_uri(), "after", page[-1]["index"])
        count = shards.aggregate(items=Sum(F("stop") - F("start")))["items"] or 0
        return Response({"count": count, "next": following, "results": page})

    @extend_schema(responses=NodeShare(many=True), filters=False)
    @action(detail=True, pagination_class=None, filter_backends=())
    def nodes(self, request: Request, pk: str) -> Response:
        """What each node did of the run, and why it got it."""
        return Response(shares(self.get_object()))

    @extend_schema(filters=False, parameters=ROWS, responses=STREAM)
    @action(detail=True, pagination_class=None, filter_backends=())
    def results(self, request: Request, pk: str) -> HttpResponseBase:
        """The rows this run saved, streamed."""
        run = self.get_object()
        if "run" in request.query_params:
            raise FieldError("run", "is in the address already")
        dataset = executors.get(run.type).dataset
        return table_response(request, dataset.table, run=run.pk, dataset=dataset)


def item_page(run: Run, shards: Sequence[Shard] | QuerySet[Shard], start: int, limit: int) -> list[dict[str, Any]]:
    """The first ``limit`` items from number ``start`` on that are in ``shards``, which are in order."""
    found: list[Shard] = list(shards)
    if not found:
        return []
    nodes = tried_by(run, found)
    items = frozen(run.pk)
    page: list[dict[str, Any]] = []
    for shard, node in zip(found, nodes, strict=True):
        first = max(shard.start, start)
        stop = min(shard.stop, first + limit - len(page))
        page += [
            {
                "index": index,
                "item": item,
                "state": shard.state,
                "error": shard.error,
                "node": node,
                "attempts": shard.attempts,
            }
            for index, item in enumerate(items.slice(first, stop), first)
        ]
        if len(page) == limit:
            break
    return page


def tried_by(run: Run, shards: Sequence[Shard]) -> list[str | None]:
    """The node that tried each of ``shards`` last. They may be pieces of what was allocated, so ranges are compared."""
    names: list[str | None] = [None] * len(shards)
    starts = [shard.start for shard in shards]
    left = set(range(len(shards)))
    tries = Allocation.objects.filter(run=run, start__lt=shards[-1].stop, stop__gt=shards[0].start).exclude(error="")
    columns = tries.order_by("-id").values_list("start", "stop", "node__name")
    for start, stop, name in columns.iterator():
        for number_ in range(bisect_left(starts, start), bisect_left(starts, stop)):
            if number_ in left:
                left.remove(number_)
                names[number_] = name
        if not left:
            break
    return names


def shares(run: Run) -> list[dict[str, Any]]:
    """Completed shards by node, the busiest first."""
    completed = Allocation.objects.filter(run=run, state=AllocationState.COMPLETED).order_by()
    groups = completed.values("node__name", "reason").annotate(
        shards=Count("pk"), items=Sum(F("stop") - F("start")), total=Sum("rows")
    )
    by_node: dict[str | None, dict[str, Any]] = {}
    for group in groups:
        share = by_node.setdefault(group["node__name"], _no_share(group["node__name"]))
        share["shards"] += group["shards"]
        share["items"] += group["items"]
        share["rows"] += group["total"]
        share["reasons"][_in_short(group["reason"])] += group["shards"]
    for node, ways in leaves.of_run(run).items():
        by_node.setdefault(node, _no_share(node))["leaves"] = ways
    return sorted(by_node.values(), key=lambda share: (-share["shards"], share["node"] or ""))


def _no_share(node: str | None) -> dict[str, Any]:
    return {"node": node, "shards": 0, "items": 0, "rows": 0, "reasons": Counter(), "leaves": {}}


def _in_short(reason: str) -> str:
    """A reason without what it was at that moment: how many slots, how many queued."""
    if reason.startswith("quota"):
        return re.sub(r"\A(quota )\d+ (of)", r"\1\2", reason)
    return reason.partition(":")[0]


class ShardFilters(filters.FilterSet):
    run = WholeFilter(field_name="run_id", help_text="A run's id.")
    state = state_filter(ShardState)
    before = WholeFilter(
        field_name="id", lookup_expr="lt", help_text="Ids below this: pages that cost the same at any depth."
    )


@extend_schema_view(
    list=extend_schema(description="Shards that were cut, newest first."),
    retrieve=extend_schema(description="One shard."),
)
class Shards(mixins.RetrieveModelMixin, mixins.ListModelMixin, ExplainsShards):
    queryset = Shard.objects.order_by("-id")
    serializer_class = ShardSerializer
    filterset_class = ShardFilters
    ordering_fields = ("id", "start", "state", "attempts", "updated_at")

    def paginate_queryset(self, queryset: Any) -> list[Any] | None:
        page = super().paginate_queryset(queryset)
        return None if page is None else _with_leaves(page, leaves.of_shards(page))

    def get_object(self) -> Shard:
        found: Shard = super().get_object()
        return _with_leaves([found], leaves.of_shards([found]))[0]


def _with_leaves(some: list[Found], paths: Mapping[int, list[str]]) -> list[Found]:
    """``some`` with ``ran_by``."""
    for each in some:
        each.ran_by = paths[each.pk]  # type: ignore[attr-defined]
    return some


class AllocationFilters(filters.FilterSet):
    run = WholeFilter(field_name="run_id", help_text="A run's id.")
    shard = WholeFilter(field_name="shard_id", help_text="A shard's id.")
    node = WholeFilter(field_name="node_id", help_text="A node's id.")
    state = state_filter(AllocationState)
    type = filters.CharFilter()
    before = WholeFilter(
        field_name="id", lookup_expr="lt", help_text="Ids below this: pages that cost the same at any depth."
    )


@extend_schema_view(
    list=extend_schema(
        responses=AllocationInList(many=True), description="Attempts at shards, newest first, without their logs."
    ),
    retrieve=extend_schema(description="One attempt, with its log."),
)
class Allocations(mixins.RetrieveModelMixin, mixins.ListModelMixin, NativeSet):
    queryset = Allocation.objects.order_by("-id")
    serializer_class = AllocationSerializer
    filterset_class = AllocationFilters
    ordering_fields = ("id", "granted_at", "finished_at", "seconds", "rows")

    def get_queryset(self) -> QuerySet[Allocation]:
        found = Allocation.objects.order_by("-id").select_related("node")
        # Of the node only its name is shown; its speeds and executors are JSON to be parsed.
        columns = [name for name in AllocationInList.Meta.fields if name not in ("node_name", "ran_by")]
        return found.only(*columns, *(() if self.action == "list" else ("log",)), "node__name")

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        return AllocationInList if self.action == "list" else AllocationSerializer

    def paginate_queryset(self, queryset: Any) -> list[Any] | None:
        page = super().paginate_queryset(queryset)
        return None if page is None else _with_leaves(page, leaves.of_allocations(page))

    def get_object(self) -> Allocation:
        found: Allocation = super().get_object()
        return _with_leaves([found], leaves.of_allocations([found]))[0]

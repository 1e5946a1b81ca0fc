"""The scheduler as a whole, what one task's schedule says, and the calls of webhooks."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from api.views import Native, NativeSet, WholeFilter
from dispatch import schedule, webhooks
from dispatch.models import Delivery, Task


class ScheduleError(serializers.Serializer[Any]):
    error = serializers.CharField()
    fire_time = serializers.DateTimeField(allow_null=True)
    at = serializers.DateTimeField(help_text="When it was found.")


class ScheduleSerializer(serializers.Serializer[Any]):
    task = serializers.IntegerField()
    name = serializers.CharField()
    active = serializers.BooleanField()
    cron = serializers.CharField()
    time_zone = serializers.CharField(help_text="The one in force, also where the task names none.")
    misfire = serializers.CharField()
    running = serializers.BooleanField(help_text="Whether the scheduler is on; off, nothing fires.")
    fired_at = serializers.DateTimeField(allow_null=True, help_text="The last fire time dealt with.")
    next_fire_at = serializers.DateTimeField(allow_null=True, help_text="The next one to be dealt with.")
    next = serializers.ListField(child=serializers.DateTimeField(), help_text="Those from now on.")
    error = ScheduleError(allow_null=True, help_text="Why the last fire time brought no run.")


class SchedulerState(serializers.Serializer[Any]):
    running = serializers.BooleanField()
    changed_at = serializers.DateTimeField(allow_null=True, help_text="Of the last start or stop.")
    note = serializers.CharField()
    tasks = serializers.IntegerField(help_text="With a next fire time.")
    next_fire_at = serializers.DateTimeField(allow_null=True, help_text="The first of them all.")


class Reloaded(SchedulerState):
    reloaded = serializers.IntegerField(help_text="Tasks whose next fire time was reckoned anew.")


def shown(task: Task, count: int) -> dict[str, Any]:
    """The schedule of ``task`` with its next ``count`` fire times, as ``ScheduleSerializer`` declares it."""
    about = schedule.describe(task, count, timezone.now())
    written: dict[str, Any] = ScheduleSerializer(about).data
    return written


class Scheduler(Native):
    @extend_schema(responses=SchedulerState)
    def get(self, request: Request) -> Response:
        """Whether schedules fire, and what comes first."""
        return Response(SchedulerState(schedule.state()).data)


class SchedulerStart(Native):
    @extend_schema(request=None, responses=SchedulerState)
    def post(self, request: Request) -> Response:
        """Schedules fire again. What passed meanwhile is dealt with as each task's misfire policy says."""
        schedule.start(request.user.get_username())
        return Response(SchedulerState(schedule.state()).data)


class SchedulerStop(Native):
    @extend_schema(request=None, responses=SchedulerState)
    def post(self, request: Request) -> Response:
        """No schedule fires from now on; tasks can still be run by hand."""
        schedule.stop(request.user.get_username())
        return Response(SchedulerState(schedule.state()).data)


class SchedulerReload(Native):
    @extend_schema(request=None, responses=Reloaded)
    def post(self, request: Request) -> Response:
        """Reckons all next fire times anew, as after new rules of a time zone. Those due stay due."""
        count = schedule.reload()
        return Response(Reloaded({**schedule.state(), "reloaded": count}).data)


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    run = serializers.IntegerField(source="run_id", read_only=True)
    next_at = serializers.SerializerMethodField(help_text="Of the next try; null where none will be made.")

    class Meta:
        model = Delivery
        fields = ("id", "run", "url", "state", "attempts", "next_at", "status", "error", "created_at", "delivered_at")
        read_only_fields = fields

    def get_next_at(self, delivery: Delivery) -> str | None:
        waiting = delivery.state == Delivery.State.WAITING
        written: str | None = serializers.DateTimeField().to_representation(delivery.next_at) if waiting else None
        return written


class DeliveryFilters(filters.FilterSet):
    run = WholeFilter(field_name="run_id", help_text="A run's id.")
    state = filters.MultipleChoiceFilter(choices=Delivery.State.choices, help_text="Repeat it for several.")


@extend_schema_view(
    list=extend_schema(description="Calls of webhooks, newest first."),
    retrieve=extend_schema(description="One call and what came of it."),
)
class Deliveries(mixins.RetrieveModelMixin, mixins.ListModelMixin, NativeSet):
    queryset = Delivery.objects.order_by("-id")
    serializer_class = DeliverySerializer
    filterset_class = DeliveryFilters
    ordering_fields = ("id", "next_at", "created_at", "attempts")

    @extend_schema(request=None, responses=DeliverySerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Makes the call again, with the same id and all its tries anew."""
        return Response(DeliverySerializer(webhooks.retry(self.get_object().pk)).data)
